"""Progress of a long run, on stderr: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from infer_bench.report import Row

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """Counts finished cells; says which model and case run now. Use as a context manager."""

    def __init__(self, num_cells: int) -> None:
        self._num_cells = num_cells
        self._done = 0
        self._started = time.perf_counter()
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task("starting", total=self._num_cells)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def working_on(self, what: str) -> None:
        """Say what is being loaded or run."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=what)

    def finished(self, label: str, row: Row) -> None:
        """Count one cell and say how it went."""
        self._done += 1
        if row.metrics is None:
            outcome = f"{row.status}: {row.reason}"
        else:
            outcome = f"{row.metrics.e2e_tokens_per_s:.1f} tok/s"
        line = f"[{self._done}/{self._num_cells}] {label} {row.case}: {outcome}"
        if self._bar is None:
            elapsed = time.perf_counter() - self._started
            print(f"{line} ({elapsed:.1f} s)", file=sys.stderr, flush=True)
        else:
            self._bar.advance(self._bar.task_ids[0])
            if row.metrics is None:
                self._bar.console.print(line, markup=False, highlight=False)
