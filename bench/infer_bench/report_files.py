"""Reports on disk: written whole or not at all, read with every error in words."""

import json
import os
import re
from datetime import UTC
from pathlib import Path

from pydantic import ValidationError

from infer_bench.errors import ReportError, UsageError
from infer_bench.migrate import migrate
from infer_bench.report import Report
from infer_core import user_cache


def load_report(path: Path) -> Report:
    """Read a report of this or an older schema version.

    Raises:
        ReportError: no such file, not JSON, or not a report.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReportError(f"cannot read the report {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(
            f"{path} is not JSON ({error}); it is damaged, or no report of infer-bench"
        ) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise ReportError(f"{path} is not a report of infer-bench: it has no schema_version")
    try:
        return Report.model_validate(migrate(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ReportError(
            f"{path} is not a valid report: {where}: {first['msg']} "
            f"({error.error_count()} such errors)"
        ) from error
    except ValueError as error:
        raise ReportError(f"cannot use the report {path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is not a valid report: {type(error).__name__}: {error}"
        ) from error


def prepare_folder(folder: Path) -> None:
    """Make the folder for reports; fail now rather than after a long run.

    Raises:
        UsageError: the folder cannot be made or written.
    """
    probe = folder / f".writable-{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write reports to {folder}: {error.strerror}; "
            "give another --output-dir, or --no-save"
        ) from error


def report_path(report: Report, folder: Path) -> Path:
    """Give a report a file name nobody has: when, what, where."""
    gpu = report.environment.gpu.name if report.environment.gpu else report.device
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    stem = f"{report.created.astimezone(UTC):%Y%m%dT%H%M%SZ}-{report.suite}-{slug}"
    path, number = folder / f"{stem}.json", 2
    # the journal of another run that has just begun takes the name as well
    while path.exists() or path.with_suffix(".jsonl").exists():
        path, number = folder / f"{stem}-{number}.json", number + 1
    return path


def write_whole(path: Path, text: str) -> None:
    """Put `text` in a file, replacing it if it is there; after an error nothing has changed.

    Raises:
        ReportError: the file could not be written.
    """
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing to replace
            path.write_text(text, encoding="utf-8")
        else:
            user_cache.write_whole(path, text)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error


def save_report(report: Report, path: Path) -> None:
    """Write a report whole or not at all.

    Raises:
        ReportError: the file could not be written; nothing of it is left behind.
    """
    write_whole(path, report.to_json())
