"""Hold one report against another: what changed by more than chance, and whether it may be asked.

A change counts when it is larger than a limit *and* the 95 % bootstrap interval of the ratio of
the medians leaves out 1. A large change whose interval holds 1 is unclear, never a regression.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from infer_bench.catalogue import METRICS
from infer_bench.errors import NotComparable
from infer_bench.intervals import ratio_interval
from infer_bench.metrics import PER_TRIAL, trial_values
from infer_bench.report import Report, Row

DEFAULT_METRICS = ("e2e_tokens_per_s", "step_p50_ms")
DEFAULT_MAX_REGRESS = 0.05
Verdict = Literal["same", "better", "regression", "unclear", "broken", "mended", "not measured"]
# A gate closes on these.
BAD: tuple[Verdict, ...] = ("regression", "broken")


@dataclass(frozen=True, slots=True)
class Change:
    """One metric of one row in both reports.

    `ratio` is after / before with its interval; the numbers are None where a side has none.
    """

    engine: str
    model: str
    case: str
    metric: str
    verdict: Verdict
    before: float | None = None
    after: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""


def compare(
    before: Report,
    after: Report,
    *,
    metrics: Sequence[str] = DEFAULT_METRICS,
    max_regress: float = DEFAULT_MAX_REGRESS,
    force: bool = False,
) -> list[Change]:
    """Judge every metric of every row of `before` that `after` planned to measure too.

    Raises:
        NotComparable: GPU, dtype, config or weights differ (unless forced), or no row is in both.
    """
    if not force and (differences := find_differences(before, after)):
        raise NotComparable(
            "the reports were not measured under like conditions: "
            + "; ".join(differences)
            + ". --force compares them all the same"
        )
    now = {row.key: row for row in after.rows}
    changes = [
        _judge(row, now[row.key], metric, max_regress)
        for row in before.rows
        if row.key in now
        for metric in metrics
    ]
    if not changes:
        raise NotComparable(
            f"no engine, model and config is in both reports: the first has {_what(before)}, "
            f"the second {_what(after)}"
        )
    return changes


def find_differences(before: Report, after: Report) -> list[str]:
    """Name every condition that differs and that numbers depend on."""
    pairs: list[tuple[str, object, object]] = [
        ("device", before.device, after.device),
        ("GPU", _gpu(before), _gpu(after)),
        ("KV cache", before.settings.kv_cache, after.settings.kv_cache),
    ]
    cases = {case.name: case for case in after.cases}
    for case in before.cases:
        if case.name in cases:
            pairs.append((f"config {case.name}", case, cases[case.name]))
    now = {row.key: row.loaded for row in after.rows}
    for row in before.rows:
        other = now.get(row.key)
        if row.loaded is None or other is None:
            continue
        for what in ("dtype", "weights", "tiny", "architecture"):
            theirs, ours = getattr(row.loaded, what), getattr(other, what)
            pairs.append((f"{what} of {row.model} on {row.engine}", theirs, ours))
    found = [
        f"{what}: {first} against {second}" for what, first, second in pairs if first != second
    ]
    return list(dict.fromkeys(found))


def rows_in_one(before: Report, after: Report) -> list[str]:
    """Say which rows only one of the reports has: nobody compared them."""
    sides = {"first": before, "second": after}
    keys = {side: [row.key for row in report.rows] for side, report in sides.items()}
    lines = []
    for side, other in (("first", "second"), ("second", "first")):
        alone = [key for key in keys[side] if key not in keys[other]]
        if alone:
            shown = ", ".join(f"{model} {case} on {engine}" for engine, model, case in alone[:3])
            more = ", ..." if len(alone) > 3 else ""
            lines.append(f"only in the {side} report: {len(alone)} rows ({shown}{more})")
    return lines


def _judge(before: Row, after: Row, metric: str, max_regress: float) -> Change:
    engine, model, case = before.key

    def change(verdict: Verdict, note: str = "") -> Change:
        return Change(engine, model, case, metric, verdict, note=note)

    if before.status == after.status == "skipped" or before.status == after.status != "ok":
        return change("not measured", f"{before.status} in both")
    if before.status != "ok":
        return change("mended", f"was {before.status}")
    if after.status == "skipped":
        return change("not measured", after.reason or "skipped")
    if after.status != "ok":
        return change("broken", f"{after.status}: {after.reason}")
    if metric in PER_TRIAL:
        values = trial_values(before.samples, metric), trial_values(after.samples, metric)
    else:
        values = tuple(  # type: ignore[assignment]
            [] if (value := METRICS[metric].value(row)) is None else [value]
            for row in (before, after)
        )
    if not values[0] or not values[1] or min(*values[0], *values[1]) <= 0:
        return change("not measured", "no such number in one of the reports")

    was, now = median(values[0]), median(values[1])
    low, high = ratio_interval(values[1], values[0])
    ratio = now / was
    # how much worse, as a fraction of what was: 0.1 is a tenth slower (or longer)
    loss = ratio - 1 if METRICS[metric].higher_is_better is False else 1 - ratio
    certain = not low <= 1 <= high
    verdict: Verdict = "same"
    if abs(loss) > max_regress:
        verdict = "unclear" if not certain else "regression" if loss > 0 else "better"
    return Change(engine, model, case, metric, verdict, was, now, ratio, (low, high))


def _gpu(report: Report) -> str | None:
    return report.environment.gpu.name if report.environment.gpu else None


def _what(report: Report) -> str:
    engines, models = ", ".join(report.engines), ", ".join(model.name for model in report.models)
    return f"{models or 'no model'} on {engines} in suite {report.suite}"
