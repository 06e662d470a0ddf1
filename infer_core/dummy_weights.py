"""Seeded random weights, so that a model can be measured without its checkpoint."""

import hashlib

import torch

from infer_core.parameters import model_parameters
from infer_core.specs import ModelSpec

NORM_JITTER = 0.1
BIAS_STD = 0.1
EMBED_STD_TIMES_SQRT_HIDDEN = 0.5


def dummy_weights(
    spec: ModelSpec, *, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Fill every parameter of a model with numbers that keep a forward pass sane.

    Matrices are N(0, 1 / fan_in): a normalised input gives outputs of unit variance whatever
    the width, so scores, activations and logits keep a useful spread in tiny and in full-size
    models. Norm weights multiply by 1 within 10 % (the spec's weight_offset taken off) and
    biases are N(0, 0.1**2), so that a norm or bias left out shows. Embeddings are half as
    large, N(0, 0.25 / hidden_size): where they are tied and scaled, a larger token embedding
    would outlive the layers and every greedy step would repeat the token before.

    A parameter's numbers depend on (seed, name, shape) and on the kind of device (CPU and CUDA
    generators differ), not on order or dtype: they are drawn in float32 and rounded, so a bf16
    model has exactly the rounded weights of the fp32 one. Beside the weights, the largest
    parameter is held once in float32.
    """
    generator = torch.Generator(device=device)
    weights = {}
    for name, parameter in model_parameters(spec).items():
        generator.manual_seed(_seed_of(seed, name))
        draw = torch.randn(parameter.shape, generator=generator, device=device, dtype=torch.float32)
        if name.endswith("norm"):
            draw.mul_(NORM_JITTER).add_(1.0 - spec.norm.weight_offset)
        elif name.endswith("_bias"):
            draw.mul_(BIAS_STD)
        elif name == "embed":
            draw.mul_(EMBED_STD_TIMES_SQRT_HIDDEN * spec.shape.hidden_size**-0.5)
        else:
            draw.mul_(parameter.shape[-1] ** -0.5)
        weights[name] = draw.to(dtype)
    return weights


def _seed_of(seed: int, name: str) -> int:
    """64 bits that differ between parameters and are the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())
