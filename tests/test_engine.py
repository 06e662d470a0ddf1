from types import SimpleNamespace

import pytest
import torch
from toy_specs import toy_spec

from infer_core import Engine, RequestError, SamplingParams
from infer_core.session import Session, bucket
from infer_core.weights import dummy_weights

PROMPT = list(range(5, 37))


def toy_engine(*, engine=None, device="cpu", **spec):
    spec = toy_spec(**spec)
    parameters = dummy_weights(spec, device=device, dtype=torch.float32)
    return Engine(spec, parameters, weights_kind="dummy", **(engine or {}))


def generate(engine, prompt=PROMPT, max_new_tokens=24, **arguments):
    return engine.generate(prompt, max_new_tokens=max_new_tokens, **arguments)


SHAPES = [
    pytest.param({}, id="plain"),
    pytest.param({"window": 9, "ring": True}, id="ring-shorter-than-prompt"),
    pytest.param({"window": 200, "ring": True}, id="ring-longer-than-request"),
    pytest.param({"qk_norm": "head", "biases": True}, id="qk-norm-and-biases"),
    pytest.param({"sandwich": True, "tied": False}, id="sandwich-untied"),
    pytest.param({"placement": "post", "qk_norm": "projection"}, id="post-norm-projection-norm"),
    pytest.param({"residual_scale": 0.3, "logits_scale": 0.2}, id="multipliers"),
    pytest.param({"gated": False, "biases": True}, id="ungated-mlp"),
]


@pytest.mark.parametrize("spec", SHAPES)
def test_cached_decoding_equals_recomputing_the_prefix(spec):
    cached, uncached = toy_engine(**spec), toy_engine(**spec, engine={"kv_cache": False})

    assert generate(cached).tokens == generate(uncached).tokens
    assert generate(uncached).kv_cache_bytes == 0


@pytest.mark.parametrize("spec", SHAPES)
@pytest.mark.parametrize("prefill_chunk", [1, 7, 32])
def test_prefill_in_pieces_equals_prefill_at_once(spec, prefill_chunk):
    pieces = toy_engine(**spec, engine={"prefill_chunk": prefill_chunk})
    ids = [*PROMPT, 3, 1, 4]

    torch.testing.assert_close(
        pieces.score(ids, prompt_len=32), toy_engine(**spec).score(ids, prompt_len=32)
    )


@pytest.mark.parametrize("spec", SHAPES)
@pytest.mark.parametrize("prefill_chunk", [7, 32])
def test_padding_of_a_captured_prompt_size_changes_nothing(spec, prefill_chunk, monkeypatch):
    class PaddedSession(Session):
        def _prefill_last(self, num_rows, *, is_fresh):
            super()._prefill_last(num_rows + 13, is_fresh=is_fresh)

    exact = generate(toy_engine(**spec))
    monkeypatch.setattr("infer_core.engine.Session", PaddedSession)
    padded = toy_engine(**spec, engine={"prefill_chunk": prefill_chunk})

    assert generate(padded, prompt=PROMPT).tokens == exact.tokens


RING = {"window": 9, "ring": True, "qk_norm": "head"}


@pytest.mark.parametrize(
    ("spec", "sampling"),
    [
        pytest.param(RING, SamplingParams(), id="greedy-inside-the-chain"),
        pytest.param({}, SamplingParams(repetition_penalty=1.5), id="penalty-outside"),
        pytest.param(
            {"sandwich": True, "biases": True, "tied": False},
            SamplingParams(temperature=1.0, top_p=0.9, seed=3),
            id="sampled",
        ),
    ],
)
def test_the_fused_chain_gives_the_tokens_of_the_plain_step(spec, sampling, monkeypatch):
    # left alone, a GPU runs the chain and a CPU does not: there Triton's interpreter runs it here
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr("infer_core.session.use_chain", lambda spec, device: False)
    plain = toy_engine(device=device, **spec)
    expected = generate(plain, max_new_tokens=4, sampling=sampling).tokens
    scores = plain.score(PROMPT, prompt_len=30)
    monkeypatch.setattr("infer_core.session.use_chain", lambda spec, device: True)
    chained = toy_engine(device=device, **spec)

    assert generate(chained, max_new_tokens=4, sampling=sampling).tokens == expected
    torch.testing.assert_close(chained.score(PROMPT, prompt_len=30), scores, rtol=1e-4, atol=1e-4)


def test_ring_cache_equals_full_cache_under_the_window_mask():
    ring, full = toy_engine(window=9, ring=True), toy_engine(window=9)

    assert generate(ring).tokens == generate(full).tokens
    # two of three layers keep 9 tokens instead of the bucket's 64
    assert generate(ring).kv_cache_bytes == 2 * 2 * 12 * 4 * (9 + 9 + 64)
    assert generate(full).kv_cache_bytes == 2 * 2 * 12 * 4 * 3 * 64


def test_window_layer_forgets_tokens_older_than_the_window():
    engine = toy_engine(num_layers=2, window=9)
    one_windowed_layer = engine.spec.model_copy(
        update={
            "attention": (engine.spec.attention[0],) * 2,
        }
    )
    engine = Engine(one_windowed_layer, engine.parameters)
    # two layers of window 9 see at most 17 tokens back
    changed = [1, 2, *PROMPT[2:]]

    assert torch.equal(engine.score(PROMPT, prompt_len=31), engine.score(changed, prompt_len=31))


def test_scores_of_prefill_and_of_decode_steps_agree():
    engine = toy_engine(window=9, ring=True)

    decoded = engine.score(PROMPT, prompt_len=20)

    assert decoded.shape == (13, 97)
    prefilled = torch.stack([engine.score(PROMPT[:n], prompt_len=n)[0] for n in range(20, 33)])
    torch.testing.assert_close(decoded, prefilled)


def test_a_request_leaves_nothing_behind_for_the_next():
    engine = toy_engine(window=9, ring=True)
    first = generate(engine)
    generate(engine, prompt=[1] * 60, max_new_tokens=4)
    sampled = SamplingParams(temperature=1.0, repetition_penalty=1.3, seed=5)
    drawn = generate(engine, sampling=sampled).tokens

    assert generate(engine).tokens == first.tokens
    assert generate(engine, sampling=sampled).tokens == drawn


def test_generation_stops_at_eos_and_keeps_it():
    free = generate(toy_engine()).tokens
    stop = next(token for token in free[3:] if token not in free[:3])
    cut = free.index(stop) + 1
    engine = toy_engine(eos_token_ids=(stop,))
    seen = []

    stopped = generate(engine, on_token=seen.append)

    assert stopped.tokens == seen == free[:cut]
    assert stopped.finish_reason == "eos"
    assert len(stopped.step_ms) == cut - 1
    ignored = generate(engine, ignore_eos=True)
    assert (ignored.tokens, ignored.finish_reason) == (free, "length")


def test_timings_cover_every_step_after_the_first_token():
    result = generate(toy_engine())

    assert len(result.tokens) == 24
    assert len(result.step_ms) == 23
    assert 0 < sum(result.step_ms) / 1e3 <= result.decode_s
    assert result.ttft_ms / 1e3 + result.decode_s == pytest.approx(result.e2e_s)


def test_one_new_token_needs_no_decode_step():
    result = generate(toy_engine(), max_new_tokens=1)

    assert (len(result.tokens), result.step_ms) == (1, [])


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "message"),
    [
        pytest.param([], 4, "the prompt is empty", id="empty"),
        pytest.param([1, 97], 4, "id 97 is outside the vocabulary of 97", id="too-large-id"),
        pytest.param([-1], 4, "id -1 is outside", id="negative-id"),
        pytest.param([1, 2**70], 4, f"id {2**70} is outside", id="id-of-more-than-64-bits"),
        pytest.param([1, 1.5], 4, "id 1.5 is outside", id="no-id"),
        pytest.param([1], 0, "max_new_tokens is 0", id="nothing-asked"),
        pytest.param([1] * 200, 57, r"200 prompt tokens \+ 57 new .*context of 256", id="too-long"),
    ],
)
def test_impossible_requests_are_refused_before_anything_runs(prompt, max_new_tokens, message):
    with pytest.raises(RequestError, match=message):
        generate(toy_engine(), prompt=prompt, max_new_tokens=max_new_tokens)


@pytest.mark.parametrize("tokens", [1, 64, 65, 128, 512, 513, 1088, 2048, 2049, 5000, 33000])
def test_buckets_waste_less_than_a_quarter_or_the_smallest(tokens):
    size = bucket(tokens, smallest=64)

    assert tokens <= size < tokens + max(64, tokens / 4)


@pytest.mark.parametrize("tokens", [64, 128, 256, 512, 1024, 2048])
def test_round_sizes_are_buckets_of_their_own(tokens):
    assert bucket(tokens, smallest=16) == bucket(tokens, smallest=64) == tokens


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(lambda engine: generate(engine, prompt=[7, 8]), id="generate"),
        pytest.param(lambda engine: engine.score([7, 8, 9], prompt_len=2), id="score"),
        pytest.param(lambda engine: engine.release(), id="release"),
    ],
)
def test_a_request_whose_buffers_were_taken_over_does_not_go_on(meanwhile):
    engine = toy_engine()
    steps = engine.stream(PROMPT, max_new_tokens=24)
    next(steps)
    meanwhile(engine)

    with pytest.raises(RequestError, match="this answer cannot go on"):
        next(steps)


def test_a_gpu_asked_for_by_number_becomes_the_current_one(monkeypatch):
    class Asked(Exception):
        pass

    def set_device(device):
        raise Asked(device)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    claim = SimpleNamespace(check=lambda: None)  # a second GPU's memory cannot be asked for here
    monkeypatch.setattr("infer_core.engine._claim_to_load", lambda *_: claim)

    with pytest.raises(Asked, match="cuda:1"):
        Engine.load("llama-3.2-1b", device="cuda:1", weights="dummy")


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(device):
    with pytest.raises(RequestError, match=f"device .?{device}"):
        Engine.load("no-such-model", device=device)
