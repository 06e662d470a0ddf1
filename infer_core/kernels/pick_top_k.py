"""End of a sampled step with a small top-k: list the likeliest tokens, filter, draw, append, embed.

    bound     = about the top_k-th largest of the largest logits of the LM head's programs
    listed    = tokens whose logit reaches the bound           (every program, its block)
    kept      = min_p(top_p(top_k(listed)))                    (one program from here on)
    token     = first t with  sum of masses of kept tokens <= t  >  uniform * sum of all
    position += 1;  sequence[position] = token;  x = embed[token] * embedding_scale

top_k programs hold a logit that reaches the bound, so the top_k-th largest logit does, and what is
not listed cannot be kept. The list has about top_k entries, in any order; with many equal logits up
to the whole vocabulary, which is slower and no less exact.

Shapes  logits [vocab_size]; maxima [num_maxima]; listed keys and tokens int32, masses int64
        [vocab_size]; length int32 [1], 0 before and after; bounds int64 [2].
Dtypes  logits are float32; everything that decides is an integer (see sampling_parts).
Source  semantics of transformers' logits processors, see infer_core/sampling.py, the reference.
Bound   latency: the second kernel is one program that reads its short list a few times.
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

COUNT, MASS, TIES, DRAW = (tl.constexpr(search) for search in range(4))


class TopKList(NamedTuple):
    """Scratch between the two kernels; `length` must start at 0."""

    keys: torch.Tensor
    tokens: torch.Tensor
    masses: torch.Tensor
    length: torch.Tensor
    bounds: torch.Tensor

    @classmethod
    def empty(cls, vocab_size: int, device: torch.device) -> "TopKList":
        """Allocate for a vocabulary."""
        return cls(
            torch.zeros(vocab_size, dtype=torch.int32, device=device),
            torch.zeros(vocab_size, dtype=torch.int32, device=device),
            torch.zeros(vocab_size, dtype=torch.int64, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
            torch.zeros(2, dtype=torch.int64, device=device),
        )


@triton.jit
def _list_kernel(
    logits_ptr,
    maxima_ptr,
    values_ptr,
    counters_ptr,
    keys_ptr,
    tokens_ptr,
    masses_ptr,
    length_ptr,
    bounds_ptr,
    vocab_size,
    num_maxima,
    MAXIMA: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
    ROUNDS: tl.constexpr,
    SHIFT: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < vocab_size
    x = load_scaled(logits_ptr, tokens, inside, values_ptr)
    top_k = tl.load(counters_ptr)
    slots = tl.arange(0, MAXIMA)
    maxima = load_scaled(maxima_ptr, slots, slots < num_maxima, values_ptr)
    keys = tl.where(slots < num_maxima, to_ordered(maxima), LOWEST)

    # A few rounds only: a bound that is a little low lists a token or two more.
    high = tl.max(keys, axis=0).to(tl.int64)
    low = tl.min(tl.where(slots < num_maxima, keys, high.to(tl.int32)), axis=0).to(tl.int64)
    step = high - low + 1
    for _ in tl.static_range(ROUNDS):
        step = (step + WAYS - 1) // WAYS
        reaching = keys[:, None] >= thresholds(low, step, WAYS)[None, :]
        low += best_way(tl.sum(reaching.to(tl.int32), axis=0), top_k, WAYS) * step
    if tl.program_id(0) == 0:
        tl.store(bounds_ptr, low)
        tl.store(bounds_ptr + 1, high)

    key = to_ordered(x)
    listed = inside & (key >= low)
    count = tl.sum(listed.to(tl.int32), axis=0)
    if count > 0:
        # the end of the kernel publishes the list; the order in it means nothing
        first = tl.atomic_add(length_ptr, count, sem="relaxed")
        places = first + tl.cumsum(listed.to(tl.int32), axis=0) - 1
        tl.store(keys_ptr + places, key, mask=listed)
        tl.store(tokens_ptr + places, tokens, mask=listed)
        tl.store(masses_ptr + places, to_mass(x, from_ordered(high), SHIFT), mask=listed)


@triton.jit
def _load_listed(keys_ptr, tokens_ptr, masses_ptr, start, count, BLOCK: tl.constexpr):
    slots = start + tl.arange(0, BLOCK)
    mask = slots < count
    key = tl.load(keys_ptr + slots, mask=mask, other=LOWEST)
    token = tl.load(tokens_ptr + slots, mask=mask, other=-1)
    mass = tl.load(masses_ptr + slots, mask=mask, other=0)
    return key, token, mass, mask


@triton.jit
def _load_weights(
    keys_ptr, tokens_ptr, masses_ptr, start, count, kept_key, kept_token, least,
    BY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load what a search goes by and what it adds up, -1 or lower and 0 past the end."""
    key, token, mass, mask = _load_listed(keys_ptr, tokens_ptr, masses_ptr, start, count, BLOCK)
    order = key
    if BY == COUNT:
        weight = mask.to(tl.int64)
    elif BY == MASS:
        weight = mass
    elif BY == TIES:
        order = token
        weight = (mask & (key == kept_key)).to(tl.int64)
    else:
        order = token
        kept = (key > kept_key) | ((key == kept_key) & (token >= kept_token))
        weight = tl.where(kept & (mass >= least), mass, 0)
    return order, weight


@triton.jit
def _search(
    keys_ptr, tokens_ptr, masses_ptr, count, low, span, need, kept_key, kept_token, least,
    BY: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Return the largest bound in [low, low + span) whose sum reaches `need`.

    COUNT: entries, by key. MASS: masses, by key. TIES: entries equal to `kept_key`, by token. DRAW:
    masses of the kept tokens, by token.
    """
    if count <= BLOCK:
        # the bound is one of the entries: try each
        order, weight = _load_weights(
            keys_ptr, tokens_ptr, masses_ptr, 0, count, kept_key, kept_token, least, BY, BLOCK
        )
        sums = tl.sum(tl.where(order[:, None] >= order[None, :], weight[:, None], 0), axis=0)
        found = tl.max(tl.where(sums >= need, order, LOWEST), axis=0)
        low = tl.maximum(low, found.to(tl.int64))
    else:
        while span > 1:
            step = (span + WAYS - 1) // WAYS
            bounds = thresholds(low, step, WAYS)
            sums = tl.zeros((BLOCK, WAYS), tl.int64)
            for start in range(0, count, BLOCK):
                order, weight = _load_weights(
                    keys_ptr, tokens_ptr, masses_ptr, start, count, kept_key, kept_token, least,
                    BY, BLOCK,
                )  # fmt: skip
                sums += tl.where(order[:, None] >= bounds[None, :], weight[:, None], 0)
            low += best_way(tl.sum(sums, axis=0), need, WAYS) * step
            span = step
    return low


@triton.jit
def _weigh(
    keys_ptr, tokens_ptr, masses_ptr, count, kept_key, least, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the mass above `kept_key`, what min-p leaves of it, and number and mass of ties."""
    above = tl.zeros((BLOCK,), tl.int64)
    drawable = tl.zeros((BLOCK,), tl.int64)
    ties = tl.zeros((BLOCK,), tl.int64)
    tie_mass = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, count, BLOCK):
        key, _, mass, mask = _load_listed(keys_ptr, tokens_ptr, masses_ptr, start, count, BLOCK)
        more = tl.where(key > kept_key, mass, 0)
        above += more
        drawable += tl.where(mass >= least, more, 0)
        equal = mask & (key == kept_key)
        ties += equal.to(tl.int64)
        tie_mass = tl.maximum(tie_mass, tl.where(equal, mass, 0))
    return tl.sum(above), tl.sum(drawable), tl.sum(ties), tl.max(tie_mass)


# Triton 3.6 fails to compile it for a vocabulary that is the constant 1.
@triton.jit(do_not_specialize=["vocab_size"])
def _pick_kernel(
    values_ptr,
    counters_ptr,
    uniforms_ptr,
    seen_ptr,
    keys_ptr,
    tokens_ptr,
    masses_ptr,
    length_ptr,
    bounds_ptr,
    token_ptr,
    position_ptr,
    sequence_ptr,
    embed_ptr,
    x_ptr,
    vocab_size,
    num_uniforms,
    hidden_size,
    TOP_P: tl.constexpr,
    MIN_P: tl.constexpr,
    MARK_SEEN: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    WAYS: tl.constexpr,
    SHIFT: tl.constexpr,
    COLS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(length_ptr)
    low = tl.load(bounds_ptr)
    end = tl.load(bounds_ptr + 1) + 1
    top_k = tl.load(counters_ptr)
    least = least_mass(values_ptr, MIN_P, SHIFT)
    vocab = vocab_size.to(tl.int64)
    zero = tl.full((), 0, tl.int64)

    kept_key = _search(
        keys_ptr, tokens_ptr, masses_ptr, count, low, end - low, top_k, zero, zero, least,
        COUNT, BLOCK, WAYS,
    )  # fmt: skip
    above, drawable, ties, tie_mass = _weigh(
        keys_ptr, tokens_ptr, masses_ptr, count, kept_key, least, BLOCK
    )
    dropped = zero
    kept_token = zero
    if TOP_P:
        total = above + ties * tie_mass
        allowed = dropped_mass(total, values_ptr)
        need = tl.maximum(total - allowed, 1)
        kept_key = _search(
            keys_ptr, tokens_ptr, masses_ptr, count, kept_key, end - kept_key, need, zero, zero,
            least, MASS, BLOCK, WAYS,
        )  # fmt: skip
        above, drawable, ties, tie_mass = _weigh(
            keys_ptr, tokens_ptr, masses_ptr, count, kept_key, least, BLOCK
        )
        dropped = dropped_ties(allowed, total - above - ties * tie_mass, ties, tie_mass)
        # of equal tokens the first go first, as a stable ascending sort has them
        if dropped > 0:
            kept_token = _search(
                keys_ptr, tokens_ptr, masses_ptr, count, zero, vocab, ties - dropped, kept_key,
                zero, least, TIES, BLOCK, WAYS,
            )  # fmt: skip
    total = drawable + tl.where(tie_mass >= least, (ties - dropped) * tie_mass, 0)
    target, used = draw_target(counters_ptr, uniforms_ptr, num_uniforms, total)
    token = _search(
        keys_ptr, tokens_ptr, masses_ptr, count, zero, vocab, tl.maximum(total - target, 1),
        kept_key, kept_token, least, DRAW, BLOCK, WAYS,
    )  # fmt: skip

    tl.store(token_ptr, token)
    tl.store(counters_ptr + 1, used + 1)
    tl.store(length_ptr, 0)
    if MARK_SEEN:
        tl.store(seen_ptr + token, 1)
    append_and_embed(
        token, position_ptr, sequence_ptr, embed_ptr, x_ptr, hidden_size, SCALE, COLS, True
    )


def pick_top_k(
    logits: torch.Tensor,
    maxima: torch.Tensor,
    state: SamplerState,
    filters: Filters,
    scratch: TopKList,
    output: NextInput,
    *,
    pdl: bool = False,
) -> None:
    """Launch both kernels over penalised `logits` and the largest logit of each of some groups.

    `state.counters[0]` (top_k) may be at most the number of maxima.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    vocab_size, num_maxima = logits.shape[0], maxima.shape[0]
    check_vectors("pick_top_k", torch.float32, vocab_size, logits=logits)
    check_vectors("pick_top_k", torch.float32, num_maxima, maxima=maxima)
    check_vectors("pick_top_k", torch.int64, vocab_size, masses=scratch.masses)
    shift = mass_shift(vocab_size)
    block = 1024
    _list_kernel[(triton.cdiv(vocab_size, block),)](
        logits,
        maxima,
        state.values,
        state.counters,
        *scratch,
        vocab_size,
        num_maxima,
        MAXIMA=triton.next_power_of_2(num_maxima),
        BLOCK=block,
        WAYS=16,
        ROUNDS=3,
        SHIFT=shift,
        PDL=pdl,
        num_warps=8,
        launch_pdl=pdl,
    )
    hidden_size = output.check("pick_top_k", vocab_size)
    _pick_kernel[(1,)](
        state.values,
        state.counters,
        state.uniforms,
        state.counters if state.seen is None else state.seen,
        *scratch,
        *output.tensors,
        vocab_size,
        state.uniforms.shape[0],
        hidden_size,
        TOP_P=filters.top_p,
        MIN_P=filters.min_p,
        MARK_SEEN=state.seen is not None,
        SCALE=output.rounded_scale,
        BLOCK=64,
        WAYS=32,
        SHIFT=shift,
        COLS=triton.next_power_of_2(hidden_size),
        PDL=pdl,
        num_warps=4,
        launch_pdl=pdl,
    )
