"""The end of a run on a terminal: bars to compare by eye, best and worst use of the memory."""

from infer_bench.catalogue import METRICS, cells, columns
from infer_bench.report import Report

BAR_WIDTH = 32  # at most; a narrow terminal gets shorter bars
EIGHTHS = " ▏▎▍▌▋▊▉"


def summary_lines(report: Report, *, width: int = 80) -> list[str]:
    """Give one bar a model and engine for the headline config, then the extremes of MBU.

    `width` is that of the terminal, in characters.
    """
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
        label_width = max(len(label) for label, _ in values)
        bar_width = _room(width, label_width + len(f"   {max(known):.1f}"))
        for label, value in values:
            if value is not None:
                bar = _bar(value / max(known), bar_width)
                lines.append(f"  {label.ljust(label_width)} {bar} {value:.1f}")
    return lines + _extremes(report, width)


def _extremes(report: Report, width: int) -> list[str]:
    labels = {(column.engine, column.model): column.label for column in columns(report)}
    used = [
        (row.metrics.mbu, f"{labels[row.engine, row.model]} {row.case}")
        for row in report.rows
        if row.metrics is not None and row.metrics.mbu is not None
    ]
    if not used:
        return []
    extremes = [("best", *max(used)), ("worst", *min(used))]
    texts = [f"{100 * mbu:.1f} % ({where})" for _, mbu, where in extremes]
    bar_width = _room(width, len("worst MBU  ") + max(map(len, texts)))
    return [
        f"{what.ljust(5)} MBU {_bar(mbu, bar_width)} {text}"
        for (what, mbu, _), text in zip(extremes, texts, strict=True)
    ]


def _room(width: int, taken: int) -> int:
    return max(8, min(BAR_WIDTH, width - taken))


def _bar(fraction: float, width: int) -> str:
    """Draw a bar to an eighth of a character; what is above 1 fills it."""
    eighths = round(8 * width * max(0.0, min(1.0, fraction)))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[rest] if rest else "")).ljust(width)
