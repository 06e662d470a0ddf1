"""The whole forward pass, through Triton's kernels and through their references."""

from dataclasses import replace

import pytest
import torch
from toy_specs import toy_spec

from infer_core import decoder as decoder_module
from infer_core.decoder import Decoder
from infer_core.kv_cache import KVCache
from infer_core.ops import REFERENCE, TRITON, ops_for
from infer_core.weights import dummy_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on a CPU Triton's interpreter runs


def run(ops, spec, parameters, ids):
    """Prefill all but four tokens in two pieces, decode the rest; logits after every step."""
    decoder = Decoder(spec, parameters, context=32, padding=8, ops=ops)
    cache = KVCache(spec, context=32, device=DEVICE, dtype=torch.float32)

    def forward(start, stop, *, is_prefill, count=None):
        tokens = ids[start:stop]
        position = torch.tensor([start], dtype=torch.int32, device=DEVICE)
        return decoder.forward(tokens, cache, position, is_prefill=is_prefill, count=count)

    count = torch.tensor([6], dtype=torch.int32, device=DEVICE)
    rows = [forward(0, 9, is_prefill=True), forward(9, 19, is_prefill=True, count=count)]
    rows += [forward(at, at + 1, is_prefill=False) for at in range(15, 19)]
    return torch.cat(rows)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({}, id="plain"),
        pytest.param({"window": 7, "ring": True, "qk_norm": "head"}, id="ring-and-qk-norm"),
        pytest.param({"sandwich": True, "biases": True, "tied": False}, id="sandwich-and-biases"),
        pytest.param({"gated": False}, id="ungated"),
    ],
)
@torch.inference_mode()
def test_kernels_and_references_agree_over_the_whole_decoder(spec):
    spec = toy_spec(**spec)
    parameters = dummy_weights(spec, device=DEVICE, dtype=torch.float32)
    ids = torch.randint(97, (19,), generator=torch.Generator().manual_seed(3)).to(DEVICE)

    triton, reference = (run(ops, spec, parameters, ids) for ops in (TRITON, REFERENCE))

    assert triton.shape == (6, 97)
    assert (triton - reference).abs().max() <= 1e-4 * reference.abs().max()


def ring_last(spec):
    """The same layers the other way round: the toy's last one keeps everything."""
    return spec.model_copy(
        update={"attention": spec.attention[::-1], "kv_cache": spec.kv_cache[::-1]}
    )


def prefill(spec, ops, *, every_row):
    """Prefill 9 fresh tokens, then 6 and 4 rows of padding: both logits, and the cache."""
    parameters = dummy_weights(spec, device="cpu", dtype=torch.float32)
    decoder = Decoder(spec, parameters, context=32, padding=8, ops=ops)
    cache = KVCache(spec, context=32, device="cpu", dtype=torch.float32)
    ids = torch.randint(97, (19,), generator=torch.Generator().manual_seed(3))
    start, count = (torch.tensor([n], dtype=torch.int32) for n in (9, 6))
    how = {"is_prefill": True, "every_row": every_row}
    first = decoder.forward(ids[:9], cache, start - 9, is_fresh=True, **how)
    second = decoder.forward(ids[9:], cache, start, count=count, **how)
    return (first[-1], second[5] if every_row else second[0]), cache


@pytest.fixture
def alone_from_two(monkeypatch):
    monkeypatch.setattr(decoder_module, "ALONE_FROM", 2)


@pytest.mark.parametrize("window", [7, 12])
@pytest.mark.parametrize("changes", [{}, {"sandwich": True, "qk_norm": "projection"}])
@torch.inference_mode()
def test_a_row_that_ends_alone_ends_as_among_all_rows(window, changes, alone_from_two):
    spec = ring_last(toy_spec(window=window, ring=True, **changes))

    alone, alone_cache = prefill(spec, REFERENCE, every_row=False)
    among_all, cache = prefill(spec, REFERENCE, every_row=True)

    for one, other in zip(alone, among_all, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    for one, other in zip(
        (*alone_cache.keys, *alone_cache.values), (*cache.keys, *cache.values), strict=True
    ):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_after_the_last_attention_only_the_row_asked_for_is_computed(alone_from_two):
    rows = []

    def mlp_parts(x, *args, **kwargs):
        rows.append(len(x))
        return REFERENCE.mlp_parts(x, *args, **kwargs)

    prefill(toy_spec(), replace(REFERENCE, mlp_parts=mlp_parts), every_row=False)

    assert rows == [9, 9, 1, 10, 10, 1]


def test_a_gpu_runs_triton_and_a_cpu_the_references():
    assert ops_for(torch.device("cuda")).name == "triton"
    assert ops_for(torch.device("cpu")).name == "reference"
