"""This kernel is no Triton that the interpreter could run: here it is compiled, on a GPU run."""

import pytest
import torch

from infer_core.kernels import attention, split_attention
from infer_core.kernels.attention import prefill_attention, prefill_attention_ref
from infer_core.kernels.write_kv import write_kv


def a_chunk(num_tokens, past, capacity, heads, dtype, device):
    """Q, k and v of the tokens, caches of those before, and where they begin.

    Slots of no token hold NaN, which must not be read.
    """
    columns = (heads["num_heads"] + 2 * heads["num_kv_heads"]) * heads["head_dim"]
    qkv = torch.randn(past + num_tokens, columns, device=device).to(dtype)
    shape = (2, heads["num_kv_heads"], capacity, heads["head_dim"])
    caches = torch.full(shape, float("nan"), dtype=dtype, device=device)
    start = torch.tensor([past], dtype=torch.int32, device=device)
    if past:
        write_kv(qkv[:past], torch.zeros_like(start), *caches, **heads)
    return qkv[past:].contiguous(), *caches, start


# num_tokens, heads, kv heads, head_dim, window; past and capacity, None for a fresh prompt
CASES = [
    pytest.param(1024, 4, 1, 256, 512, None, id="window"),
    pytest.param(1024, 4, 1, 256, None, None, id="one-round"),
    pytest.param(1500, 4, 1, 256, None, None, id="head-dim-256-in-rounds"),
    pytest.param(777, 4, 1, 256, 100, None, id="window-no-multiple"),
    pytest.param(600, 8, 4, 256, 1, None, id="sees-itself-only"),
    pytest.param(257, 16, 8, 128, None, None, id="a-token-alone-in-its-block"),
    pytest.param(1001, 16, 8, 128, None, None, id="ragged-tokens"),
    pytest.param(2048, 8, 1, 128, None, None, id="group-of-8"),
    pytest.param(900, 2, 2, 128, 64, None, id="group-of-1"),
    pytest.param(1024, 32, 8, 64, None, None, id="head-dim-64"),
    pytest.param(1000, 32, 8, 64, 333, None, id="head-dim-64-window"),
    pytest.param(3000, 32, 8, 64, None, None, id="many-rounds"),
    pytest.param(1024, 32, 8, 64, None, (2048, 4096), id="past"),
    pytest.param(300, 32, 8, 64, None, (1, 301), id="past-of-one"),
    pytest.param(777, 16, 8, 128, None, (1000, 1777), id="past-ends-within-a-tile"),
    pytest.param(512, 16, 8, 128, None, (0, 640), id="no-past-after-all"),
    pytest.param(600, 4, 1, 256, None, (63, 1000), id="past-below-a-tile"),
    pytest.param(1024, 8, 4, 256, None, (3 * 64 + 1, 1250), id="past-one-above-a-tile"),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "head_dim", "window", "past"), CASES
)
def test_it_is_as_accurate_as_eager_torch(
    num_tokens,
    num_heads,
    num_kv_heads,
    head_dim,
    window,
    past,
    dtype,
    monkeypatch,
    assert_as_accurate_as_eager,
    softmax_allowance,
):
    if not attention.has_wgmma(torch.device("cuda")):
        pytest.skip("needs a Hopper GPU")
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    qkv, *caches, start = a_chunk(num_tokens, *(past or (0, 1)), heads, dtype, "cuda")
    # 2 / sqrt(head_dim): scores of a few units, so that tokens weigh unequally
    layout = {**heads, "softmax_scale": 2 * head_dim**-0.5, "window": window}
    monkeypatch.delattr(attention, "_prefill_attention_kernel")  # this is about the other one

    y = prefill_attention(qkv, *caches, start, **layout, is_fresh=past is None)

    def truth_of(qkv, k_cache, v_cache):
        wide = (tensor.double() for tensor in (qkv, k_cache, v_cache))
        return prefill_attention_ref(*wide, start, **layout)

    eager = prefill_attention_ref(qkv, *caches, start, **layout)
    truth = truth_of(qkv, *caches)
    width = num_kv_heads * head_dim
    positive = torch.cat([qkv[:, :-width], qkv[:, -width:].abs()], dim=1)
    of_abs = truth_of(positive, caches[0], caches[1].abs())
    assert_as_accurate_as_eager(y, eager, truth, softmax_allowance(truth, of_abs))
    for _ in range(10):
        again = prefill_attention(qkv, *caches, start, **layout, is_fresh=past is None)
        assert torch.equal(again, y)


SUITS = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}


@pytest.mark.parametrize(
    ("changed", "fewer", "taken"),
    [
        pytest.param({}, 0, True, id="suits"),
        pytest.param({"window": 5}, 0, True, id="window"),
        pytest.param({}, 1, False, id="short"),
        pytest.param({"is_fresh": False}, 0, True, id="past"),
        pytest.param({"is_fresh": False, "window": 5}, 0, False, id="past-perhaps-in-a-ring"),
        pytest.param({"logit_softcap": 5.0}, 0, False, id="soft-cap"),
        pytest.param({"num_heads": 6}, 0, False, id="group-of-3"),
        pytest.param({"head_dim": 32}, 0, False, id="head-dim"),
    ],
)
def test_it_takes_prompts_that_suit_it(changed, fewer, taken, monkeypatch, device):
    monkeypatch.setattr(attention, "SPLIT_FROM", 20)
    monkeypatch.setattr(attention, "has_wgmma", lambda device: True)
    monkeypatch.setattr(attention, "has_descriptors", lambda qkv: True)
    result = torch.zeros(1)
    launched = []

    def launch(*tensors, **how):
        launched.append((tensors, how))
        return result

    monkeypatch.setattr(split_attention, "launch_split_attention", launch)
    how = {**SUITS, "softmax_scale": 0.5, "is_fresh": True, **changed}
    heads = {name: how[name] for name in SUITS}
    chunk = a_chunk(20 - fewer, 12, 32, heads, torch.float16, device)

    y = prefill_attention(*chunk, **how)

    assert (y is result) == taken
    scale = attention.score_scales(0.5, None)[0]
    given = {"window": how.get("window"), "is_fresh": how["is_fresh"]}
    assert launched == ([(chunk, {**heads, "score_scale": scale, **given})] if taken else [])


def test_another_gpu_takes_the_other_kernel(monkeypatch, device):
    monkeypatch.setattr(attention, "SPLIT_FROM", 20)
    monkeypatch.setattr(attention, "has_wgmma", lambda device: False)
    monkeypatch.delattr(split_attention, "launch_split_attention")
    chunk = a_chunk(20, 0, 1, SUITS, torch.float16, device)
    y = prefill_attention(*chunk, **SUITS, softmax_scale=0.5, is_fresh=True)
    assert torch.isfinite(y).all()


LAUNCH = """
from infer_core.kernels import split_attention
split_attention.num_multiprocessors = lambda device: 132
for num_heads, num_kv_heads, head_dim in ((4, 1, 256), (16, 8, 128), (32, 8, 64)):
    for is_fresh in (True, False):
        split_attention.launch_split_attention(
            empty(1024, (num_heads + 2 * num_kv_heads) * head_dim),
            empty(num_kv_heads, 4096, head_dim), empty(num_kv_heads, 4096, head_dim),
            empty(1, dtype=torch.int32), num_heads=num_heads, num_kv_heads=num_kv_heads,
            head_dim=head_dim, score_scale=0.1, window=512 if is_fresh else None,
            is_fresh=is_fresh,
        )
"""


def test_it_compiles_for_hopper_and_keeps_to_registers(compile_for_hopper):
    assert compile_for_hopper(LAUNCH) == 6 * [("_split_attention_kernel", 0, True)]
    assert {64, 128, 256} == set(split_attention.TILES)
