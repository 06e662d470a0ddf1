"""Measure one cell, one model, every model; a failure is a row and never stops the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infer_bench.backend import Backend, EngineUnderTest
from infer_bench.cases import Case, prompt_ids
from infer_bench.metrics import decode_step_bytes, summarise, tokens_sha256
from infer_bench.progress import Progress
from infer_bench.report import LoadedModel, Model, Row, Sample, Settings, Status
from infer_bench.targets import Target, describe

if TYPE_CHECKING:
    from infer_core import Generation
    from infer_core.model_source import ResolvedModel


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is going to do."""

    cases: tuple[Case, ...]
    targets: tuple[Target, ...]
    settings: Settings
    device: str
    bandwidth: float | None = None


@dataclass(slots=True)
class Results:
    """What a run has done so far; `interrupted` when Ctrl-C ended it."""

    models: list[Model] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False


def run(plan: Plan, backend: Backend, progress: Progress) -> Results:
    """Measure every case of every model, one model at a time; Ctrl-C keeps finished rows."""
    results = Results()
    try:
        for target in plan.targets:
            _measure_model(target, plan, backend, progress, results)
    except KeyboardInterrupt:
        results.interrupted = True
    return results


def _measure_model(
    target: Target, plan: Plan, backend: Backend, progress: Progress, results: Results
) -> None:
    engine: EngineUnderTest | None = None
    loaded: LoadedModel | None = None
    status: Status = "failed"
    reason = target.reason
    if target.model is not None:
        progress.working_on(f"loading {target.label}")
        try:
            backend.start_peak(plan.device)  # what is left of the model before goes first
            engine = _load(target.model, plan, backend)
            loaded = _describe_engine(engine, target.model, plan)
        except Exception as error:
            engine, status, reason = None, _status(error), describe(error)
    results.models.append(
        Model(
            name=target.name,
            label=target.label,
            plugin=target.plugin,
            hub_id=target.model.hub_id if target.model else None,
            commit=target.model.commit if target.model else None,
            loaded=loaded,
        )
    )

    for case in plan.cases:
        if engine is None:
            row = Row(model=target.name, case=case.name, status=status, reason=reason)
        else:
            row = _measure_cell(engine, target, case, plan, backend, progress)
        results.rows.append(row)
        progress.finished(target.label, row)


def _load(model: "ResolvedModel", plan: Plan, backend: Backend) -> EngineUnderTest:
    settings = plan.settings
    tiny = _is_tiny(model, plan)
    # a case beyond the model's own limit then fails by itself instead of taking all with it
    longest = max(case.context for case in plan.cases)
    return backend.load_engine(
        model,
        device=plan.device,
        dtype=settings.dtype or ("float32" if tiny else None),
        weights=settings.weights,
        max_context=min(longest, model.spec.shape.max_context),
        kv_cache=settings.kv_cache,
    )


def _is_tiny(model: "ResolvedModel", plan: Plan) -> bool:
    """Whether this is the small stand-in that a reference model has for the CPU."""
    return model.checkpoint is None and plan.device == "cpu"


def _describe_engine(engine: EngineUnderTest, model: "ResolvedModel", plan: Plan) -> LoadedModel:
    return LoadedModel(
        architecture=engine.spec.architecture,
        distribution=engine.spec.distribution,
        plugin_version=engine.spec.plugin_version,
        tiny=_is_tiny(model, plan),
        dtype=_dtype(engine),
        kernels=engine.kernels,
        unfused=engine.unfused,
        weights=engine.weights_kind,
        weight_bytes=engine.weight_bytes,
        load_s=engine.load_s,
    )


def _measure_cell(
    engine: EngineUnderTest,
    target: Target,
    case: Case,
    plan: Plan,
    backend: Backend,
    progress: Progress,
) -> Row:
    """Warm up, then time the trials of one case; any failure becomes the row's reason."""
    settings = plan.settings
    prompt = prompt_ids(
        case.prompt_tokens, vocab_size=engine.spec.shape.vocab_size, seed=settings.seed
    )
    samples: list[Sample] = []
    warm_up_s = 0.0
    try:
        engine.release()  # caches and graphs of the case before: each peak stands for itself
        backend.start_peak(plan.device)
        for number in range(-settings.warmup, settings.trials):
            run_name = f"trial {number + 1}" if number >= 0 else "warm-up"
            progress.working_on(f"{target.label} {case.name}, {run_name}")
            generation = engine.generate(
                prompt,
                max_new_tokens=case.max_new_tokens,
                sampling=case.sampling,
                ignore_eos=True,
            )
            if number < 0:
                warm_up_s += generation.warm_up_s
            else:
                samples.append(_sample(generation))
        peak = backend.peak_bytes(plan.device)
    except Exception as error:
        return Row(
            model=target.name,
            case=case.name,
            status=_status(error),
            reason=describe(error),
            samples=tuple(samples),
        )

    agree = len({sample.tokens_sha256 for sample in samples}) == 1
    greedy = case.sampling.greedy
    reason = _why_invalid(samples, case, trials_agree=agree)
    metrics = None
    if reason is None:
        metrics = summarise(
            samples,
            warm_up_s=warm_up_s,
            peak_gpu_bytes=peak,
            step_bytes=_step_bytes(engine, case) if settings.kv_cache else None,
            bandwidth=plan.bandwidth,
        )
    return Row(
        model=target.name,
        case=case.name,
        status="ok" if reason is None else "invalid",
        reason=reason,
        metrics=metrics,
        greedy_tokens_sha256=samples[0].tokens_sha256 if greedy and agree else None,
        trials_agree=agree,
        samples=tuple(samples),
    )


def _why_invalid(samples: Sequence[Sample], case: Case, *, trials_agree: bool) -> str | None:
    """Say why no number may be taken from these trials; None when all is well."""
    for number, sample in enumerate(samples, start=1):
        if sample.num_tokens != case.max_new_tokens:
            return (
                f"trial {number} generated {sample.num_tokens} tokens instead of "
                f"exactly {case.max_new_tokens}"
            )
        if len(sample.step_ms) != case.max_new_tokens - 1:
            return (
                f"trial {number} timed {len(sample.step_ms)} decode steps instead of "
                f"{case.max_new_tokens - 1}"
            )
        if sample.e2e_s <= 0 or (sample.step_ms and min(sample.decode_s, *sample.step_ms) <= 0):
            return f"trial {number} holds a time that is not above zero"
    if case.sampling.greedy and not trials_agree:
        prints = ", ".join(sample.tokens_sha256 for sample in samples)
        return f"greedy trials gave different tokens (fingerprints {prints})"
    return None


def _sample(generation: "Generation") -> Sample:
    return Sample(
        num_tokens=len(generation.tokens),
        ttft_ms=generation.ttft_ms,
        step_ms=tuple(round(step, 5) for step in generation.step_ms),
        decode_s=generation.decode_s,
        e2e_s=generation.e2e_s,
        warm_up_s=generation.warm_up_s,
        kv_cache_bytes=generation.kv_cache_bytes,
        tokens_sha256=tokens_sha256(generation.tokens),
    )


def _step_bytes(engine: EngineUnderTest, case: Case) -> int:
    return decode_step_bytes(
        engine.spec,
        weight_bytes=engine.weight_bytes,
        element_bytes=4 if _dtype(engine) == "float32" else 2,
        context=case.prompt_tokens + case.max_new_tokens // 2,
    )


def _dtype(engine: EngineUnderTest) -> str:
    return str(engine.dtype).removeprefix("torch.")


def _status(error: Exception) -> Status:
    # by name: torch.OutOfMemoryError, without importing torch here
    names = [kind.__name__ for kind in type(error).__mro__]
    return "oom" if "OutOfMemoryError" in names or "MemoryError" in names else "failed"
