"""A comparison for people (a table) and for continuous integration (JUnit XML)."""

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree

from infer_bench.catalogue import METRICS, decimals
from infer_bench.compare import BAD, Change, rows_in_one
from infer_bench.report import Report
from infer_bench.table import Table


def comparison_table(changes: Sequence[Change]) -> Table:
    """Lay out one line a row and metric, worst verdicts first."""
    order = ("broken", "regression", "unclear", "better", "mended", "same", "not measured")
    lines = [
        (
            change.verdict,
            change.model,
            change.engine,
            change.case,
            METRICS[change.metric].title,
            *_numbers(change),
            change.note or _interval(change),
        )
        for change in sorted(changes, key=lambda change: order.index(change.verdict))
    ]
    header = ("Verdict", "Model", "Engine", "Config", "Metric", "before", "after", "change", "95 %")
    return Table("Comparison", header, tuple(lines), left=(0, 1, 2, 3, 4, 8))


def verdict_lines(changes: Sequence[Change], before: Report, after: Report) -> str:
    """Count the verdicts in one line; in others say what was not compared."""
    counts = Counter(change.verdict for change in changes)
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return "\n".join([verdicts, *rows_in_one(before, after)])


def to_junit(changes: Sequence[Change], *, max_regress: float) -> str:
    """Render as JUnit XML: a test a row and metric, failed on a regression, skipped if unclear."""
    bad = sum(change.verdict in BAD for change in changes)
    skipped = sum(change.verdict in ("unclear", "not measured") for change in changes)
    suite = ElementTree.Element(
        "testsuite",
        name="infer-bench compare",
        tests=str(len(changes)),
        failures=str(bad),
        errors="0",
        skipped=str(skipped),
    )
    for change in changes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{change.model}.{change.engine}",
            name=f"{change.case} {change.metric}",
        )
        text = f"{' -> '.join(_numbers(change)[:2])} {change.note or _interval(change)}".strip()
        if change.verdict in BAD:
            message = f"{change.verdict}: {_numbers(change)[2]} (limit {100 * max_regress:g} %)"
            ElementTree.SubElement(case, "failure", message=message).text = text
        elif change.verdict in ("unclear", "not measured"):
            ElementTree.SubElement(case, "skipped", message=f"{change.verdict}: {text}")
        else:
            ElementTree.SubElement(case, "system-out").text = f"{change.verdict}: {text}"
    ElementTree.indent(suite)
    declaration = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{declaration}{ElementTree.tostring(suite, encoding='unicode')}\n"


def _numbers(change: Change) -> tuple[str, str, str]:
    if change.before is None or change.after is None or change.ratio is None:
        return "-", "-", "-"
    metric = METRICS[change.metric]
    places = decimals([change.before, change.after])
    return (
        f"{change.before:.{places}f} {metric.unit}",
        f"{change.after:.{places}f} {metric.unit}",
        f"{100 * (change.ratio - 1):+.1f} %",
    )


def _interval(change: Change) -> str:
    if change.interval is None:
        return ""
    low, high = (100 * (edge - 1) for edge in change.interval)
    return f"{low:+.1f} to {high:+.1f} %"
