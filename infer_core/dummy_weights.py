"""Seeded random weights, so that a model can be measured without its checkpoint."""

import hashlib

import torch

from infer_core.parameters import model_parameters
from infer_core.specs import ModelSpec

JITTER = 0.1
BRANCH_GAIN = 4.0


def dummy_weights(
    spec: ModelSpec, *, device: torch.device | str, dtype: torch.dtype, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Fill every parameter of a model with numbers under which it behaves like a model.

    Scales follow from the widths, so that tiny and full-size models behave alike:

    - embeddings have unit variance once multiplied by embedding_scale, so the residual stream
      starts at RMS 1;
    - matrices are N(0, 1 / fan_in), which keeps the variance of a normalised input; what returns
      to the residual stream is scaled by BRANCH_GAIN / sqrt(2 * num_layers) (where a norm
      follows, in that norm's weight), so that its growth does not depend on depth;
    - norm weights multiply by 1 within about 10 % (the spec's weight_offset taken off) and
      biases are N(0, 0.1**2), so that a norm or bias left out shows;
    - the final norm is scaled to logits of unit variance and has random signs: without them a
      tied head finds the last token's own embedding in the residual stream, and greedy decoding
      repeats that token.

    BRANCH_GAIN was chosen on transformers' Gemma3 and Llama (512 wide, 26 and 16 layers, 128
    greedy tokens). At 1 the embeddings outweigh the layers, and the outputs end in a cycle of
    two tokens (10 and 4 distinct ones); at 4 each model gave 61 distinct tokens, with a bf16
    error of the logits of 1.9 % and 1.5 %. Unscaled branches without the random signs gave 9
    and 32 distinct tokens, at 2.4 % and 1.7 %.

    A parameter's numbers come from (seed, name) and the kind of device (CPU and CUDA generators
    differ), whatever the order and dtype: they are drawn in float32 and rounded, so a bf16 model
    has exactly the rounded weights of the fp32 one. Beside the weights, one parameter at a time
    is held in float32.
    """
    generator = torch.Generator(device=device)
    weights = {}
    for name, parameter in model_parameters(spec).items():
        generator.manual_seed(_seed_of(seed, name))
        weights[name] = _scaled(
            torch.randn(parameter.shape, generator=generator, device=device, dtype=torch.float32),
            name,
            spec,
        ).to(dtype)
    return weights


def _scaled(draw: torch.Tensor, name: str, spec: ModelSpec) -> torch.Tensor:
    """Turn standard normal numbers into the parameter's, in place."""
    kind = name.rsplit(".", maxsplit=1)[-1]
    hidden = spec.shape.hidden_size
    embed_std = 1.0 / spec.block.embedding_scale
    branch = BRANCH_GAIN * (2 * spec.shape.num_layers) ** -0.5 / spec.block.residual_scale
    if kind == "embed":
        return draw.mul_(embed_std)
    if kind == "final_norm":
        head_std = embed_std if spec.shape.tied_embeddings else hidden**-0.5
        sign = torch.where(draw < 0, -1.0, 1.0)
        factor = (
            draw.mul_(JITTER)
            .add_(1.0)
            .mul_(sign)
            .mul_(hidden**-0.5 / head_std / spec.block.logits_scale)
        )
        return factor.sub_(spec.norm.weight_offset)
    if kind.endswith("norm"):
        factor = draw.mul_(JITTER).add_(1.0).mul_(branch if kind.endswith("post_norm") else 1.0)
        return factor.sub_(spec.norm.weight_offset)
    if kind.endswith("_bias"):
        return draw.mul_(JITTER)
    into_residual = kind in ("attn_out", "mlp_out") and not spec.norm.after
    return draw.mul_(draw.shape[-1] ** -0.5 * (branch if into_residual else 1.0))


def _seed_of(seed: int, name: str) -> int:
    """64 bits that differ between parameters and are the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest())
