"""The product that gives q, k and v of many tokens, with what `qk_norm_rope` does in its epilogue.

    qkv = x @ weight.T + bias, then as `qk_norm_rope`: q/k norm, rotation, KV write

A program holds whole heads of its tokens in registers when their products are summed, so that norm
and rotation cost no pass over memory, and start from the float32 sums. `heads_tile` says where.

Shapes  x [num_tokens, width]; weight [(num_heads + 2 * num_kv_heads) * head_dim, width]; the rest
        as in `qk_norm_rope`.
Dtypes  as in `linear` and `qk_norm_rope`.
Bound   as `linear`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from infer_core.kernels._common import (
    early_start,
    has_descriptors,
    num_multiprocessors,
    scale_by_norm_weight,
    shared_memory_bytes,
)
from infer_core.kernels.linear import (
    LinearTile,
    check_linear,
    fit_tile,
    linear,
    linear_ref,
)
from infer_core.kernels.qk_norm_rope import check_qk_norm_rope, qk_norm_rope, qk_norm_rope_ref


def qkv_linear_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
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
) -> torch.Tensor:
    """Define the kernel in plain torch; returns qkv, the caches change in place."""
    qkv = linear_ref(x, weight, bias)
    qk_norm_rope_ref(
        qkv,
        cos,
        sin,
        start,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        weight_offset=weight_offset,
        weight_in_fp32=weight_in_fp32,
        k_cache=k_cache,
        v_cache=v_cache,
        count=count,
    )
    return qkv


# The number of tokens changes with every prompt: specialising on it would recompile in a request.
@triton.jit(do_not_specialize=["num_tokens"])
def _qkv_linear_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    cos_ptr,
    sin_ptr,
    start_ptr,
    count_ptr,
    q_weight_ptr,
    k_weight_ptr,
    k_cache_ptr,
    v_cache_ptr,
    y_ptr,
    num_tokens,
    capacity,
    eps,
    weight_offset,
    WIDTH: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    WRITE_KV: tl.constexpr,
    PADDED: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    NUM_ROWS: tl.constexpr = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    first_token = tl.program_id(0) * BLOCK_TOKENS
    first_row = tl.program_id(1) * BLOCK_ROWS
    acc = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    for col in range(0, WIDTH, BLOCK_WIDTH):
        x = x_desc.load([first_token, col])
        weight = weight_desc.load([first_row, col])
        acc = tl.dot(x, weight.T, acc, input_precision="ieee")
    if HAS_BIAS:
        rows = first_row + tl.arange(0, BLOCK_ROWS)
        bias = tl.load(bias_ptr + rows, mask=rows < NUM_ROWS, other=0.0)
        acc += bias.to(tl.float32)[None, :]

    # each head as the two halves that rotate into each other
    HEADS: tl.constexpr = BLOCK_ROWS // HEAD_DIM
    HALF: tl.constexpr = HEAD_DIM // 2
    halves = tl.permute(tl.reshape(acc, (BLOCK_TOKENS, HEADS, 2, HALF)), (0, 1, 3, 2))
    first, second = tl.split(halves)  # [BLOCK_TOKENS, HEADS, HALF]
    tokens = first_token + tl.arange(0, BLOCK_TOKENS)
    heads = first_row // HEAD_DIM + tl.arange(0, HEADS)
    dims = tl.arange(0, HALF)
    turns = (heads < NUM_HEADS + NUM_KV_HEADS)[None, :, None]  # values do not
    if NORM:
        squares = tl.sum(first * first + second * second, axis=2)
        rstd = tl.rsqrt(squares / HEAD_DIM + eps)[:, :, None]
        is_query = (heads < NUM_HEADS)[None, :, None]
        q_first = tl.load(q_weight_ptr + dims)[None, None, :]
        q_second = tl.load(q_weight_ptr + HALF + dims)[None, None, :]
        k_first = tl.load(k_weight_ptr + dims)[None, None, :]
        k_second = tl.load(k_weight_ptr + HALF + dims)[None, None, :]
        normed = scale_by_norm_weight(
            first * rstd, tl.where(is_query, q_first, k_first), weight_offset, dtype, WEIGHT_IN_FP32
        )
        first = tl.where(turns, normed.to(tl.float32), first)
        normed = scale_by_norm_weight(
            second * rstd, tl.where(is_query, q_second, k_second), weight_offset, dtype,
            WEIGHT_IN_FP32,
        )  # fmt: skip
        second = tl.where(turns, normed.to(tl.float32), second)

    start = tl.load(start_ptr)
    is_token = tokens < num_tokens
    angles = (start + tokens)[:, None] * HALF + dims[None, :]
    cos = tl.load(cos_ptr + angles, mask=is_token[:, None], other=1.0)[:, None, :]
    sin = tl.load(sin_ptr + angles, mask=is_token[:, None], other=0.0)[:, None, :]
    cos = tl.where(turns, cos, 1.0)
    sin = tl.where(turns, sin, 0.0)
    y_first = (first * cos - second * sin).to(dtype)
    y_second = (second * cos + first * sin).to(dtype)

    exists = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[None, :, None]
    wide_tokens = tokens.to(tl.int64)[:, None, None]
    columns = heads[None, :, None] * HEAD_DIM + dims[None, None, :]
    y_ptrs = y_ptr + wide_tokens * NUM_ROWS + columns
    mask = is_token[:, None, None] & exists & (dims >= 0)[None, None, :]
    tl.store(y_ptrs, y_first, mask=mask)
    tl.store(y_ptrs + HALF, y_second, mask=mask)

    if WRITE_KV:
        if PADDED:
            num_tokens = tl.load(count_ptr)
        # Of the tokens that share a slot only the last may write it, or the order decides.
        kept = (tokens >= num_tokens - capacity) & (tokens < num_tokens)
        slots = ((start + tokens) % capacity).to(tl.int64)[:, None, None]
        kv_heads = heads - NUM_HEADS
        is_key = (kv_heads >= 0) & (kv_heads < NUM_KV_HEADS)
        k_ptrs = k_cache_ptr + (kv_heads[None, :, None] * capacity + slots) * HEAD_DIM
        k_ptrs += dims[None, None, :]
        k_mask = kept[:, None, None] & is_key[None, :, None] & (dims >= 0)[None, None, :]
        tl.store(k_ptrs, y_first, mask=k_mask)
        tl.store(k_ptrs + HALF, y_second, mask=k_mask)
        v_heads = kv_heads - NUM_KV_HEADS
        is_value = (v_heads >= 0) & (v_heads < NUM_KV_HEADS)
        v_ptrs = v_cache_ptr + (v_heads[None, :, None] * capacity + slots) * HEAD_DIM
        v_ptrs += dims[None, None, :]
        v_mask = kept[:, None, None] & is_value[None, :, None] & (dims >= 0)[None, None, :]
        tl.store(v_ptrs, y_first, mask=v_mask)
        tl.store(v_ptrs + HALF, y_second, mask=v_mask)


def qkv_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
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
) -> torch.Tensor:
    """Launch the kernel, or `linear` and `qk_norm_rope` where heads do not fit its tile.

    Same contract as `qkv_linear_ref`.

    Raises:
        ValueError: a shape, stride or dtype is not as the file's docstring says, or only one of
            the two weights, or of the two caches, is given.
    """
    name = "qkv_linear"
    check_linear(name, x, weight, bias)
    tile = heads_tile(
        x.shape[0], weight.shape[0], head_dim, 2 * cos.shape[-1], num_multiprocessors(x.device)
    )
    heads: dict[str, Any] = {
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
        "q_weight": q_weight,
        "k_weight": k_weight,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "count": count,
    }
    if tile is None or not has_descriptors(x, weight):
        qkv = linear(x, weight, bias)
        norm: dict[str, Any] = {"weight_offset": weight_offset, "weight_in_fp32": weight_in_fp32}
        qk_norm_rope(qkv, cos, sin, start, **heads, eps=eps, **norm)
        return qkv
    qkv = torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    capacity = check_qk_norm_rope(name, qkv, cos, sin, start, **heads)
    tile = fit_tile(tile, 1, x.element_size(), shared_memory_bytes(x.device))
    grid = (triton.cdiv(x.shape[0], tile.tokens), triton.cdiv(weight.shape[0], tile.rows))
    _qkv_linear_kernel[grid](
        TensorDescriptor.from_tensor(x, [tile.tokens, tile.width]),
        TensorDescriptor.from_tensor(weight, [tile.rows, tile.width]),
        bias,
        cos,
        sin,
        start,
        count,
        q_weight,
        k_weight,
        k_cache,
        v_cache,
        qkv,
        x.shape[0],
        capacity,
        eps,
        weight_offset,
        WIDTH=x.shape[1],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=tile.tokens,
        BLOCK_ROWS=tile.rows,
        BLOCK_WIDTH=tile.width,
        HAS_BIAS=bias is not None,
        NORM=q_weight is not None,
        WEIGHT_IN_FP32=weight_in_fp32,
        WRITE_KV=k_cache is not None,
        PADDED=count is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **early_start(x.shape[0], x.device),
    )
    return qkv


def heads_tile(
    num_tokens: int, num_rows: int, head_dim: int, rotary_dim: int, num_sms: int
) -> LinearTile | None:
    """Return a tile of whole heads; None where heads do not fit one, or it was not faster.

    Tried on an H100: a prefill of 256 tokens gains 2 %, one of 1,024 loses 2 % to cuBLAS and a
    pass of its own, and 64 tokens are too few programs.
    """
    if rotary_dim != head_dim or head_dim & (head_dim - 1) or not 32 <= head_dim <= 128:
        return None
    if not 64 < num_tokens <= 256:
        return None
    tiles = triton.cdiv(num_tokens, 64) * triton.cdiv(num_rows, 128)
    return LinearTile(64, 128, 128, 4, 4) if 3 * tiles >= 2 * num_sms else None
