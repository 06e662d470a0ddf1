"""A table per metric in the layout of the benchmark log: configs down, models across."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_bench.report import Metrics, Report, Row

if TYPE_CHECKING:
    from rich.table import Table as RichTable


@dataclass(frozen=True, slots=True)
class Table:
    """A title, a header and rows of finished text; the first column is left-aligned."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class _Column:
    """One number a model; `suffix` follows the model's label where a table has several."""

    suffix: str
    value: Callable[[Metrics], float | None]
    unit: str


_TABLES = (
    ("E2E throughput (tok/s)", (_Column("", lambda m: m.e2e_tokens_per_s, "tok/s"),)),
    ("Decode throughput (tok/s)", (_Column("", lambda m: m.decode_tokens_per_s, "tok/s"),)),
    (
        "Per-step decode latency (ms)",
        (
            _Column("P50", lambda m: m.step_p50_ms, "ms"),
            _Column("P95", lambda m: m.step_p95_ms, "ms"),
        ),
    ),
    ("TTFT / prefill (ms)", (_Column("", lambda m: m.ttft_ms, "ms"),)),
    (
        "KV cache memory (MB) and peak GPU allocation (GB)",
        (
            _Column("cache", lambda m: m.kv_cache_mb, "MB"),
            _Column("peak", lambda m: m.peak_gpu_gb, "GB"),
        ),
    ),
    (
        "Memory bandwidth utilisation of decode (%)",
        (_Column("", lambda m: None if m.mbu is None else 100 * m.mbu, "%"),),
    ),
)


def report_tables(report: Report) -> list[Table]:
    """Lay out every metric the report holds, the log's order first, then load and warm-up."""
    cells = {(row.model, row.case): row for row in report.rows}
    tables: list[Table] = []
    for title, columns in _TABLES:
        known = [
            column
            for column in columns
            for row in report.rows
            if row.metrics is not None and column.value(row.metrics) is not None
        ]
        # a table nobody has a number for says nothing, except the first: it shows the failures
        if known or not tables:
            tables.append(_metric_table(report, cells, title, columns))
    tables.append(_start_up_table(report, cells))
    return tables


def heading(report: Report) -> list[str]:
    """Say under which conditions the numbers were taken."""
    gpu = report.environment.gpu
    if gpu is None:
        tiny = any(model.loaded is not None and model.loaded.tiny for model in report.models)
        models = "tiny reference models" if tiny else "no GPU takes part"
        lines = [f"device: cpu ({models}, plain-torch path; these are no GPU numbers)"]
    else:
        driver = f", driver {gpu.driver}" if gpu.driver else ""
        cuda = f", CUDA {report.environment.cuda}" if report.environment.cuda else ""
        lines = [
            f"device: {gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB, {gpu.num_sms} SMs, "
            f"compute {gpu.compute_capability}{cuda}{driver})"
        ]
    if report.read_bandwidth_bytes_per_s is not None:
        lines.append(
            f"read bandwidth: {report.read_bandwidth_bytes_per_s / 1e12:.2f} TB/s, measured now"
        )
    for model in report.models:
        if model.loaded is not None:
            weights = "random weights" if model.loaded.weights == "dummy" else "checkpoint"
            lines.append(
                f"{model.label}: {model.name}, {weights}, {model.loaded.dtype}, "
                f"{model.loaded.kernels} kernels{', unfused' if model.loaded.unfused else ''}"
            )
    settings = report.settings
    lines.append(
        f"suite {report.suite}: {settings.warmup} warm-ups, median of {settings.trials} trials, "
        f"seed {settings.seed}{'' if settings.kv_cache else ', no KV cache'}"
    )
    return lines


def failure_lines(report: Report) -> list[str]:
    """Say what failed and why, one line for each model and reason."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for row in report.failures:
        reasons.setdefault((row.model, row.status, row.reason or ""), []).append(row.case)
    lines = []
    for (model, status, reason), cases in reasons.items():
        where = "every config" if len(cases) == len(report.cases) else ", ".join(cases)
        lines.append(f"{status}: {model} ({where}): {reason}")
    return lines


def to_markdown(table: Table) -> str:
    """Render as a markdown section with aligned columns, as the log has them."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    lines = [line(table.header), f"|{'|'.join(rule)}|", *map(line, table.rows)]
    return f"### {table.title}\n\n" + "\n".join(lines) + "\n"


def to_rich(table: Table) -> "RichTable":
    """Render for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    rich = RichTable(title=table.title, title_justify="left", title_style="bold")
    # Text, because a folder's name may look like rich's markup
    rich.add_column(Text(table.header[0]))
    for name in table.header[1:]:
        rich.add_column(Text(name), justify="right")
    for row in table.rows:
        rich.add_row(*map(Text, row))
    return rich


def _metric_table(
    report: Report,
    cells: dict[tuple[str, str], Row],
    title: str,
    columns: Sequence[_Column],
) -> Table:
    decimals = {
        unit: _decimals(
            [
                column.value(row.metrics)
                for row in report.rows
                for column in columns
                if row.metrics is not None and column.unit == unit
            ]
        )
        for unit in {column.unit for column in columns}
    }
    header = ["Config"]
    for model in report.models:
        header += [f"{model.label} {column.suffix}".strip() for column in columns]
    rows = []
    for case in report.cases:
        line = [case.name]
        for model in report.models:
            row = cells.get((model.name, case.name))
            line += [_cell(row, column, decimals[column.unit]) for column in columns]
        rows.append(tuple(line))
    return Table(title, tuple(header), tuple(rows))


def _start_up_table(report: Report, cells: dict[tuple[str, str], Row]) -> Table:
    """Load once a model, then the compilation and graph capture each config caused."""
    warm_up = _Column("", lambda m: m.warm_up_s, "s")
    load = [
        "-" if model.loaded is None else f"{model.loaded.load_s:.2f}" for model in report.models
    ]
    rows = [("load", *load)]
    for case in report.cases:
        found = [cells.get((model.name, case.name)) for model in report.models]
        rows.append((case.name, *(_cell(row, warm_up, 2) for row in found)))
    header = ("Config", *(model.label for model in report.models))
    return Table("Load and warm-up (s)", header, tuple(rows))


def _cell(row: Row | None, column: _Column, decimals: int) -> str:
    if row is None:
        return "-"
    if row.metrics is None:
        return row.status
    value = column.value(row.metrics)
    return "-" if value is None else f"{value:.{decimals}f}"


def _decimals(values: Sequence[float | None]) -> int:
    """One decimal, as in the log; three once a value is so small that one would blur it."""
    known = [value for value in values if value is not None]
    return 3 if known and min(known) < 2 else 1
