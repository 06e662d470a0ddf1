"""What a run is going to do, and how much memory it will take, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from infer_bench.cases import Case
from infer_bench.catalogue import decimals
from infer_bench.report import Settings
from infer_bench.table import Table
from infer_bench.targets import Target
from infer_core import ModelSpec


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
    """Lay out the cells with the memory that this project's engine is going to allocate."""
    rows = []
    for target in plan.targets:
        for engine in plan.engines:
            why_not = target.reason or plan.unavailable.get(engine)
            for case in plan.cases:
                impossible = _why_impossible(target, case)
                memory = ("-",) * 4
                if target.model and engine == "infer" and not impossible:
                    memory = _memory_mb(target.model.spec, case, plan)
                verdict = why_not or impossible or "to run"
                rows.append((target.label, engine, case.name, *memory, verdict))
    sizes = ("weights MB", "KV cache MB", "workspace MB", "total MB")
    header = ("Model", "Engine", "Config", *sizes, "Plan")
    return Table("Plan, with predicted memory", header, tuple(rows), left=(0, 1, 2, 7))


def _memory_mb(spec: ModelSpec, case: Case, plan: Plan) -> tuple[str, str, str, str]:
    """Predict weights, KV cache, workspace and their sum."""
    from infer_core.engine import PREFILL_CHUNK  # torch: only once a plan is shown
    from infer_core.memory import memory_need

    need = memory_need(
        spec,
        context=case.context,
        prompt=case.prompt_tokens,
        max_context=min(max(case.context for case in plan.cases), spec.shape.max_context),
        dtype=plan.settings.dtype or ("float32" if plan.device == "cpu" else spec.shape.dtype),
        prefill_chunk=PREFILL_CHUNK,
        kv_cache=plan.settings.kv_cache,
        device=plan.device,
    )
    parts = (need.weight_bytes, need.kv_cache_bytes, need.workspace_bytes, need.total_bytes)
    sizes = [size / 1e6 for size in parts]
    weights, cache, workspace, total = (f"{size:.{decimals([size])}f}" for size in sizes)
    return weights, cache, workspace, total


def _why_impossible(target: Target, case: Case) -> str | None:
    limit = target.model.spec.shape.max_context if target.model else case.context
    if case.context <= limit:
        return None
    return f"will fail: {case.context} tokens, the model's context is {limit}"
