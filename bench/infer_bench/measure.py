"""Measure the cells of one job, in this process; a failure is a row and never stops the others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infer_bench.backend import Backend
from infer_bench.cases import Case, prompt_ids
from infer_bench.compilations import Compilations
from infer_bench.costs import decode_step_bytes, prefill_flops
from infer_bench.engines import LoadedEngine, LoadOptions
from infer_bench.errors import EngineUnavailable
from infer_bench.gpu_state import GpuActivity
from infer_bench.intervals import is_steady, is_tight
from infer_bench.job import Job, Listener
from infer_bench.metrics import Facts, summarise
from infer_bench.parity import NUM_TOKENS, judge
from infer_bench.report import LoadedModel, Parity, Row, Status, WarmUp
from infer_bench.targets import describe
from infer_bench.trials import Trials, why_different, why_invalid, why_unequal
from infer_core import OutOfMemory, SamplingParams

if TYPE_CHECKING:
    from infer_core import Generation
    from infer_core.model_source import ResolvedModel

# Warm enough when two runs in a row take the same time within this; enough trials when the
# interval of the median is this narrow, or this much time has gone into them.
STEADY_WITHIN = 0.05
TIGHT_WITHIN = 0.02
ENOUGH_S = 10.0


def measure(job: Job, backend: Backend, listener: Listener, *, began: float | None = None) -> None:
    """Load the job's model, measure each of its cases, tell the listener of every row.

    `began` is the time (seconds since the epoch) the process was started at, if it was started
    for this job.
    """
    listener.doing(f"loading {job.label} on {job.engine}")
    compilations = backend.count_compilations()
    try:
        registry = backend.load_registry()
        model = backend.resolve(
            job.model,
            registry,
            job.device,
            revision=job.revision,
            weights=job.settings.weights != "dummy",
        )
        tiny = model.checkpoint is None and job.device == "cpu"
        if tiny:
            # threads that wait for each other on a busy machine cost far more than they save
            backend.use_one_thread()
        backend.start_peak(job.device)
        engine = backend.load_engine(job.engine, model, _options(job, model, tiny=tiny))
        loaded = _describe(engine, model, tiny=tiny, backend=backend)
    except Exception as error:
        for case in job.cases:
            listener.row(_failed(job, case, error))
        return

    cell = _Cell(job, model, engine, loaded, backend, listener, compilations, began)
    for case in job.cases:
        listener.row(cell.measure(case))
        cell.began, cell.num_compiled_before = None, compilations.num


def _options(job: Job, model: "ResolvedModel", *, tiny: bool) -> LoadOptions:
    return LoadOptions(
        device=job.device,
        dtype=job.settings.dtype or ("float32" if tiny else None),
        weights=job.settings.weights,
        # a case beyond the model's own limit then fails by itself instead of taking all with it
        max_context=min(job.max_context, model.spec.shape.max_context),
        kv_cache=job.settings.kv_cache,
    )


def _describe(
    engine: LoadedEngine, model: "ResolvedModel", *, tiny: bool, backend: Backend
) -> LoadedModel:
    return LoadedModel(
        architecture=model.spec.architecture,
        distribution=model.spec.distribution,
        plugin_version=model.spec.plugin_version,
        tiny=tiny,
        dtype=_dtype(engine),
        kernels=engine.kernels,
        unfused=getattr(engine, "unfused", False),  # ours alone has fused kernels to do without
        weights=engine.weights_kind,
        weight_bytes=engine.weight_bytes,
        load_s=engine.load_s,
        num_cpu_threads=backend.num_threads(),
    )


@dataclass(slots=True)
class _Cell:
    """Measures cases of one loaded engine.

    `began` is None and `num_compiled_before` what it was once the process has run a case.
    """

    job: Job
    model: "ResolvedModel"
    engine: LoadedEngine
    loaded: LoadedModel
    backend: Backend
    listener: Listener
    compilations: Compilations
    began: float | None
    num_compiled_before: int = 0

    def measure(self, case: Case) -> Row:
        """Warm up, time trials, check tokens; whatever goes wrong becomes the row's reason."""
        trials = Trials()
        try:
            return self._row(case, trials)
        except Exception as error:
            row = _failed(self.job, case, error)
            known = {"loaded": self.loaded, "samples": tuple(trials.samples)}
            return row.model_copy(update=known)

    def _row(self, case: Case, trials: "Trials") -> Row:
        job, settings, backend = self.job, self.job.settings, self.backend
        vocab_size = self.model.spec.shape.vocab_size
        prompt = prompt_ids(case.prompt_tokens, vocab_size=vocab_size, seed=settings.seed)

        def run(doing: str, *, sampling: SamplingParams, max_new_tokens: int) -> "Generation":
            self.listener.doing(f"{job.label} {case.name} on {job.engine}, {doing}")
            return self.engine.generate(
                prompt, max_new_tokens=max_new_tokens, sampling=sampling, ignore_eos=True
            )

        def whole(doing: str) -> "Generation":
            return run(doing, sampling=case.sampling, max_new_tokens=case.max_new_tokens)

        self.engine.release()  # caches and graphs of the case before: each peak stands for itself
        backend.start_peak(job.device)
        watch = backend.watch_gpu(job.device)
        warm_up, cold_start_s = self._warm_up(whole)
        with watch:
            self._take_trials(whole, trials)
        peak = backend.peak_bytes(job.device)

        # a row is judged by the trials themselves before anything else is run
        greedy = case.sampling.greedy
        plain = greedy and case.sampling.repetition_penalty == 1  # what the plain path computes
        reason = why_invalid(trials.samples, case)
        parity = None
        if reason is None and greedy and not trials.agree:
            if plain and not self.engine.repeatable:
                parity = self._worst_parity(prompt, trials.tokens)
            reason = why_different(trials.samples) if parity is None else why_unequal(parity)
        elif reason is None:
            count = min(NUM_TOKENS, case.max_new_tokens)
            tokens = trials.tokens[-1]
            if not plain:
                tokens = run("greedy", sampling=SamplingParams(), max_new_tokens=count).tokens
            parity = self._check_parity(prompt, tokens[:count])
            reason = why_unequal(parity)

        metrics = None
        if reason is None:
            metrics = summarise(trials.samples, self._facts(case, peak, watch.activity))
        return Row(
            engine=job.engine,
            model=job.name,
            case=case.name,
            status="ok" if reason is None else "invalid",
            reason=reason,
            loaded=self.loaded,
            metrics=metrics,
            warm_up=warm_up,
            cold_start_s=cold_start_s,
            greedy_tokens_sha256=(
                trials.samples[0].tokens_sha256 if greedy and trials.agree else None
            ),
            parity=parity,
            trials_agree=trials.agree,
            gpu=watch.activity,
            samples=tuple(trials.samples),
        )

    def _warm_up(self, whole: Callable[[str], "Generation"]) -> tuple[WarmUp, float | None]:
        """Run until two runs in a row take the same time; also time the process's first token."""
        settings = self.job.settings
        seconds: list[float] = []
        cold_start_s = None
        began = time.perf_counter()
        while len(seconds) < settings.warmup or (
            len(seconds) < settings.max_warmup and is_steady(seconds, within=STEADY_WITHIN) is False
        ):
            started = time.time()
            generation = whole("warm-up")
            if self.began is not None and not seconds:
                cold_start_s = started - self.began + generation.ttft_ms / 1e3
            seconds.append(generation.e2e_s)
        wall_s = time.perf_counter() - began if seconds else 0.0
        stable = is_steady(seconds, within=STEADY_WITHIN)
        num_compiled = None
        if self.loaded.kernels == "triton":
            num_compiled = self.compilations.num - self.num_compiled_before
        warm_up = WarmUp(
            num_runs=len(seconds), wall_s=wall_s, stable=stable, num_compiled=num_compiled
        )
        return warm_up, cold_start_s

    def _take_trials(self, whole: Callable[[str], "Generation"], trials: "Trials") -> None:
        """Time trials until their median is known well enough, or the limit is reached."""
        settings = self.job.settings
        began = time.perf_counter()
        while len(trials.samples) < settings.max_trials:
            if len(trials.samples) >= settings.trials:
                seconds = [sample.e2e_s for sample in trials.samples]
                enough = time.perf_counter() - began > ENOUGH_S
                if enough or min(seconds) <= 0 or is_tight(seconds, within=TIGHT_WITHIN):
                    return
            trials.add(whole(f"trial {len(trials.samples) + 1}"))

    def _worst_parity(self, prompt: list[int], answers: Sequence[list[int]]) -> Parity | None:
        """Hold every token of several answers against the plain path, if there is one.

        Gives the worst verdict.
        """
        verdicts = [self._check_parity(prompt, tokens) for tokens in answers]
        known = (verdict for verdict in verdicts if verdict is not None)
        return max(known, key=lambda verdict: verdict.largest_gap, default=None)

    def _check_parity(self, prompt: list[int], tokens: list[int]) -> Parity | None:
        self.listener.doing(f"{self.job.label} on {self.job.engine}, plain path")
        logits = self.engine.plain_logits(prompt, tokens)
        if logits is None:
            return None
        return judge(logits, tokens, path=self.engine.plain_path, dtype=self.loaded.dtype)

    def _facts(self, case: Case, peak: int | None, activity: GpuActivity | None) -> Facts:
        spec, loaded = self.model.spec, self.loaded
        step_bytes = None
        if self.job.settings.kv_cache:
            step_bytes = decode_step_bytes(
                spec,
                weight_bytes=loaded.weight_bytes,
                element_bytes=4 if loaded.dtype == "float32" else 2,
                context=case.prompt_tokens + case.max_new_tokens // 2,
            )
        ceilings = self.job.ceilings
        same_dtype = ceilings is not None and ceilings.matmul_dtype == loaded.dtype
        return Facts(
            prompt_tokens=case.prompt_tokens,
            peak_gpu_bytes=peak,
            step_bytes=step_bytes,
            prefill_flops=(
                prefill_flops(spec, prompt_tokens=case.prompt_tokens) if same_dtype else None
            ),
            ceilings=ceilings,
            energy_j=activity.energy_j if activity else None,
        )


def _failed(job: Job, case: Case, error: Exception) -> Row:
    return Row(
        engine=job.engine,
        model=job.name,
        case=case.name,
        status=_status(error),
        reason=describe(error),
    )


def _status(error: Exception) -> Status:
    if isinstance(error, EngineUnavailable):
        return "skipped"
    # by name: torch.OutOfMemoryError, without importing torch here
    names = [kind.__name__ for kind in type(error).__mro__]
    short = isinstance(error, OutOfMemory | MemoryError) or "OutOfMemoryError" in names
    return "oom" if short else "failed"


def _dtype(engine: LoadedEngine) -> str:
    return str(engine.dtype).removeprefix("torch.")
