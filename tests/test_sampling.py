"""Sampling against transformers' own processors, which also decide the order."""

import pytest
import torch
from sampling_cases import (
    LARGEST_BELOW_ONE,
    LOGITS,
    assert_follows,
    by_transformers,
    normal,
    transformers_probabilities,
)
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from infer_core.errors import RequestError
from infer_core.sampling import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    Sampler,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    kind_of,
    penalise_repetition,
    uniform_draws,
)
from infer_core.sampling_params import SamplingParams

NO_PROMPT = torch.zeros(0, dtype=torch.int64)


@pytest.fixture(params=LOGITS.values(), ids=LOGITS.keys())
def logits(request):
    return request.param.clone()


def assert_identical(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("penalty", [0.3, 1.1, 1e6])
def test_repetition_penalty_equals_transformers(logits, penalty):
    tokens = [0, len(logits) - 1, 0, len(logits) // 2]
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[tokens] = True

    expected = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), logits, tokens)

    assert_identical(penalise_repetition(logits, seen, penalty), expected)
    assert_identical(
        penalise_repetition(logits, seen, torch.tensor(penalty, dtype=torch.float64)), expected
    )


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 0.7, 1.3, 1e30])
def test_temperature_as_a_float64_scalar_equals_transformers(logits, temperature):
    expected = by_transformers(TemperatureLogitsWarper(temperature), logits)

    assert_identical(logits / torch.tensor(temperature, dtype=torch.float64), expected)


@pytest.mark.parametrize("k", [1, 2, 50, 10**6])
def test_top_k_equals_transformers_even_beyond_the_vocabulary(logits, k):
    expected = by_transformers(TopKLogitsWarper(k), logits)

    assert_identical(keep_top_k(logits, k), expected)
    assert_identical(keep_top_k(logits, torch.tensor(k)), expected)


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999999, 1.0])
def test_top_p_equals_transformers_also_among_ties(logits, p):
    expected = by_transformers(TopPLogitsWarper(p), logits)

    assert_identical(keep_top_p(logits, p), expected)
    assert_identical(keep_top_p(logits, torch.tensor(p, dtype=torch.float64)), expected)


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.05, 0.5, 1.0])
def test_min_p_equals_transformers(logits, p):
    expected = by_transformers(MinPLogitsWarper(p), logits)

    assert_identical(keep_min_p(logits, p), expected)
    assert_identical(keep_min_p(logits, torch.tensor(p, dtype=torch.float64)), expected)


PARAMS = {
    "plain": SamplingParams(temperature=1.0),
    "hot": SamplingParams(temperature=1.7),
    "top-k": SamplingParams(temperature=0.8, top_k=3),
    "top-k-and-p": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "min-p": SamplingParams(temperature=1.2, min_p=0.1),
    "everything": SamplingParams(
        temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1
    ),
    "all-switched-off": SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0),
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS.keys())
def test_sampler_draws_from_the_probabilities_of_transformers(params, logits, monkeypatch):
    seen_by_draw = []

    def spy(probabilities, uniform):
        seen_by_draw.append(probabilities)
        return draw(probabilities, uniform)

    monkeypatch.setattr("infer_core.sampling.draw", spy)
    prompt = [0, len(logits) // 3, 0]
    sampler = Sampler(len(logits), max_new_tokens=3, device="cpu")
    sampler.begin(params, torch.tensor(prompt), max_new_tokens=3)

    tokens = [int(sampler.pick(logits)) for _ in range(3)]

    for step, probabilities in enumerate(seen_by_draw):
        # each step also counts the tokens picked before it
        expected = transformers_probabilities(params, logits, prompt + tokens[:step])
        assert_identical(probabilities > 0, expected > 0)
        # a float32 softmax errs by a few units of rounding
        normed = probabilities / probabilities.sum()
        torch.testing.assert_close(normed, expected.double(), rtol=1e-6, atol=1e-44)
    assert len(seen_by_draw) == 3


def test_the_penalty_changes_which_token_greedy_takes():
    sampler = Sampler(4, max_new_tokens=4, device="cpu")
    sampler.begin(
        SamplingParams(repetition_penalty=2.0), prompt=torch.tensor([3]), max_new_tokens=4
    )
    logits = torch.tensor([0.5, 3.0, 2.0, 4.0])

    # 3 is halved by the prompt to 2.0, then 1 to 1.5, then 2 and 3 tie at 2.0
    assert [int(sampler.pick(logits)) for _ in range(4)] == [1, 2, 3, 3]


def test_greedy_takes_the_lowest_token_among_equal_logits():
    sampler = Sampler(5, max_new_tokens=1, device="cpu")
    sampler.begin(SamplingParams(), NO_PROMPT, max_new_tokens=1)

    token = sampler.pick(torch.tensor([0.0, 7.0, 1.0, 7.0, 7.0]))

    assert token.shape == (1,)
    assert token.dtype == torch.int64
    assert int(token) == 1


def test_pick_leaves_the_logits_as_they_were(logits):
    before = logits.clone()
    sampler = Sampler(len(logits), max_new_tokens=1, device="cpu")
    sampler.begin(PARAMS["everything"], torch.tensor([0]), max_new_tokens=1)

    sampler.pick(logits)

    assert_identical(logits, before)


@pytest.mark.parametrize("name", ["top-k-and-p", "min-p", "everything"])
def test_a_hundred_thousand_draws_follow_the_probabilities_of_transformers(name, monkeypatch):
    params, vocab_size, num_draws = PARAMS[name], 96, 100_000
    logits = 0.8 * normal(vocab_size, seed=2)
    expected = transformers_probabilities(params, logits, [0, 1]).double() * num_draws
    drawn_from = []
    monkeypatch.setattr(
        "infer_core.sampling.draw",
        lambda probabilities, uniform: drawn_from.append(probabilities) or uniform.long(),
    )
    sampler = Sampler(vocab_size, max_new_tokens=1, device="cpu")
    sampler.begin(params, torch.tensor([0, 1]), max_new_tokens=1)
    sampler.pick(logits)

    uniforms = uniform_draws(7, torch.empty(num_draws))[:, None]
    tokens = torch.vmap(draw, in_dims=(None, 0))(drawn_from[0], uniforms)

    assert_follows(torch.bincount(tokens.flatten(), minlength=vocab_size).double(), expected)


def picks(params, num_tokens=40, vocab_size=1000, max_new_tokens=None):
    sampler = Sampler(vocab_size, max_new_tokens=100, device="cpu")
    sampler.begin(params, torch.tensor([1, 2]), max_new_tokens=max_new_tokens or num_tokens)
    return [int(sampler.pick(normal(vocab_size, seed=step))) for step in range(num_tokens)]


def test_a_seed_repeats_and_another_seed_differs():
    params = SamplingParams(temperature=1.5, seed=11)

    assert picks(params) == picks(params)
    assert picks(params) != picks(params.model_copy(update={"seed": 12}))


def test_asking_for_more_tokens_does_not_change_the_first_ones():
    params = SamplingParams(temperature=1.5, seed=11)

    assert picks(params, max_new_tokens=100) == picks(params, max_new_tokens=40)


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 + 5, -(2**70)])
def test_any_integer_is_a_seed(seed):
    draws = uniform_draws(seed, torch.full((3,), -1.0))

    assert ((draws >= 0) & (draws < 1)).all()


def test_a_used_sampler_serves_the_next_request_like_a_fresh_one():
    first, second = PARAMS["everything"], PARAMS["top-k-and-p"]
    used = Sampler(64, max_new_tokens=8, device="cpu")
    fresh = Sampler(64, max_new_tokens=8, device="cpu")

    for params in (first, second, first):
        used.begin(params, torch.tensor([5, 6, 7]), max_new_tokens=8)
        for step in range(8):
            used.pick(normal(64, seed=step))
    used.begin(first, torch.tensor([5]), max_new_tokens=8)
    fresh.begin(first, torch.tensor([5]), max_new_tokens=8)

    for step in range(8):
        assert used.pick(normal(64, seed=step)) == fresh.pick(normal(64, seed=step))


@pytest.mark.parametrize("uniform", [0.0, 1e-45, 0.5, LARGEST_BELOW_ONE])
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param([0.0, 1.0, 0.0], id="one-possible"),
        pytest.param([0.0, 0.0, 0.3, 0.0, 0.7, 0.0], id="zeros-at-both-ends"),
        pytest.param([0.0, 1e-45, 0.0, 1.0, 1e-45, 0.0], id="smallest-float32"),
        pytest.param([0.0] + [0.1] * 9 + [0.0], id="sum-below-one"),
        pytest.param([0.0] + [1 / 3001] * 2999 + [0.0] * 7, id="sum-well-below-one"),
    ],
)
def test_a_token_of_probability_zero_is_never_drawn(weights, uniform):
    probabilities = torch.tensor(weights)

    token = draw(probabilities, torch.tensor([uniform]))

    assert probabilities[token] > 0


def test_a_sum_that_is_not_monotone_draws_no_token_of_probability_zero(monkeypatch):
    """A GPU's parallel scan may step up by a rounding error where the probability is zero."""
    scan = torch.tensor([0.25, 0.25 + 1e-15, 0.25, 1.0], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda *_, **__: scan)

    token = draw(torch.tensor([0.25, 0.0, 0.0, 0.75]), torch.tensor([0.25]))

    assert int(token) == 3


def test_a_draw_takes_the_first_token_whose_cumulative_probability_exceeds_it():
    probabilities = torch.tensor([0.25, 0.0, 0.5, 0.25])

    def drawn(uniform):
        return int(draw(probabilities, torch.tensor([uniform])))

    assert [drawn(u) for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, LARGEST_BELOW_ONE)] == [
        0, 0, 2, 2, 3, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("temperature", [1e-300, MIN_TEMPERATURE, MAX_TEMPERATURE, 1e300])
def test_extreme_temperatures_approach_argmax_and_uniform(temperature):
    logits = torch.tensor([-30.0, -torch.inf, -10.0, -20.0])

    tokens = set()
    sampler = Sampler(4, max_new_tokens=100, device="cpu")
    sampler.begin(SamplingParams(temperature=temperature), NO_PROMPT, max_new_tokens=100)
    for _ in range(100):
        tokens.add(int(sampler.pick(logits)))

    assert tokens == ({2} if temperature < 1 else {0, 2, 3})


def test_the_kind_holds_what_runs_but_no_values():
    assert kind_of(SamplingParams(temperature=0.8, top_k=5, seed=1)) == kind_of(
        SamplingParams(temperature=1.9, top_k=50, seed=2)
    )
    assert kind_of(PARAMS["all-switched-off"]) == kind_of(PARAMS["plain"])
    assert len({kind_of(params) for params in PARAMS.values()}) == 5


def test_more_tokens_than_the_sampler_was_built_for_are_refused():
    sampler = Sampler(8, max_new_tokens=4, device="cpu")

    with pytest.raises(RequestError, match=r"max_new_tokens is 5, .* for 4"):
        sampler.begin(SamplingParams(), torch.tensor([1]), max_new_tokens=5)


def test_running_past_the_last_draw_does_not_fail():
    sampler = Sampler(8, max_new_tokens=2, device="cpu")
    sampler.begin(SamplingParams(temperature=1.0), torch.tensor([1]), max_new_tokens=2)

    tokens = [int(sampler.pick(normal(8))) for _ in range(4)]

    assert all(0 <= token < 8 for token in tokens)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", [*PARAMS, "greedy"])
def test_a_captured_graph_serves_a_later_request_of_its_kind(name):
    """Also shows that `pick` never waits for the host: a capture refuses that."""
    params = PARAMS.get(name, SamplingParams(repetition_penalty=1.3))
    # values that a capture must not have baked in
    later = {"seed": 5, "temperature": 0.0 if params.greedy else 1.9}
    later |= {"top_k": 7} if params.top_k else {}
    later |= {"top_p": 0.7} if params.top_p == 0.9 else {}
    later = params.model_copy(update=later)
    vocab_size, num_tokens = 5003, 50
    steps = torch.stack([normal(vocab_size, seed=step) for step in range(num_tokens)]).cuda()

    sampler = Sampler(vocab_size, max_new_tokens=num_tokens, device="cuda")
    sampler.begin(params, torch.tensor([1], device="cuda"), max_new_tokens=num_tokens)
    logits = steps[0].clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sampler.pick(logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = sampler.pick(logits)

    sampler.begin(later, torch.tensor([3, 4], device="cuda"), max_new_tokens=num_tokens)
    replayed = []
    for step in steps:
        logits.copy_(step)
        graph.replay()
        replayed.append(int(token))
    eager = Sampler(vocab_size, max_new_tokens=num_tokens, device="cuda")
    eager.begin(later, torch.tensor([3, 4], device="cuda"), max_new_tokens=num_tokens)

    assert replayed == [int(eager.pick(step)) for step in steps]
