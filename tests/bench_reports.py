"""Reports with planted times, for tests of everything that reads reports."""

from datetime import UTC, datetime

from bench_fakes import GPU
from infer_bench.cases import named_cases
from infer_bench.metrics import Facts, summarise
from infer_bench.report import (
    Ceilings,
    LoadedModel,
    Model,
    Parity,
    Report,
    Row,
    Sample,
    Settings,
    WarmUp,
)

CEILINGS = Ceilings(
    read_bandwidth_bytes_per_s=4e12, matmul_flops_per_s=7e14, matmul_dtype="bfloat16"
)


def a_sample(*, step_ms=1.0, num_tokens=8, ttft_ms=5.0, spread=0.0):
    """One trial whose steps rise by `spread` (a fraction) from first to last."""
    num_steps = num_tokens - 1
    steps = tuple(step_ms * (1 + spread * i / max(1, num_steps - 1)) for i in range(num_steps))
    return Sample(
        num_tokens=num_tokens,
        ttft_ms=ttft_ms,
        step_ms=steps,
        decode_s=sum(steps) / 1e3,
        e2e_s=(ttft_ms + sum(steps)) / 1e3,
        warm_up_s=0.0,
        kv_cache_bytes=1_000_000,
        tokens_sha256="0123456789abcdef",
    )


def loaded_model(**changes):
    fields = {
        "architecture": "ToyForCausalLM",
        "distribution": "infer-toy",
        "plugin_version": "0.1.0",
        "tiny": False,
        "dtype": "bfloat16",
        "kernels": "triton",
        "weights": "dummy",
        "weight_bytes": 2_000_000_000,
        "load_s": 1.234,
        "num_cpu_threads": 8,
    }
    return LoadedModel(**(fields | changes))


def a_row(model="toy", case="short", *, engine="infer", times=(1.0, 1.01, 0.99), **changes):
    """An ok row with one trial for each step time (ms) in `times`."""
    samples = tuple(a_sample(step_ms=time, spread=0.1) for time in times)
    facts = Facts(
        prompt_tokens=64,
        peak_gpu_bytes=3_000_000_000,
        step_bytes=2_100_000_000,
        prefill_flops=10**11,
        ceilings=CEILINGS,
        energy_j=2.0,
    )
    fields = {
        "engine": engine,
        "model": model,
        "case": case,
        "status": "ok",
        "loaded": loaded_model(),
        "metrics": summarise(samples, facts),
        "warm_up": WarmUp(num_runs=2, wall_s=0.5, stable=True),
        "cold_start_s": 2.5,
        "greedy_tokens_sha256": "0123456789abcdef",
        "parity": Parity(
            path="plain",
            num_tokens=8,
            num_equal=8,
            largest_gap=0.0,
            tolerance=0.1,
            agrees=True,
            tokens_sha256="0123456789abcdef",
        ),
        "trials_agree": True,
        "samples": samples,
    }
    return Row(**(fields | changes))


def a_report(*rows, **changes):
    """A complete GPU report over the models, engines and cases its rows name."""
    rows = rows or (a_row(),)
    fields = {
        "created": datetime(2026, 2, 21, 10, 15, tzinfo=UTC),
        "suite": "configs",
        "device": "cuda",
        "complete": True,
        "engines": tuple(dict.fromkeys(row.engine for row in rows)),
        "settings": Settings(),
        "cases": named_cases(list(dict.fromkeys(row.case for row in rows))),
        "environment": GPU,
        "ceilings": CEILINGS,
        "models": tuple(
            Model(name=name, label=name.title(), plugin="toy")
            for name in dict.fromkeys(row.model for row in rows)
        ),
        "rows": rows,
    }
    return Report(**(fields | changes))
