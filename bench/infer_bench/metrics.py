"""From the raw trials of one row to the numbers the tables show."""

import hashlib
from collections.abc import Sequence
from math import ceil, floor
from statistics import median

from infer_bench.report import Metrics, Sample
from infer_core import ModelSpec


def summarise(
    samples: Sequence[Sample],
    *,
    warm_up_s: float,
    peak_gpu_bytes: int | None,
    step_bytes: int | None,
    bandwidth: float | None,
) -> Metrics:
    """Reduce trials of one case to medians.

    `warm_up_s` counts the warm-up runs; that of the trials is added. `step_bytes` is what one
    decode step has to read, `bandwidth` in bytes/s; without either there is no `mbu`.
    """
    num_steps = samples[0].num_tokens - 1
    decode = step_p50 = step_p95 = mbu = None
    if num_steps:
        decode = median(num_steps / sample.decode_s for sample in samples)
        step_p50 = median(percentile(sample.step_ms, 50) for sample in samples)
        step_p95 = median(percentile(sample.step_ms, 95) for sample in samples)
        if step_bytes is not None and bandwidth is not None:
            mbu = step_bytes / (step_p50 / 1e3) / bandwidth
    return Metrics(
        e2e_tokens_per_s=median(sample.num_tokens / sample.e2e_s for sample in samples),
        decode_tokens_per_s=decode,
        step_p50_ms=step_p50,
        step_p95_ms=step_p95,
        ttft_ms=median(sample.ttft_ms for sample in samples),
        kv_cache_mb=max(sample.kv_cache_bytes for sample in samples) / 1e6,
        peak_gpu_gb=None if peak_gpu_bytes is None else peak_gpu_bytes / 1e9,
        warm_up_s=warm_up_s + sum(sample.warm_up_s for sample in samples),
        mbu=mbu,
    )


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolate linearly between the two nearest ranks, as numpy does by default."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below, above = ordered[floor(rank)], ordered[ceil(rank)]
    return below + (above - below) * (rank - floor(rank))


def decode_step_bytes(
    spec: ModelSpec, *, weight_bytes: int, element_bytes: int, context: int
) -> int:
    """Count the bytes one decode step must read with `context` tokens cached.

    Every weight once, and of each layer's cache the tokens its window lets it see. An embedding
    table that is not also the LM head is left out: a step reads one row of it.
    """
    shape = spec.shape
    unread = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    cached = sum(
        2 * layer.num_kv_heads * layer.head_dim * min(context, layer.window or context)
        for layer in spec.attention
    )
    return weight_bytes + (cached - unread) * element_bytes


def tokens_sha256(tokens: Sequence[int]) -> str:
    """Fingerprint token ids: 16 hex digits of the SHA-256 of '1,2,3'."""
    return hashlib.sha256(",".join(map(str, tokens)).encode()).hexdigest()[:16]
