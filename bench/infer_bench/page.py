"""Reports as one HTML page that needs nothing else: no script, no network, no other file."""

from collections.abc import Callable, Sequence
from html import escape
from statistics import median

from infer_bench.catalogue import METRICS, Column, cells, columns
from infer_bench.charts import Bar, Line, Ridge, bars, lines, ridges
from infer_bench.page_history import history_section
from infer_bench.page_style import STYLE, legend
from infer_bench.report import Report, Row
from infer_bench.table import Table
from infer_bench.tables import failure_lines, heading, report_tables

POINTS_A_LINE = 40
LEAST_STEPS_A_POINT = 8


def to_page(reports: Sequence[Report]) -> str:
    """Render the newest report in full, and the history when there are several."""
    ordered = sorted(reports, key=lambda report: report.created)
    newest = ordered[-1]
    sections = [
        _head(newest),
        _tiles(newest),
        _panels(
            newest,
            "E2E throughput",
            "Generated tokens a second, prompt included in the time. Longer is better.",
            _throughput,
        ),
        _panels(
            newest,
            "Decode against the memory floor",
            "Share of this GPU's measured read bandwidth that a decode step uses (MBU, %). The "
            "dashed line is the floor: every weight and cached token read once, nothing else.",
            _bandwidth,
        ),
        _panels(
            newest,
            "Decode step times",
            "Distribution of all steps of all trials, in ms; the axis runs from P1 to P99. The "
            "number at the right is the median.",
            _steps,
            apart=True,
        ),
        _panels(
            newest,
            "Tokens/s against context",
            "Decode speed (tok/s) at each context length, medians over trials, smoothed.",
            _contexts,
        ),
        history_section(ordered),
        "<h2>Tables</h2>",
        *map(_table, report_tables(newest)),
        _notes(newest),
        *map(_older, reversed(ordered[:-1])),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(newest))}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body></html>\n"
    )


def _title(report: Report) -> str:
    gpu = report.environment.gpu
    return f"infer-bench {report.suite} on {gpu.name if gpu else 'CPU'}"


def _head(report: Report) -> str:
    environment = report.environment
    facts = [*heading(report), f"torch {environment.torch}, triton {environment.triton}"]
    if environment.revision:
        facts[-1] += f", {environment.revision}"
    when = f"{report.created:%Y-%m-%d %H:%M} UTC"
    state = "" if report.complete else ' <span class="bad">interrupted, incomplete</span>'
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    return (
        f"<h1>{escape(_title(report))}</h1><p class='soft'>{when}{state}</p>"
        f"<ul class='facts'>{items}</ul>"
    )


def _tiles(report: Report) -> str:
    """Show one headline number a model, how it compares, and how many rows are good."""
    rows, metric = cells(report), METRICS["e2e_tokens_per_s"]
    names = [case.name for case in report.cases]
    headline = "medium" if "medium" in names else names[0]
    first, *others = _engines(report)
    tiles = []
    for model in report.models:
        row = rows.get((first, model.name, headline))
        value = metric.value(row)
        shown = f"{value:.1f} tok/s" if value is not None else (row.status if row else "not run")
        facts = [f"{model.label}, {headline}"]
        for other in others:
            theirs = metric.value(rows.get((other, model.name, headline)))
            if value is not None and theirs is not None:
                facts.append(f"{value / theirs:.2f}x {other} ({theirs:.1f})")
        if (used := METRICS["mbu"].value(row)) is not None:
            facts.append(f"{used:.0f} % of the memory floor's speed")
        tiles.append((shown, facts))
    good = sum(row.status == "ok" for row in report.rows)
    skipped = sum(row.status == "skipped" for row in report.rows)
    tiles.append((f"{good} of {len(report.rows) - skipped}", ["rows ok"]))
    if skipped:
        tiles[-1][1].append(f"{skipped} skipped")
    agreeing = [row.parity.agrees for row in report.rows if row.parity]
    if agreeing:
        tiles[-1][1].append(f"{sum(agreeing)} of {len(agreeing)} with the plain path's tokens")
    body = "".join(
        f"<div class='tile'><b>{escape(value)}</b>"
        f"{''.join(f'<span>{escape(fact)}</span>' for fact in facts)}</div>"
        for value, facts in tiles
    )
    return f"<div class='tiles'>{body}</div>"


def _engines(report: Report) -> list[str]:
    """List the engines that have columns; their order is that of the colours."""
    return list(dict.fromkeys(column.engine for column in columns(report)))


def _panels(
    report: Report,
    title: str,
    about: str,
    draw: Callable[[Report, list[Column]], str | None],
    *,
    apart: bool = False,
) -> str:
    """Draw one panel a model, where colours tell engines apart, or one for each of its engines."""
    groups = [
        [column for column in columns(report) if column.model == model.name]
        for model in report.models
    ]
    if apart:
        groups = [[column] for group in groups for column in group]
    labels = {model.name: model.label for model in report.models}
    figures = []
    for group in groups:
        drawing = draw(report, group)
        if drawing is not None:
            label = group[0].label if apart else labels[group[0].model]
            caption = f"<figcaption><b>{escape(label)}</b> {escape(group[0].model)}</figcaption>"
            figures.append(f"<figure>{caption}{drawing}</figure>")
    if not figures:
        return ""
    engines = _engines(report)
    colours = legend(engines) if len(engines) > 1 else ""
    return (
        f"<section><h2>{escape(title)}</h2><p class='soft'>{escape(about)}</p>{colours}"
        f"<div class='panels'>{''.join(figures)}</div></section>"
    )


def _bar_items(report: Report, of_model: list[Column], metric: str) -> list[Bar]:
    rows = cells(report)
    items = []
    for case in report.cases:
        for column in of_model:
            row = rows.get((column.engine, column.model, case.name))
            value = METRICS[metric].value(row)
            note = f"{column.label} {case.name}"
            if value is None:
                note = row.status if row and row.status != "ok" else "-"
            items.append(Bar(case.name, _engines(report).index(column.engine), value, note))
    return items


def _throughput(report: Report, of_model: list[Column]) -> str | None:
    return bars(_bar_items(report, of_model, "e2e_tokens_per_s"), unit="tok/s")


def _bandwidth(report: Report, of_model: list[Column]) -> str | None:
    items = _bar_items(report, of_model, "mbu")
    if all(item.value is None for item in items):
        return None
    return bars(items, unit="%", top=100.0, floor_at=100.0)


def _steps(report: Report, of_model: list[Column]) -> str | None:
    items = [
        Ridge(row.case, _engines(report).index(row.engine), steps)
        for row in _rows(report, of_model)
        if (steps := [step for sample in row.samples for step in sample.step_ms])
    ]
    return ridges(items, unit="ms") if items else None


def _contexts(report: Report, of_model: list[Column]) -> str | None:
    prompts = {case.name: case.prompt_tokens for case in report.cases if case.sampling.greedy}
    items = [
        Line(
            f"{row.case} on {row.engine}",
            _engines(report).index(row.engine),
            _speed_by_context(row, prompts[row.case]),
        )
        for row in _rows(report, of_model)
        if row.case in prompts and row.metrics is not None and row.metrics.num_steps
    ]
    return lines(items) if items else None


def _speed_by_context(row: Row, prompt_tokens: int) -> list[tuple[float, float]]:
    """Take medians over trials at each step, then over stretches of steps."""
    steps = [median(at_once) for at_once in zip(*(s.step_ms for s in row.samples), strict=True)]
    stretch = min(len(steps), max(LEAST_STEPS_A_POINT, len(steps) // POINTS_A_LINE))
    return [
        (prompt_tokens + start + stretch / 2, 1e3 / median(steps[start : start + stretch]))
        for start in range(0, len(steps) - stretch + 1, stretch)
    ]


def _rows(report: Report, of_model: list[Column]) -> list[Row]:
    """Rows of these columns, all engines of a config together."""
    rows = cells(report)
    found = [
        rows.get((column.engine, column.model, case.name))
        for case in report.cases
        for column in of_model
    ]
    return [row for row in found if row is not None]


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    body = "".join(f"<tr>{''.join(map(_table_cell, row))}</tr>" for row in table.rows)
    return (
        f"<h3>{escape(table.title)}</h3><div class='scroll'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _table_cell(text: str) -> str:
    kind = " class='bad'" if text in ("failed", "invalid", "oom") else ""
    return f"<td{kind}>{escape(text)}</td>"


def _notes(report: Report) -> str:
    notes = failure_lines(report)
    if not notes:
        return ""
    return "<h2>Notes</h2><ul class='notes'>" + "".join(
        f"<li>{escape(note)}</li>" for note in notes
    ) + "</ul>"  # fmt: skip


def _older(report: Report) -> str:
    when = f"{report.created:%Y-%m-%d %H:%M} UTC"
    tables = "".join(map(_table, report_tables(report)))
    return (
        f"<details><summary>{escape(_title(report))}, {when}</summary>"
        f"<ul class='facts'>{''.join(f'<li>{escape(x)}</li>' for x in heading(report))}</ul>"
        f"{tables}{_notes(report)}</details>"
    )
