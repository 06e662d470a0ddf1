"""The operations of the forward pass, twice: Triton kernels, and their plain-torch references.

CUDA runs the kernels, always; a CPU runs the references. There is no silent fallback from one
to the other: `ops_for` is asked once, when the decoder is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from infer_core.kernels.add_rms_norm import add_rms_norm, add_rms_norm_ref
from infer_core.kernels.attention import prefill_attention, prefill_attention_ref
from infer_core.kernels.decode_attention import decode_attention, decode_attention_ref
from infer_core.kernels.embedding import embed, embed_ref
from infer_core.kernels.linear import (
    linear,
    linear_activation,
    linear_activation_ref,
    linear_parts,
    linear_parts_ref,
    linear_ref,
)
from infer_core.kernels.mlp import mlp_flags, mlp_flags_ref, mlp_parts, mlp_parts_ref
from infer_core.kernels.qk_norm_rope import qk_norm_rope, qk_norm_rope_ref
from infer_core.kernels.qkv_linear import qkv_linear, qkv_linear_ref
from infer_core.kernels.rms_norm import rms_norm, rms_norm_ref
from infer_core.kernels.write_kv import write_kv, write_kv_ref


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of every operation; signatures are those of the kernel files."""

    name: Literal["triton", "reference"]
    embed: Callable[..., torch.Tensor]
    linear: Callable[..., torch.Tensor]
    qkv_linear: Callable[..., torch.Tensor]
    linear_parts: Callable[..., torch.Tensor]
    linear_activation: Callable[..., torch.Tensor]
    mlp_flags: Callable[..., torch.Tensor | None]
    mlp_parts: Callable[..., torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    qk_norm_rope: Callable[..., None]
    write_kv: Callable[..., None]
    prefill_attention: Callable[..., torch.Tensor]
    decode_attention: Callable[..., torch.Tensor]


TRITON = Ops(
    "triton",
    embed,
    linear,
    qkv_linear,
    linear_parts,
    linear_activation,
    mlp_flags,
    mlp_parts,
    rms_norm,
    add_rms_norm,
    qk_norm_rope,
    write_kv,
    prefill_attention,
    decode_attention,
)
REFERENCE = Ops(
    "reference",
    embed_ref,
    linear_ref,
    qkv_linear_ref,
    linear_parts_ref,
    linear_activation_ref,
    mlp_flags_ref,
    mlp_parts_ref,
    rms_norm_ref,
    add_rms_norm_ref,
    qk_norm_rope_ref,
    write_kv_ref,
    prefill_attention_ref,
    decode_attention_ref,
)


def ops_for(device: torch.device) -> Ops:
    """Triton on a GPU, the references on a CPU."""
    return TRITON if device.type == "cuda" else REFERENCE
