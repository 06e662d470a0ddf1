"""The verdict of the plugin kit on one installed version, kept in the user's cache folder.

`infer_core.testing` writes it after a run, `infer plugins list` shows it.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.utils import canonicalize_name


@dataclass(frozen=True, slots=True)
class KitRecord:
    """A plugin passed every check of the kit; `skipped` counts those that could not run here."""

    distribution: str
    version: str
    core_version: str
    passed: int
    skipped: int

    @property
    def badge(self) -> str:
        """One line for a person."""
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"passed with infer-core {self.core_version} ({self.passed} checks{skipped})"


def write_record(record: KitRecord) -> None:
    """Remember a pass, whole or not at all; a cache folder that cannot be written is no error."""
    path = _path(record.distribution, record.version)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(path)


def read_record(distribution: str, version: str) -> KitRecord | None:
    """Give the pass of this version, or None: never run, failed since, or unreadable."""
    try:
        record = KitRecord(**json.loads(_path(distribution, version).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    same = (canonicalize_name(record.distribution), record.version)
    return record if same == (canonicalize_name(distribution), version) else None


def remove_record(distribution: str, version: str) -> None:
    """Forget a pass: the same version has failed since."""
    with suppress(OSError):
        _path(distribution, version).unlink(missing_ok=True)


def _path(distribution: str, version: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    file = f"{canonicalize_name(distribution)}-{version.replace('/', '_')}.json"
    return Path(cache) / "infer-core" / "kit" / file
