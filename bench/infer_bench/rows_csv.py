"""One line a row and report, for spreadsheets and notebooks."""

import csv
import io
from collections.abc import Sequence

from infer_bench.catalogue import METRICS
from infer_bench.report import Report

FACTS = (
    "created", "gpu", "engine", "model", "case", "prompt_tokens", "max_new_tokens", "status",
    "reason", "dtype", "weights", "num_trials", "load_s", "warm_up_s", "num_compiled",
    "cold_start_s",
    "greedy_tokens_sha256", "parity_equal", "parity_tokens", "throttle",
)  # fmt: skip


def to_csv(reports: Sequence[Report]) -> str:
    """Render every row of every report; metrics as the JSON has them, units in the names."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FACTS, *METRICS], lineterminator="\n")
    writer.writeheader()
    for report in reports:
        gpu = report.environment.gpu
        cases = {case.name: case for case in report.cases}
        for row in report.rows:
            case, loaded, metrics = cases[row.case], row.loaded, row.metrics
            facts = {
                "created": report.created.isoformat(),
                "gpu": gpu.name if gpu else "",
                "engine": row.engine,
                "model": row.model,
                "case": row.case,
                "prompt_tokens": case.prompt_tokens,
                "max_new_tokens": case.max_new_tokens,
                "status": row.status,
                "reason": row.reason,
                "dtype": loaded.dtype if loaded else None,
                "weights": loaded.weights if loaded else None,
                "load_s": loaded.load_s if loaded else None,
                "num_trials": metrics.num_trials if metrics else None,
                "warm_up_s": row.warm_up.wall_s if row.warm_up else None,
                "num_compiled": row.warm_up.num_compiled if row.warm_up else None,
                "cold_start_s": row.cold_start_s,
                "greedy_tokens_sha256": row.greedy_tokens_sha256,
                "parity_equal": row.parity.num_equal if row.parity else None,
                "parity_tokens": row.parity.num_tokens if row.parity else None,
                "throttle": "; ".join(row.gpu.throttle) if row.gpu else "",
            }
            numbers = {name: getattr(metrics, name) if metrics else None for name in METRICS}
            writer.writerow(facts | numbers)
    return text.getvalue()
