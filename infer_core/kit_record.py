"""The verdict of the plugin kit on one installed version, kept in the user's cache folder.

`infer_core.testing` writes it after a run, `infer plugins list` shows it.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from infer_core.user_cache import cache_folder, write_whole


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
    with suppress(OSError):
        write_whole(path, json.dumps(asdict(record), indent=2) + "\n")


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
    file = f"{canonicalize_name(distribution)}-{version.replace('/', '_')}.json"
    return cache_folder("kit") / file
