import signal
from types import SimpleNamespace

import pytest
from bench_fakes import (
    FakeBackend,
    FakeEngine,
    FakeRegistry,
    InThisProcess,
    one_token_after_another,
)
from infer_bench.cases import named_cases
from infer_bench.costs import prefill_flops
from infer_bench.errors import EngineUnavailable
from infer_bench.gpu_state import GpuState
from infer_bench.plan import Plan
from infer_bench.progress import Progress
from infer_bench.report import Ceilings, Settings
from infer_bench.runner import run
from infer_bench.targets import find_targets
from toy_specs import toy_spec

from infer_core import OutOfMemory

SETTINGS = Settings(seed=42, warmup=2, max_warmup=2, trials=3, max_trials=3, isolation="model")


def measure(
    backend, *cases, settings=SETTINGS, bandwidth=None, matmul=None, engines=("infer",), **options
):
    device = backend.pick_device(None)
    targets = find_targets((), backend.load_registry(), backend.resolve, device=device)
    plan = Plan(
        cases=tuple(case.seeded(settings.seed) for case in named_cases(cases or ["short"])),
        targets=targets,
        settings=settings,
        device=device,
        engines=engines,
        unavailable=backend.missing,
    )
    ceilings = None
    if bandwidth is not None:
        ceilings = Ceilings(
            read_bandwidth_bytes_per_s=bandwidth, matmul_flops_per_s=matmul, matmul_dtype="float32"
        )
    launcher = InThisProcess(backend)
    return run(plan, launcher, Progress(plan.num_cells), ceilings=ceilings, **options)


def statuses(results):
    return [(row.model, row.case, row.status) for row in results.rows]


def test_a_model_loads_once_and_runs_warm_ups_then_trials_of_each_case():
    engine = FakeEngine()
    backend = FakeBackend({"toy": engine})

    results = measure(backend, "short", "sampled")

    assert [(engine, name) for engine, name, _ in backend.loads] == [("infer", "toy")]
    assert [len(row.samples) for row in results.rows] == [3, 3]
    # the last request asks for the greedy tokens of the sampled case
    assert [len(request.prompt) for request in engine.requests] == [64] * 5 + [256] * 6
    assert all(request.ignore_eos for request in engine.requests)
    assert {request.sampling.seed for request in engine.requests[:-1]} == {42}
    assert (engine.requests[-1].sampling.greedy, engine.requests[-1].max_new_tokens) == (True, 32)
    assert len({tuple(request.prompt) for request in engine.requests[:5]}) == 1


def test_warm_ups_are_not_among_the_samples_but_their_wall_time_is_noted():
    def slow_first(call, num_tokens):
        return {"e2e_s": 100.0 if call < 2 else 0.064}

    results = measure(FakeBackend({"toy": FakeEngine(times=slow_first)}))

    assert results.rows[0].metrics.e2e_tokens_per_s == pytest.approx(1000.0)
    warm_up = results.rows[0].warm_up
    assert (warm_up.num_runs, warm_up.stable) == (2, True)
    assert 0 < warm_up.wall_s < 10  # of the clock on the wall, not of the script


def test_the_kernels_a_case_compiled_are_its_own_and_loading_is_the_first_ones():
    class Compiles(FakeEngine):
        def generate(self, prompt, **request):
            backend.compilations.num += self.call == 0  # the first warm-up of each case
            return super().generate(prompt, **request)

        def plain_logits(self, prompt, tokens):
            backend.compilations.num += 100  # after the trials
            return super().plain_logits(prompt, tokens)

    class CountingBackend(FakeBackend):
        compilations = SimpleNamespace(num=0)

        def count_compilations(self):
            return self.compilations

        def load_engine(self, engine, model, options):
            self.compilations.num += 5
            return super().load_engine(engine, model, options)

    compiles = Compiles()
    compiles.kernels = "triton"
    backend = CountingBackend({"toy": compiles, "other": FakeEngine()})

    rows = measure(backend, "short", "medium").rows

    assert [row.warm_up.num_compiled for row in rows] == [6, 1, None, None]


def test_warming_up_goes_on_until_two_runs_take_the_same_time():
    def slow_start(call, num_tokens):
        return {"e2e_s": [9.0, 4.0, 1.0, 1.01, 1.0][min(call, 4)]}

    settings = SETTINGS.model_copy(update={"max_warmup": 5})
    row = measure(FakeBackend({"toy": FakeEngine(times=slow_start)}), settings=settings).rows[0]

    assert (row.warm_up.num_runs, row.warm_up.stable) == (4, True)


def test_a_case_that_never_gets_steady_is_measured_and_said_so():
    def slower_and_slower(call, num_tokens):
        return {"e2e_s": 2.0**call}

    settings = SETTINGS.model_copy(update={"max_warmup": 4})
    engine = FakeEngine(times=slower_and_slower)
    row = measure(FakeBackend({"toy": engine}), settings=settings).rows[0]

    assert (row.status, row.warm_up.num_runs, row.warm_up.stable) == ("ok", 4, False)


@pytest.mark.parametrize(("scatter", "num_trials"), [(0.001, 3), (0.5, 6)])
def test_trials_that_scatter_are_repeated_up_to_the_limit(scatter, num_trials):
    def times(call, num_tokens):
        return {"e2e_s": 1.0 + scatter * (call % 3)}

    settings = SETTINGS.model_copy(update={"max_trials": 6})
    row = measure(FakeBackend({"toy": FakeEngine(times=times)}), settings=settings).rows[0]

    assert row.metrics.num_trials == len(row.samples) == num_trials


@pytest.mark.parametrize(("limit", "expected"), [(4096, 1088), (512, 512)])
def test_the_engine_is_asked_for_the_longest_case_or_what_the_model_can_hold(limit, expected):
    backend = FakeBackend({"toy": FakeEngine(toy_spec(max_context=limit))})

    measure(backend, "short", "decode")

    _, _, options = backend.loads[0]
    assert options.max_context == expected


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", None)])
def test_tiny_reference_models_run_in_float32(device, dtype):
    backend = FakeBackend({"toy": FakeEngine()}, device=device)

    results = measure(backend)

    _, _, options = backend.loads[0]
    assert options.dtype == dtype
    loaded = results.rows[0].loaded
    assert loaded.tiny == (device == "cpu")
    # threads that wait for each other on a busy machine make tiny models slower and jumpy
    assert loaded.num_cpu_threads == (1 if device == "cpu" else 4)


def test_a_row_with_another_token_count_is_invalid_and_has_no_numbers():
    engine = FakeEngine(tokens=lambda call, n: list(range(n - 1 if call == 3 else n)))

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert (row.status, row.metrics) == ("invalid", None)
    assert row.reason == "trial 2 generated 63 tokens instead of exactly 64"
    assert len(row.samples) == 3


def test_a_row_without_a_time_for_every_step_is_invalid():
    engine = FakeEngine(times=lambda call, n: {"step_ms": [1.0] * n})

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert row.status == "invalid"
    assert row.reason == "trial 1 timed 64 decode steps instead of 63"


@pytest.mark.parametrize("times", [{"e2e_s": 0.0}, {"decode_s": 0.0}, {"step_ms": [0.0] * 63}])
def test_a_clock_that_stands_still_makes_a_row_invalid(times):
    row = measure(FakeBackend({"toy": FakeEngine(times=lambda call, n: times)})).rows[0]

    assert row.status == "invalid"
    assert "not above zero" in row.reason


def test_a_time_that_is_no_number_fails_its_row_only():
    def sometimes_nan(call, num_tokens):
        return {"ttft_ms": float("nan")} if num_tokens == 64 else {}

    results = measure(FakeBackend({"toy": FakeEngine(times=sometimes_nan)}), "short", "medium")

    assert [row.status for row in results.rows] == ["failed", "ok"]
    assert "ttft_ms" in results.rows[0].reason


def test_greedy_trials_that_differ_make_the_row_invalid():
    engine = FakeEngine(tokens=lambda call, n: [call] * n)

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert (row.status, row.trials_agree, row.greedy_tokens_sha256) == ("invalid", False, None)
    assert "greedy trials gave different tokens" in row.reason
    assert len({sample.tokens_sha256 for sample in row.samples}) == 3


def test_differing_trials_of_an_engine_that_promises_no_repeats_are_each_held_to_the_plain_path():
    engine = FakeEngine(tokens=lambda call, n: [call] * n)
    engine.repeatable = False

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert (row.status, row.trials_agree, row.greedy_tokens_sha256) == ("ok", False, None)
    assert (row.parity.num_equal, row.parity.num_tokens) == (64, 64)  # all, not the first 32


def test_one_wrong_token_in_any_of_differing_trials_makes_the_row_invalid():
    engine = FakeEngine(tokens=lambda call, n: [call] * n)
    engine.repeatable = False
    second = 3  # after two warm-ups
    engine.plain_tokens = lambda tokens: [*tokens[:-1], 9 if tokens[0] == second else tokens[-1]]

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert (row.status, row.metrics) == ("invalid", None)
    assert "63 of the first 64 equal" in row.reason


def test_differing_trials_are_invalid_where_nothing_can_judge_them():
    engine = FakeEngine(tokens=lambda call, n: [call] * n)
    engine.repeatable = False
    engine.plain_logits = lambda prompt, tokens: None

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert row.status == "invalid"
    assert "greedy trials gave different tokens" in row.reason


def test_sampled_trials_that_differ_are_noted_and_stay_valid():
    engine = FakeEngine(tokens=lambda call, n: [call] * n)

    row = measure(FakeBackend({"toy": engine}), "sampled").rows[0]

    assert (row.status, row.trials_agree, row.greedy_tokens_sha256) == ("ok", False, None)


def test_a_greedy_row_carries_the_fingerprint_of_its_tokens():
    row = measure(FakeBackend({"toy": FakeEngine()})).rows[0]

    assert row.greedy_tokens_sha256 == row.samples[0].tokens_sha256
    assert row.trials_agree


def test_a_model_that_does_not_load_fails_in_every_case_and_the_next_one_runs():
    backend = FakeBackend({"bad": RuntimeError("no such kernel"), "good": FakeEngine()})

    results = measure(backend, "short", "medium")

    assert statuses(results) == [
        ("bad", "short", "failed"),
        ("bad", "medium", "failed"),
        ("good", "short", "ok"),
        ("good", "medium", "ok"),
    ]
    assert results.rows[0].reason == "RuntimeError: no such kernel"
    assert [row.loaded is None for row in results.rows] == [True, True, False, False]


def test_a_broken_plugin_is_a_column_with_its_reason_and_the_others_run():
    registry = FakeRegistry(["good"], broken={"bad": "ImportError: no module 'x'"})

    results = measure(FakeBackend({"good": FakeEngine()}, registry=registry))

    assert statuses(results) == [("good", "short", "ok"), ("bad", "short", "failed")]
    assert results.rows[1].reason == "ImportError: no module 'x'; to mend: pip install it"


def test_a_case_that_fails_leaves_the_other_cases_alone():
    def fail_on_medium(call, max_new_tokens):
        if max_new_tokens == 256:
            raise ValueError("unlucky")
        return list(range(max_new_tokens))

    results = measure(FakeBackend({"toy": FakeEngine(tokens=fail_on_medium)}), "medium", "short")

    assert [row.status for row in results.rows] == ["failed", "ok"]
    assert results.rows[0].reason == "ValueError: unlucky"


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        OutOfMemory("8 GB needed, 2 GB are free"),
        MemoryError("no room"),
    ],
    ids=["torch", "predicted", "host"],
)
def test_running_out_of_memory_is_told_apart(error):
    def fail_on_medium(call, max_new_tokens):
        if max_new_tokens == 256:
            raise error
        return list(range(max_new_tokens))

    loads = FakeBackend({"big": error, "small": FakeEngine()})
    runs = FakeBackend({"toy": FakeEngine(tokens=fail_on_medium)})

    rows = [*measure(loads).rows, *measure(runs, "medium", "short").rows]

    assert [row.status for row in rows] == ["oom", "ok", "oom", "ok"]
    assert str(error) in rows[0].reason


def test_caches_of_one_case_are_freed_before_the_next_is_measured():
    engine = FakeEngine()

    measure(FakeBackend({"toy": engine}), "short", "medium", "sampled")

    assert engine.num_releases == 3


def test_peak_and_mbu_come_from_the_gpu_and_its_measured_bandwidth():
    # steps of 1 ms; tied toy weights 4000 bytes, 3 layers * 48 elements * 96 tokens * 4 bytes
    backend = FakeBackend({"toy": FakeEngine()}, device="cuda", peak=3 * 10**9)

    metrics = measure(backend, bandwidth=1e9).rows[0].metrics

    assert metrics.peak_gpu_gb == 3.0
    assert metrics.mbu == pytest.approx((4000 + 3 * 48 * 96 * 4) / 1e-3 / 1e9)


def test_without_a_kv_cache_there_is_no_mbu():
    settings = SETTINGS.model_copy(update={"kv_cache": False})

    metrics = measure(FakeBackend({"toy": FakeEngine()}), settings=settings, bandwidth=1e9)

    assert metrics.rows[0].metrics.mbu is None


def test_ctrl_c_keeps_the_finished_rows():
    def interrupt_on_medium(call, max_new_tokens):
        if max_new_tokens == 256:
            signal.raise_signal(signal.SIGINT)
        return one_token_after_another(call, max_new_tokens)

    backend = FakeBackend({"toy": FakeEngine(tokens=interrupt_on_medium), "late": FakeEngine()})

    results = measure(backend, "short", "medium")

    assert results.interrupted
    assert statuses(results) == [("toy", "short", "ok")]


def test_tokens_that_the_plain_path_would_not_pick_make_the_row_invalid():
    engine = FakeEngine()
    engine.plain_tokens = lambda tokens: [*tokens[:-1], 90]

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert (row.status, row.metrics) == ("invalid", None)
    assert (row.parity.num_equal, row.parity.num_tokens, row.parity.agrees) == (31, 32, False)
    assert "31 of the first 32 equal" in row.reason


def test_an_engine_without_a_plain_path_has_no_parity_and_stays_valid():
    engine = FakeEngine()
    engine.plain_logits = lambda prompt, tokens: None

    row = measure(FakeBackend({"toy": engine})).rows[0]

    assert (row.status, row.parity) == ("ok", None)


def test_a_sampled_row_has_the_fingerprint_of_greedy_tokens_too():
    row = measure(FakeBackend({"toy": FakeEngine()}), "sampled").rows[0]

    assert row.greedy_tokens_sha256 is None
    assert (row.parity.num_tokens, row.parity.agrees) == (32, True)


def test_every_engine_gets_the_same_ids_and_a_missing_one_is_skipped_with_its_reason():
    ours, theirs = FakeEngine(), FakeEngine()
    backend = FakeBackend(
        {("infer", "toy"): ours, ("other", "toy"): theirs}, missing={"absent": "pip install it"}
    )

    results = measure(backend, engines=("infer", "other", "absent"))

    assert [(row.engine, row.status, row.reason) for row in results.rows] == [
        ("infer", "ok", None),
        ("other", "ok", None),
        ("absent", "skipped", "pip install it"),
    ]
    assert ours.requests[0].prompt == theirs.requests[0].prompt
    assert results.rows[0].greedy_tokens_sha256 == results.rows[1].greedy_tokens_sha256


def test_an_engine_that_cannot_run_a_model_is_skipped_there():
    backend = FakeBackend({"toy": EngineUnavailable("it has no class Toy")})

    row = measure(backend).rows[0]

    assert (row.status, row.reason) == ("skipped", "it has no class Toy")


def test_rows_of_an_interrupted_run_are_taken_over_in_their_place():
    first = measure(FakeBackend({"toy": FakeEngine()}), "medium")
    backend = FakeBackend({"toy": FakeEngine()})

    results = measure(backend, "short", "medium", "sampled", finished=first.rows)

    assert [row.case for row in results.rows] == ["short", "medium", "sampled"]
    assert results.rows[1] is first.rows[0]
    assert backend.engines["toy"].num_releases == 2


class Gauge:
    """A GPU that reads 100 W, then 300 W and a power cap; counts energy if told to."""

    def __init__(self, joules=None):
        self.joules = list(joules or [None, None])
        self.num_reads = 0

    def read(self):
        self.num_reads += 1
        busy = self.num_reads > 1
        throttle = ("power cap",) if busy else ()
        return GpuState(sm_clock_mhz=1980.0, power_w=300.0 if busy else 100.0, throttle=throttle)

    def energy_j(self):
        return self.joules.pop(0)

    def stream(self, stop):
        yield self.read()


def test_power_clocks_and_throttling_of_the_trials_are_in_the_row():
    def half_a_second(call, num_tokens):
        return {"e2e_s": 0.5}

    backend = FakeBackend(
        {"toy": FakeEngine(times=half_a_second)}, device="cuda", gauge=Gauge([1000.0, 1004.0])
    )

    row = measure(backend).rows[0]

    assert (row.gpu.before.power_w, row.gpu.after.power_w) == (100.0, 300.0)
    assert row.gpu.throttle == ("power cap",)
    assert row.gpu.energy_j == 4.0
    assert row.metrics.tokens_per_joule == 3 * 64 / 4.0


def test_mfu_needs_a_ceiling_measured_in_the_models_own_dtype():
    backend = FakeBackend({"toy": FakeEngine()}, device="cuda")
    other = FakeEngine()
    other.dtype = "torch.bfloat16"

    same = measure(backend, bandwidth=1e9, matmul=1e12).rows[0].metrics
    unlike = (
        measure(FakeBackend({"toy": other}, device="cuda"), bandwidth=1e9, matmul=1e12)
        .rows[0]
        .metrics
    )

    # 64 tokens in 1 ms
    assert same.prefill_mfu == pytest.approx(
        prefill_flops(toy_spec(), prompt_tokens=64) / 1e-3 / 1e12
    )
    assert unlike.prefill_mfu is None
