"""Finished rows on disk while a run goes on: one JSON a line, so that a run can be taken up again.

The first line says what the run is. A line that a crash or a full disk cut short is ignored.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from infer_bench.cases import Case
from infer_bench.job import Machine
from infer_bench.record import Record
from infer_bench.report import SCHEMA_VERSION, Row, Settings

# Rows that an interrupted run need not measure again; a failure is worth another try.
FINAL = ("ok", "skipped")
# Settings that do not change what is measured.
FREE = {"isolation", "timeout_s"}


class Header(Record):
    """What a run is; two runs may share rows if everything but the two dates is equal."""

    schema_version: int = SCHEMA_VERSION
    created: datetime
    suite: str
    device: str
    engines: tuple[str, ...]
    models: tuple[str, ...]
    cases: tuple[Case, ...]
    settings: Settings
    machine: Machine

    def may_continue(self, other: "Header") -> bool:
        """Whether rows of `other` may stand in this run's report."""
        free = {"created": True, "settings": FREE, "machine": {"ceilings", "gpu", "problem"}}
        return self.model_dump(exclude=free) == other.model_dump(exclude=free)  # type: ignore[arg-type]


class Journal:
    """The file that rows are appended to; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._full = False

    def start(self, header: Header) -> None:
        """Begin a file."""
        self._write(f"{header.model_dump_json()}\n", "x")

    def go_on(self) -> None:
        """Take up a file that may end in half a line."""
        self._write("\n", "a")

    def append(self, row: Row) -> None:
        """Keep a finished row; a disk that is full costs the journal, not the run."""
        self._write(f"{row.model_dump_json()}\n", "a")

    def remove(self) -> None:
        """Drop the file: the report has everything."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, text: str, mode: str) -> None:
        if self._path is None or self._full:
            return
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            print(
                f"cannot write {self._path}: {error.strerror}; the run goes on, but rows "
                "from here on could not be resumed",
                file=sys.stderr,
            )
            self._full = True
            if mode == "x" and not isinstance(error, FileExistsError):
                self._path.unlink(missing_ok=True)  # nobody could resume from it

    @property
    def is_on_disk(self) -> bool:
        """Whether there is a file to resume from."""
        return self._path is not None and self._path.exists()


class Unfinished(Record):
    """An interrupted run: its file, what it is, and the rows worth keeping."""

    path: Path
    header: Header
    rows: tuple[Row, ...]

    @classmethod
    def latest(cls, folder: Path, header: Header) -> Self | None:
        """Find the last interrupted run in a folder that this one may continue."""
        found = [
            run
            for path in sorted(folder.glob("*.jsonl"))
            if (run := cls._read(path)) is not None and header.may_continue(run.header)
        ]
        return max(found, key=lambda run: run.header.created, default=None)

    @classmethod
    def _read(cls, path: Path) -> Self | None:
        try:
            first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
            header = Header.model_validate_json(first)
        except (OSError, ValueError):
            return None
        rows = {}
        for line in lines:
            try:
                row = Row.model_validate_json(line)
            except ValidationError:
                continue
            rows[row.key] = row  # a later try of the same cell counts
        return cls(
            path=path,
            header=header,
            rows=tuple(row for row in rows.values() if row.status in FINAL),
        )
