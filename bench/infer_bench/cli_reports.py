"""The commands that read reports: `infer-bench compare` and `infer-bench report`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from infer_bench.catalogue import METRICS
from infer_bench.compare import DEFAULT_METRICS, compare
from infer_bench.compare_output import comparison_table, to_junit, verdict_line
from infer_bench.errors import NotComparable, UsageError
from infer_bench.exit_codes import EXIT_FAILURES, EXIT_NOT_COMPARABLE, EXIT_OK, EXIT_USAGE
from infer_bench.gate import exit_code, load_baseline
from infer_bench.log_entry import to_log_entry
from infer_bench.page import to_page
from infer_bench.report import Report
from infer_bench.report_files import load_report, write_whole
from infer_bench.rows_csv import to_csv
from infer_bench.show import print_report, print_table
from infer_bench.table import to_markdown
from infer_core import InferError

DEFAULT_FOLDER = Path("bench/reports")


def add_report_commands(app: typer.Typer) -> None:
    """Put the commands beside the main one."""
    app.command("compare")(compare_reports)
    app.command("report")(show_reports)


def compare_reports(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="A.json B.json", help="Before and after; with --baseline only one."),
    ],
    max_regress: Annotated[str, typer.Option(help="How much worse is too much.")] = "5%",
    metric: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeat for several. Default: {' and '.join(DEFAULT_METRICS)}"),
    ] = None,
    baseline: Annotated[str | None, typer.Option(metavar="NAME", help="Stands for A.json.")] = None,
    output_dir: Annotated[
        Path, typer.Option(help="Folder of reports, where baselines lie.")
    ] = DEFAULT_FOLDER,
    markdown: Annotated[Path | None, typer.Option(help="Write the table to a file.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to a file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare unlike reports too.")] = False,
) -> None:
    """Say what became faster or slower between two reports, beyond chance.

    Exit codes: 0 nothing worse; 2 usage; 3 regression, or a row that no longer works; 4 the
    reports are not comparable.
    """
    try:
        before, after = _two_reports(reports, baseline, output_dir)
        limit = percent(max_regress)
        changes = compare(
            before, after, metrics=check_metrics(metric), max_regress=limit, force=force
        )
        table = comparison_table(changes)
        print_table(table)
        print(verdict_line(changes))
        if markdown is not None:
            write_whole(markdown, f"{to_markdown(table)}\n{verdict_line(changes)}\n")
        if junit is not None:
            write_whole(junit, to_junit(changes, max_regress=limit))
        code = exit_code(changes)
    except NotComparable as error:
        code = complain(error, EXIT_NOT_COMPARABLE)
    except UsageError as error:
        code = complain(error, EXIT_USAGE)
    except InferError as error:
        code = complain(error, EXIT_FAILURES)
    raise typer.Exit(code)


def show_reports(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT.json...", help="One, or several for their history."),
    ],
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the entry for the benchmark log.")
    ] = False,
    title: Annotated[str, typer.Option(help="Heading of the log entry.")] = "infer-bench",
    csv: Annotated[bool, typer.Option("--csv", help="Print a line a row.")] = False,
) -> None:
    """Show reports: a page to look at, the log's markdown, CSV, or the tables once more."""
    try:
        if markdown and csv:
            raise UsageError("--markdown and --csv both print to stdout; give one")
        loaded = [load_report(path) for path in reports]
        if html is not None:
            write_whole(html, to_page(loaded))
            print(f"page: {html}", file=sys.stderr)
        if markdown:
            print("\n---\n\n".join(to_log_entry(report, title=title) for report in loaded), end="")
        elif csv:
            print(to_csv(loaded), end="")
        elif html is None:
            for report in loaded:
                print_report(report, as_json=False)
        code = EXIT_OK
    except UsageError as error:
        code = complain(error, EXIT_USAGE)
    except InferError as error:
        code = complain(error, EXIT_FAILURES)
    raise typer.Exit(code)


def complain(error: InferError, code: int) -> int:
    """Show an error as one message; gives the code on."""
    print(f"infer-bench: error: {error}", file=sys.stderr)
    return code


def percent(text: str) -> float:
    """Read "5%" or "5" as 0.05.

    Raises:
        UsageError: it is no percentage from 0 to 100.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", text.strip())
    if match is None or float(match[1]) > 100:
        raise UsageError(f"--max-regress {text!r} is no percentage; expected something like 5%")
    return float(match[1]) / 100


def check_metrics(names: Sequence[str] | None) -> tuple[str, ...]:
    """Give metrics to compare.

    Raises:
        UsageError: one is unknown, or has no better and worse.
    """
    known = [metric.name for metric in METRICS.values() if metric.higher_is_better is not None]
    for name in names or ():
        if name not in known:
            raise UsageError(f"unknown --metric {name!r}; known: {', '.join(known)}")
    return tuple(dict.fromkeys(names or DEFAULT_METRICS))


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
