import pytest
import torch
import triton
import triton.language as tl

from infer_core.kernels.chain_attention import _load_past, chain_attention, chain_attention_ref
from infer_core.kernels.chain_types import Norm
from infer_core.kernels.linear_residual import merge_parts_ref


@pytest.mark.parametrize("position", [0, 1, 15, 16, 39, 47, 48, 131], ids=lambda p: f"at{p}")
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "rotary", "options"),
    [
        pytest.param(2, 2, 64, 64, {}, id="one-head-a-group"),
        pytest.param(6, 2, 40, 40, {"block": 16}, id="groups-of-3-head-dim-40"),
        pytest.param(4, 1, 256, 256, {"norm": Norm(1e-6, 1.0, True)}, id="head-dim-256-qk-norm"),
        pytest.param(8, 1, 64, 32, {"softcap": 4.0}, id="group-of-8-partial-rotary-softcap"),
        pytest.param(4, 2, 32, 32, {"window": 20, "norm": Norm(1e-6)}, id="window-in-full-cache"),
    ],
)
def test_chain_attention_is_as_accurate_as_eager_torch(
    num_heads, num_kv_heads, head_dim, rotary, options, position, dtype, device,
    assert_as_accurate_as_eager, softmax_allowance,
):  # fmt: skip
    capacity, split = 48, 32
    norm = options.get("norm")
    same = {
        "softmax_scale": head_dim**-0.5,
        "window": options.get("window"),
        "logit_softcap": options.get("softcap"),
    }
    results, rounding = [], []
    for _ in range(3):  # the largest error of one draw is luck
        qkv = torch.randn((num_heads + 2 * num_kv_heads) * head_dim).to(device, dtype)
        k_cache, v_cache = (
            torch.randn(num_kv_heads, capacity, head_dim).to(device, dtype) for _ in range(2)
        )
        k_cache[:, position:], v_cache[:, position:] = float("nan"), float("nan")  # not written yet
        angles = torch.rand(position + 1, rotary // 2, device=device) * 6
        cos, sin = angles.cos(), angles.sin()
        weights = {"q_norm": None, "k_norm": None, "norm": norm}
        if norm is not None:
            for name in ("q_norm", "k_norm"):
                weight = 1 + 0.1 * torch.randn(head_dim) - norm.weight_offset
                weights[name] = weight.to(device, dtype)
        caches = [(k_cache.clone(), v_cache.clone()) for _ in range(2)]
        wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in weights.items()}
        truth = chain_attention_ref(
            qkv.double(), k_cache.double(), v_cache.double(), position, cos.double(), sin.double(),
            num_heads=num_heads, **same, **wide,
        )  # fmt: skip
        eager = chain_attention_ref(
            qkv, *caches[0], position, cos, sin, num_heads=num_heads, **same, **weights
        )
        partial = torch.empty(3, num_heads * head_dim, dtype=dtype, device=device)
        lse = torch.empty(3, num_heads, device=device)

        chain_attention(
            qkv, *caches[1], torch.tensor([position], dtype=torch.int32, device=device), cos, sin,
            partial, lse, split=split, block=options.get("block", 32), **same, **weights,
        )  # fmt: skip

        results.append((merge_parts_ref(partial, lse), eager, truth))
        # a part's weight is exp of its lse, a float32 number: it errs by that one's rounding
        lse_error = 2**-24 * float(lse.nan_to_num().abs().max())
        values = qkv.double()
        values[-num_kv_heads * head_dim :].abs_()
        of_abs = chain_attention_ref(
            values, k_cache.double(), v_cache.double().abs(), position, cos.double(), sin.double(),
            num_heads=num_heads, **same, **wide,
        )  # fmt: skip
        exp_error = softmax_allowance(truth, of_abs)
        rounding.append(2 * lse_error * float(truth.abs().max()) + exp_error)
        for kernel_cache, eager_cache in zip(caches[1], caches[0], strict=True):
            torch.testing.assert_close(kernel_cache, eager_cache, equal_nan=True)
    columns = [torch.stack(column) for column in zip(*results, strict=True)]
    assert_as_accurate_as_eager(*columns, max(rounding))


@triton.jit
def _seen_kernel(k_ptr, v_ptr, seen_ptr, first, stop, position, capacity, BLOCK_N: tl.constexpr):
    lanes = tl.arange(0, BLOCK_N)
    _, _, seen = _load_past(k_ptr, v_ptr, first + lanes, stop, position, capacity, 0, 4, 4)
    tl.store(seen_ptr + lanes, seen.to(tl.int32))


@pytest.mark.parametrize("position", [0, 5, 24, 24 + 7, 1000])
@pytest.mark.parametrize("first", [-16, 0, 16])
def test_only_slots_of_the_cache_that_hold_a_past_token_are_read(position, first, device):
    capacity = 24
    cache = torch.zeros(capacity, 4, device=device)
    seen = torch.full((16,), -1, dtype=torch.int32, device=device)

    stop = min(first + 16, capacity, position)
    _seen_kernel[(1,)](cache, cache, seen, first, stop, position, capacity, BLOCK_N=16)

    own = position % capacity  # the new token's slot: what it holds is older than the cache goes
    for lane, slot in enumerate(range(first, first + 16)):
        filled = 0 <= slot < min(position, capacity) and slot != own
        assert seen[lane] == filled


def test_chain_attention_refuses_splits_that_do_not_cover_the_cache(device):
    cache = torch.zeros(1, 64, 16, device=device)
    table = torch.zeros(64, 8, device=device)
    with pytest.raises(ValueError, match="1 parts of 16 slots do not cover"):
        chain_attention(
            torch.zeros(48, device=device), cache, cache.clone(),
            torch.zeros(1, dtype=torch.int32, device=device), table, table,
            torch.zeros(2, 16, device=device), torch.zeros(2, 1, device=device),
            split=16, softmax_scale=1.0,
        )  # fmt: skip
