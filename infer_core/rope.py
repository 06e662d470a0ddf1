"""Tables of cos and sin for the rotary position embedding, from a `Rope` spec.

The frequencies follow the published definitions (arXiv:2104.09864; linear interpolation
arXiv:2306.15595; YaRN arXiv:2309.00071; the llama3 blend as its config.json fields name it).
"""

import math

import torch

from infer_core.specs import LinearRopeScaling, Llama3RopeScaling, Rope, YarnRopeScaling


def rope_tables(
    rope: Rope, rotary_dim: int, context: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tabulate cos and sin of every angle for positions 0 to `context` - 1.

    Shapes: both [context, rotary_dim // 2], float32 (bf16 angles lose whole turns at position
        1,000, so rounding waits until after the rotation).
    """
    frequencies, factor = inverse_frequencies(rope, rotary_dim)
    positions = torch.arange(context, dtype=torch.float32)
    # computed on the CPU on purpose: the same table on every device
    angles = positions[:, None] * frequencies[None, :]
    return (angles.cos() * factor).to(device), (angles.sin() * factor).to(device)


def inverse_frequencies(rope: Rope, rotary_dim: int) -> tuple[torch.Tensor, float]:
    """Give the angle per position of each rotated pair, and the factor on cos and sin.

    Shapes: [rotary_dim // 2], float32, radians a token.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies, 1.0
        case LinearRopeScaling(factor=factor):
            return frequencies / factor, 1.0
        case Llama3RopeScaling():
            return _llama3(frequencies, rope.scaling), 1.0
        case YarnRopeScaling():
            return _yarn(frequencies, rope.theta, rotary_dim, rope.scaling)


def _llama3(frequencies: torch.Tensor, scaling: Llama3RopeScaling) -> torch.Tensor:
    wavelengths = 2 * math.pi / frequencies
    original = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 1 keeps the frequency, 0 divides it by the factor
    keep = ((original / wavelengths - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def _yarn(
    frequencies: torch.Tensor, theta: float, rotary_dim: int, scaling: YarnRopeScaling
) -> tuple[torch.Tensor, float]:
    def pair_turning(turns: float) -> float:
        """Index of the pair that makes `turns` full turns over the original context."""
        original = scaling.original_max_position_embeddings
        return rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_turning(scaling.beta_fast), pair_turning(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        last += 0.001  # a ramp of no width would divide by zero
    pairs = torch.arange(rotary_dim // 2, dtype=torch.float32)
    interpolate = ((pairs - first) / (last - first)).clamp(0.0, 1.0)
    blended = frequencies / scaling.factor * interpolate + frequencies * (1 - interpolate)
    factor = scaling.attention_factor
    if factor is None:
        factor = 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0
    return blended, factor
