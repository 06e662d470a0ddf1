"""Finished rows on disk while a run goes on: one JSON a line, so that a run can be taken up again.

The first line says what the run is. A line that a crash or a full disk cut short is ignored.
A run locks its file, and the system unlocks it when the run's process ends, however it ends.
"""

import fcntl
import os
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from infer_bench.cases import Case
from infer_bench.errors import UsageError
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
    """The file that rows are appended to, locked until closed; without a path nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._full = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, header: Header) -> None:
        """Begin a file.

        Raises:
            FileExistsError: there is one.
        """
        self._write(f"{header.model_dump_json()}\n", begins=True)

    def go_on(self) -> None:
        """Take up a file that may end in half a line.

        Raises:
            UsageError: the run that writes it is still going.
        """
        self._write("\n")

    def append(self, row: Row) -> None:
        """Keep a finished row; a disk that is full costs the journal, not the run."""
        self._write(f"{row.model_dump_json()}\n")

    def close(self) -> None:
        """Let another run take up the file."""
        if self._file is not None:
            self._file.close()

    def remove(self) -> None:
        """Drop the file: the report has everything."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, text: str, *, begins: bool = False) -> None:
        if self._path is None or self._full:
            return
        try:
            if self._file is None:
                self._file = _open_locked(self._path, begins=begins)
            rest = text.encode()
            while rest:  # a disk that is nearly full takes a part
                rest = rest[self._file.write(rest) :]
        except FileExistsError:
            raise
        except OSError as error:
            print(
                f"cannot write {self._path}: {error.strerror}; the run goes on, but rows "
                "from here on could not be resumed",
                file=sys.stderr,
            )
            self._full = True
            if begins:
                self._path.unlink(missing_ok=True)  # nobody could resume from it

    @property
    def is_on_disk(self) -> bool:
        """Whether there is a file to resume from."""
        return self._path is not None and self._path.exists()


def _open_locked(path: Path, *, begins: bool) -> FileIO:
    """Open a file to append to, which nobody else may do until it is closed.

    Unbuffered, so that closing it has nothing left to write; workers do not inherit it.
    """
    flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT | os.O_EXCL if begins else 0)
    file = os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UsageError(
            f"cannot resume {path}: the run that writes it is still going; wait until it is done, "
            f"or end it first (`fuser {path}` names its process). Without --resume, a run of its "
            "own starts"
        ) from error
    except OSError:  # a file system without locks (ENOLCK, EOPNOTSUPP) is no reason to stop
        pass
    return file


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An interrupted run: its file, what it is, and the rows worth keeping."""

    path: Path
    journal: Journal
    header: Header
    rows: tuple[Row, ...]

    @classmethod
    def latest(cls, folder: Path, header: Header) -> Self | None:
        """Find the last interrupted run in a folder that this one may continue, and lock it.

        Raises:
            UsageError: that run is still going.
        """
        found = [
            run
            for path in sorted(folder.glob("*.jsonl"))
            if (run := cls._read(path)) is not None and header.may_continue(run.header)
        ]
        last = max(found, key=lambda run: run.header.created, default=None)
        if last is None:
            return None
        last.journal.go_on()
        again = cls._read(last.path)  # until it was locked, rows may have come, or it may have gone
        if again is None:
            last.journal.close()
            return None
        return replace(again, journal=last.journal)

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
            journal=Journal(path),
            header=header,
            rows=tuple(row for row in rows.values() if row.status in FINAL),
        )
