"""The end of a run on a terminal: bars to compare by eye, best and worst use of the memory."""

from infer_bench.catalogue import METRICS, cells, columns
from infer_bench.report import Report

BAR_WIDTH = 32
EIGHTHS = " ▏▎▍▌▋▊▉"


def summary_lines(report: Report) -> list[str]:
    """Give one bar a model and engine for the headline config, then the extremes of MBU."""
    metric = METRICS["e2e_tokens_per_s"]
    rows = cells(report)
    names = [case.name for case in report.cases]
    headline = "medium" if "medium" in names else names[0]
    values = [
        (column.label, metric.value(rows.get((column.engine, column.model, headline))))
        for column in columns(report)
    ]
    known = [value for _, value in values if value is not None]
    lines = []
    if known:
        lines.append(f"E2E throughput of {headline} (tok/s)")
        width = max(len(label) for label, _ in values)
        for label, value in values:
            if value is not None:
                bar = _bar(value / max(known))
                lines.append(f"  {label.ljust(width)} {bar} {value:.1f}")
    return lines + _extremes(report)


def _extremes(report: Report) -> list[str]:
    labels = {(column.engine, column.model): column.label for column in columns(report)}
    used = [
        (row.metrics.mbu, f"{labels[row.engine, row.model]} {row.case}")
        for row in report.rows
        if row.metrics is not None and row.metrics.mbu is not None
    ]
    if not used:
        return []
    lines = []
    for what, (mbu, where) in (("best", max(used)), ("worst", min(used))):
        lines.append(f"{what.ljust(5)} MBU {_bar(mbu)} {100 * mbu:.1f} % ({where})")
    return lines


def _bar(fraction: float) -> str:
    """Draw a bar to an eighth of a character; what is above 1 fills it."""
    eighths = round(8 * BAR_WIDTH * max(0.0, min(1.0, fraction)))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(BAR_WIDTH)
