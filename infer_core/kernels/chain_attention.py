"""Attention of one token over the KV cache: q/k norm, RoPE, cache write, scores, in parts.

    slot j of the cache holds the token at position - age, age = (position - j) mod capacity
    seen: age > 0, position - age >= 0, age < window; and the new token itself
    scores = softmax over the seen tokens of soft_cap(scale * q @ k)
    partial[p], lse[p] = the output of part p alone, and log(sum(exp(score))) of it

Part 0 is the new token, which it also writes to slot position % capacity; part p > 0 covers slots
[(p - 1) * SPLIT, p * SPLIT). Parts that hold no past token leave `partial` and `lse` unwritten;
`linear_residual` merges part 0 and the first ceil(min(position, capacity) / SPLIT) others.

Shapes  qkv [(num_heads + 2 * num_kv_heads) * head_dim]; caches [num_kv_heads, capacity, head_dim];
        cos, sin float32 [context, rotary_dim / 2]; partial [num_parts, num_heads * head_dim];
        lse float32 [num_parts, num_heads].
Dtypes  qkv, caches and partial of one dtype; norm, RoPE, softmax and sums are float32.
Bound   latency: a program's share of the past is loaded before its predecessor has finished,
        which is safe because only the new token's slot is written within a step. So are the
        norm weights and the angles, in the shape q has: a layout change would cost a barrier.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_parts import scale_normed, soft_cap
from infer_core.kernels.chain_types import Norm
from infer_core.kernels.norm_linear import rms_norm_vector_ref


def rope_ref(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Define RoPE: rotate the two halves of the leading 2 * len(cos) elements of every head."""
    wide = x if x.dtype == torch.float64 else x.float()
    half = cos.shape[-1]
    first, second, rest = wide.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return torch.cat(rotated, dim=-1).to(x.dtype)


def chain_attention_ref(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
    *,
    num_heads: int,
    softmax_scale: float,
    window: int | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    norm: Norm | None = None,
    logit_softcap: float | None = None,
) -> torch.Tensor:
    """Define the kernel and the merge of its parts; writes the caches, returns [num_heads * d]."""
    num_kv_heads, capacity, head_dim = k_cache.shape
    q, k, v = qkv.unflatten(0, (-1, head_dim)).split([num_heads, num_kv_heads, num_kv_heads])
    if q_norm is not None and k_norm is not None and norm is not None:
        q, k = rms_norm_vector_ref(q, q_norm, norm), rms_norm_vector_ref(k, k_norm, norm)
    q, k = rope_ref(q, cos[position], sin[position]), rope_ref(k, cos[position], sin[position])
    k_cache[:, position % capacity], v_cache[:, position % capacity] = k, v

    age = (position - torch.arange(capacity, device=qkv.device)) % capacity
    seen = (age <= position) & (age < (window or capacity))
    keys, values = k_cache[:, seen], v_cache[:, seen]
    group = num_heads // num_kv_heads
    scores = torch.einsum("hgd,hnd->hgn", q.unflatten(0, (-1, group)), keys) * softmax_scale
    if logit_softcap is not None:
        scores = torch.tanh(scores / logit_softcap) * logit_softcap
    wide = torch.promote_types(scores.dtype, torch.float32)
    share = torch.softmax(scores, dim=-1, dtype=wide).to(qkv.dtype)
    return torch.einsum("hgn,hnd->hgd", share, values).flatten()


@triton.jit
def _load_heads(ptr, mask, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr):
    """Load heads, and for each element the one it is rotated with, [HEADS, BLOCK_D].

    `ptr` [HEADS, 1] points to the first element of each head, `mask` says which heads exist. The
    partner is loaded rather than moved between threads.
    """
    dims = tl.arange(0, BLOCK_D)[None, :]
    mask = mask & (dims < HEAD_DIM)
    x = tl.load(ptr + dims, mask=mask, other=0.0)
    return x, tl.load(ptr + _partner(dims, ROTARY), mask=mask, other=0.0)


@triton.jit
def _norm_rope(
    x,
    y,
    weight,
    weight_partner,
    cos,
    sin,
    HEAD_DIM: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
):
    """Normalise and rotate heads `x`, given the partner `y` of each element; in their dtype."""
    if HAS_NORM:
        wide = x.to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + EPS)[:, None]
        x = scale_normed(wide * rstd, weight, WEIGHT_OFFSET, WEIGHT_IN_FP32)
        y = scale_normed(y.to(tl.float32) * rstd, weight_partner, WEIGHT_OFFSET, WEIGHT_IN_FP32)
    return (x.to(tl.float32) * cos + y.to(tl.float32) * sin).to(x.dtype)


@triton.jit
def _partner(dims, ROTARY: tl.constexpr):
    """The dimension each one is rotated with; itself, where nothing turns."""
    HALF: tl.constexpr = ROTARY // 2
    return tl.where(dims < HALF, dims + HALF, tl.where(dims < ROTARY, dims - HALF, dims))


@triton.jit
def _load_angles(
    cos_ptr, sin_ptr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, ROTARY: tl.constexpr
):
    """Load cos and sin of every dimension, once a head; 1 and 0 where nothing turns."""
    HALF: tl.constexpr = ROTARY // 2
    rows = tl.zeros((HEADS, 1), tl.int32)
    dims = tl.arange(0, BLOCK_D)[None, :]
    mask = (rows == 0) & (dims < ROTARY)
    angle = rows + tl.where(dims < HALF, dims, dims - HALF)
    cos = tl.load(cos_ptr + angle, mask=mask, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=mask, other=0.0)
    return cos, tl.where(dims < HALF, -sin, sin)


@triton.jit
def _load_past(
    k_ptr,
    v_ptr,
    slots,
    stop,
    position,
    capacity,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Load the keys and values of `slots` that the new token sees, and which those are."""
    age = position % capacity - slots
    age = tl.where(age < 0, age + capacity, age)
    seen = (slots < stop) & (age > 0) & (age <= position)
    if WINDOW > 0:
        seen = seen & (age < WINDOW)
    dims = tl.arange(0, BLOCK_D)
    offsets = slots[:, None] * HEAD_DIM + dims[None, :]
    mask = seen[:, None] & (dims[None, :] < HEAD_DIM)
    keys = tl.load(k_ptr + offsets, mask=mask, other=0.0)
    values = tl.load(v_ptr + offsets, mask=mask, other=0.0)
    return keys, values, seen


@triton.jit
def _attend(q, keys, values, seen, best, total, acc, SCALE: tl.constexpr, SOFTCAP: tl.constexpr):
    """One step of the online softmax over a tile of past tokens."""
    scores = tl.dot(q, tl.trans(keys), input_precision="ieee") * SCALE
    if SOFTCAP is not None:
        scores = soft_cap(scores, SOFTCAP)
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    safe = tl.where(new_best == float("-inf"), 0.0, new_best)
    share = tl.exp(scores - safe[:, None])
    scale = tl.exp(best - safe)
    total = total * scale + tl.sum(share, axis=1)
    acc = acc * scale[:, None]
    acc = tl.dot(share.to(values.dtype), values, acc, input_precision="ieee")
    return new_best, total, acc


@triton.jit
def _chain_attention_kernel(
    qkv_ptr,
    k_cache_ptr,
    v_cache_ptr,
    position_ptr,
    cos_ptr,
    sin_ptr,
    q_norm_ptr,
    k_norm_ptr,
    partial_ptr,
    lse_ptr,
    capacity,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    ROTARY: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_NORM: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    kv_head = tl.program_id(0)
    part = tl.program_id(1)
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    HALF: tl.constexpr = ROTARY // 2
    # `position` and past tokens were written in earlier steps, which ended before this one
    # started, so both may be read before the wait
    position = tl.load(position_ptr)
    first_slot = (part - 1) * SPLIT
    stop = tl.minimum(tl.minimum(first_slot + SPLIT, capacity), position)
    if part > 0 and first_slot >= stop:
        return  # nothing to do, and the other parts wait for the predecessor
    cache_offset = kv_head.to(tl.int64) * capacity * HEAD_DIM
    k_ptr = k_cache_ptr + cache_offset
    v_ptr = v_cache_ptr + cache_offset
    slots = first_slot + tl.arange(0, BLOCK_N)
    keys, values, seen = _load_past(
        k_ptr, v_ptr, slots, stop, position, capacity, WINDOW, HEAD_DIM, BLOCK_D
    )
    cos_ptr += position * HALF
    sin_ptr += position * HALF
    cos, sin = _load_angles(cos_ptr, sin_ptr, BLOCK_G, BLOCK_D, ROTARY)
    group = tl.arange(0, BLOCK_G)
    heads = kv_head * GROUP + group
    is_head = (group < GROUP)[:, None]
    same = tl.zeros((BLOCK_G, 1), tl.int32)  # one vector, once for each head of the group
    is_new = (group < tl.where(part == 0, GROUP, 0))[:, None]
    q_weight, q_weight_y = cos, sin
    k_weight, k_weight_y = cos, sin
    if HAS_NORM:
        q_weight, q_weight_y = _load_heads(q_norm_ptr + same, is_head, HEAD_DIM, BLOCK_D, ROTARY)
        k_weight, k_weight_y = _load_heads(k_norm_ptr + same, is_new, HEAD_DIM, BLOCK_D, ROTARY)

    if PDL:
        gdc_wait()  # above: only what no kernel of this step has written
    dims = tl.arange(0, BLOCK_D)[None, :]
    is_dim = dims < HEAD_DIM
    q, q_y = _load_heads(qkv_ptr + heads[:, None] * HEAD_DIM, is_head, HEAD_DIM, BLOCK_D, ROTARY)
    k_start = qkv_ptr + (NUM_HEADS + kv_head) * HEAD_DIM + same
    key, key_y = _load_heads(k_start, is_new, HEAD_DIM, BLOCK_D, ROTARY)
    value = tl.load(k_start + NUM_KV_HEADS * HEAD_DIM + dims, mask=is_new & is_dim, other=0.0)
    q = _norm_rope(
        q, q_y, q_weight, q_weight_y, cos, sin,
        HEAD_DIM, HAS_NORM, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32,
    )  # fmt: skip
    out_ptr = partial_ptr + part * NUM_HEADS * HEAD_DIM + heads[:, None] * HEAD_DIM + dims
    lse_ptr += part * NUM_HEADS + heads
    if part == 0:
        key = _norm_rope(
            key, key_y, k_weight, k_weight_y, cos, sin,
            HEAD_DIM, HAS_NORM, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32,
        )  # fmt: skip
        score = tl.sum(q.to(tl.float32) * key.to(tl.float32), axis=1) * SCALE
        if SOFTCAP is not None:
            score = soft_cap(score, SOFTCAP)
        tl.store(out_ptr, value.to(partial_ptr.dtype.element_ty), mask=is_head & is_dim)
        tl.store(lse_ptr, score, mask=group < GROUP)
        slot_offset = (position % capacity) * HEAD_DIM + same + dims
        is_first = (group == 0)[:, None] & is_dim
        tl.store(k_ptr + slot_offset, key, mask=is_first)
        tl.store(v_ptr + slot_offset, value, mask=is_first)
    else:
        best = tl.full((BLOCK_G,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_G,), tl.float32)
        acc = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
        best, total, acc = _attend(q, keys, values, seen, best, total, acc, SCALE, SOFTCAP)
        if SPLIT > BLOCK_N:
            for first in range(first_slot + BLOCK_N, stop, BLOCK_N):
                keys, values, seen = _load_past(
                    k_ptr, v_ptr, first + tl.arange(0, BLOCK_N), stop, position, capacity,
                    WINDOW, HEAD_DIM, BLOCK_D,
                )  # fmt: skip
                best, total, acc = _attend(q, keys, values, seen, best, total, acc, SCALE, SOFTCAP)
        # a part may hold only tokens older than the window: total is 0, its lse -inf
        out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out_ptr, out.to(partial_ptr.dtype.element_ty), mask=is_head & is_dim)
        tl.store(lse_ptr, best + tl.log(total), mask=group < GROUP)


def chain_attention(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    partial: torch.Tensor,
    lse: torch.Tensor,
    *,
    split: int,
    softmax_scale: float,
    max_slots: int | None = None,
    block: int = 64,
    warps: int = 4,
    window: int | None = None,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    norm: Norm | None = None,
    logit_softcap: float | None = None,
    pdl: bool = False,
) -> None:
    """Launch one program per kv head and part of `split` slots, `block` slots at a time.

    `max_slots`: slots that may be in use, when a bound below the capacity is known.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    num_kv_heads, capacity, head_dim = k_cache.shape
    num_parts, num_heads = lse.shape
    sizes = (num_heads + 2 * num_kv_heads) * head_dim
    if qkv.shape != (sizes,) or partial.shape != (num_parts, num_heads * head_dim):
        raise ValueError(
            f"chain_attention: {num_heads} heads, {num_kv_heads} kv heads of {head_dim} need qkv "
            f"[{sizes}] and partial [{num_parts}, {num_heads * head_dim}]; got "
            f"{tuple(qkv.shape)} and {tuple(partial.shape)}"
        )
    if (num_parts - 1) * split < min(
        capacity, max_slots or capacity
    ) or v_cache.shape != k_cache.shape:
        raise ValueError(
            f"chain_attention: {num_parts - 1} parts of {split} slots do not cover caches of "
            f"{tuple(k_cache.shape)} and {tuple(v_cache.shape)}"
        )
    tensors = (qkv, k_cache, v_cache, partial)
    if any(t.dtype != qkv.dtype or not t.is_contiguous() for t in tensors):
        raise ValueError("chain_attention: qkv, caches and partial must be contiguous, one dtype")
    rotary = 2 * cos.shape[1]
    if cos.dtype != torch.float32 or sin.shape != cos.shape or rotary > head_dim:
        raise ValueError(
            f"chain_attention: cos and sin must be float32 [context, rotary_dim / 2]; got "
            f"{tuple(cos.shape)} {cos.dtype} and {tuple(sin.shape)}"
        )
    has_norm = q_norm is not None
    if has_norm != (k_norm is not None) or has_norm != (norm is not None):
        raise ValueError("chain_attention: q_norm, k_norm and norm go together; pass all or none")
    _chain_attention_kernel[(num_kv_heads, num_parts)](
        qkv,
        k_cache,
        v_cache,
        position,
        cos,
        sin,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        partial,
        lse,
        capacity,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        # 16: the fewest rows a tensor-core product takes
        BLOCK_G=max(16, triton.next_power_of_2(num_heads // num_kv_heads)),
        ROTARY=rotary,
        SPLIT=split,
        BLOCK_N=block,
        WINDOW=window or 0,
        SCALE=softmax_scale,
        SOFTCAP=logit_softcap,
        HAS_NORM=has_norm,
        EPS=norm.eps if norm is not None else 0.0,
        WEIGHT_OFFSET=norm.weight_offset if norm is not None else 0.0,
        WEIGHT_IN_FP32=norm.weight_in_fp32 if norm is not None else False,
        PDL=pdl,
        num_warps=warps,
        num_stages=1,
        launch_pdl=pdl,
    )
