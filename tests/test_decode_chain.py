import pytest
import torch
from toy_specs import toy_spec

from infer_core.decode_chain import DecodeChain
from infer_core.decoder import Decoder
from infer_core.dummy_weights import dummy_weights
from infer_core.kv_cache import KVCache
from infer_core.ops import REFERENCE
from infer_core.sampling import Sampler, kind_of
from infer_core.sampling_params import SamplingParams

CONTEXT = 40


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU Triton's interpreter runs


def make(spec, dtype, device, sampler=None):
    """A chain, and the plain-torch decoder with a cache of its own."""
    parameters = dummy_weights(spec, device=device, dtype=dtype)
    decoder = Decoder(spec, parameters, context=CONTEXT, ops=REFERENCE)
    caches = [KVCache(spec, context=CONTEXT, device=device, dtype=dtype) for _ in range(2)]
    pairs = list(zip(caches[0].keys, caches[0].values, strict=True))
    chain = DecodeChain(spec, parameters, decoder.rope, pairs, max_context=CONTEXT, sampler=sampler)
    return chain, decoder, caches[1]


SPECS = {
    "pre-norm-ungated-biases": toy_spec(gated=False, biases=True, tied=False),
    "sandwich-qk-norm-ring": toy_spec(sandwich=True, qk_norm="head", window=3, ring=True),
    "window-in-full-cache": toy_spec(window=3),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_greedy_chain_agrees_with_the_decoder_at_every_step(spec, device):
    chain, decoder, cache = make(spec, torch.float32, device)
    start = torch.zeros(1, dtype=torch.int32, device=device)
    token = 7
    chain.begin(token, 0)

    for position in range(5):  # two beyond the window
        chain.step()

        start.fill_(position)
        tokens = torch.tensor([token], device=device)
        expected = decoder.forward(tokens, cache, start, is_prefill=False)[0]
        torch.testing.assert_close(chain.logits, expected, rtol=1e-4, atol=1e-4)
        token = int(expected.argmax())
        assert int(chain.token) == token
        assert int(chain.position) == position + 1
        assert int(chain.sequence[position + 1]) == token


def test_a_forced_token_takes_the_place_of_the_greedy_one(device):
    spec = SPECS["window-in-full-cache"]
    chain, decoder, cache = make(spec, torch.float32, device)
    chain.begin(3, 0)
    chain.step()
    chain.position.fill_(0)
    chain.token.fill_(55)
    chain.advance()

    chain.step()

    start = torch.zeros(1, dtype=torch.int32, device=device)
    for position, token in enumerate([3, 55]):
        start.fill_(position)
        tokens = torch.tensor([token], device=device)
        expected = decoder.forward(tokens, cache, start, is_prefill=False)[0]
    torch.testing.assert_close(chain.logits, expected, rtol=1e-4, atol=1e-4)
    assert chain.sequence[1] == 55


SAMPLED = {
    "greedy-with-penalty": SamplingParams(repetition_penalty=1.5),
    "everything": SamplingParams(
        temperature=2.0, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.5
    ),
}


@pytest.mark.parametrize("params", SAMPLED.values(), ids=SAMPLED.keys())
def test_a_chain_picks_what_the_plain_torch_sampler_picks(params, device):
    spec = SPECS["window-in-full-cache"]
    samplers = [Sampler(spec.shape.vocab_size, max_new_tokens=8, device=device) for _ in range(2)]
    chain, _, _ = make(spec, torch.float32, device, sampler=samplers[0].state)
    for sampler in samplers:
        sampler.begin(params, torch.tensor([3, 5], device=device), max_new_tokens=8)
    kind = kind_of(params)
    normed = torch.randn(spec.shape.hidden_size, device=device)

    chain.finish_prefill(normed, kind)
    picked = [int(chain.token)]
    expected = [int(samplers[1].pick(chain.logits))]
    for _ in range(2):
        chain.step(kind)
        picked.append(int(chain.token))
        expected.append(int(samplers[1].pick(chain.logits)))

    assert picked == expected == chain.sequence[1:4].tolist()
    assert int(chain.position) == 3


def test_the_end_of_a_prefill_gives_the_logits_of_its_last_row(device):
    spec = SPECS["window-in-full-cache"]
    chain, decoder, _ = make(spec, torch.float32, device)
    normed = torch.randn(spec.shape.hidden_size, device=device)
    chain.begin(0, 4)

    chain.finish_prefill(normed)

    head = decoder.parameters.get("lm_head", decoder.parameters["embed"])
    expected = head @ normed
    torch.testing.assert_close(chain.logits, expected, rtol=1e-4, atol=1e-4)
    assert int(chain.token) == int(chain.sequence[5]) == int(expected.argmax())
    assert int(chain.position) == 5


def test_a_chain_without_a_sampler_refuses_to_sample(device):
    chain, _, _ = make(SPECS["window-in-full-cache"], torch.float32, device)
    kind = kind_of(SamplingParams(temperature=1.0))
    with pytest.raises(ValueError, match="made without a sampler, asked to pick by SamplingKind"):
        chain.step(kind)


def test_a_chain_refuses_rope_tables_shorter_than_its_context(device):
    spec = SPECS["window-in-full-cache"]
    _, decoder, cache = make(spec, torch.float32, device)
    pairs = list(zip(cache.keys, cache.values, strict=True))
    with pytest.raises(ValueError, match="rope tables hold 40 positions, max_context is 41"):
        DecodeChain(spec, decoder.parameters, decoder.rope, pairs, max_context=41)
