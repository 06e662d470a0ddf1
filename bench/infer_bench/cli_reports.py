"""The commands that read reports, `infer-bench compare` and `infer-bench report`: their options.

As light to import as cli.py.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from infer_bench.errors import NotComparable, UsageError
from infer_bench.exit_codes import (
    EXIT_FAILURES,
    EXIT_INTERRUPTED,
    EXIT_NOT_COMPARABLE,
    EXIT_USAGE,
)
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
        typer.Option(help="Comma-separated or repeated. Default: e2e_tokens_per_s and step_p50_ms"),
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

    Exit codes: 0 nothing worse; 1 a file cannot be read or written; 2 usage; 3 regression, or a
    row that no longer works; 4 the reports are not comparable.
    """

    def run() -> int:
        from infer_bench import choices, read_reports

        return read_reports.compare_two(
            reports,
            baseline=baseline,
            folder=output_dir,
            metrics=choices.metrics(metric),
            max_regress=choices.percent(max_regress),
            force=force,
            markdown=markdown,
            junit=junit,
        )

    raise typer.Exit(exit_code_of(run))


def show_reports(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT.json...", help="One, or several for their history."),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only these models, columns in this order; comma-separated or repeated."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained page.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the entry for the benchmark log.")
    ] = False,
    title: Annotated[str, typer.Option(help="Heading of the log entry.")] = "infer-bench",
    csv: Annotated[bool, typer.Option("--csv", help="Print a line a row.")] = False,
) -> None:
    """Show reports: a page to look at, the log's markdown, CSV, or the tables once more."""

    def run() -> int:
        from infer_bench import choices, read_reports

        if markdown and csv:
            raise UsageError("--markdown and --csv both print to stdout; give one")
        return read_reports.show(
            reports,
            models=choices.split("--model", model or []),
            html=html,
            markdown=markdown,
            title=title,
            csv=csv,
        )

    raise typer.Exit(exit_code_of(run))


def exit_code_of(run: Callable[[], int]) -> int:
    """Run a command; an error becomes one message on stderr and its exit code."""
    try:
        code = run()
        sys.stdout.flush()  # else a full disk or a closed pipe is noticed too late
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except InferError as error:
        print(f"infer-bench: error: {error}", file=sys.stderr)
        if isinstance(error, NotComparable):
            return EXIT_NOT_COMPARABLE
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILURES
    except BrokenPipeError:  # `| head` has seen enough; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURES
    except OSError as error:  # stdout is full, no process can be started
        print(f"infer-bench: error: {error}", file=sys.stderr)
        return EXIT_FAILURES
