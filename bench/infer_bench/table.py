"""A table of finished text, and its two faces: markdown and terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a header and rows of finished text; columns in `left` are left-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[int, ...] = (0,)


def to_markdown(table: Table) -> str:
    """Render as a markdown section with aligned columns, as the log has them."""
    return f"### {table.title}\n\n{markdown_rows(table)}"


def markdown_rows(table: Table) -> str:
    """Render header and rows alone."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if index in table.left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width + 2) if index in table.left else "-" * (width + 1) + ":"
        for index, width in enumerate(widths)
    ]
    return "\n".join([line(table.header), f"|{'|'.join(rule)}|", *map(line, table.rows)]) + "\n"


def to_rich(table: Table) -> "RichTable":
    """Render for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(title=table.title, title_justify="left", title_style="bold")
    # Text, because a folder's name may look like rich's markup
    for index, name in enumerate(table.header):
        rich.add_column(Text(name), justify="left" if index in table.left else "right")
    for row in table.rows:
        rich.add_row(*map(Text, row))
    return rich
