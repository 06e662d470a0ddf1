"""Device functions of the sampling kernels: logits as ordered integers, probabilities as integers.

Probabilities are held as int64 masses: floor(exp(x - max) * 2**shift), at least 1. Integer sums do
not depend on their order, so atomics and any number of programs give the same token, on every
device. `shift` is the largest that cannot overflow: the vocabulary adds up to less than 2**63.

A search asks for the largest bound with  sum of weights at or above it >= need . Top-k (weight 1,
ordered by value), top-p (weight = mass, by value) and the draw (mass, by token) are all such
searches; each round splits what is left into WAYS parts.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

# As integers (`to_ordered`) every logit, -inf too, is above LOWEST, which marks padding.
LOWEST = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)

# Places in `SamplerState.values`.
TEMPERATURE = tl.constexpr(1)
MIN_P = tl.constexpr(3)
DROPPED_SHARE = tl.constexpr(4)


class SamplerState(NamedTuple):
    """What a request brings to the sampling kernels, on the device.

    `values` float64: repetition penalty, temperature, top_p, min_p, and the share of the mass
    that top_p drops. `counters` int64: top_k, draws used. `uniforms` float32, one a draw. `seen`
    uint8 [vocab_size], 1 for the tokens of prompt and answer, or None without a penalty.
    """

    values: torch.Tensor
    counters: torch.Tensor
    uniforms: torch.Tensor
    seen: torch.Tensor | None


class Filters(NamedTuple):
    """Which filters follow the temperature."""

    top_k: bool
    top_p: bool
    min_p: bool


def mass_shift(vocab_size: int) -> int:
    """Bits of a probability: as many as let `vocab_size` of them add up in int64."""
    return 62 - (vocab_size - 1).bit_length()


@triton.jit
def load_scaled(logits_ptr, offsets, mask, values_ptr):
    """Load logits / temperature; rounded as torch rounds, -inf where masked."""
    temperature = tl.load(values_ptr + TEMPERATURE).to(tl.float32)
    logits = tl.load(logits_ptr + offsets, mask=mask, other=float("-inf"))
    return tl.div_rn(logits, temperature)


@triton.jit
def to_ordered(x):
    """Return int32 in the order of the float32 `x`; equal floats (0.0, -0.0) are equal."""
    x = tl.where(x == x, x, float("-inf"))
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_ordered(key):
    """Invert `to_ordered`."""
    key = key.to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def to_mass(x, largest, SHIFT: tl.constexpr):
    """Return exp(x - largest) as an integer; 0 where that is no number or 0 in float32."""
    # float64, lest the hardware's approximate exp2 shift the borders between tokens
    share = tl.exp((x - largest).to(tl.float64))
    share = tl.where(share <= 1.0, share, 0.0)
    scale = tl.full((), 1 << SHIFT, tl.int64).to(tl.float64)
    # what has any probability can be drawn
    return tl.maximum((share * scale).to(tl.int64), (share.to(tl.float32) > 0).to(tl.int64))


@triton.jit
def least_mass(values_ptr, MIN_P_ON: tl.constexpr, SHIFT: tl.constexpr):
    """Mass below which min-p drops a token."""
    least = tl.full((), 0, tl.int64)
    if MIN_P_ON:
        scale = tl.full((), 1 << SHIFT, tl.int64).to(tl.float64)
        least = (tl.load(values_ptr + MIN_P) * scale).to(tl.int64)
    return least


@triton.jit
def dropped_mass(total, values_ptr):
    """Mass of the unlikeliest tokens that top-p may drop at most, out of `total`."""
    return (total.to(tl.float64) * tl.load(values_ptr + DROPPED_SHARE)).to(tl.int64)


@triton.jit
def dropped_ties(allowed, below, ties, tie_mass):
    """Count those of `ties` equal tokens that top-p drops, `below` being less likely than they.

    Never all: top-p keeps the likeliest token, and above it there is nothing to keep.
    """
    fitting = (allowed - below) // tl.maximum(tie_mass, 1)
    return tl.maximum(tl.minimum(fitting, ties - 1), 0)


@triton.jit
def draw_target(counters_ptr, uniforms_ptr, num_uniforms, total):
    """Spend one draw: the mass that the cumulative mass of the drawn token is first to exceed."""
    used = tl.load(counters_ptr + 1)
    # a host that runs ahead of the end of a request may replay past the table
    uniform = tl.load(uniforms_ptr + tl.minimum(used, num_uniforms - 1))
    return (uniform.to(tl.float64) * total.to(tl.float64)).to(tl.int64), used


@triton.jit
def thresholds(low, step, WAYS: tl.constexpr):
    """Bounds that a round of a search tries, int32; those past every logit are HIGHEST."""
    return tl.minimum(low + tl.arange(0, WAYS).to(tl.int64) * step, HIGHEST).to(tl.int32)


@triton.jit
def best_way(sums, need, WAYS: tl.constexpr):
    """Number the last of WAYS bounds whose sum reaches `need`, int64; 0 if none does."""
    return tl.max(tl.where(sums >= need, tl.arange(0, WAYS), 0), axis=0).to(tl.int64)
