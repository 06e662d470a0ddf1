"""The kernels that draw the next token, against transformers and the plain-torch sampler."""

import pytest
import torch
from sampling_cases import (
    LARGEST_BELOW_ONE,
    LOGITS,
    assert_follows,
    normal,
    transformers_probabilities,
)

from infer_core.kernels.pick_embed import NextInput, embed_token_ref
from infer_core.kernels.pick_sampled import SearchScratch, pick_sampled
from infer_core.kernels.pick_top_k import TopKList, pick_top_k
from infer_core.kernels.sampling_parts import Filters
from infer_core.sampling import Sampler, penalise_repetition
from infer_core.sampling_params import SamplingParams

ON_GPU = torch.cuda.is_available()
HIDDEN, SCALE = 8, 3.0

SMALL_TOP_K = {
    "top-1": SamplingParams(temperature=0.8, top_k=1),
    "top-3": SamplingParams(temperature=1.3, top_k=3),
    "top-50-and-p": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "top-120-and-p": SamplingParams(temperature=3.0, top_k=120, top_p=0.7),
    "top-50-least-p": SamplingParams(temperature=1.0, top_k=50, top_p=1e-9),
    "top-5-and-min-p": SamplingParams(temperature=1.0, top_k=5, min_p=0.5),
    "everything": SamplingParams(
        temperature=0.8, top_k=50, top_p=0.9, min_p=0.02, repetition_penalty=1.1
    ),
}
ANY = {
    "plain": SamplingParams(temperature=1.0),
    "hot": SamplingParams(temperature=1.7),
    "top-p": SamplingParams(temperature=0.8, top_p=0.9),
    "top-half": SamplingParams(temperature=1.0, top_p=0.5),
    "least-top-p": SamplingParams(temperature=1.0, top_p=1e-9),
    "most-top-p": SamplingParams(temperature=1.0, top_p=0.999999),
    "min-p": SamplingParams(temperature=1.2, min_p=0.1),
    "likeliest-only": SamplingParams(temperature=1.2, min_p=1.0),
    "large-top-k": SamplingParams(temperature=0.8, top_k=300),
    "large-top-k-and-p": SamplingParams(temperature=2.0, top_k=300, top_p=0.8),
    "everything-but-a-small-top-k": SamplingParams(
        temperature=0.8, top_k=200, top_p=0.9, min_p=0.02, repetition_penalty=1.1
    ),
}
EITHER = {**SMALL_TOP_K, **ANY}


class Kernels:
    """One request over one vocabulary, its tokens picked by the kernels that are asked for."""

    def __init__(self, params, vocab_size, device, *, prompt=(0,), max_new_tokens=8, listed=None):
        self.sampler = Sampler(vocab_size, max_new_tokens=max_new_tokens, device=device)
        self.max_new_tokens, self.device, self.prompt = max_new_tokens, device, prompt
        self.begin(params)
        self.listed = self.sampler.kind.small_top_k if listed is None else listed
        self.list = TopKList.empty(vocab_size, device)
        self.search = SearchScratch.empty(vocab_size, device)
        self.output = NextInput(
            token=torch.full((1,), -1, device=device),
            position=torch.zeros(1, dtype=torch.int32, device=device),
            sequence=torch.full((max_new_tokens + 1,), -1, device=device),
            embed=torch.randn(vocab_size, HIDDEN, device=device),
            x=torch.full((HIDDEN,), float("nan"), device=device),
            scale=SCALE,
        )

    def begin(self, params):
        prompt = torch.tensor(self.prompt, device=self.device)
        self.sampler.begin(params, prompt, max_new_tokens=self.max_new_tokens)
        self.kind = self.sampler.kind

    def set_draw(self, uniform):
        """Make `uniform` the next draw."""
        self.sampler._counters[1] = 0
        self.sampler._uniforms[0] = uniform

    def launch(self, logits):
        state, kind = self.sampler.state, self.kind
        if kind.penalty:
            logits = penalise_repetition(logits, self.sampler._seen, self.sampler._penalty)
        else:
            state = state._replace(seen=None)
        filters = Filters(kind.top_k, kind.top_p, kind.min_p)
        maxima = some_maxima(logits)
        if self.listed:
            pick_top_k(logits, maxima, state, filters, self.list, self.output)
        else:
            pick_sampled(logits, maxima, state, filters, self.search, self.output)

    def pick(self, logits):
        self.launch(logits)
        return int(self.output.token)


def some_maxima(logits, groups=130):
    """Largest logits of interleaved groups, some of them empty; NaN is never the largest."""
    padded = torch.full((-(-len(logits) // groups) * groups,), -torch.inf, device=logits.device)
    padded[: len(logits)] = logits.where(~logits.isnan(), -torch.inf)
    return padded.view(-1, groups).amax(dim=0)


def uniforms_that_tell(probabilities, count):
    """Draws in the middle of what belongs to a token, and the token; the extremes first.

    With fewer or more survivors every token's share would move, and these draws with it.
    """
    cumulative = probabilities.double().cumsum(0)
    cumulative /= cumulative[-1].clone()
    survivors = probabilities.nonzero().flatten()
    yield 0.0, int(survivors[0])
    if probabilities[survivors[-1]] > 1e-6:
        yield LARGEST_BELOW_ONE, int(survivors[-1])
    # narrower than this, rounding to float32 may leave the token's share
    wide = survivors[probabilities[survivors] > 1e-6]
    if len(wide) > count:
        wide = wide[torch.linspace(0, len(wide) - 1, count + 2)[1:-1].long()]
    for token in wide.tolist():
        yield float(cumulative[token] - probabilities[token] / 2), token


@pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS.keys())
@pytest.mark.parametrize("name", EITHER)
def test_survivors_and_shares_are_those_of_transformers(name, logits, device):
    params, prompt = EITHER[name], (0, len(logits) // 3, 0)
    kernels = Kernels(params, len(logits), device, prompt=prompt)
    seen = kernels.sampler._seen.clone()
    probabilities = transformers_probabilities(params, logits, list(prompt))

    for uniform, token in uniforms_that_tell(probabilities, 100 if ON_GPU else 1):
        kernels.sampler._seen.copy_(seen)
        kernels.set_draw(uniform)
        assert kernels.pick(logits.to(device)) == token, f"at {uniform}"


@pytest.mark.parametrize("listed", [True, False], ids=["list", "search"])
def test_a_step_leaves_all_that_the_next_one_reads(listed, device):
    params = SMALL_TOP_K["everything"].model_copy(update={"seed": 3})
    kernels = Kernels(params, 1009, device, listed=listed)
    reference = Sampler(1009, max_new_tokens=8, device="cpu")
    reference.begin(params, torch.tensor([0]), max_new_tokens=8)
    logits = 0.3 * normal(1009)  # flat: the same token twice is rare, and the penalty moves

    for step in range(6):
        token = kernels.pick(logits.to(device))

        assert token == int(reference.pick(logits))
        assert int(kernels.output.position) == step + 1
        assert int(kernels.output.sequence[step + 1]) == token
        embedded = embed_token_ref(kernels.output.embed, token, SCALE)
        assert torch.equal(kernels.output.x, embedded)
        assert torch.equal(kernels.sampler._seen.cpu(), reference._seen)
        assert int(kernels.sampler._counters[1]) == step + 1
        assert int(kernels.list.length) == 0
        assert not kernels.search.sums.any()


@pytest.mark.parametrize("listed", [True, False], ids=["list", "search"])
def test_both_ways_draw_the_same_tokens_past_the_last_draw_too(listed, device):
    params = SMALL_TOP_K["top-50-and-p"].model_copy(update={"seed": 5})
    kernels = Kernels(params, 300, device, max_new_tokens=3, listed=listed)
    kernels.output = kernels.output._replace(sequence=torch.zeros(9, dtype=torch.int64).to(device))
    reference = Sampler(300, max_new_tokens=3, device="cpu")
    reference.begin(params, torch.tensor([0]), max_new_tokens=3)

    for step in range(5):
        logits = normal(300, seed=step)
        assert kernels.pick(logits.to(device)) == int(reference.pick(logits))


@pytest.mark.parametrize("name", ["everything", "top-p", "plain"])
@pytest.mark.parametrize("worst", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_logits_that_are_no_numbers_never_leave_the_vocabulary(name, worst, device):
    logits = normal(1030).to(device)
    logits[1::2] = worst
    hopeless = torch.full((1030,), worst, device=device)

    for uniform in (0.0, LARGEST_BELOW_ONE):
        kernels = Kernels(EITHER[name], 1030, device)
        kernels.set_draw(uniform)
        token = kernels.pick(logits)
        assert token % 2 == 0
        assert token == 0 or worst < torch.inf or worst != worst
        kernels.set_draw(uniform)
        assert kernels.pick(hopeless) == 0


def test_draws_follow_the_probabilities_of_transformers(device):
    """A few draws for the interpreter; the other test has the many."""
    params = SamplingParams(temperature=1.0, top_k=8, min_p=0.05, seed=1)
    check_draws(params, 60, 200, device)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EITHER)
def test_a_hundred_thousand_draws_follow_the_probabilities_of_transformers(name, device):
    params = EITHER[name]
    if params.top_k == 1 or params.top_p == 1e-9 or params.min_p == 1.0:
        pytest.skip("one token is left to draw")
    check_draws(params, 1000, 100_000, device, spread=0.15)


def check_draws(params, vocab_size, num_draws, device, spread=0.3):
    """Chi-square of tokens drawn by a captured graph, or by the interpreter."""
    logits = spread * normal(vocab_size, seed=2)
    expected = transformers_probabilities(params, logits, [0]).double() * num_draws
    logits = logits.to(device)
    kernels = Kernels(params, vocab_size, device, max_new_tokens=num_draws)
    seen = kernels.sampler._seen.clone()

    def step():
        kernels.sampler._seen.copy_(seen)  # draws from one distribution, not a moving one
        kernels.launch(logits)

    for _ in range(num_draws) if device == "cpu" else ():
        step()
    if device != "cpu":
        graph = captured(step)
        kernels.begin(params)
        kernels.output.position.zero_()
        for _ in range(num_draws):
            graph.replay()

    tokens = kernels.output.sequence[1 : num_draws + 1].cpu()
    assert_follows(torch.bincount(tokens, minlength=vocab_size).double(), expected)


def captured(step):
    """A graph of one step, which has also run once or twice by then."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


VOCABULARIES = {"llama": 128_256, "gemma": 262_144}


def full_size(vocab_size):
    """Logits as large models have them, also as bf16 rounds them, and all equal."""
    return {
        "spread": 2.5 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(3)),
        "flat": 0.02 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(4)),
        "bf16-ties": normal(vocab_size, seed=5).bfloat16().float(),
        "all-equal": torch.zeros(vocab_size),
    }


@pytest.mark.gpu
@pytest.mark.parametrize("vocab_size", VOCABULARIES.values(), ids=VOCABULARIES.keys())
@pytest.mark.parametrize("name", EITHER)
def test_a_full_vocabulary_draws_what_the_plain_torch_sampler_draws(name, vocab_size, device):
    params = EITHER[name]
    for kind, logits in full_size(vocab_size).items():
        reference = Sampler(vocab_size, max_new_tokens=8, device="cpu")
        reference.begin(params, torch.tensor([0]), max_new_tokens=8)
        kernels = Kernels(params, vocab_size, device)
        expected = [int(reference.pick(logits)) for _ in range(8)]

        picked = [kernels.pick(logits.to(device)) for _ in range(8)]

        assert picked == expected, kind


@pytest.mark.gpu
@pytest.mark.parametrize("name", EITHER)
def test_a_captured_graph_serves_later_requests_and_repeats_itself(name, device):
    """Also shows that the order in which programs append to the list means nothing."""
    params, vocab_size, num_tokens = EITHER[name], 128_256, 200
    # flat, so that every filter but the strictest leaves several tokens
    logits = (0.3 * torch.randn(vocab_size, generator=torch.Generator().manual_seed(3))).to(device)
    # values that a capture must not have baked in
    later = {"seed": 5, "temperature": 1.9}
    later |= {"top_k": params.top_k + 1} if params.top_k else {}
    later |= {"top_p": 0.75} if params.top_p else {}
    later = params.model_copy(update=later)
    kernels = Kernels(params, vocab_size, device, max_new_tokens=num_tokens)
    graph = captured(lambda: kernels.launch(logits))

    runs = []
    for request in (later, params, later):
        kernels.begin(request)
        kernels.output.position.zero_()
        for _ in range(num_tokens):
            graph.replay()
        runs.append(kernels.output.sequence[1:].tolist())

    eager = Kernels(later, vocab_size, device, max_new_tokens=num_tokens)
    assert runs[0] == runs[2] == [eager.pick(logits) for _ in range(num_tokens)]
    assert runs[0] != runs[1] or params.top_k == 1 or params.top_p == 1e-9 or params.min_p == 1.0
