"""From the raw trials of one row to the numbers the tables show."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from infer_bench.intervals import bootstrap_interval, percentile
from infer_bench.report import Ceilings, Metrics, Sample

# Shorter trials than this lie within a few updates of the driver's energy counter.
MIN_ENERGY_S = 0.5


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a row besides its trials; None costs the metrics that need it."""

    prompt_tokens: int
    peak_gpu_bytes: int | None = None
    step_bytes: int | None = None
    prefill_flops: int | None = None
    ceilings: Ceilings | None = None
    energy_j: float | None = None


# The metrics that every trial has a number for: medians and intervals are over these.
PER_TRIAL: dict[str, Callable[[Sample], float | None]] = {
    "e2e_tokens_per_s": lambda sample: sample.num_tokens / sample.e2e_s,
    "decode_tokens_per_s": lambda sample: (
        (sample.num_tokens - 1) / sample.decode_s if sample.num_tokens > 1 else None
    ),
    "step_p50_ms": lambda sample: _step(sample, 50),
    "step_p95_ms": lambda sample: _step(sample, 95),
    "step_p99_ms": lambda sample: _step(sample, 99),
    "ttft_ms": lambda sample: sample.ttft_ms,
}


def trial_values(samples: Sequence[Sample], metric: str) -> list[float]:
    """Give a metric of `PER_TRIAL` for each trial that has it."""
    values = (PER_TRIAL[metric](sample) for sample in samples)
    return [value for value in values if value is not None]


def summarise(samples: Sequence[Sample], facts: Facts) -> Metrics:
    """Reduce the trials of one case to medians and their intervals."""
    medians, intervals = {}, {}
    for metric in PER_TRIAL:
        if values := trial_values(samples, metric):
            medians[metric] = median(values)
            intervals[metric] = bootstrap_interval(values)
    generated = sum(sample.num_tokens for sample in samples)
    measured_s = sum(sample.e2e_s for sample in samples)
    energy = facts.energy_j if measured_s >= MIN_ENERGY_S else None
    peak = facts.peak_gpu_bytes
    return Metrics(
        **medians,
        num_trials=len(samples),
        num_steps=sum(len(sample.step_ms) for sample in samples),
        prefill_tokens_per_s=facts.prompt_tokens / (medians["ttft_ms"] / 1e3),
        kv_cache_mb=max(sample.kv_cache_bytes for sample in samples) / 1e6,
        peak_gpu_gb=None if peak is None else peak / 1e9,
        mbu=_mbu(facts, medians.get("step_p50_ms")),
        prefill_mfu=_mfu(facts, medians["ttft_ms"]),
        tokens_per_joule=generated / energy if energy else None,
        intervals=intervals,
    )


def tokens_sha256(tokens: Sequence[int]) -> str:
    """Fingerprint token ids: 16 hex digits of the SHA-256 of '1,2,3'."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()[:16]


def _step(sample: Sample, percent: float) -> float | None:
    return percentile(sample.step_ms, percent) if sample.step_ms else None


def _mbu(facts: Facts, step_ms: float | None) -> float | None:
    if step_ms is None or facts.step_bytes is None or facts.ceilings is None:
        return None
    return facts.step_bytes / (step_ms / 1e3) / facts.ceilings.read_bandwidth_bytes_per_s


def _mfu(facts: Facts, ttft_ms: float) -> float | None:
    if facts.prefill_flops is None or facts.ceilings is None:
        return None
    if facts.ceilings.matmul_flops_per_s is None:
        return None
    return facts.prefill_flops / (ttft_ms / 1e3) / facts.ceilings.matmul_flops_per_s
