import hashlib
import random

import pytest
import torch
from infer_bench.costs import decode_step_bytes, prefill_flops
from infer_bench.intervals import bootstrap_interval, is_steady, is_tight, percentile
from infer_bench.metrics import Facts, summarise, tokens_sha256
from infer_bench.report import Ceilings, Sample
from torch.utils.flop_counter import FlopCounterMode
from toy_specs import toy_spec

from infer_core import Engine, decoder
from infer_core.weights import dummy_weights


def sample(**changes):
    fields = {
        "num_tokens": 8,
        "ttft_ms": 10.0,
        "step_ms": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0),
        "decode_s": 1.4,
        "e2e_s": 2.0,
        "warm_up_s": 0.0,
        "kv_cache_bytes": 4_194_304,
        "tokens_sha256": "0" * 16,
    }
    return Sample(**(fields | changes))


def summary(samples, *, bandwidth=None, matmul=None, **facts):
    ceilings = None
    if bandwidth is not None:
        ceilings = Ceilings(read_bandwidth_bytes_per_s=bandwidth, matmul_flops_per_s=matmul)
    return summarise(samples, Facts(prompt_tokens=100, ceilings=ceilings, **facts))


def test_metrics_are_medians_over_trials():
    doubled, tripled = (tuple(f * s for s in range(7, 0, -1)) for f in (2.0, 3.0))
    trials = [
        sample(),
        sample(ttft_ms=30.0, e2e_s=4.0, decode_s=3.5, step_ms=doubled, warm_up_s=0.25),
        sample(ttft_ms=20.0, e2e_s=1.0, decode_s=0.7, step_ms=tripled),
    ]

    metrics = summary(trials, peak_gpu_bytes=2_500_000_000)

    assert metrics.e2e_tokens_per_s == 4.0  # of 8/2, 8/4, 8/1
    assert metrics.decode_tokens_per_s == pytest.approx(5.0)  # of 7/1.4, 7/3.5, 7/0.7
    assert metrics.step_p50_ms == 8.0  # of 4, 8, 12
    # rank 0.95 * 6 = 5.7 of 1..7 is 6.7, so the trials have 6.7, 13.4, 20.1
    assert metrics.step_p95_ms == pytest.approx(13.4)
    assert metrics.ttft_ms == 20.0
    assert metrics.kv_cache_mb == pytest.approx(4.194304)
    assert metrics.peak_gpu_gb == 2.5
    assert metrics.prefill_tokens_per_s == pytest.approx(5000.0)  # 100 in 20 ms
    assert (metrics.num_trials, metrics.num_steps) == (3, 21)
    assert metrics.mbu is None


def test_mbu_is_bytes_over_median_step_time_over_bandwidth():
    # 8 kB in 4 ms is 2 MB/s, half of 4 MB/s
    assert summary([sample()], step_bytes=8000, bandwidth=4e6).mbu == pytest.approx(0.5)


@pytest.mark.parametrize("known", [{"step_bytes": 8000}, {"bandwidth": 4e6}])
def test_without_bytes_or_bandwidth_there_is_no_mbu(known):
    assert summary([sample()], **known).mbu is None


def test_a_single_token_has_no_decode_numbers():
    metrics = summary(
        [sample(num_tokens=1, step_ms=(), decode_s=0.0)], step_bytes=8000, bandwidth=4e6
    )

    assert metrics.e2e_tokens_per_s == 0.5
    assert metrics.decode_tokens_per_s is metrics.step_p50_ms is metrics.step_p95_ms is None
    assert metrics.mbu is None


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([3.0], 95, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 50, 2.5),
        ([5.0, 1.0, 2.0, 4.0, 3.0], 50, 3.0),
        ([float(v) for v in range(101)], 95, 95.0),
        ([0.0, 10.0], 95, 9.5),
    ],
)
def test_percentiles_interpolate_between_ranks(values, percent, expected):
    assert percentile(values, percent) == pytest.approx(expected)


def test_a_decode_step_reads_all_weights_and_what_each_window_sees():
    # 3 layers of 2 kv heads * 12: 48 elements a token; two see 5 tokens, the last all 20
    spec = toy_spec(window=5, tied=True)

    read = decode_step_bytes(spec, weight_bytes=10_000, element_bytes=4, context=20)

    assert read == 10_000 + 4 * 48 * (5 + 5 + 20)


def test_a_context_shorter_than_the_window_is_read_once():
    spec = toy_spec(window=50, tied=True)

    assert decode_step_bytes(spec, weight_bytes=0, element_bytes=2, context=7) == 2 * 48 * 21


def test_an_embedding_table_that_is_no_lm_head_is_not_read():
    # vocabulary 97 * hidden 40
    spec = toy_spec(tied=False)

    read = decode_step_bytes(spec, weight_bytes=100_000, element_bytes=2, context=1)

    assert read == 100_000 - 2 * 97 * 40 + 2 * 48 * 3


def test_the_fingerprint_can_be_computed_elsewhere():
    assert tokens_sha256([1, 22, 333]) == hashlib.sha256(b"1,22,333").hexdigest()[:16]
    assert tokens_sha256([12, 3]) != tokens_sha256([1, 23])


def test_mfu_is_flops_over_ttft_over_the_measured_matmul_speed():
    # 10 ms to the first token: 3e9 flops are 3e11 a second, of 1e12
    metrics = summary([sample()], bandwidth=1.0, matmul=1e12, prefill_flops=3 * 10**9)

    assert metrics.prefill_mfu == pytest.approx(0.3)
    assert summary([sample()], bandwidth=1.0, prefill_flops=3 * 10**9).prefill_mfu is None


def test_tokens_per_joule_are_over_all_trials():
    assert summary([sample(), sample()], energy_j=4.0).tokens_per_joule == 4.0  # 16 tokens


def test_trials_too_short_for_the_energy_counter_have_no_energy():
    assert summary([sample(e2e_s=0.1)] * 4, energy_j=4.0).tokens_per_joule is None


def test_every_metric_over_trials_has_an_interval_around_its_median():
    metrics = summary([sample(e2e_s=s) for s in (2.0, 2.1, 1.9, 2.05, 1.95)])

    assert set(metrics.intervals) == {
        "e2e_tokens_per_s", "decode_tokens_per_s", "step_p50_ms", "step_p95_ms", "step_p99_ms",
        "ttft_ms",
    }  # fmt: skip
    low, high = metrics.intervals["e2e_tokens_per_s"]
    assert 8 / 2.1 <= low < metrics.e2e_tokens_per_s < high <= 8 / 1.9


def test_the_bootstrap_interval_covers_the_median_as_often_as_it_says():
    # of 200 samples of nine normal numbers about 95 % must cover 0; the discrete bootstrap of a
    # median covers more, binomial noise is 1.5 %
    draw = random.Random(0)
    covered = 0
    for seed in range(200):
        low, high = bootstrap_interval([draw.gauss(0, 1) for _ in range(9)], seed=seed)
        covered += low <= 0 <= high

    assert covered >= 0.9 * 200


def test_three_trials_give_their_whole_range():
    assert bootstrap_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_measuring_may_stop_once_the_interval_is_narrow():
    assert is_tight([1.0, 1.005, 0.995], within=0.02)
    assert not is_tight([1.0, 1.2, 0.8], within=0.02)


@pytest.mark.parametrize(
    ("seconds", "steady"),
    [([], None), ([1.0], None), ([9.0, 1.0, 1.01], True), ([1.0, 1.0, 1.2], False)],
)
def test_warm_means_that_the_last_two_runs_took_the_same_time(seconds, steady):
    assert is_steady(seconds, within=0.05) is steady


def test_prefill_flops_are_what_torch_counts(monkeypatch):
    # torch's counter sees the matrix products of a real pass. The reference computes all of what a
    # causal mask hides, and q of the last layer, in one product with k and v, for every token.
    monkeypatch.setattr(decoder, "ALONE_FROM", 24)
    spec = toy_spec(tied=False)
    engine = Engine(spec, dummy_weights(spec, device="cpu", dtype=torch.float32))
    prompt = list(range(24))
    with FlopCounterMode(display=False) as counter:
        engine.generate(prompt, max_new_tokens=1)

    hidden = 2 * 4 * 6 * 12 * (24 * 24 - 24 * 25 // 2)  # layers * 4 * heads * head_dim, pairs
    unasked = 23 * 2 * (6 * 12) * 40  # tokens, rows of q, width
    counted = prefill_flops(spec, prompt_tokens=24)
    assert counted == counter.get_total_flops() - hidden - unasked


def test_a_window_limits_the_attention_a_prompt_costs():
    # two of three layers see at most 5 keys: 1+2+3+4 + 20*5 instead of 24*25/2
    attention = 4 * 6 * 12
    full, windowed = (
        prefill_flops(toy_spec(window=window), prompt_tokens=24) for window in (None, 5)
    )

    assert full - windowed == 2 * attention * (300 - 110)
