"""Every metric's name, title, unit and good direction, and how a number of it is written."""

from collections.abc import Iterable
from dataclasses import dataclass

from infer_bench.report import Report, Row


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a row; `scale` turns the stored value into the unit shown."""

    name: str
    title: str
    unit: str
    higher_is_better: bool | None  # None: neither, it is a size
    scale: float = 1.0

    def value(self, row: Row | None) -> float | None:
        """Give the number in the unit shown; None where the row has none."""
        if row is None or row.metrics is None:
            return None
        value = getattr(row.metrics, self.name)
        return None if value is None else self.scale * value


METRICS = {
    metric.name: metric
    for metric in (
        Metric("e2e_tokens_per_s", "E2E throughput", "tok/s", True),
        Metric("decode_tokens_per_s", "Decode throughput", "tok/s", True),
        Metric("step_p50_ms", "Decode step P50", "ms", False),
        Metric("step_p95_ms", "Decode step P95", "ms", False),
        Metric("step_p99_ms", "Decode step P99", "ms", False),
        Metric("ttft_ms", "TTFT / prefill", "ms", False),
        Metric("prefill_tokens_per_s", "Prefill throughput", "tok/s", True),
        Metric("kv_cache_mb", "KV cache", "MB", None),
        Metric("peak_gpu_gb", "Peak GPU allocation", "GB", None),
        Metric("mbu", "Memory bandwidth utilisation of decode", "%", True, 100.0),
        Metric("prefill_mfu", "Matmul utilisation of prefill", "%", True, 100.0),
        Metric("tokens_per_joule", "Tokens per joule", "tok/J", True),
    )
}


@dataclass(frozen=True, slots=True)
class Column:
    """One model on one engine, as tables and charts show it."""

    model: str
    engine: str
    label: str


def columns(report: Report) -> list[Column]:
    """List the columns of a report; the engine is named where there are several.

    A column of nothing but skipped rows says no more than the note below the tables does, and is
    left out, unless every column is one.
    """
    everything = [(model, engine) for model in report.models for engine in report.engines]
    statuses: dict[tuple[str, str], set[str]] = {}
    for row in report.rows:
        statuses.setdefault((row.model, row.engine), set()).add(row.status)
    shown = [
        (model, engine)
        for model, engine in everything
        if statuses.get((model.name, engine)) != {"skipped"}
    ] or everything
    several = len({engine for _, engine in shown}) > 1
    return [
        Column(model.name, engine, f"{model.label} {engine}" if several else model.label)
        for model, engine in shown
    ]


def cells(report: Report) -> dict[tuple[str, str, str], Row]:
    """Find rows by engine, model and case."""
    return {row.key: row for row in report.rows}


def decimals(values: Iterable[float | None]) -> int:
    """One decimal, as in the log; three once a value is so small that one would blur it."""
    known = [value for value in values if value is not None]
    return 3 if known and min(known) < 2 else 1
