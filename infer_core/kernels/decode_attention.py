"""Attention of one new token over the cache, split over the keys so that it fills the GPU.

    y = sum_j softmax_j(cap(q . k[j] * softmax_scale)) v[j],   cap as in `attention`

The token's position is read on the device. It sees the past positions max(0, position - window
+ 1) .. position - 1, in slot p % capacity of the cache, and itself, from qkv (so the step may
write its own slot before or after).

Shapes  qkv [1, ...] (q and k rotated), k_cache, v_cache as in `infer_core.kernels`; position [1];
        y [1, num_heads * head_dim].
Dtypes  qkv, caches and y share one of float32, float16, bfloat16; position int32. Scores, softmax
        and sums are float32; half-precision weights of v are rounded to the dtype for the dot.
Bound   memory: reads K and V of the visible tokens once.
Source  split keys merged by log-sum-exp: flash-decoding (pytorch.org/blog/flash-decoding).

Each split leaves (maximum, total, weighted sum of v) of its part; a second kernel merges. A split
without keys leaves total and sum 0, which weigh nothing; split 0 always has the new token.
"""

import torch
import triton
import triton.language as tl

from infer_core.kernels._common import check_cache, check_heads, check_position
from infer_core.kernels.attention import (
    prefill_attention_ref,
    score_scales,
    softmax_scores,
    softmax_update,
)

# Programs of the first kernel: about one per multiprocessor of an H100 or H200 (132).
TARGET_PROGRAMS = 128
MAX_SPLITS = 64  # the merge holds the parts of one head in registers


def decode_attention_ref(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    softmax_scale: float,
    window: int | None = None,
    logit_softcap: float | None = None,
    max_context: int | None = None,
) -> torch.Tensor:
    """Define the kernel in plain torch: a chunk of one token. `max_context` changes nothing."""
    return prefill_attention_ref(
        qkv,
        k_cache,
        v_cache,
        position,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        softmax_scale=softmax_scale,
        window=window,
        logit_softcap=logit_softcap,
    )


@triton.jit
def _split_kernel(
    qkv_ptr,
    k_cache_ptr,
    v_cache_ptr,
    position_ptr,
    maxima_ptr,
    totals_ptr,
    sums_ptr,
    capacity,
    score_scale,
    softcap_scale,
    window,
    num_splits,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    kv_head = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    position = tl.load(position_ptr)

    members = tl.arange(0, BLOCK_GROUP)  # query heads of the group, padded for tl.dot
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    heads = kv_head * GROUP + members
    q_mask = (members < GROUP)[:, None] & is_dim[None, :]
    q = tl.load(qkv_ptr + heads[:, None] * HEAD_DIM + dims[None, :], mask=q_mask, other=0.0)

    # Every split starts from the new token's score as its maximum (any finite value is right),
    # but only split 0 counts the token.
    new_ptrs = qkv_ptr + (NUM_HEADS + kv_head) * HEAD_DIM + dims
    k_new = tl.load(new_ptrs, mask=is_dim, other=0.0).to(tl.float32)
    v_new = tl.load(new_ptrs + NUM_KV_HEADS * HEAD_DIM, mask=is_dim, other=0.0).to(tl.float32)
    product = tl.sum(q.to(tl.float32) * k_new[None, :], axis=1)
    maximum = softmax_scores(product, score_scale, softcap_scale, SOFTCAP)
    total = tl.where(split == 0, tl.full([BLOCK_GROUP], 1.0, tl.float32), 0.0)
    acc = tl.where(split == 0, tl.zeros([BLOCK_GROUP, BLOCK_DIM], tl.float32) + v_new[None, :], 0.0)

    # The past is cut by its length now, not by the bound that fixed the number of splits.
    first = 0
    if WINDOW:
        first = tl.maximum(position - window + 1, 0)
    tiles = (position - first + BLOCK_N - 1) // BLOCK_N
    split_len = (tiles + num_splits - 1) // num_splits * BLOCK_N
    begin = first + split * split_len
    end = tl.minimum(begin + split_len, position)
    cache_offset = kv_head * capacity * HEAD_DIM
    for tile in range(begin, end, BLOCK_N):
        positions = tile + tl.arange(0, BLOCK_N)
        in_past = positions < end
        offsets = cache_offset + (positions % capacity).to(tl.int64) * HEAD_DIM
        k_ptrs = k_cache_ptr + offsets[None, :] + dims[:, None]
        v_ptrs = v_cache_ptr + offsets[:, None] + dims[None, :]
        k = tl.load(k_ptrs, mask=in_past[None, :] & is_dim[:, None], other=0.0)
        v = tl.load(v_ptrs, mask=in_past[:, None] & is_dim[None, :], other=0.0)
        products = tl.dot(q, k, input_precision="ieee")
        scores = softmax_scores(products, score_scale, softcap_scale, SOFTCAP)
        maximum, total, acc = softmax_update(scores, in_past[None, :], v, maximum, total, acc)

    parts = heads * num_splits + split
    tl.store(maxima_ptr + parts, maximum, mask=members < GROUP)
    tl.store(totals_ptr + parts, total, mask=members < GROUP)
    tl.store(sums_ptr + parts[:, None] * HEAD_DIM + dims[None, :], acc, mask=q_mask)


@triton.jit
def _merge_kernel(
    maxima_ptr,
    totals_ptr,
    sums_ptr,
    y_ptr,
    num_splits,
    HEAD_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    head = tl.program_id(0)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_DIM)
    is_split = splits < num_splits
    is_dim = dims < HEAD_DIM
    parts = head * num_splits + splits

    maxima = tl.load(maxima_ptr + parts, mask=is_split, other=float("-inf"))
    totals = tl.load(totals_ptr + parts, mask=is_split, other=0.0)
    sum_ptrs = sums_ptr + parts[:, None] * HEAD_DIM + dims[None, :]
    sums = tl.load(sum_ptrs, mask=is_split[:, None] & is_dim[None, :], other=0.0)
    weights = tl.exp2(maxima - tl.max(maxima, axis=0))
    y = tl.sum(sums * weights[:, None], axis=0) / tl.sum(totals * weights, axis=0)
    tl.store(y_ptr + head * HEAD_DIM + dims, y.to(y_ptr.dtype.element_ty), mask=is_dim)


def decode_attention(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    softmax_scale: float,
    window: int | None = None,
    logit_softcap: float | None = None,
    max_context: int,
) -> torch.Tensor:
    """Launch both kernels; same contract as `decode_attention_ref`.

    `max_context` bounds position + 1 and fixes the grid, so that a captured graph stays valid up
    to it. A longer context is still right, only less spread out.

    Raises:
        ValueError: a shape, stride or dtype is not as the file's docstring says.
    """
    name = "decode_attention"
    check_heads(name, qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    if qkv.shape[0] != 1:
        raise ValueError(f"{name}: qkv must hold one token, got {qkv.shape[0]}")
    check_position(name, "position", position)
    capacity = check_cache(
        name, k_cache, v_cache, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=qkv.dtype
    )
    if max_context < 1 or (window is not None and window < 1):
        raise ValueError(
            f"{name}: max_context ({max_context}) and window ({window}) must be at least 1"
        )
    block_n = tile_keys(head_dim, qkv.dtype)
    num_splits = split_count(min(max_context, window or max_context), num_kv_heads, block_n)
    block_dim = max(16, triton.next_power_of_2(head_dim))
    parts = (num_heads, num_splits)
    maxima = torch.empty(parts, dtype=torch.float32, device=qkv.device)
    totals = torch.empty(parts, dtype=torch.float32, device=qkv.device)
    sums = torch.empty((*parts, head_dim), dtype=torch.float32, device=qkv.device)
    y = torch.empty((1, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    _split_kernel[(num_kv_heads, num_splits)](
        qkv,
        k_cache,
        v_cache,
        position,
        maxima,
        totals,
        sums,
        capacity,
        *score_scales(softmax_scale, logit_softcap),
        window or 0,
        num_splits,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        WINDOW=window is not None,
        SOFTCAP=logit_softcap is not None,
        BLOCK_GROUP=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        BLOCK_N=block_n,
        BLOCK_DIM=block_dim,
        num_warps=4,
        num_stages=2,
    )
    _merge_kernel[(num_heads,)](
        maxima,
        totals,
        sums,
        y,
        num_splits,
        HEAD_DIM=head_dim,
        BLOCK_SPLITS=triton.next_power_of_2(num_splits),
        BLOCK_DIM=block_dim,
        num_warps=4,
    )
    return y


def split_count(visible: int, num_kv_heads: int, block_n: int) -> int:
    """Splits for at most `visible` tokens: one per tile, until the GPU is full."""
    tiles = -(-visible // block_n)
    return max(1, min(tiles, TARGET_PROGRAMS // num_kv_heads, MAX_SPLITS))


def tile_keys(head_dim: int, dtype: torch.dtype) -> int:
    """BLOCK_N: the keys of a tile; 64 wide float32 heads spill registers by the kilobyte."""
    return 16 if dtype == torch.float32 and head_dim > 128 else 64
