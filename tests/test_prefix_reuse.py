"""A request that continues another one: what stays in the KV cache changes no token."""

import pytest
import torch
from toy_specs import toy_spec

from infer_core import Engine, SamplingParams
from infer_core.session import Session
from infer_core.weights import dummy_weights

VOCAB = toy_spec().shape.vocab_size
SPECS = {
    "full": {},
    "window-in-a-full-cache": {"window": 8},
    "ring": {"window": 8, "ring": True},
    "ring-longer-than-the-conversation": {"window": 200, "ring": True},
}


def ids(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


def engine_of(spec, device, **options):
    weights = dummy_weights(spec, device=device, dtype=torch.float32, seed=1)
    return Engine(spec, weights, **options)


def run(engine, prompt, count=12, *, stop_after=None, reuse=True, sampling=None):
    """Generate, collecting the logits of every step."""
    rows = []
    steps = engine.stream(
        prompt,
        max_new_tokens=count,
        sampling=sampling,
        reuse_prefix=reuse,
        on_logits=lambda logits, token: rows.append(logits.clone()),
    )
    stop, num_tokens = None, 0
    while True:
        try:
            steps.send(stop)
        except StopIteration as done:
            return done.value, torch.stack(rows)
        num_tokens += 1
        stop = num_tokens == stop_after


@pytest.mark.parametrize("chunk", [2048, 5], ids=["at-once", "in-pieces"])
@pytest.mark.parametrize("sizes", SPECS.values(), ids=SPECS.keys())
def test_a_continued_request_gives_what_a_fresh_one_gives(sizes, chunk, device):
    engine = engine_of(toy_spec(**sizes), device, prefill_chunk=chunk)
    prompt, in_cache = ids(11), 0

    for turn in range(4):
        reused, logits = run(engine, prompt)
        fresh, expected = run(engine_of(toy_spec(**sizes), device), prompt, reuse=False)
        assert reused.tokens == fresh.tokens
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert reused.num_cached_tokens == in_cache
        # everything but the answer's last token, whose keys nobody needed yet
        in_cache = len(prompt) + len(reused.tokens) - 1
        prompt = [*prompt, *reused.tokens, *ids(3, seed=turn)]


@pytest.mark.parametrize("sizes", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("common", [0, 1, 10, 15, 19, 20])
def test_a_prompt_that_departs_from_the_cache_gives_what_a_fresh_one_gives(sizes, common, device):
    engine = engine_of(toy_spec(**sizes), device)
    first = ids(17)
    answer, _ = run(engine, first, 4)
    cached = [*first, *answer.tokens][:20]
    other = next(token for token in range(3, VOCAB) if token not in cached)
    prompt = [*cached[:common], other, *ids(5, seed=9)]

    reused, logits = run(engine, prompt)
    fresh, expected = run(engine_of(toy_spec(**sizes), device), prompt, reuse=False)

    assert reused.tokens == fresh.tokens
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    lost = sizes.get("ring") and sizes["window"] < 20 and common < 19
    assert reused.num_cached_tokens == (0 if lost else common)


def test_the_same_prompt_again_runs_its_last_token_only(device):
    engine = engine_of(toy_spec(), device)
    first, _ = run(engine, ids(9))
    again, _ = run(engine, ids(9))
    assert (again.num_cached_tokens, again.tokens) == (8, first.tokens)


@pytest.mark.parametrize("sizes", SPECS.values(), ids=SPECS.keys())
def test_a_conversation_that_outgrows_its_context_moves_without_starting_over(sizes, device):
    spec = toy_spec(**sizes, max_context=4096)
    engine = engine_of(spec, device)
    prompt = ids(1000)
    first, _ = run(engine, prompt, 20)
    longer = [*prompt, *first.tokens, *ids(40, seed=3)]

    reused, logits = run(engine, longer)
    fresh, expected = run(engine_of(spec, device), longer, reuse=False)

    assert reused.num_cached_tokens == 1019
    assert reused.kv_cache_bytes > first.kv_cache_bytes
    assert reused.tokens == fresh.tokens
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_without_a_kv_cache_nothing_is_reused(device):
    engine = engine_of(toy_spec(), device, kv_cache=False)
    run(engine, ids(9), 3)
    assert run(engine, ids(9), 3)[0].num_cached_tokens == 0


def test_a_stopped_request_can_be_continued(device):
    spec = toy_spec(window=8, ring=True)
    engine = engine_of(spec, device)
    stopped, _ = run(engine, ids(17), 12, stop_after=5)
    assert (stopped.finish_reason, len(stopped.tokens)) == ("stop", 5)

    prompt = [*ids(17), *stopped.tokens, 4]
    reused, _ = run(engine, prompt)
    # while the host looks at a token, a GPU runs one step further
    assert reused.num_cached_tokens == (22 if device == "cuda" else 21)
    assert reused.tokens == run(engine_of(spec, device), prompt, reuse=False)[0].tokens


def test_a_repetition_penalty_sees_the_reused_tokens_too(device):
    penalty = SamplingParams(repetition_penalty=3.0)
    engine = engine_of(toy_spec(), device)
    first, _ = run(engine, ids(9), sampling=penalty)
    prompt = [*ids(9), *first.tokens, 5]

    reused, _ = run(engine, prompt, sampling=penalty)

    assert reused.num_cached_tokens > 0
    assert reused.tokens == run(engine_of(toy_spec(), device), prompt, sampling=penalty)[0].tokens


@pytest.mark.parametrize("step", [0, 3], ids=["prefill", "decode"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_after_a_request_that_failed_the_next_gives_what_a_fresh_one_gives(step, error, device):
    engine = engine_of(toy_spec(), device)
    run(engine, ids(9), 3)
    seen = []

    def fail(logits, token):
        seen.append(token)
        if len(seen) > step:
            raise error

    failing = engine.stream(ids(14), max_new_tokens=9, reuse_prefix=True, on_logits=fail)
    with pytest.raises(error):
        for _ in failing:
            pass

    good, _ = run(engine, ids(14), 9)
    assert good.tokens == run(engine_of(toy_spec(), device), ids(14), 9)[0].tokens


def test_on_token_stops_generate_by_returning_true(device):
    engine = engine_of(toy_spec(), device)
    seen = []

    def stop_at_three(token):
        seen.append(token)
        return len(seen) == 3

    generation = engine.generate(ids(9), max_new_tokens=12, on_token=stop_at_three)

    assert (generation.finish_reason, generation.tokens) == ("stop", seen)
    assert len(generation.step_ms) == 2


class Replay:
    """Stands for a captured graph on a CPU."""

    def __init__(self, body):
        self.replay = body


class GraphSession(Session):
    """A session that captures and runs ahead as on a GPU."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options | {"use_graph": False})
        self._use_graph = True
        self._reader = object()  # the host then runs ahead of the tokens it looks at

    def _capture(self, body):
        body()  # a real capture also runs the body once, to compile it
        return Replay(body)


@pytest.fixture
def capturing(device, monkeypatch):
    """A device whose sessions capture graphs and run ahead; on a CPU they do as if."""
    if device == "cpu":
        monkeypatch.setattr("infer_core.engine.Session", GraphSession)
    return device


@pytest.mark.parametrize("prefill_chunk", [2048, 16], ids=["one-piece", "several"])
@pytest.mark.parametrize("sizes", SPECS.values(), ids=SPECS.keys())
def test_captures_and_running_ahead_leave_the_cache_as_it_was(capturing, sizes, prefill_chunk):
    engine = engine_of(toy_spec(**sizes), capturing, prefill_chunk=prefill_chunk)
    plain = engine_of(toy_spec(**sizes), capturing, cuda_graph=False)
    prompt, in_cache = ids(11), 0
    # prompts of different buckets and kinds of sampling, so that each turn captures anew
    for turn, (extra, sampling) in enumerate(
        [(3, None), (30, SamplingParams(temperature=1.0, seed=4)), (60, None), (2, None)]
    ):
        reused, _ = run(engine, prompt, stop_after=7, sampling=sampling)
        fresh, _ = run(plain, prompt, stop_after=7, sampling=sampling, reuse=False)
        assert reused.tokens == fresh.tokens
        assert reused.finish_reason == "stop"
        assert reused.num_cached_tokens >= in_cache
        in_cache = len(prompt) + 6
        prompt = [*prompt, *reused.tokens, *ids(extra, seed=turn)]


def test_a_ring_that_ran_far_ahead_is_not_continued(capturing):
    spec = toy_spec(window=8, ring=True)
    engine = engine_of(spec, capturing)
    first = engine.stream(ids(17), max_new_tokens=30)
    tokens = [next(first), next(first)]
    with pytest.raises(StopIteration):
        first.send(True)  # 8 further steps have run by now

    prompt = [*ids(17), *tokens, 4]
    reused, _ = run(engine, prompt)

    assert reused.num_cached_tokens == 0
    assert reused.tokens == run(engine_of(spec, capturing), prompt, reuse=False)[0].tokens
