"""This kernel is no Triton that the interpreter could run: here it is compiled, on a GPU run."""

import pytest
import torch

from infer_core.kernels import attention, fresh_attention
from infer_core.kernels.attention import prefill_attention, prefill_attention_ref


def start(device):
    return torch.zeros(1, dtype=torch.int32, device=device)


def a_prompt(num_tokens, heads, dtype, device):
    """Q, k and v, and caches that must not be read."""
    columns = (heads["num_heads"] + 2 * heads["num_kv_heads"]) * heads["head_dim"]
    qkv = torch.randn(num_tokens, columns, device=device).to(dtype)
    shape = (2, heads["num_kv_heads"], num_tokens, heads["head_dim"])
    return qkv, torch.full(shape, float("nan"), dtype=dtype, device=device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "window"),
    [
        pytest.param(1024, 4, 1, 256, 512, id="window"),
        pytest.param(1024, 4, 1, 256, None, id="one-round"),
        pytest.param(1500, 4, 1, 256, None, id="head-dim-256-in-rounds"),
        pytest.param(777, 4, 1, 256, 100, id="window-no-multiple"),
        pytest.param(600, 8, 4, 256, 1, id="sees-itself-only"),
        pytest.param(257, 16, 8, 128, None, id="a-token-alone-in-its-block"),
        pytest.param(1001, 16, 8, 128, None, id="ragged-tokens"),
        pytest.param(2048, 8, 1, 128, None, id="group-of-8"),
        pytest.param(900, 2, 2, 128, 64, id="group-of-1"),
        pytest.param(1024, 32, 8, 64, None, id="head-dim-64"),
        pytest.param(1000, 32, 8, 64, 333, id="head-dim-64-window"),
        pytest.param(3000, 32, 8, 64, None, id="many-rounds"),
    ],
)
def test_it_is_as_accurate_as_eager_torch(
    num_tokens,
    num_heads,
    num_kv_heads,
    head_dim,
    window,
    dtype,
    monkeypatch,
    assert_as_accurate_as_eager,
    softmax_allowance,
):
    if not attention.has_wgmma(torch.device("cuda")):
        pytest.skip("needs a Hopper GPU")
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    qkv, caches = a_prompt(num_tokens, heads, dtype, "cuda")
    # 2 / sqrt(head_dim): scores of a few units, so that tokens weigh unequally
    layout = {"softmax_scale": 2 * head_dim**-0.5, "window": window}
    monkeypatch.delattr(attention, "_prefill_attention_kernel")  # this is about the other one

    y = prefill_attention(qkv, *caches, start("cuda"), **heads, **layout, is_fresh=True)

    none = caches.nan_to_num()
    eager = prefill_attention_ref(qkv, *none, start("cuda"), **heads, **layout)
    truth = prefill_attention_ref(qkv.double(), *none.double(), start("cuda"), **heads, **layout)
    width = num_kv_heads * head_dim
    of_abs = torch.cat([qkv[:, :-width], qkv[:, -width:].abs()], dim=1).double()
    of_abs = prefill_attention_ref(of_abs, *none.double(), start("cuda"), **heads, **layout)
    assert_as_accurate_as_eager(y, eager, truth, softmax_allowance(truth, of_abs))
    for _ in range(10):
        again = prefill_attention(qkv, *caches, start("cuda"), **heads, **layout, is_fresh=True)
        assert torch.equal(again, y)


SUITS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}


@pytest.mark.parametrize(
    ("changed", "fewer", "taken"),
    [
        pytest.param({}, 0, True, id="suits"),
        pytest.param({"window": 5}, 0, True, id="window"),
        pytest.param({}, 1, False, id="short"),
        pytest.param({"is_fresh": False}, 0, False, id="past"),
        pytest.param({"logit_softcap": 5.0}, 0, False, id="soft-cap"),
        pytest.param({"num_heads": 6}, 0, False, id="group-of-3"),
        pytest.param({"head_dim": 32}, 0, False, id="head-dim"),
    ],
)
def test_it_takes_prompts_that_suit_it(changed, fewer, taken, monkeypatch, device):
    monkeypatch.setattr(attention, "FRESH_FROM", 20)
    monkeypatch.setattr(attention, "has_wgmma", lambda device: True)
    monkeypatch.setattr(attention, "has_descriptors", lambda qkv: True)
    result = torch.zeros(1)
    launched = []

    def launch(qkv, **how):
        launched.append(how)
        return result

    monkeypatch.setattr(fresh_attention, "launch_fresh_attention", launch)
    how = {**SUITS, "softmax_scale": 0.5, "is_fresh": True, **changed}
    heads = {name: how[name] for name in SUITS}
    qkv, caches = a_prompt(20 - fewer, heads, torch.float16, device)

    y = prefill_attention(qkv, *caches.nan_to_num(), start(device), **how)

    assert (y is result) == taken
    scale = attention.score_scales(0.5, None)[0]
    expected = {**heads, "score_scale": scale, "window": changed.get("window")}
    assert launched == ([expected] if taken else [])


def test_another_gpu_takes_the_other_kernel(monkeypatch, device):
    monkeypatch.setattr(attention, "FRESH_FROM", 20)
    monkeypatch.setattr(attention, "has_wgmma", lambda device: False)
    monkeypatch.delattr(fresh_attention, "launch_fresh_attention")
    qkv, caches = a_prompt(20, SUITS, torch.float16, device)
    y = prefill_attention(qkv, *caches, start(device), **SUITS, softmax_scale=0.5, is_fresh=True)
    assert torch.isfinite(y).all()


LAUNCH = """
from infer_core.kernels import fresh_attention
fresh_attention.num_multiprocessors = lambda device: 132
for num_heads, num_kv_heads, head_dim in ((4, 1, 256), (16, 8, 128), (32, 8, 64)):
    fresh_attention.launch_fresh_attention(
        empty(1024, (num_heads + 2 * num_kv_heads) * head_dim), num_heads=num_heads,
        num_kv_heads=num_kv_heads, head_dim=head_dim, score_scale=0.1, window=512,
    )
"""


def test_it_compiles_for_hopper_and_keeps_to_registers(compile_for_hopper):
    assert compile_for_hopper(LAUNCH) == 3 * [("_fresh_attention_kernel", 0, True)]
    assert {64, 128, 256} == set(fresh_attention.TILES)
