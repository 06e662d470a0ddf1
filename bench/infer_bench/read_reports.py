"""What `infer-bench compare` and `infer-bench report` do with saved reports."""

import sys
from collections.abc import Sequence
from pathlib import Path

from infer_bench.compare import compare
from infer_bench.compare_output import comparison_table, to_junit, verdict_lines
from infer_bench.errors import UsageError
from infer_bench.exit_codes import EXIT_OK
from infer_bench.gate import exit_code, load_baseline
from infer_bench.log_entry import to_log_entry
from infer_bench.page import to_page
from infer_bench.report import Report
from infer_bench.report_files import load_report, write_whole
from infer_bench.rows_csv import to_csv
from infer_bench.show import print_report, print_table
from infer_bench.table import to_markdown


def compare_two(
    paths: Sequence[Path],
    *,
    baseline: str | None,
    folder: Path,
    metrics: tuple[str, ...],
    max_regress: float,
    force: bool,
    markdown: Path | None,
    junit: Path | None,
) -> int:
    """Print the comparison, write the files asked for, give the exit code.

    Raises:
        UsageError: not two reports, or no such baseline.
        NotComparable: unlike conditions, or nothing in common.
        ReportError: a file cannot be read or written.
    """
    before, after = _two_reports(paths, baseline, folder)
    changes = compare(before, after, metrics=metrics, max_regress=max_regress, force=force)
    table, verdicts = comparison_table(changes), verdict_lines(changes, before, after)
    print_table(table)
    print(verdicts)
    if markdown is not None:
        write_whole(markdown, f"{to_markdown(table)}\n{verdicts.replace(chr(10), chr(10) * 2)}\n")
    if junit is not None:
        write_whole(junit, to_junit(changes, max_regress=max_regress))
    return exit_code(changes)


def show(
    paths: Sequence[Path],
    *,
    models: Sequence[str] = (),
    html: Path | None,
    markdown: bool,
    title: str,
    csv: bool,
) -> int:
    """Write the page, print the log entry or the CSV; with none of them print the tables.

    With `models` only those are shown, in that order.

    Raises:
        ReportError: a file cannot be read or written.
        UsageError: one of `models` is in none of the reports.
    """
    reports = [load_report(path) for path in paths]
    if models:
        reports = _only(reports, models)
    if html is not None:
        write_whole(html, to_page(reports))
        print(f"page: {html}", file=sys.stderr)
    if markdown:
        print("\n---\n\n".join(to_log_entry(report, title=title) for report in reports), end="")
    elif csv:
        print(to_csv(reports), end="")
    elif html is None:
        for report in reports:
            print_report(report, as_json=False)
    return EXIT_OK


def _only(reports: Sequence[Report], models: Sequence[str]) -> list[Report]:
    known = list(dict.fromkeys(model.name for report in reports for model in report.models))
    for name in models:
        if name not in known:
            raise UsageError(f"no report has a model {name!r}; there: {', '.join(known)}")
    chosen = []
    for report in reports:
        of_name = {model.name: model for model in report.models}
        shown = tuple(of_name[name] for name in dict.fromkeys(models) if name in of_name)
        rows = tuple(row for row in report.rows if row.model in models)
        chosen.append(report.model_copy(update={"models": shown, "rows": rows}))
    return chosen


def _two_reports(
    paths: Sequence[Path], baseline: str | None, folder: Path
) -> tuple[Report, Report]:
    expected = 1 if baseline else 2
    if len(paths) != expected:
        raise UsageError(
            f"{len(paths)} reports given, expected {expected}: "
            + ("the one to hold against --baseline" if baseline else "before and after")
        )
    if baseline:
        return load_baseline(folder, baseline), load_report(paths[0])
    return load_report(paths[0]), load_report(paths[1])
