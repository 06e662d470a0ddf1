"""A table of finished text, and its two faces: markdown and terminal."""

from collections.abc import Iterable, Sequence
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


def to_rich(table: Table, *, width: int) -> "list[RichTable]":
    """Render for a terminal `width` characters wide.

    A table of numbers that is wider becomes several, each with the first column: a number cut
    short is none. Tables with more text than that wrap it.
    """
    from rich.table import Table as RichTable
    from rich.text import Text

    columns = list(zip(table.header, *table.rows, strict=True))
    everything = list(range(len(columns)))
    needed: list[int | None] = [None] * len(columns)
    pieces = [everything]
    if table.left == (0,) and _drawn_width(max(map(len, cells)) for cells in columns) > width:
        # headings wrap between words, as rich would not by itself
        longest = [max(map(len, [*head.split(), *cells])) for head, *cells in columns]
        pieces = _fitting(longest, width)
        needed = [*longest]
    drawn: list[RichTable] = []
    for piece in pieces:
        title = table.title if not drawn else None
        rich = RichTable(title=title, title_justify="left", title_style="bold")
        # Text, because a folder's name may look like rich's markup
        for index in piece:
            rich.add_column(
                Text(table.header[index]),
                justify="left" if index in table.left else "right",
                width=needed[index],
            )
        for row in table.rows:
            rich.add_row(*(Text(row[index]) for index in piece))
        drawn.append(rich)
    return drawn


def _fitting(needed: Sequence[int], width: int) -> list[list[int]]:
    """Share columns out among tables that fit, the first column in each."""
    pieces = [[0]]
    for index in range(1, len(needed)):
        if len(pieces[-1]) > 1 and _drawn_width(needed[i] for i in [*pieces[-1], index]) > width:
            pieces.append([0])
        pieces[-1].append(index)
    return pieces


def _drawn_width(widths: Iterable[int]) -> int:
    """Add three characters of rule and padding a column, and one at the end."""
    return 1 + sum(width + 3 for width in widths)
