"""Charts as inline SVG: bars, distributions and lines, coloured by the page's style sheet.

Coordinates are pixels at a panel width of 360; the page scales panels with the window. Every mark
carries its numbers in a <title>, which browsers show on hover and screen readers read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from infer_bench.intervals import percentile
from infer_bench.page_style import NUM_COLOURS

WIDTH = 360
LABEL_WIDTH = 66
RIGHT = 52
BAR = 13
NUM_BINS = 48


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; `value` None shows `note` in its place."""

    label: str
    colour: int
    value: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line through points (x, y)."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Ridge:
    """One distribution."""

    label: str
    colour: int
    values: Sequence[float]


def bars(items: Sequence[Bar], *, unit: str, top: float | None = None, floor_at: float = 0) -> str:
    """Draw horizontal bars, neighbours of one label together; `floor_at` marks a limit."""
    known = [item.value for item in items if item.value is not None]
    limit = top or max(known, default=1.0) or 1.0
    room = WIDTH - LABEL_WIDTH - RIGHT
    parts, y, before = [], 4.0, None
    for item in items:
        if item.label != before:
            y += 0 if before is None else 7
            parts.append(_text(LABEL_WIDTH - 6, y + BAR - 3, item.label, anchor="end"))
        before = item.label
        if item.value is None:
            parts.append(_text(LABEL_WIDTH, y + BAR - 3, item.note))
        else:
            width = room * min(1.0, item.value / limit)
            shown = f"{item.value:.{0 if item.value >= 100 else 1}f}"
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{y:.1f}" width="{max(1.0, width):.1f}" '
                f'height="{BAR - 2}" rx="2" class="f{item.colour % NUM_COLOURS}">'
                f"<title>{escape(item.note)}: {shown} {escape(unit)}</title></rect>"
            )
            text_x = LABEL_WIDTH + width + 5
            parts.append(_text(text_x, y + BAR - 3.5, shown, kind="value"))
        y += BAR
    if floor_at:
        x = LABEL_WIDTH + room * min(1.0, floor_at / limit)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{y + 4:.1f}" class="floor"/>')
    return _svg(parts, y + 6)


def ridges(items: Sequence[Ridge], *, unit: str) -> str:
    """Draw one small histogram a line, all over one axis from P1 to P99 of what there is."""
    low = min(percentile(item.values, 1) for item in items)
    high = max(percentile(item.values, 99) for item in items)
    if high <= low:
        high = low + max(abs(low), 1e-9) * 0.01
    room, height = WIDTH - LABEL_WIDTH - RIGHT, 26.0
    parts = _x_axis(low, high, LABEL_WIDTH, room, len(items) * height + 6)
    for index, item in enumerate(items):
        base = (index + 1) * height + 2
        counts = [0] * NUM_BINS
        for value in item.values:
            counts[max(0, min(NUM_BINS - 1, int((value - low) / (high - low) * NUM_BINS)))] += 1
        step = room / NUM_BINS
        # the outermost bins also hold what lies beyond the axis
        path = [f"M{LABEL_WIDTH} {base:.1f}"]
        for bin_, count in enumerate(counts):
            top = base - (height - 6) * count / max(counts)
            path.append(f"L{LABEL_WIDTH + bin_ * step:.1f} {top:.1f}h{step:.2f}")
        path.append(f"V{base:.1f}Z")
        p50, p95, p99 = (percentile(item.values, p) for p in (50, 95, 99))
        title = (
            f"{item.label}: P50 {p50:.3f}, P95 {p95:.3f}, P99 {p99:.3f} {unit}, "
            f"n = {len(item.values)}"
        )
        parts.append(
            f'<path d="{"".join(path)}" class="f{item.colour % NUM_COLOURS}">'
            f"<title>{escape(title)}</title></path>"
        )
        parts.append(_text(LABEL_WIDTH - 6, base - 3, item.label, anchor="end"))
        parts.append(
            _text(LABEL_WIDTH + room + 6, base - 3, f"{p50:.{3 if p50 < 10 else 1}f}", kind="value")
        )
    return _svg(parts, len(items) * height + 24)


def lines(
    items: Sequence[Line], *, x_names: Sequence[str] | None = None, dots: bool = False
) -> str:
    """Draw lines over one pair of axes, y from 0; `x_names` replaces numbers below the x axis."""
    xs = [x for item in items for x, _ in item.points]
    ys = [y for item in items for _, y in item.points]
    left, room, height = 44.0, WIDTH - 44.0 - 12, 150.0
    x_low, x_high = min(xs), max(xs)
    if x_high <= x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_high = _ticks(0, max(ys))[-1] or 1.0

    def at(x: float, y: float) -> tuple[float, float]:
        return left + room * (x - x_low) / (x_high - x_low), 8 + height * (1 - y / y_high)

    parts = []
    for tick in _ticks(0, max(ys)):
        _, y = at(x_low, tick)
        parts.append(
            f'<line x1="{left}" x2="{left + room}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        parts.append(_text(left - 5, y + 3.5, _short(tick), anchor="end"))
    if x_names is None:
        for tick in _ticks(x_low, x_high):
            if x_low <= tick <= x_high:
                parts.append(_text(at(tick, 0)[0], height + 22, _short(tick), anchor="middle"))
    else:
        for index in sorted({0, len(x_names) - 1}):
            anchor = "start" if index == 0 else "end"
            parts.append(_text(at(index, 0)[0], height + 22, x_names[index], anchor=anchor))
    for item in items:
        colour = item.colour % NUM_COLOURS
        spots = [at(x, y) for x, y in item.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        first, last = item.points[0][1], item.points[-1][1]
        title = escape(f"{item.name}: {first:.1f} at the left, {last:.1f} at the right")
        parts.append(
            f'<polyline points="{path}" stroke-width="2" stroke-linejoin="round" '
            f'class="s{colour}{" dashed" if item.dashed else ""}">'
            f"<title>{title}</title></polyline>"
        )
        if dots or len(spots) == 1:
            for (x, y), (_, value) in zip(spots, item.points, strict=True):
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="f{colour}">'
                    f"<title>{escape(item.name)}: {value:.1f}</title></circle>"
                )
    return _svg(parts, height + 30)


def _x_axis(low: float, high: float, left: float, room: float, height: float) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        if not low <= tick <= high:
            continue
        x = left + room * (tick - low) / (high - low)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height:.1f}" class="grid"/>')
        parts.append(_text(x, height + 13, _short(tick), anchor="middle"))
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Give about five round numbers that span the two."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / 4
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough)
    first, last = floor(low / step), ceil(high / step)
    return [step * count for count in range(first, last + 1)]


def _short(value: float) -> str:
    return f"{value:.4g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(text)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img">{"".join(parts)}</svg>'
