"""The whole forward pass, through Triton's kernels and through their references."""

import pytest
import torch
from toy_specs import toy_spec

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


def test_a_gpu_runs_triton_and_a_cpu_the_references():
    assert ops_for(torch.device("cuda")).name == "triton"
    assert ops_for(torch.device("cpu")).name == "reference"
