"""Print a report for a program, a terminal or a file."""

import sys
from collections.abc import Iterable
from shutil import get_terminal_size

from infer_bench.report import Report
from infer_bench.summary import summary_lines
from infer_bench.table import Table, to_markdown, to_rich
from infer_bench.tables import failure_lines, heading, report_tables


def print_report(report: Report, *, as_json: bool) -> None:
    """Print conditions, tables and a summary (or JSON) to stdout, failures to stderr."""
    if as_json:
        print(report.to_json(), end="")
    else:
        print("\n".join(heading(report)), end="\n\n")
        print_tables(report_tables(report))
        width = get_terminal_size().columns if sys.stdout.isatty() else 80
        if lines := summary_lines(report, width=width):
            print(_printable("\n".join(lines)), end="\n\n")
    for line in failure_lines(report):
        print(line, file=sys.stderr)


def print_table(table: Table) -> None:
    """Print one table."""
    print_tables([table])


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables, as markdown unless stdout is a terminal."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        for table in tables:
            for piece in to_rich(table, width=console.width):
                console.print(piece)
            console.print()
    else:
        print("\n".join(map(to_markdown, tables)))


def _printable(text: str) -> str:
    """Draw bars with '#' where stdout's encoding has no blocks; they must not end a run."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace("\N{FULL BLOCK}", "#").encode("ascii", "ignore").decode()
    return text
