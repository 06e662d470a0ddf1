import pytest
import torch
from toy_specs import toy_spec

from infer_core.decode_chain import DecodeChain
from infer_core.decoder import Decoder
from infer_core.dummy_weights import dummy_weights
from infer_core.kv_cache import KVCache
from infer_core.ops import REFERENCE

CONTEXT = 40


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU Triton's interpreter runs


def make(spec, dtype, device):
    """A chain, and the plain-torch decoder with a cache of its own."""
    parameters = dummy_weights(spec, device=device, dtype=dtype)
    decoder = Decoder(spec, parameters, context=CONTEXT, ops=REFERENCE)
    caches = [KVCache(spec, context=CONTEXT, device=device, dtype=dtype) for _ in range(2)]
    pairs = list(zip(caches[0].keys, caches[0].values, strict=True))
    chain = DecodeChain(spec, parameters, decoder.rope, pairs, max_context=CONTEXT)
    return chain, decoder, caches[1]


SPECS = {
    "pre-norm-ungated-biases": toy_spec(gated=False, biases=True, tied=False),
    "sandwich-qk-norm-ring": toy_spec(sandwich=True, qk_norm="head", window=5, ring=True),
    "window-in-full-cache": toy_spec(window=5),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_greedy_chain_agrees_with_the_decoder_at_every_step(spec, device):
    chain, decoder, cache = make(spec, torch.float32, device)
    start = torch.zeros(1, dtype=torch.int32, device=device)
    token = 7
    chain.begin(token, 0)

    for position in range(9):
        chain.step(greedy=True)

        start.fill_(position)
        tokens = torch.tensor([token], device=device)
        expected = decoder.forward(tokens, cache, start, is_prefill=False)[0]
        torch.testing.assert_close(chain.logits, expected, rtol=1e-4, atol=1e-4)
        token = int(expected.argmax())
        assert int(chain.token) == token
        assert int(chain.position) == position + 1
        assert int(chain.sequence[position + 1]) == token


def test_a_sampled_token_takes_the_place_of_the_greedy_one(device):
    spec = SPECS["window-in-full-cache"]
    chain, decoder, cache = make(spec, torch.float32, device)
    chain.begin(3, 0)
    chain.step(greedy=False)
    chain.token.fill_(55)
    chain.advance()

    chain.step(greedy=False)

    start = torch.zeros(1, dtype=torch.int32, device=device)
    for position, token in enumerate([3, 55]):
        start.fill_(position)
        tokens = torch.tensor([token], device=device)
        expected = decoder.forward(tokens, cache, start, is_prefill=False)[0]
    torch.testing.assert_close(chain.logits, expected, rtol=1e-4, atol=1e-4)
    assert chain.sequence[1] == 55


def test_a_chain_refuses_rope_tables_shorter_than_its_context(device):
    spec = SPECS["window-in-full-cache"]
    _, decoder, cache = make(spec, torch.float32, device)
    pairs = list(zip(cache.keys, cache.values, strict=True))
    with pytest.raises(ValueError, match="rope tables hold 40 positions, max_context is 41"):
        DecodeChain(spec, decoder.parameters, decoder.rope, pairs, max_context=41)
