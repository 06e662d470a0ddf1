"""Baselines: a report kept under a name, and the exit code of holding a run against it."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from infer_bench.compare import BAD, DEFAULT_MAX_REGRESS, DEFAULT_METRICS, Change, compare
from infer_bench.compare_output import comparison_table, verdict_lines
from infer_bench.errors import NotComparable, UsageError
from infer_bench.exit_codes import EXIT_NOT_COMPARABLE, EXIT_OK, EXIT_REGRESSION
from infer_bench.report import Report
from infer_bench.report_files import load_report, prepare_folder, write_whole
from infer_bench.table import to_markdown

FOLDER = "baselines"


def baseline_path(folder: Path, name: str) -> Path:
    """Give the file a baseline lies in.

    Raises:
        UsageError: the name is not one a file can safely have.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"{name!r} is no name for a baseline; use letters, digits, '.', '_' and '-'"
        )
    return folder / FOLDER / f"{name}.json"


def load_baseline(folder: Path, name: str) -> Report:
    """Read a baseline.

    Raises:
        UsageError: there is none of that name; lists those there are.
        ReportError: its file cannot be used.
    """
    path = baseline_path(folder, name)
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.json"))
        raise UsageError(
            f"no baseline {name!r} in {path.parent}; there: {', '.join(known) or 'none'}. "
            f"Make one: infer-bench --save-baseline {name}"
        )
    return load_report(path)


@dataclass(frozen=True, slots=True)
class Gate:
    """What to do with a run's report besides saving it."""

    save_as: str | None = None
    against: str | None = None
    metrics: tuple[str, ...] = DEFAULT_METRICS
    max_regress: float = DEFAULT_MAX_REGRESS
    force: bool = False

    def check(self, folder: Path | None) -> None:
        """Fail before a long run rather than after it.

        Raises:
            UsageError: no folder for baselines, a bad name, or no such baseline.
            ReportError: the baseline cannot be used.
        """
        for name in (self.save_as, self.against):
            if name is not None and folder is None:
                raise UsageError("baselines lie in the folder of reports; drop --no-save")
        if self.save_as is not None and folder is not None:
            prepare_folder(baseline_path(folder, self.save_as).parent)
        if self.against is not None and folder is not None:
            load_baseline(folder, self.against)

    def close(self, report: Report, folder: Path | None) -> int:
        """Compare with the baseline, then save; a run that regressed is not saved over one.

        Returns:
            EXIT_OK, EXIT_REGRESSION or EXIT_NOT_COMPARABLE.
        """
        code = EXIT_OK
        if folder is None:
            return code
        if self.against is not None:
            try:
                before = load_baseline(folder, self.against)
                changes = compare(
                    before,
                    report,
                    metrics=self.metrics,
                    max_regress=self.max_regress,
                    force=self.force,
                )
            except NotComparable as error:
                print(f"infer-bench: error: {error}", file=sys.stderr)
                return EXIT_NOT_COMPARABLE
            print(to_markdown(comparison_table(changes)), file=sys.stderr)
            verdicts = verdict_lines(changes, before, report)
            print(f"against baseline {self.against}: {verdicts}", file=sys.stderr)
            code = exit_code(changes)
        if self.save_as is not None and code == EXIT_OK:
            path = baseline_path(folder, self.save_as)
            write_whole(path, report.to_json())
            print(f"baseline: {path}", file=sys.stderr)
        return code


def exit_code(changes: list[Change]) -> int:
    """Say with the exit code whether anything became worse."""
    bad = any(change.verdict in BAD for change in changes)
    return EXIT_REGRESSION if bad else EXIT_OK
