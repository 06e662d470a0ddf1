import signal

import pytest
from bench_fakes import FakeBackend, FakeEngine, FakeRegistry, one_token_after_another
from infer_bench.cases import named_cases
from infer_bench.progress import Progress
from infer_bench.report import Settings
from infer_bench.runner import Plan, run
from infer_bench.targets import find_targets
from toy_specs import toy_spec

SETTINGS = Settings(seed=42, warmup=2, trials=3)


def measure(backend, *cases, settings=SETTINGS, bandwidth=None):
    device = backend.pick_device(None)
    targets = find_targets((), backend.load_registry(), backend.resolve, device=device)
    plan = Plan(
        cases=tuple(case.seeded(settings.seed) for case in named_cases(cases or ["short"])),
        targets=targets,
        settings=settings,
        device=device,
        bandwidth=bandwidth,
    )
    return run(plan, backend, Progress(len(plan.cases) * len(targets)))


def statuses(results):
    return [(row.model, row.case, row.status) for row in results.rows]


def test_a_model_loads_once_and_runs_warm_ups_then_trials_of_each_case():
    engine = FakeEngine()
    backend = FakeBackend({"toy": engine})

    results = measure(backend, "short", "sampled")

    assert [name for name, _ in backend.loads] == ["toy"]
    assert [len(row.samples) for row in results.rows] == [3, 3]
    assert [len(request.prompt) for request in engine.requests] == [64] * 5 + [256] * 5
    assert all(request.ignore_eos for request in engine.requests)
    assert {request.sampling.seed for request in engine.requests} == {42}
    assert len({tuple(request.prompt) for request in engine.requests[:5]}) == 1


def test_warm_ups_are_not_among_the_samples_but_their_compilation_is_counted():
    def slow_first(call, num_tokens):
        return {"e2e_s": 100.0 if call < 2 else 0.064}

    results = measure(FakeBackend({"toy": FakeEngine(times=slow_first)}))

    assert results.rows[0].metrics.e2e_tokens_per_s == pytest.approx(1000.0)
    assert results.rows[0].metrics.warm_up_s == 0.5


@pytest.mark.parametrize(("limit", "expected"), [(4096, 1088), (512, 512)])
def test_the_engine_is_asked_for_the_longest_case_or_what_the_model_can_hold(limit, expected):
    backend = FakeBackend({"toy": FakeEngine(toy_spec(max_context=limit))})

    measure(backend, "short", "decode")

    _, options = backend.loads[0]
    assert options["max_context"] == expected


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", None)])
def test_tiny_reference_models_run_in_float32(device, dtype):
    backend = FakeBackend({"toy": FakeEngine()}, device=device)

    results = measure(backend)

    _, options = backend.loads[0]
    assert options["dtype"] == dtype
    assert results.models[0].loaded.tiny == (device == "cpu")


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
    assert [model.loaded is None for model in results.models] == [True, False]


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


def test_running_out_of_memory_is_told_apart():
    class OutOfMemoryError(RuntimeError):
        """Named as torch names its own."""

    backend = FakeBackend({"big": OutOfMemoryError("CUDA out of memory"), "small": FakeEngine()})

    assert [row.status for row in measure(backend).rows] == ["oom", "ok"]


def test_an_engine_is_gone_before_the_next_model_loads():
    backend = FakeBackend({"first": FakeEngine(), "second": FakeEngine()})

    measure(backend)

    assert backend.alive_at_load == [False, False]


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
    assert [model.name for model in results.models] == ["toy"]
