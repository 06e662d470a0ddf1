"""Copies a chunk's keys and values into the cache; one program takes one head of one token.

    k_cache[:, p % capacity], v_cache[:, p % capacity] = k[i], v[i]     p = start + i

Shapes  qkv, k_cache, v_cache as in `infer_core.kernels`; start, count [1].
Dtypes  qkv and caches share one of float32, float16, bfloat16; start and count int32.
Bound   memory: moves 4 * bytes of the keys written.
Source  none; a ring holds the last `capacity` tokens.

For prefill over a ring: attention reads the old slots first, then this overwrites them. Of a
chunk longer than the ring only the last `capacity` tokens are written, each slot once. Rows from
`count` on are padding (of a chunk run at the size of a captured graph) and are not written.
"""

import torch
import triton
import triton.language as tl

from infer_core.kernels._common import check_cache, check_heads, check_position


def write_kv_ref(
    qkv: torch.Tensor,
    start: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    count: torch.Tensor | None = None,
) -> None:
    """Define the kernel in plain torch; the caches change in place."""
    num_tokens = qkv.shape[0] if count is None else int(count)
    capacity = k_cache.shape[1]
    tokens = torch.arange(max(0, num_tokens - capacity), num_tokens, device=qkv.device)
    slots = (start + tokens) % capacity
    _, k, v = qkv[tokens].split(
        [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], dim=1
    )
    k_cache[:, slots] = k.unflatten(1, (num_kv_heads, head_dim)).transpose(0, 1)
    v_cache[:, slots] = v.unflatten(1, (num_kv_heads, head_dim)).transpose(0, 1)


@triton.jit(do_not_specialize=["num_tokens"])
def _write_kv_kernel(
    qkv_ptr,
    start_ptr,
    count_ptr,
    k_cache_ptr,
    v_cache_ptr,
    num_tokens,
    stride_qkv_row,
    capacity,
    PADDED: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    if PADDED:
        num_tokens = tl.load(count_ptr)
    # counted from the last token, so that the grid need not know how many are padding
    token = num_tokens - 1 - tl.program_id(0).to(tl.int64)
    if token < 0:
        return
    slot = (tl.load(start_ptr) + token) % capacity
    head = tl.program_id(1).to(tl.int64)
    dims = tl.arange(0, BLOCK_DIM)
    mask = dims < HEAD_DIM

    k_ptrs = qkv_ptr + token * stride_qkv_row + (NUM_HEADS + head) * HEAD_DIM + dims
    k = tl.load(k_ptrs, mask=mask, other=0.0)
    v = tl.load(k_ptrs + NUM_KV_HEADS * HEAD_DIM, mask=mask, other=0.0)
    cache_offsets = (head * capacity + slot) * HEAD_DIM + dims
    tl.store(k_cache_ptr + cache_offsets, k, mask=mask)
    tl.store(v_cache_ptr + cache_offsets, v, mask=mask)


def write_kv(
    qkv: torch.Tensor,
    start: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    count: torch.Tensor | None = None,
) -> None:
    """Launch the kernel; same contract as `write_kv_ref`.

    Raises:
        ValueError: a shape, stride or dtype is not as the file's docstring says.
    """
    name = "write_kv"
    check_heads(name, qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    check_position(name, "start", start)
    if count is not None:
        check_position(name, "count", count)
    capacity = check_cache(
        name, k_cache, v_cache, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=qkv.dtype
    )
    num_written = min(qkv.shape[0], capacity)
    _write_kv_kernel[(num_written, num_kv_heads)](
        qkv,
        start,
        count if count is not None else start,
        k_cache,
        v_cache,
        qkv.shape[0],
        qkv.stride(0),
        capacity,
        PADDED=count is not None,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_DIM=triton.next_power_of_2(head_dim),
        num_warps=1,
    )
