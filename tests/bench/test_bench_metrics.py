import hashlib

import pytest
from infer_bench.metrics import decode_step_bytes, percentile, summarise, tokens_sha256
from infer_bench.report import Sample
from toy_specs import toy_spec


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


def summary(samples, **changes):
    options = {"warm_up_s": 1.5, "peak_gpu_bytes": None, "step_bytes": None, "bandwidth": None}
    return summarise(samples, **(options | changes))


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
    assert metrics.warm_up_s == 1.75
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
