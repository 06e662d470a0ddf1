"""What a run is going to do, and how much memory it will take, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from infer_bench.cases import Case
from infer_bench.catalogue import decimals
from infer_bench.costs import kv_cache_bytes, weight_bytes
from infer_bench.report import Settings
from infer_bench.table import Table
from infer_bench.targets import Target


@dataclass(frozen=True, slots=True)
class Plan:
    """Every engine times every model times every case; `unavailable` says why an engine is out."""

    cases: tuple[Case, ...]
    targets: tuple[Target, ...]
    settings: Settings
    device: str
    engines: tuple[str, ...] = ("infer",)
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_cells(self) -> int:
        """Rows the report is going to have."""
        return len(self.engines) * len(self.targets) * len(self.cases)


def plan_table(plan: Plan) -> Table:
    """Lay out the cells with the memory that weights and KV cache need at least."""
    rows = []
    for target in plan.targets:
        for engine in plan.engines:
            why_not = target.reason or plan.unavailable.get(engine)
            for case in plan.cases:
                memory = _memory_mb(target, case, plan) if target.model else ("-",) * 3
                verdict = why_not or _why_impossible(target, case) or "to run"
                rows.append((target.label, engine, case.name, *memory, verdict))
    header = ("Model", "Engine", "Config", "weights MB", "KV cache MB", "total MB", "Plan")
    return Table("Plan, with predicted memory", header, tuple(rows), left=(0, 1, 2, 6))


def _memory_mb(target: Target, case: Case, plan: Plan) -> tuple[str, str, str]:
    """Predict weights, KV cache and their sum; activations and workspaces come on top."""
    assert target.model is not None
    spec = target.model.spec
    dtype = plan.settings.dtype or ("float32" if plan.device == "cpu" else spec.shape.dtype)
    element_bytes = 4 if dtype == "float32" else 2
    weights = weight_bytes(spec, element_bytes=element_bytes)
    cache = 0
    if plan.settings.kv_cache:
        cache = kv_cache_bytes(spec, element_bytes=element_bytes, context=case.context)
    sizes = [size / 1e6 for size in (weights, cache, weights + cache)]
    weights_mb, cache_mb, total_mb = (f"{size:.{decimals([size])}f}" for size in sizes)
    return weights_mb, cache_mb, total_mb


def _why_impossible(target: Target, case: Case) -> str | None:
    limit = target.model.spec.shape.max_context if target.model else case.context
    if case.context <= limit:
        return None
    return f"will fail: {case.context} tokens, the model's context is {limit}"
