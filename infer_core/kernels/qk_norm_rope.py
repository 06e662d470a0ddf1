"""Per-head RMSNorm and rotary embedding of q and k, in place, and the KV write of a decode step.

    q, k  = rms_norm(q, q_weight), rms_norm(k, k_weight)     per head, when weights are given
    y[d]        = x[d] * cos[p, d] - x[d + half] * sin[p, d]
    y[d + half] = x[d + half] * cos[p, d] + x[d] * sin[p, d]     d < half, p = start + token
    k_cache[:, p % capacity], v_cache[:, p % capacity] = k, v     when caches are given

Shapes  qkv as in `infer_core.kernels`; cos, sin [context, half], start + num_tokens <= context;
        the leading rotary_dim = 2 * half elements of a head rotate, the others pass; start [1];
        q_weight, k_weight [head_dim].
Dtypes  qkv, weights and caches share one of float32, float16, bfloat16; cos and sin float32;
        start int32. The norm rounds as `rms_norm` does, the rotation is float32, rounded once.
Bound   memory: moves 2 * bytes of q and k (twice k's and v's more with caches).
Source  arXiv:2104.09864 with the halves of a head paired, as Hugging Face checkpoints store them.

A chunk longer than the cache writes its last `capacity` tokens only; rows from `count` on are
padding and write nothing. Attention of a chunk over a ring must read the old slots first: there,
leave the caches out and call `write_kv` afterwards.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait

from infer_core.kernels._common import (
    at_least_fp32,
    check_cache,
    check_heads,
    check_position,
    check_tensor,
    early_start,
    scale_by_norm_weight,
)
from infer_core.kernels.rms_norm import rms_norm_ref
from infer_core.kernels.write_kv import write_kv_ref


def qk_norm_rope_ref(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
    weight_in_fp32: bool = False,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> None:
    """Define the kernel in plain torch; `qkv` and the caches change in place."""
    num_tokens, half = qkv.shape[0], cos.shape[1]
    rotated_heads = num_heads + num_kv_heads
    x = qkv[:, : rotated_heads * head_dim].unflatten(1, (rotated_heads, head_dim))
    y = x
    if q_weight is not None and k_weight is not None:
        weight = torch.stack([q_weight] * num_heads + [k_weight] * num_kv_heads)
        y = rms_norm_ref(x, weight, eps, weight_offset=weight_offset, weight_in_fp32=weight_in_fp32)
    wide = at_least_fp32(y)
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    positions = start + torch.arange(num_tokens, device=qkv.device)
    c, s = cos[positions, None], sin[positions, None]  # [num_tokens, 1, half]
    x.copy_(torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1))
    if k_cache is not None and v_cache is not None:
        write_kv_ref(
            qkv,
            start,
            k_cache,
            v_cache,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            count=count,
        )


@triton.jit
def _normed(
    x, rstd, is_query, cols, mask, q_weight_ptr, k_weight_ptr, weight_offset, DTYPE, IN_FP32
):
    q_weight = tl.load(q_weight_ptr + cols, mask=mask, other=0.0)
    k_weight = tl.load(k_weight_ptr + cols, mask=mask, other=0.0)
    weight = tl.where(is_query[:, None], q_weight[None, :], k_weight[None, :])
    return scale_by_norm_weight(x * rstd, weight, weight_offset, DTYPE, IN_FP32).to(tl.float32)


# The number of tokens changes with every prompt: specialising on it would recompile in a request.
@triton.jit(do_not_specialize=["num_tokens"])
def _qk_norm_rope_kernel(
    qkv_ptr,
    cos_ptr,
    sin_ptr,
    start_ptr,
    count_ptr,
    q_weight_ptr,
    k_weight_ptr,
    k_cache_ptr,
    v_cache_ptr,
    num_tokens,
    stride_qkv_row,
    capacity,
    eps,
    weight_offset,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    WRITE_KV: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(start_ptr) + token
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)  # q heads, then k heads
    is_head = heads < NUM_HEADS + NUM_KV_HEADS
    row = qkv_ptr + token * stride_qkv_row
    x_ptrs = row + heads[:, None] * HEAD_DIM

    # A head is loaded as the two halves that rotate into each other, and what does not rotate.
    cols = tl.arange(0, BLOCK_HALF)
    is_half = cols < HALF
    half_mask = is_head[:, None] & is_half[None, :]
    first_ptrs = x_ptrs + cols[None, :]
    second_ptrs = x_ptrs + HALF + cols[None, :]
    first = tl.load(first_ptrs, mask=half_mask, other=0.0).to(tl.float32)
    second = tl.load(second_ptrs, mask=half_mask, other=0.0).to(tl.float32)
    if 2 * HALF < HEAD_DIM:
        rest_cols = 2 * HALF + tl.arange(0, BLOCK_REST)
        is_rest = rest_cols < HEAD_DIM
        rest_mask = is_head[:, None] & is_rest[None, :]
        rest = tl.load(x_ptrs + rest_cols[None, :], mask=rest_mask, other=0.0).to(tl.float32)

    if NORM:
        squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
        if 2 * HALF < HEAD_DIM:
            squares += tl.sum(rest * rest, axis=1)
        rstd = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        is_query = heads < NUM_HEADS
        first = _normed(
            first, rstd, is_query, cols, is_half, q_weight_ptr, k_weight_ptr, weight_offset,
            dtype, WEIGHT_IN_FP32,
        )  # fmt: skip
        second = _normed(
            second, rstd, is_query, HALF + cols, is_half, q_weight_ptr, k_weight_ptr,
            weight_offset, dtype, WEIGHT_IN_FP32,
        )  # fmt: skip
        if 2 * HALF < HEAD_DIM:
            rest = _normed(
                rest, rstd, is_query, rest_cols, is_rest, q_weight_ptr, k_weight_ptr,
                weight_offset, dtype, WEIGHT_IN_FP32,
            )  # fmt: skip

    cos = tl.load(cos_ptr + position * HALF + cols, mask=is_half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + position * HALF + cols, mask=is_half, other=0.0)[None, :]
    rotated_first = (first * cos - second * sin).to(dtype)
    rotated_second = (second * cos + first * sin).to(dtype)

    # In place: a small tile may be held by several warps, all must have read before one writes.
    tl.debug_barrier()
    tl.store(first_ptrs, rotated_first, mask=half_mask)
    tl.store(second_ptrs, rotated_second, mask=half_mask)
    if NORM and 2 * HALF < HEAD_DIM:
        tl.store(x_ptrs + rest_cols[None, :], rest.to(dtype), mask=rest_mask)

    if WRITE_KV:  # its own branch: with `and` it is compiled even when False
        if PADDED:
            num_tokens = tl.load(count_ptr)
        # Of the tokens that share a slot only the last may write it, or the order decides.
        if (token >= num_tokens - capacity) & (token < num_tokens):
            is_key = is_head & (heads >= NUM_HEADS)
            slot_rows = (heads - NUM_HEADS).to(tl.int64) * capacity + position % capacity
            k_ptrs = k_cache_ptr + slot_rows[:, None] * HEAD_DIM
            k_mask = is_key[:, None] & is_half[None, :]
            tl.store(k_ptrs + cols[None, :], rotated_first, mask=k_mask)
            tl.store(k_ptrs + HALF + cols[None, :], rotated_second, mask=k_mask)
            if 2 * HALF < HEAD_DIM:
                k_rest_mask = is_key[:, None] & is_rest[None, :]
                tl.store(k_ptrs + rest_cols[None, :], rest.to(dtype), mask=k_rest_mask)

            dims = tl.arange(0, BLOCK_DIM)
            v_mask = is_key[:, None] & (dims < HEAD_DIM)[None, :]
            v_heads = heads + NUM_KV_HEADS  # the value head beside each key head
            v = tl.load(row + v_heads[:, None] * HEAD_DIM + dims[None, :], mask=v_mask, other=0.0)
            v_ptrs = v_cache_ptr + slot_rows[:, None] * HEAD_DIM + dims[None, :]
            tl.store(v_ptrs, v, mask=v_mask)


def qk_norm_rope(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    weight_offset: float = 0.0,
    weight_in_fp32: bool = False,
    k_cache: torch.Tensor | None = None,
    v_cache: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> None:
    """Launch the kernel; same contract as `qk_norm_rope_ref`.

    Raises:
        ValueError: a shape, stride or dtype is not as the file's docstring says, or only one of
            the two weights, or of the two caches, is given.
    """
    capacity = check_qk_norm_rope(
        "qk_norm_rope",
        qkv,
        cos,
        sin,
        start,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        q_weight=q_weight,
        k_weight=k_weight,
        k_cache=k_cache,
        v_cache=v_cache,
        count=count,
    )
    half = cos.shape[1]
    block_dim = triton.next_power_of_2(head_dim)
    total_heads = triton.next_power_of_2(num_heads + num_kv_heads)
    block_heads = max(1, min(total_heads, 2048 // block_dim))
    _qk_norm_rope_kernel[(qkv.shape[0], triton.cdiv(num_heads + num_kv_heads, block_heads))](
        qkv,
        cos,
        sin,
        start,
        count,
        q_weight,
        k_weight,
        k_cache,
        v_cache,
        qkv.shape[0],
        qkv.stride(0),
        capacity,
        eps,
        weight_offset,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        NORM=q_weight is not None,
        WEIGHT_IN_FP32=weight_in_fp32,
        WRITE_KV=k_cache is not None,
        PADDED=count is not None,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=triton.next_power_of_2(half),
        BLOCK_REST=triton.next_power_of_2(max(1, head_dim - 2 * half)),
        BLOCK_DIM=block_dim,
        num_warps=4,
        **early_start(qkv.shape[0], qkv.device),
    )


def check_qk_norm_rope(
    name: str,
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    k_cache: torch.Tensor | None,
    v_cache: torch.Tensor | None,
    count: torch.Tensor | None,
) -> int:
    """Check the operands of kernel `name`; return the caches' capacity, 0 without caches."""
    check_heads(name, qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    check_position(name, "start", start)
    if count is not None:
        check_position(name, "count", count)
    if cos.ndim != 2 or not 0 < 2 * cos.shape[1] <= head_dim:
        raise ValueError(
            f"{name}: cos must be [context, half] with 2 * half in 2..{head_dim} (head_dim); "
            f"got shape {tuple(cos.shape)}"
        )
    check_tensor(name, "cos", cos, cos.shape, torch.float32)
    check_tensor(name, "sin", sin, cos.shape, torch.float32)
    if (q_weight is None) != (k_weight is None):
        raise ValueError(f"{name}: give both q_weight and k_weight, or neither")
    if q_weight is not None and k_weight is not None:
        check_tensor(name, "q_weight", q_weight, (head_dim,), qkv.dtype)
        check_tensor(name, "k_weight", k_weight, (head_dim,), qkv.dtype)
    if (k_cache is None) != (v_cache is None):
        raise ValueError(f"{name}: give both k_cache and v_cache, or neither")
    capacity = 0
    if k_cache is not None and v_cache is not None:
        capacity = check_cache(
            name, k_cache, v_cache, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=qkv.dtype
        )
    return capacity
