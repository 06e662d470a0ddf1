"""End of a sampled step without a small top-k: filter, draw, append, embed, over all the logits.

    border    = smallest logit that top-k and then top-p keep: a search in rounds  (one kernel each)
    chunks    = masses above the border and numbers of logits at it                (one kernel)
    token     = first t with  sum of masses of kept tokens <= t  >  uniform * sum of all
    position += 1;  sequence[position] = token;  x = embed[token] * embedding_scale

Every kernel but the last runs one program for each block of the vocabulary. A round adds up, in
integers, the tokens (top-k) or masses (top-p) at or above WAYS bounds; the next round searches
between two of them. Temperature and min-p alone need no border and no round.

Shapes  logits [vocab_size]; maxima [num_maxima]; lows int64 [2 * ROUNDS + 1], sums int64
        [2 * ROUNDS, WAYS], 0 before and after; above, drawable, ties int64 [num_blocks].
Dtypes  logits are float32; everything that decides is an integer (see sampling_parts).
Source  semantics of transformers' logits processors, see infer_core/sampling.py, the reference.
Bound   latency: each kernel reads 4 bytes a token, from the L2 cache.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_types import check_vectors
from infer_core.kernels.pick_embed import NextInput, append_and_embed
from infer_core.kernels.sampling_parts import (
    LOWEST,
    Filters,
    SamplerState,
    best_way,
    draw_target,
    dropped_mass,
    dropped_ties,
    from_ordered,
    least_mass,
    load_scaled,
    mass_shift,
    thresholds,
    to_mass,
    to_ordered,
)

BLOCK_SIZE = 1024
NUM_WAYS = 32
NUM_ROUNDS = 7  # 32**7 >= 2**32, the number of float32 values
NOTHING, COUNT, MASS = (tl.constexpr(search) for search in range(3))


class SearchScratch(NamedTuple):
    """What the kernels tell each other; `sums` must start at 0."""

    lows: torch.Tensor
    sums: torch.Tensor
    above: torch.Tensor
    drawable: torch.Tensor
    ties: torch.Tensor

    @classmethod
    def empty(cls, vocab_size: int, device: torch.device) -> "SearchScratch":
        """Allocate for a vocabulary."""
        sizes = (2 * NUM_ROUNDS + 1, 2 * NUM_ROUNDS * NUM_WAYS) + (_num_blocks(vocab_size),) * 3
        return cls(*(torch.zeros(size, dtype=torch.int64, device=device) for size in sizes))


@triton.jit
def _load_largest(maxima_ptr, num_maxima, values_ptr, MAXIMA: tl.constexpr):
    slots = tl.arange(0, MAXIMA)
    return tl.max(load_scaled(maxima_ptr, slots, slots < num_maxima, values_ptr), axis=0)


@triton.jit
def _low_end(
    values_ptr, counters_ptr, lows_ptr, sums_ptr, round, step, first_mass, AFTER: tl.constexpr,
    WAYS: tl.constexpr,
):  # fmt: skip
    """Return where the search stands after `round`, which tried bounds `step` apart."""
    low = tl.full((), LOWEST, tl.int64)
    if AFTER != NOTHING:
        if AFTER == COUNT:
            need = tl.load(counters_ptr)
        else:
            total = tl.load(sums_ptr + first_mass * WAYS)
            need = tl.maximum(total - dropped_mass(total, values_ptr), 1)
        sums = tl.load(sums_ptr + round * WAYS + tl.arange(0, WAYS))
        low = tl.load(lows_ptr + round) + best_way(sums, need, WAYS) * step
    return low


@triton.jit(do_not_specialize=["round", "step", "previous_step", "first_mass"])
def _round_kernel(
    logits_ptr,
    maxima_ptr,
    values_ptr,
    counters_ptr,
    lows_ptr,
    sums_ptr,
    vocab_size,
    num_maxima,
    round,
    step,
    previous_step,
    first_mass,
    MAXIMA: tl.constexpr,
    BY: tl.constexpr,
    AFTER: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WAYS: tl.constexpr,
    SHIFT: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    low = _low_end(
        values_ptr, counters_ptr, lows_ptr, sums_ptr, round - 1, previous_step, first_mass,
        AFTER, WAYS,
    )  # fmt: skip
    if tl.program_id(0) == 0:
        tl.store(lows_ptr + round, low)
    if BY == MASS:
        largest = _load_largest(maxima_ptr, num_maxima, values_ptr, MAXIMA)
    bounds = thresholds(low, step, WAYS)
    sums = tl.zeros((ROWS, WAYS), tl.int64)
    for start in range(0, BLOCK, ROWS):
        tokens = tl.program_id(0) * BLOCK + start + tl.arange(0, ROWS)
        inside = tokens < vocab_size
        x = load_scaled(logits_ptr, tokens, inside, values_ptr)
        weight = inside.to(tl.int64)
        if BY == MASS:
            weight = to_mass(x, largest, SHIFT)
        key = tl.where(inside, to_ordered(x), LOWEST)
        sums += tl.where(key[:, None] >= bounds[None, :], weight[:, None], 0)
    # relaxed: the end of the kernel publishes the sums
    tl.atomic_add(sums_ptr + round * WAYS + tl.arange(0, WAYS), tl.sum(sums, axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["num_rounds", "first_mass"])
def _chunks_kernel(
    logits_ptr,
    maxima_ptr,
    values_ptr,
    counters_ptr,
    lows_ptr,
    sums_ptr,
    above_ptr,
    drawable_ptr,
    ties_ptr,
    vocab_size,
    num_maxima,
    num_rounds,
    first_mass,
    MAXIMA: tl.constexpr,
    MIN_P: tl.constexpr,
    AFTER: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
    SHIFT: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    # the last round tried neighbouring values
    border = _low_end(
        values_ptr, counters_ptr, lows_ptr, sums_ptr, num_rounds - 1, 1, first_mass, AFTER, WAYS
    )
    chunk = tl.program_id(0)
    if chunk == 0:
        tl.store(lows_ptr + num_rounds, border)
    tokens = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab_size
    x = load_scaled(logits_ptr, tokens, inside, values_ptr)
    largest = _load_largest(maxima_ptr, num_maxima, values_ptr, MAXIMA)
    key = tl.where(inside, to_ordered(x), LOWEST)
    mass = tl.where(key > border, to_mass(x, largest, SHIFT), 0)
    tl.store(above_ptr + chunk, tl.sum(mass, axis=0))
    tl.store(ties_ptr + chunk, tl.sum((inside & (key == border)).to(tl.int64), axis=0))
    least = least_mass(values_ptr, MIN_P, SHIFT)
    tl.store(drawable_ptr + chunk, tl.sum(tl.where(mass >= least, mass, 0), axis=0))


@triton.jit(do_not_specialize=["num_rounds", "first_mass"])
def _draw_kernel(
    logits_ptr,
    maxima_ptr,
    values_ptr,
    counters_ptr,
    uniforms_ptr,
    seen_ptr,
    lows_ptr,
    sums_ptr,
    above_ptr,
    drawable_ptr,
    ties_ptr,
    token_ptr,
    position_ptr,
    sequence_ptr,
    embed_ptr,
    x_ptr,
    vocab_size,
    num_maxima,
    num_uniforms,
    hidden_size,
    num_rounds,
    first_mass,
    MAXIMA: tl.constexpr,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MARK_SEEN: tl.constexpr,
    SCALE: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    SUMS: tl.constexpr,
    WAYS: tl.constexpr,
    SHIFT: tl.constexpr,
    COLS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    chunks = tl.arange(0, CHUNKS)
    mask = chunks < tl.cdiv(vocab_size, BLOCK)
    drawable = tl.load(drawable_ptr + chunks, mask=mask, other=0)
    ties = tl.load(ties_ptr + chunks, mask=mask, other=0)
    border = tl.load(lows_ptr + num_rounds)
    largest = _load_largest(maxima_ptr, num_maxima, values_ptr, MAXIMA)
    least = least_mass(values_ptr, MIN_P, SHIFT)
    # equal logits have equal masses; without a border there are none
    tie_mass = to_mass(from_ordered(border), largest, SHIFT)

    dropped = tl.full((), 0, tl.int64)
    if TOP_P:
        total = tl.load(sums_ptr + first_mass * WAYS)
        above = tl.sum(tl.load(above_ptr + chunks, mask=mask, other=0), axis=0)
        num_ties = tl.sum(ties, axis=0)
        below = total - above - num_ties * tie_mass
        dropped = dropped_ties(dropped_mass(total, values_ptr), below, num_ties, tie_mass)
    tie_mass = tl.where(tie_mass >= least, tie_mass, 0)
    # of equal tokens the first go first, as a stable ascending sort has them
    ties_before = tl.cumsum(ties, axis=0) - ties
    dropped_here = tl.minimum(tl.maximum(dropped - ties_before, 0), ties)
    masses = drawable + (ties - dropped_here) * tie_mass
    reached = tl.cumsum(masses, axis=0)
    target, used = draw_target(counters_ptr, uniforms_ptr, num_uniforms, tl.sum(masses, axis=0))
    # if no logit is a number nothing exceeds the target, and the first token is taken
    chunk = tl.min(tl.where(reached > target, chunks, CHUNKS), axis=0)
    chunk = tl.where(chunk == CHUNKS, 0, chunk)
    target -= tl.sum(tl.where(chunks == chunk, reached - masses, 0), axis=0)
    dropped = tl.sum(tl.where(chunks == chunk, dropped_here, 0), axis=0)

    tokens = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab_size
    x = load_scaled(logits_ptr, tokens, inside, values_ptr)
    key = tl.where(inside, to_ordered(x), LOWEST)
    is_tie = inside & (key == border)
    kept = (key > border) | (is_tie & (tl.cumsum(is_tie.to(tl.int32), axis=0) > dropped))
    mass = to_mass(x, largest, SHIFT)
    mass = tl.where(kept & (mass >= least), mass, 0)
    found = tl.min(tl.where(tl.cumsum(mass, axis=0) > target, tokens, vocab_size), axis=0)
    token = tl.where(found == vocab_size, 0, found).to(tl.int64)

    tl.store(token_ptr, token)
    tl.store(counters_ptr + 1, used + 1)
    tl.store(sums_ptr + tl.arange(0, SUMS), 0, mask=tl.arange(0, SUMS) < num_rounds * WAYS)
    if MARK_SEEN:
        tl.store(seen_ptr + token, 1)
    append_and_embed(
        token, position_ptr, sequence_ptr, embed_ptr, x_ptr, hidden_size, SCALE, COLS, True
    )


def pick_sampled(
    logits: torch.Tensor,
    maxima: torch.Tensor,
    state: SamplerState,
    filters: Filters,
    scratch: SearchScratch,
    output: NextInput,
    *,
    pdl: bool = False,
) -> None:
    """Launch all kernels over penalised `logits` and the largest logit of each of some groups.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    vocab_size, num_maxima = logits.shape[0], maxima.shape[0]
    check_vectors("pick_sampled", torch.float32, vocab_size, logits=logits)
    check_vectors("pick_sampled", torch.float32, num_maxima, maxima=maxima)
    chunks = _num_blocks(vocab_size)
    check_vectors("pick_sampled", torch.int64, chunks, above=scratch.above)
    hidden_size = output.check("pick_sampled", vocab_size)
    shift, maxima_size = mass_shift(vocab_size), triton.next_power_of_2(num_maxima)
    launch = {"PDL": pdl, "launch_pdl": pdl, "num_warps": 8}
    searches = [COUNT] * filters.top_k + [MASS] * filters.top_p
    first_mass = NUM_ROUNDS * filters.top_k
    after, step = NOTHING, 1
    for index in range(NUM_ROUNDS * len(searches)):
        search, turn = searches[index // NUM_ROUNDS], index % NUM_ROUNDS
        previous, step = step, NUM_WAYS ** (NUM_ROUNDS - 1 - turn)
        _round_kernel[(chunks,)](
            logits,
            maxima,
            state.values,
            state.counters,
            scratch.lows,
            scratch.sums,
            vocab_size,
            num_maxima,
            index,
            step,
            previous,
            first_mass,
            MAXIMA=maxima_size,
            BY=search,
            AFTER=after,
            BLOCK=BLOCK_SIZE,
            ROWS=256,
            WAYS=NUM_WAYS,
            SHIFT=shift,
            **launch,
        )
        after = search
    num_rounds = NUM_ROUNDS * len(searches)
    _chunks_kernel[(chunks,)](
        logits,
        maxima,
        state.values,
        state.counters,
        *scratch,
        vocab_size,
        num_maxima,
        num_rounds,
        first_mass,
        MAXIMA=maxima_size,
        MIN_P=filters.min_p,
        AFTER=after,
        BLOCK=BLOCK_SIZE,
        WAYS=NUM_WAYS,
        SHIFT=shift,
        **launch,
    )
    _draw_kernel[(1,)](
        logits,
        maxima,
        state.values,
        state.counters,
        state.uniforms,
        state.counters if state.seen is None else state.seen,
        *scratch,
        *output.tensors,
        vocab_size,
        num_maxima,
        state.uniforms.shape[0],
        hidden_size,
        num_rounds,
        first_mass,
        MAXIMA=maxima_size,
        TOP_P=filters.top_p,
        MIN_P=filters.min_p,
        MARK_SEEN=state.seen is not None,
        SCALE=output.rounded_scale,
        CHUNKS=triton.next_power_of_2(chunks),
        BLOCK=BLOCK_SIZE,
        SUMS=triton.next_power_of_2(2 * NUM_ROUNDS * NUM_WAYS),
        WAYS=NUM_WAYS,
        SHIFT=shift,
        COLS=triton.next_power_of_2(hidden_size),
        **launch,
    )


def _num_blocks(vocab_size: int) -> int:
    return -(-vocab_size // BLOCK_SIZE)
