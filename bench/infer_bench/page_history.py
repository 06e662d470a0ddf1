"""The page's history: throughput over several reports."""

from collections.abc import Sequence
from html import escape

from infer_bench.catalogue import METRICS
from infer_bench.charts import Line, lines
from infer_bench.page_style import legend
from infer_bench.report import Report
from infer_bench.tables import heading


def history_section(reports: Sequence[Report]) -> str:
    """Draw throughput over several reports: a panel a config, a colour a model.

    `reports` are ordered by time; with fewer than two there is nothing to show.
    """
    if len(reports) < 2:
        return ""
    tracks: dict[str, dict[tuple[str, str], list[tuple[float, float]]]] = {}
    for index, report in enumerate(reports):
        labels = {model.name: model.label for model in report.models}
        for row in report.rows:
            value = METRICS["e2e_tokens_per_s"].value(row)
            if value is not None:
                track = tracks.setdefault(row.case, {})
                track.setdefault((labels[row.model], row.engine), []).append((index, value))
    names = list(dict.fromkeys(label for track in tracks.values() for label, _ in track))
    first = reports[-1].engines[0]
    others = sorted({engine for track in tracks.values() for _, engine in track} - {first})
    dates = [f"{report.created:%Y-%m-%d}" for report in reports]
    figures = []
    for case, track in tracks.items():
        drawn = [
            Line(f"{label} on {engine}", names.index(label), points, dashed=engine != first)
            for (label, engine), points in track.items()
        ]
        caption = f"<figcaption><b>{escape(case)}</b> E2E tok/s</figcaption>"
        figures.append(f"<figure>{caption}{lines(drawn, x_names=dates, dots=True)}</figure>")
    about = f"{len(reports)} reports, oldest left"
    if others:
        about += f"; {first} drawn through, {', '.join(others)} dashed"
    differs = len({heading(report)[0] for report in reports}) > 1
    warning = " <span class='bad'>The hardware differs between them.</span>" if differs else ""
    return (
        f"<section><h2>History</h2><p class='soft'>{escape(about)}.{warning}</p>"
        f"{legend(names)}<div class='panels'>{''.join(figures)}</div></section>"
    )
