"""Causal attention of a chunk of tokens (prefill) over the cached past and the chunk itself.

    y[i] = sum_j softmax_j(cap(q[i] . k[j] * softmax_scale)) v[j]
    cap(s) = logit_softcap * tanh(s / logit_softcap), or s

Token i has position start + i and sees positions p in (start + i - window, start + i]: those
below `start` in slot p % capacity of the cache, the others in qkv. The chunk is NOT yet in the
cache (a ring would already have lost the slots its first tokens need).

Shapes  qkv (q and k rotated), k_cache, v_cache as in `infer_core.kernels`; start [1];
        y [num_tokens, num_heads * head_dim].
Dtypes  qkv, caches and y share one of float32, float16, bfloat16; start int32. Scores, softmax and
        sums are float32; half-precision weights of v are rounded to the dtype for the tensor cores.
Bound   compute: 4 * num_heads * head_dim FLOPs a pair of tokens that see each other.
Source  online softmax, arXiv:2205.14135; soft cap, arXiv:2408.00118.

One program takes one kv head and BLOCK_M rows, a row being (token, query head of the group): the
group shares each K and V tile. Where that makes too few programs, several share the rows, each
with all scores and its part of the value columns. Tiles outside the window are never visited, and
masks are computed only in those at its two ends. The chunk's own tiles come through tensor
descriptors where the GPU has TMA (compute capability >= 9.0) and the rows allow it. The grid
follows from num_tokens alone, the length of the past is read on the device. On a Hopper GPU
`SPLIT_FROM` tokens or more take another kernel (see `split_attention`), unless they see a past
through a window, which may be a ring.
"""

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from infer_core.kernels._common import (
    at_least_fp32,
    check_cache,
    check_heads,
    check_position,
    early_start,
    has_descriptors,
    has_wgmma,
    num_multiprocessors,
    shared_memory_bytes,
    tanh,
)

# On an H200 the kernel of `split_attention` takes as long as this one at 256 tokens, 69 to 80 % of
# the time at 1,024, and it does not start early (see `early_start`).
SPLIT_FROM = 257


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """Rows and keys of a tile, and how many programs share the value columns of the rows."""

    rows: int
    keys: int
    warps: int
    stages: int
    value_parts: int = 1


def prefill_attention_ref(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    softmax_scale: float,
    window: int | None = None,
    logit_softcap: float | None = None,
    is_fresh: bool = False,
) -> torch.Tensor:
    """Define the kernel in plain torch, with every score in memory. `is_fresh` changes nothing."""
    num_tokens, capacity = qkv.shape[0], k_cache.shape[1]
    heads = at_least_fp32(qkv).unflatten(1, (-1, head_dim)).transpose(0, 1)
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads])

    first = int(start)
    past = torch.arange(max(0, first - capacity), first, device=qkv.device)
    k = torch.cat([k_cache[:, past % capacity].to(k.dtype), k], dim=1)
    v = torch.cat([v_cache[:, past % capacity].to(v.dtype), v], dim=1)
    own = torch.arange(first, first + num_tokens, device=qkv.device)
    distance = own[:, None] - torch.cat([past, own])[None, :]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window

    group_size = num_heads // num_kv_heads
    scores = softmax_scale * q @ k.repeat_interleave(group_size, 0).transpose(1, 2)
    if logit_softcap is not None:
        scores = logit_softcap * torch.tanh(scores / logit_softcap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    y: torch.Tensor = weights @ v.repeat_interleave(group_size, 0)
    return y.transpose(0, 1).flatten(1).to(qkv.dtype)  # from [num_heads, num_tokens, head_dim]


@triton.jit
def softmax_scores(products, score_scale, softcap_scale, SOFTCAP: tl.constexpr):
    """Scores in units of log 2 from q . k, with the two factors of `score_scales`."""
    scores = products * score_scale
    if SOFTCAP:
        scores = softcap_scale * tanh(scores)
    return scores


@triton.jit
def softmax_update(scores, visible, v, maximum, total, acc, MASKED: tl.constexpr = True):
    """Take one tile into the running (maximum, total, weighted sum of v) of each row.

    Not MASKED: the caller promises that every row sees every key, and `visible` is not read.
    """
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
    shift = new_maximum
    if MASKED:
        # a row that saw nothing yet has maximum -inf, and -inf - -inf is NaN
        shift = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = tl.exp2(scores - shift[:, None])
    keep = tl.exp2(maximum - shift)
    total = total * keep + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(v.dtype), v, acc=acc * keep[:, None], input_precision="ieee")
    return new_maximum, total, acc


@triton.jit
def _own_tiles(
    q,
    qkv_ptr,
    k_desc,
    v_desc,
    k_col,
    v_col,
    value_part,
    stride_qkv_row,
    first,
    skip_from,
    skip_to,
    end_token,
    tokens,
    score_scale,
    softcap_scale,
    window,
    maximum,
    total,
    acc,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Attend to the chunk's own keys [first, skip_from) and [skip_to, end_token).

    Not MASKED: to [first, skip_from), each of which every row sees.
    """
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    value_dims = value_part * BLOCK_VALUE + tl.arange(0, BLOCK_VALUE)
    is_value = value_dims < HEAD_DIM
    left = tl.cdiv(skip_from - first, BLOCK_N)
    num_tiles = left
    if MASKED:
        num_tiles += tl.cdiv(end_token - skip_to, BLOCK_N)
    for index in range(num_tiles):
        tile = first + index * BLOCK_N
        if MASKED:  # both ends in one loop: each loop fills the pipeline of loads anew
            tile = tl.where(index < left, tile, skip_to + (index - left) * BLOCK_N)
        keys = tile + tl.arange(0, BLOCK_N)
        in_chunk = keys < end_token
        if DESCRIPTORS:  # what lies beyond end_token is finite and gets weight 0
            k = k_desc.load([tile, k_col]).T
            v = v_desc.load([tile, v_col + value_part * BLOCK_VALUE])
        else:
            row_ptrs = qkv_ptr + keys.to(tl.int64) * stride_qkv_row
            k_ptrs = row_ptrs[None, :] + k_col + dims[:, None]
            v_ptrs = row_ptrs[:, None] + v_col + value_dims[None, :]
            k = tl.load(k_ptrs, mask=in_chunk[None, :] & is_dim[:, None], other=0.0)
            v = tl.load(v_ptrs, mask=in_chunk[:, None] & is_value[None, :], other=0.0)
        visible = in_chunk[None, :]
        if MASKED:
            visible = visible & (keys[None, :] <= tokens[:, None])
            if WINDOW:
                visible = visible & (keys[None, :] > tokens[:, None] - window)
        products = tl.dot(q, k, input_precision="ieee")
        scores = softmax_scores(products, score_scale, softcap_scale, SOFTCAP)
        maximum, total, acc = softmax_update(scores, visible, v, maximum, total, acc, MASKED)
    return maximum, total, acc


@triton.jit
def _past_tiles(
    q,
    k_cache_ptr,
    v_cache_ptr,
    value_part,
    first,
    skip_from,
    skip_to,
    start,
    tokens,
    capacity,
    score_scale,
    softcap_scale,
    window,
    maximum,
    total,
    acc,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Attend to past positions [first, skip_from) and [skip_to, start), as `_own_tiles` does.

    Position p lies in slot p % capacity.
    """
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    value_dims = value_part * BLOCK_VALUE + tl.arange(0, BLOCK_VALUE)
    is_value = value_dims < HEAD_DIM
    left = tl.cdiv(skip_from - first, BLOCK_N)
    num_tiles = left
    if MASKED:
        num_tiles += tl.cdiv(start - skip_to, BLOCK_N)
    for index in range(num_tiles):
        tile = first + index * BLOCK_N
        if MASKED:
            tile = tl.where(index < left, tile, skip_to + (index - left) * BLOCK_N)
        positions = tile + tl.arange(0, BLOCK_N)
        offsets = (positions % capacity).to(tl.int64) * HEAD_DIM
        k_ptrs = k_cache_ptr + offsets[None, :] + dims[:, None]
        v_ptrs = v_cache_ptr + offsets[:, None] + value_dims[None, :]
        if MASKED:
            in_past = positions < start
            k = tl.load(k_ptrs, mask=in_past[None, :] & is_dim[:, None], other=0.0)
            v = tl.load(v_ptrs, mask=in_past[:, None] & is_value[None, :], other=0.0)
            visible = in_past[None, :]
            if WINDOW:
                visible = visible & (positions[None, :] > start + tokens[:, None] - window)
        else:
            k = tl.load(k_ptrs, mask=is_dim[:, None], other=0.0)
            v = tl.load(v_ptrs, mask=is_value[None, :], other=0.0)
            visible = is_dim[None, :]
        products = tl.dot(q, k, input_precision="ieee")
        scores = softmax_scores(products, score_scale, softcap_scale, SOFTCAP)
        maximum, total, acc = softmax_update(scores, visible, v, maximum, total, acc, MASKED)
    return maximum, total, acc


# The number of tokens changes with every prompt: specialising on it would recompile in a request.
@triton.jit(do_not_specialize=["num_tokens"])
def _prefill_attention_kernel(
    qkv_ptr,
    k_desc,
    v_desc,
    k_cache_ptr,
    v_cache_ptr,
    start_ptr,
    y_ptr,
    num_tokens,
    stride_qkv_row,
    stride_y_row,
    capacity,
    score_scale,
    softcap_scale,
    window,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_PAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    kv_head = tl.program_id(1).to(tl.int64)
    # the last tokens see the most keys: the longest programs first, or they end alone
    block = tl.num_programs(0) - 1 - tl.program_id(0)

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    tokens = rows // GROUP
    dims = tl.arange(0, BLOCK_DIM)
    is_dim = dims < HEAD_DIM
    q_mask = (tokens < num_tokens)[:, None] & is_dim[None, :]
    # column of the row's query head; token * stride in int64, or a long prompt overflows
    head_cols = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM
    wide_tokens = tokens.to(tl.int64)[:, None]
    q_ptrs = qkv_ptr + wide_tokens * stride_qkv_row + head_cols + dims[None, :]
    q = tl.load(q_ptrs, mask=q_mask, other=0.0)
    value_part = tl.program_id(2)

    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)
    first_token = block * BLOCK_M // GROUP
    end_token = tl.minimum((block * BLOCK_M + BLOCK_M - 1) // GROUP + 1, num_tokens)

    if HAS_PAST:
        start = tl.load(start_ptr)
        first_past = 0
        first_full = 0  # from here on, up to stop_full, every row sees every key of a tile
        if WINDOW:
            first_past = tl.maximum(start + first_token - window + 1, 0) // BLOCK_N * BLOCK_N
            # the last row's window begins here
            oldest = tl.maximum(start + end_token - window, 0)
            first_full = tl.minimum(tl.cdiv(oldest, BLOCK_N) * BLOCK_N, start)
        stop_full = tl.maximum(start // BLOCK_N * BLOCK_N, first_full)
        cache_offset = kv_head * capacity * HEAD_DIM
        k_past = k_cache_ptr + cache_offset
        v_past = v_cache_ptr + cache_offset
        maximum, total, acc = _past_tiles(
            q, k_past, v_past, value_part, first_past, first_full, stop_full, start, tokens,
            capacity, score_scale, softcap_scale, window, maximum, total, acc,
            HEAD_DIM, WINDOW, SOFTCAP, BLOCK_N, BLOCK_DIM, BLOCK_VALUE, True,
        )  # fmt: skip
        maximum, total, acc = _past_tiles(
            q, k_past, v_past, value_part, first_full, stop_full, stop_full, start, tokens,
            capacity, score_scale, softcap_scale, window, maximum, total, acc,
            HEAD_DIM, WINDOW, SOFTCAP, BLOCK_N, BLOCK_DIM, BLOCK_VALUE, False,
        )  # fmt: skip

    k_col = (NUM_HEADS + tl.program_id(1)) * HEAD_DIM
    v_col = k_col + NUM_KV_HEADS * HEAD_DIM
    first_own = 0
    first_full = 0
    if WINDOW:
        first_own = tl.maximum(first_token - window + 1, 0) // BLOCK_N * BLOCK_N
        oldest = tl.maximum(end_token - window, 0)
        first_full = tl.minimum(tl.cdiv(oldest, BLOCK_N) * BLOCK_N, end_token)
    stop_full = tl.maximum((first_token + 1) // BLOCK_N * BLOCK_N, first_full)
    maximum, total, acc = _own_tiles(
        q, qkv_ptr, k_desc, v_desc, k_col, v_col, value_part, stride_qkv_row,
        first_own, first_full, stop_full, end_token, tokens,
        score_scale, softcap_scale, window, maximum, total, acc,
        HEAD_DIM, WINDOW, SOFTCAP, BLOCK_N, BLOCK_DIM, BLOCK_VALUE, DESCRIPTORS, True,
    )  # fmt: skip
    maximum, total, acc = _own_tiles(
        q, qkv_ptr, k_desc, v_desc, k_col, v_col, value_part, stride_qkv_row,
        first_full, stop_full, stop_full, end_token, tokens,
        score_scale, softcap_scale, window, maximum, total, acc,
        HEAD_DIM, WINDOW, SOFTCAP, BLOCK_N, BLOCK_DIM, BLOCK_VALUE, DESCRIPTORS, False,
    )  # fmt: skip

    if PDL:
        gdc_launch_dependents()
    y = acc / total[:, None]  # a stored row has total > 0: it sees itself
    value_dims = value_part * BLOCK_VALUE + tl.arange(0, BLOCK_VALUE)
    y_ptrs = y_ptr + wide_tokens * stride_y_row + head_cols + value_dims[None, :]
    y_mask = (tokens < num_tokens)[:, None] & (value_dims < HEAD_DIM)[None, :]
    tl.store(y_ptrs, y.to(q.dtype), mask=y_mask)


def prefill_attention(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    softmax_scale: float,
    window: int | None = None,
    logit_softcap: float | None = None,
    is_fresh: bool = False,
) -> torch.Tensor:
    """Launch the kernel; same contract as `prefill_attention_ref`.

    The cache must hold every past position a token sees: capacity >= min(window, context).
    `is_fresh` promises that `start` is 0: then nothing of the cache is read.

    Raises:
        ValueError: a shape, stride or dtype is not as the file's docstring says.
    """
    name = "prefill_attention"
    check_heads(name, qkv, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    check_position(name, "start", start)
    capacity = check_cache(
        name, k_cache, v_cache, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=qkv.dtype
    )
    if window is not None and window < 1:
        raise ValueError(f"{name}: window is {window}; a token sees at least itself")
    num_tokens = qkv.shape[0]
    if is_fresh and window is not None and num_tokens <= window:
        window = None  # it hides nothing
    group_size = num_heads // num_kv_heads
    score_scale, softcap_scale = score_scales(softmax_scale, logit_softcap)
    suits = head_dim in (64, 128, 256) and group_size in (1, 2, 4, 8) and logit_softcap is None
    suits &= is_fresh or window is None  # with a window the cache may be a ring
    if num_tokens >= SPLIT_FROM and suits and has_wgmma(qkv.device) and has_descriptors(qkv):
        # imported late, as in mlp_parts
        from infer_core.kernels.split_attention import launch_split_attention

        return launch_split_attention(
            qkv,
            k_cache,
            v_cache,
            start,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            score_scale=score_scale,
            window=window,
            is_fresh=is_fresh,
        )
    y = torch.empty((num_tokens, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    num_rows = num_tokens * group_size
    tile = attention_tile(
        num_rows,
        num_kv_heads,
        head_dim,
        qkv.dtype,
        num_multiprocessors(qkv.device),
        shared_memory_bytes(qkv.device),
    )
    block_dim = max(16, triton.next_power_of_2(head_dim))
    block_value = max(16, block_dim // tile.value_parts)
    descriptors = head_dim == block_dim and has_descriptors(qkv)
    k_desc = v_desc = qkv
    if descriptors:
        k_desc = TensorDescriptor.from_tensor(qkv, [tile.keys, block_dim])
        v_desc = TensorDescriptor.from_tensor(qkv, [tile.keys, block_value])
    blocks = triton.cdiv(num_rows, tile.rows)
    value_parts = triton.cdiv(head_dim, block_value)
    _prefill_attention_kernel[(blocks, num_kv_heads, value_parts)](
        qkv,
        k_desc,
        v_desc,
        k_cache,
        v_cache,
        start,
        y,
        num_tokens,
        qkv.stride(0),
        y.stride(0),
        capacity,
        score_scale,
        softcap_scale,
        window or 0,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        WINDOW=window is not None,
        SOFTCAP=logit_softcap is not None,
        HAS_PAST=not is_fresh,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.keys,
        BLOCK_DIM=block_dim,
        BLOCK_VALUE=block_value,
        DESCRIPTORS=descriptors,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **early_start(num_tokens, qkv.device),
    )
    return y


def score_scales(softmax_scale: float, logit_softcap: float | None) -> tuple[float, float]:
    """Factors before and after tanh, or (factor, unused) without a soft cap.

    log2(e) is folded in, as exp2 is the instruction the hardware has; doing it here in float64
    saves a rounding of every score.
    """
    if logit_softcap is None:
        return softmax_scale * math.log2(math.e), 0.0
    return softmax_scale / logit_softcap, logit_softcap * math.log2(math.e)


def attention_tile(
    num_rows: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    num_sms: int,
    shared_bytes: int,
) -> AttentionTile:
    """Return the tile for `num_rows` rows of each kv head.

    Where q and the tiles of K and V on their way do not fit `shared_bytes`, fewer or shorter ones
    are.
    Tried on an H100, 64 to 2,048 tokens, head_dim 64, 128 and 256, 20 to 36 tiles each: 64 rows a
    program, or fewer where most multiprocessors would have none; of more than 128 columns, two
    programs for the same rows while half of the multiprocessors would have none.
    """
    if dtype == torch.float32:  # no tensor cores: for checking results, not for speed
        return AttentionTile(16, 16, 4, 1) if head_dim > 64 else AttentionTile(32, 32, 4, 1)
    blocks = num_kv_heads * triton.cdiv(num_rows, 64)
    if head_dim <= 128:
        rows = 64
        while rows > 16 and 2 * num_kv_heads * triton.cdiv(num_rows, rows) < num_sms:
            rows //= 2
        tile = AttentionTile(rows, 64, 4, 3 if rows == 64 else 2)
    elif 3 * blocks < num_sms:
        tile = AttentionTile(16, 128 if num_rows >= 1024 else 64, 4, 2, value_parts=2)
    elif 2 * blocks <= num_sms:
        tile = AttentionTile(64, 64, 4, 3, value_parts=2)
    else:  # all 256 value columns: more keys at a time would spill registers
        tile = AttentionTile(64, 32, 4, 3)
    columns = max(16, triton.next_power_of_2(head_dim))
    row_bytes = dtype.itemsize * columns
    key_bytes = dtype.itemsize * (columns + columns // tile.value_parts)
    while row_bytes * tile.rows + key_bytes * tile.stages * tile.keys > shared_bytes:
        if tile.stages > 1:
            tile = replace(tile, stages=tile.stages - 1)
        else:
            tile = replace(tile, keys=tile.keys // 2)
    return tile
