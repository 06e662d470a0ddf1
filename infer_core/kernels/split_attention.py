"""Causal attention of many tokens for Hopper GPUs; contract as in `attention`.

Bound   compute; at head_dim 64 the powers of two take the hardware as long as the products.

In `attention` a program is one chain: a product, a softmax, a product, tile of keys after tile,
and programs for the last tokens end long after the others. Here one program a multiprocessor
stays and takes blocks of 64 rows in turn, long ones first, so that all have about as much to do.
Within a block two groups of four warps take every other tile of keys, each with its own running
maximum, total and sum, so that one multiplies while the other exponentiates; at the end group 1
hands over what it has and group 0 adds it to its own. A warp of its own copies q, k and v to
shared memory, those of the next block while this one ends.

Past keys come from the cache, in which position p lies in slot p: a ring is not for this kernel.

Written in Gluon, as Triton has no words for who does what.
"""

from dataclasses import dataclass

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from infer_core.kernels._common import num_multiprocessors
from infer_core.kernels._gluon import barrier, load_tile, store_tile

ROWS = gl.constexpr(64)


@dataclass(frozen=True, slots=True)
class SplitTile:
    """Keys of a tile, tiles and blocks of q on their way, and programs that share v's columns."""

    keys: int
    stages: int
    queries: int
    value_parts: int


# By head_dim: what 227 KiB of shared memory hold, and the best of two or three tried on an H200.
TILES = {64: SplitTile(128, 4, 2, 1), 128: SplitTile(64, 4, 2, 1), 256: SplitTile(64, 3, 1, 2)}


@gluon.jit
def _num_blocks(num_tokens, KV_HEADS: gl.constexpr, HEADS: gl.constexpr, PARTS: gl.constexpr):
    TOKENS: gl.constexpr = ROWS // HEADS
    return (num_tokens + TOKENS - 1) // TOKENS * (KV_HEADS * PARTS)


@gluon.jit
def _block(
    round_, num_tokens, window, past_tiles, KV_HEADS: gl.constexpr, HEADS: gl.constexpr,
    PARTS: gl.constexpr, KEYS: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """Kv head, part, first token, first key and tiles of the block a program takes in a round.

    Blocks with the most keys come first, and programs take turns there and back, which evens out
    what they have to do. Tiles are those of the past and then those from the first key on. Where
    there is no block left, no tiles are.
    """
    TOKENS: gl.constexpr = ROWS // HEADS
    programs = gl.num_programs(0)
    index = round_ * programs + gl.program_id(0)
    if round_ % 2 == 1:
        index = (round_ + 1) * programs - 1 - gl.program_id(0)
    num_blocks = _num_blocks(num_tokens, KV_HEADS, HEADS, PARTS)
    first_token = (num_blocks - 1 - index) // (KV_HEADS * PARTS) * TOKENS
    kv_head = index // PARTS % KV_HEADS
    first_key = 0
    if WINDOW:
        first_key = gl.maximum(first_token - window + 1, 0) // KEYS * KEYS
    end = gl.minimum(first_token + TOKENS, num_tokens)
    tiles = past_tiles + (end - first_key + KEYS - 1) // KEYS
    if index >= num_blocks:
        tiles = 0
    return kv_head, index % PARTS, first_token, first_key, tiles


@gluon.jit
def _past(start_ptr, PAST: gl.constexpr, KEYS: gl.constexpr):
    """Tokens in the cache, and tiles of them."""
    start = 0
    if PAST:
        start = gl.load(start_ptr)
    return start, (start + KEYS - 1) // KEYS


@gluon.jit
def _load(
    q_desc, k_desc, v_desc, k_cache_desc, v_cache_desc, start_ptr, q, keys, values, q_full,
    q_empty, k_full, k_empty, v_full, v_empty, rounds, num_tokens, capacity, window,
    PAST: gl.constexpr,
    KV_HEADS: gl.constexpr, HEADS: gl.constexpr, PARTS: gl.constexpr, KEYS: gl.constexpr,
    WINDOW: gl.constexpr, HEAD_DIM: gl.constexpr, VALUE: gl.constexpr, STAGES: gl.constexpr,
    QUERIES: gl.constexpr,
):  # fmt: skip
    """Copy q, k and v of every block, as far ahead as there is room."""
    _, past_tiles = _past(start_ptr, PAST, KEYS)
    NUM_BYTES: gl.constexpr = q.dtype.primitive_bitwidth // 8
    TOKENS: gl.constexpr = ROWS // HEADS
    step = 0
    for round_ in range(rounds):
        kv_head, part, first_token, first_key, tiles = _block(
            round_, num_tokens, window, past_tiles, KV_HEADS, HEADS, PARTS, KEYS, WINDOW
        )
        if tiles > 0:
            b = round_ % QUERIES
            mbarrier.wait(q_empty.index(b), (round_ // QUERIES + 1) & 1)
            mbarrier.expect(q_full.index(b), ROWS * HEAD_DIM * NUM_BYTES)
            for head in gl.static_range(HEADS):  # tokens of one head after those of another
                col = (kv_head * HEADS + head) * HEAD_DIM
                of_head = q.index(b).slice(head * TOKENS, TOKENS)
                load_tile(q_desc, [first_token, col], q_full.index(b), of_head)
        k_col = (KV_HEADS * HEADS + kv_head) * HEAD_DIM
        v_col = k_col + KV_HEADS * HEAD_DIM + part * VALUE
        for tile in range(tiles):
            s = step % STAGES
            phase = (step // STAGES + 1) & 1
            mbarrier.wait(k_empty.index(s), phase)
            mbarrier.expect(k_full.index(s), KEYS * HEAD_DIM * NUM_BYTES)
            key = first_key + (tile - past_tiles) * KEYS
            slot = kv_head * capacity + tile * KEYS
            if PAST and tile < past_tiles:
                load_tile(k_cache_desc, [slot, 0], k_full.index(s), keys.index(s))
            else:
                load_tile(k_desc, [key, k_col], k_full.index(s), keys.index(s))
            mbarrier.wait(v_empty.index(s), phase)
            mbarrier.expect(v_full.index(s), KEYS * VALUE * NUM_BYTES)
            if PAST and tile < past_tiles:
                load_tile(v_cache_desc, [slot, part * VALUE], v_full.index(s), values.index(s))
            else:
                load_tile(v_desc, [key, v_col], v_full.index(s), values.index(s))
            step += 1


@gluon.jit
def _softmax(
    products, tile, past_tiles, start, first_key, tokens, maximum, total, full_from, full_to,
    score_scale, window, PAST: gl.constexpr, KEYS: gl.constexpr, WINDOW: gl.constexpr,
):  # fmt: skip
    """Weights of a tile of keys, and by how much what was summed before shrinks."""
    # keys are counted as tokens are, from the first of those given; the past lies below 0
    key = first_key + (tile - past_tiles) * KEYS
    last = tokens  # that a row sees
    masked = (key < full_from) | (key >= full_to)
    if PAST and tile < past_tiles:
        key = tile * KEYS - start
        last = gl.full([ROWS], -1, gl.int32, layout=tokens.type.layout)
        masked = key + KEYS > 0
    if masked:
        at = key + gl.arange(0, KEYS, layout=gl.SliceLayout(0, products.type.layout))
        visible = at[None, :] <= last[:, None]
        if WINDOW:
            visible = visible & (at[None, :] > tokens[:, None] - window)
        products = gl.where(visible, products, float("-inf"))
    new_maximum = gl.maximum(maximum, gl.max(products, 1) * score_scale)
    # a row that saw nothing yet has maximum -inf, and -inf - -inf is NaN
    shift = gl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    weights = gl.exp2(products * score_scale - shift[:, None])
    keep = gl.exp2(maximum - shift)
    return weights, keep, new_maximum, total * keep + gl.sum(weights, 1)


@gluon.jit
def _clear_beyond(values, num_keys, KEYS: gl.constexpr, VALUE: gl.constexpr):
    """Zero the slots that hold no past: their weight is 0, but they may hold NaN."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // VALUE, VALUE // 8], [4, 1], [1, 0])
    PIECE: gl.constexpr = KEYS // 4  # a few registers
    for first in gl.static_range(0, KEYS, PIECE):
        piece = values.slice(first, PIECE)
        rows = first + gl.arange(0, PIECE, layout=gl.SliceLayout(1, layout))
        v = piece.load(layout)
        piece.store(gl.where((rows < num_keys)[:, None], v, gl.zeros_like(v)))
    fence_async_shared()
    barrier()


@gluon.jit
def _attend(
    y_desc, start_ptr, q, keys, values, q_full, q_empty, k_full, k_empty, v_full, v_empty, merge,
    merge_max, merge_total, merge_full, merge_empty, out, rounds, num_tokens, score_scale, window,
    GROUP: gl.constexpr, PAST: gl.constexpr, KV_HEADS: gl.constexpr, HEADS: gl.constexpr,
    PARTS: gl.constexpr, KEYS: gl.constexpr, WINDOW: gl.constexpr, HEAD_DIM: gl.constexpr,
    VALUE: gl.constexpr, STAGES: gl.constexpr, QUERIES: gl.constexpr,
):  # fmt: skip
    """Attend to every other tile of each block; group 0, which has no more of them, ends it."""
    dtype: gl.constexpr = q.dtype
    TOKENS: gl.constexpr = ROWS // HEADS
    BEGIN: gl.constexpr = 1 - GROUP
    products_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, VALUE, 16])
    weights_layout: gl.constexpr = gl.DotOperandLayout(0, sums_layout, 2)
    of_products: gl.constexpr = gl.SliceLayout(1, products_layout)
    of_sums: gl.constexpr = gl.SliceLayout(1, sums_layout)
    nothing = gl.zeros([ROWS, KEYS], gl.float32, layout=products_layout)
    start, past_tiles = _past(start_ptr, PAST, KEYS)
    step = 0
    for round_ in range(rounds):
        kv_head, part, first_token, first_key, tiles = _block(
            round_, num_tokens, window, past_tiles, KV_HEADS, HEADS, PARTS, KEYS, WINDOW
        )
        tokens = first_token + gl.arange(0, ROWS, layout=of_products) % TOKENS
        full_from = 0  # from here on, up to full_to, every row sees every key of a tile
        if WINDOW:
            full_from = first_token + TOKENS - window
        full_to = (first_token + 1) // KEYS * KEYS
        maximum = gl.full([ROWS], float("-inf"), gl.float32, layout=of_products)
        total = gl.zeros([ROWS], gl.float32, layout=of_products)
        acc = gl.zeros([ROWS, VALUE], gl.float32, layout=sums_layout)
        b = round_ % QUERIES
        if tiles > BEGIN:
            mbarrier.wait(q_full.index(b), (round_ // QUERIES) & 1)
            s = (step + BEGIN) % STAGES
            phase = (step + BEGIN) // STAGES & 1
            mbarrier.wait(k_full.index(s), phase)
            k = keys.index(s).permute([1, 0])
            products = warpgroup_mma(q.index(b), k, nothing, use_acc=False, is_async=True)
            products = warpgroup_mma_wait(0, deps=[products])
            mbarrier.arrive(k_empty.index(s), count=1)
            weights, keep, maximum, total = _softmax(
                products, BEGIN, past_tiles, start, first_key, tokens, maximum, total, full_from,
                full_to, score_scale, window, PAST, KEYS, WINDOW,
            )  # fmt: skip
            narrow = gl.convert_layout(weights.to(dtype), weights_layout)
            held = start - BEGIN * KEYS  # of the tile, where it is one of the past
            for tile in range(BEGIN + 2, tiles, 2):
                # this tile's products and the sum of the one before are made together
                s_before = s
                phase_before = phase
                s = (step + tile) % STAGES
                phase = (step + tile) // STAGES & 1
                mbarrier.wait(v_full.index(s_before), phase_before)
                if PAST and (held > 0) & (held < KEYS):
                    _clear_beyond(values.index(s_before), held, KEYS, VALUE)
                mbarrier.wait(k_full.index(s), phase)
                k = keys.index(s).permute([1, 0])
                products = warpgroup_mma(q.index(b), k, nothing, use_acc=False, is_async=True)
                acc = warpgroup_mma(narrow, values.index(s_before), acc, is_async=True)
                products = warpgroup_mma_wait(1, deps=[products])
                mbarrier.arrive(k_empty.index(s), count=1)
                weights, keep, maximum, total = _softmax(
                    products, tile, past_tiles, start, first_key, tokens, maximum, total,
                    full_from, full_to, score_scale, window, PAST, KEYS, WINDOW,
                )  # fmt: skip
                acc = warpgroup_mma_wait(0, deps=[acc])
                mbarrier.arrive(v_empty.index(s_before), count=1)
                acc = acc * gl.convert_layout(keep, of_sums)[:, None]
                narrow = gl.convert_layout(weights.to(dtype), weights_layout)
                held = start - tile * KEYS
            mbarrier.wait(v_full.index(s), phase)
            if PAST and (held > 0) & (held < KEYS):
                _clear_beyond(values.index(s), held, KEYS, VALUE)
            acc = warpgroup_mma(narrow, values.index(s), acc, is_async=True)
            acc = warpgroup_mma_wait(0, deps=[acc])
            mbarrier.arrive(v_empty.index(s), count=1)
        step += tiles
        if tiles > 0:
            mbarrier.arrive(q_empty.index(b), count=1)
            if GROUP == 1:
                mbarrier.wait(merge_empty, (round_ + 1) & 1)
                merge.store(acc)
                merge_max.store(maximum)
                merge_total.store(total)
                mbarrier.arrive(merge_full, count=1)
            else:
                mbarrier.wait(merge_full, round_ & 1)
                other = merge_max.load(of_products)
                both = gl.maximum(maximum, other)  # finite: every row sees itself
                mine = gl.exp2(maximum - both)
                theirs = gl.exp2(other - both)
                scale = 1.0 / (total * mine + merge_total.load(of_products) * theirs)
                mine = gl.convert_layout(mine * scale, of_sums)
                theirs = gl.convert_layout(theirs * scale, of_sums)
                y = acc * mine[:, None] + merge.load(sums_layout) * theirs[:, None]
                mbarrier.arrive(merge_empty, count=1)
                tma.store_wait(0)  # y of the block before has left `out`
                barrier()
                out.store(y.to(dtype))
                fence_async_shared()
                barrier()
                for head in gl.static_range(HEADS):
                    col = (kv_head * HEADS + head) * HEAD_DIM + part * VALUE
                    store_tile(y_desc, [first_token, col], out.slice(head * TOKENS, TOKENS))
    tma.store_wait(0)  # nobody may have `out` before it is read


# The number of tokens changes with every prompt: specialising on it would recompile in a request.
@gluon.jit(do_not_specialize=["num_tokens", "capacity"])
def _split_attention_kernel(
    q_desc,
    k_desc,
    v_desc,
    k_cache_desc,
    v_cache_desc,
    y_desc,
    start_ptr,
    num_tokens,
    capacity,
    score_scale,
    window,
    PAST: gl.constexpr,
    KV_HEADS: gl.constexpr,
    HEADS: gl.constexpr,
    PARTS: gl.constexpr,
    KEYS: gl.constexpr,
    WINDOW: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    STAGES: gl.constexpr,
    QUERIES: gl.constexpr,
):
    dtype: gl.constexpr = q_desc.dtype
    VALUE: gl.constexpr = HEAD_DIM // PARTS
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    square: gl.constexpr = gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    one: gl.constexpr = mbarrier.MBarrierLayout()
    q = gl.allocate_shared_memory(dtype, [QUERIES, ROWS, HEAD_DIM], swizzled)
    keys = gl.allocate_shared_memory(dtype, [STAGES, KEYS, HEAD_DIM], swizzled)
    values = gl.allocate_shared_memory(dtype, [STAGES, KEYS, VALUE], swizzled)
    out = gl.allocate_shared_memory(dtype, [ROWS, VALUE], swizzled)
    merge = gl.allocate_shared_memory(gl.float32, [ROWS, VALUE], square)
    merge_max = gl.allocate_shared_memory(gl.float32, [ROWS], plain)
    merge_total = gl.allocate_shared_memory(gl.float32, [ROWS], plain)
    q_full = gl.allocate_shared_memory(gl.int64, [QUERIES, 1], one)
    q_empty = gl.allocate_shared_memory(gl.int64, [QUERIES, 1], one)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], one)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], one)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], one)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], one)
    merge_full = gl.allocate_shared_memory(gl.int64, [1], one)
    merge_empty = gl.allocate_shared_memory(gl.int64, [1], one)
    for b in gl.static_range(QUERIES):
        mbarrier.init(q_full.index(b), count=1)
        mbarrier.init(q_empty.index(b), count=2)  # both groups
    for s in gl.static_range(STAGES):
        mbarrier.init(k_full.index(s), count=1)
        mbarrier.init(k_empty.index(s), count=1)  # the group whose tile it is
        mbarrier.init(v_full.index(s), count=1)
        mbarrier.init(v_empty.index(s), count=1)
    mbarrier.init(merge_full, count=1)
    mbarrier.init(merge_empty, count=1)
    fence_async_shared()
    programs = gl.num_programs(0)
    rounds = (_num_blocks(num_tokens, KV_HEADS, HEADS, PARTS) + programs - 1) // programs
    gl.warp_specialize(
        [
            (_attend, (y_desc, start_ptr, q, keys, values, q_full, q_empty, k_full, k_empty,
                       v_full, v_empty, merge, merge_max, merge_total, merge_full, merge_empty,
                       out, rounds, num_tokens, score_scale, window, 0, PAST, KV_HEADS, HEADS,
                       PARTS, KEYS, WINDOW, HEAD_DIM, VALUE, STAGES, QUERIES)),
            (_attend, (y_desc, start_ptr, q, keys, values, q_full, q_empty, k_full, k_empty,
                       v_full, v_empty, merge, merge_max, merge_total, merge_full, merge_empty,
                       out, rounds, num_tokens, score_scale, window, 1, PAST, KV_HEADS, HEADS,
                       PARTS, KEYS, WINDOW, HEAD_DIM, VALUE, STAGES, QUERIES)),
            (_load, (q_desc, k_desc, v_desc, k_cache_desc, v_cache_desc, start_ptr, q, keys,
                     values, q_full, q_empty, k_full, k_empty, v_full, v_empty, rounds,
                     num_tokens, capacity, window, PAST, KV_HEADS, HEADS, PARTS, KEYS, WINDOW,
                     HEAD_DIM, VALUE, STAGES, QUERIES)),
        ],
        [4, 1],
        [232, 40],  # registers of a thread
    )  # fmt: skip


def launch_split_attention(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    score_scale: float,
    window: int | None,
    is_fresh: bool,
) -> torch.Tensor:
    """Launch the kernel; returns y. `score_scale` is the first of `attention.score_scales`.

    Unless `is_fresh` there is no window, and the caches hold every past position in its slot.
    """
    num_tokens, heads = qkv.shape[0], num_heads // num_kv_heads
    y = torch.empty((num_tokens, num_heads * head_dim), dtype=qkv.dtype, device=qkv.device)
    tile = TILES[head_dim]
    tokens, value = ROWS.value // heads, head_dim // tile.value_parts
    layout = gl.NVMMASharedLayout(128, 16, 2)
    num_blocks = triton.cdiv(num_tokens, tokens) * num_kv_heads * tile.value_parts
    rounds = triton.cdiv(num_blocks, num_multiprocessors(qkv.device))
    k_desc = TensorDescriptor.from_tensor(qkv, [tile.keys, head_dim], layout)
    v_desc = TensorDescriptor.from_tensor(qkv, [tile.keys, value], layout)
    k_cache_desc, v_cache_desc = k_desc, v_desc
    if not is_fresh:
        slots = k_cache.flatten(0, 1), v_cache.flatten(0, 1)
        k_cache_desc = TensorDescriptor.from_tensor(slots[0], [tile.keys, head_dim], layout)
        v_cache_desc = TensorDescriptor.from_tensor(slots[1], [tile.keys, value], layout)
    _split_attention_kernel[(triton.cdiv(num_blocks, rounds),)](
        TensorDescriptor.from_tensor(qkv, [tokens, head_dim], layout),
        k_desc,
        v_desc,
        k_cache_desc,
        v_cache_desc,
        TensorDescriptor.from_tensor(y, [tokens, value], layout),
        start,
        num_tokens,
        k_cache.shape[1],
        score_scale,
        window or 0,
        PAST=not is_fresh,
        KV_HEADS=num_kv_heads,
        HEADS=heads,
        PARTS=tile.value_parts,
        KEYS=tile.keys,
        WINDOW=window is not None,
        HEAD_DIM=head_dim,
        STAGES=tile.stages,
        QUERIES=tile.queries,
        num_warps=4,
    )
    return y
