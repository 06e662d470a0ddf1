import infer_parallel_toy
import torch
import torch.nn.functional as F

from infer_core.testing import PluginContract
from infer_core.testing.case import ContractCase, every_logit


class TestContract(PluginContract):
    plugin = infer_parallel_toy


def test_logits_equal_those_of_a_plain_forward_pass(tmp_path):
    # transformers does not know this family, so its truth is written down here once more
    case = ContractCase(infer_parallel_toy, infer_parallel_toy.TINY, tmp_path)
    p = {name: weight.double() for name, weight in case.parameters.items()}
    ids = torch.tensor(case.prompt)
    heads, kv_heads, dim, length = 6, 2, 24, len(ids)

    def norm(x, weight):
        return F.rms_norm(x, x.shape[-1:], p[weight], eps=1e-6)

    def rotate(x):
        angles = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(0, dim, 2) / dim)
        cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    x = p["embed"][ids]
    for layer in (f"layers.{n}." for n in range(3)):
        n = norm(x, layer + "attn_norm")
        qkv = (n @ p[layer + "qkv"].T).view(length, heads + 2 * kv_heads, dim)
        q, k, v = qkv.split([heads, kv_heads, kv_heads], dim=1)
        q, k, v = (t.transpose(0, 1) for t in (rotate(q), rotate(k), v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        attended = attended.transpose(0, 1).flatten(1) @ p[layer + "attn_out"].T
        gate, up = (n @ p[layer + "gate_up"].T).chunk(2, dim=-1)
        x = x + p[layer + "gate"] * (attended + (F.silu(gate) * up) @ p[layer + "mlp_out"].T)
    truth = norm(x, "final_norm") @ p["lm_head"].T

    error = (every_logit(case.spec, case.parameters, case.prompt) - truth).abs().max()
    assert error / truth.abs().max() <= 1e-4
    assert case.spec.uncommon == ("decoder=infer_parallel_toy.decoder:ParallelDecoder",)
