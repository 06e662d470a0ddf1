"""Residual addition and the RMSNorm after it; one program takes one row.

    x            = x, or the sum of its parts, rounded to the residual's dtype
    y            = x, or rms_norm(x, post_weight) where a block's output is normalised
    new_residual = residual + residual_scale * y
    normed       = rms_norm(new_residual, weight), or without a weight new_residual itself

Shapes  residual, normed, new_residual [num_tokens, hidden_size]; x the same, or [num_parts,
        num_tokens, hidden_size], each part contiguous, as `linear_parts` and `mlp_parts` leave
        it; weights [hidden_size].
Dtypes  all share one of float32, float16, bfloat16 (parts may be float32); sums and means are
        float32. x, y, its product with the scale and new_residual are each rounded to the dtype,
        as in the models.
Bound   memory: moves x.nbytes + 3 * residual.nbytes + weight.nbytes (twice with post_weight).
Order   the weights may be read while the kernel before still runs (`early_start`), so that must
        not be the one that writes them; all else is read when it has ended.
Source  pre-norm residual blocks, arXiv:2002.04745; the norm on a block's output is that of the
        published Gemma 2 and 3 models, without one on the input that of OLMo 2
        (arXiv:2501.00656); the residual scale is that of the published Granite 3 models.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels._common import (
    at_least_fp32,
    check_rows,
    check_tensor,
    early_start,
    scale_by_norm_weight,
)
from infer_core.kernels.rms_norm import norm_warps, rms_norm_ref


def add_rms_norm_ref(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    *,
    post_weight: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    weight_offset: float = 0.0,
    weight_in_fp32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Define the kernel in plain torch; returns (normed, new_residual), arguments untouched."""
    if x.ndim == 3:
        x = at_least_fp32(x).sum(0).to(residual.dtype)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm_ref(
            x, weight, eps, weight_offset=weight_offset, weight_in_fp32=weight_in_fp32
        )

    y = x if post_weight is None else norm(x, post_weight)
    new_residual = residual + y * residual_scale
    return new_residual if weight is None else norm(new_residual, weight), new_residual


@triton.jit
def _add_rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    post_weight_ptr,
    normed_ptr,
    new_residual_ptr,
    stride_x_part,
    stride_x_row,
    stride_residual_row,
    stride_out_row,
    hidden_size,
    eps,
    weight_offset,
    residual_scale,
    NUM_PARTS: tl.constexpr,
    POST_NORM: tl.constexpr,
    NORM: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size
    if POST_NORM:
        post_weight = tl.load(post_weight_ptr + cols, mask=mask, other=0.0)
    if NORM:
        weight = tl.load(weight_ptr + cols, mask=mask, other=0.0)

    if PDL:
        gdc_wait()  # above: only what no kernel before this one writes
    residual = tl.load(residual_ptr + row * stride_residual_row + cols, mask=mask, other=0.0)
    dtype = residual.dtype
    x_ptrs = x_ptr + row * stride_x_row + cols
    x = tl.load(x_ptrs, mask=mask, other=0.0)
    if NUM_PARTS > 1:
        x = x.to(tl.float32)
        for part in tl.static_range(1, NUM_PARTS):
            x += tl.load(x_ptrs + part * stride_x_part, mask=mask, other=0.0)
    x = x.to(dtype)
    if PDL:
        gdc_launch_dependents()

    if POST_NORM:
        x_fp32 = x.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(x_fp32 * x_fp32, axis=0) / hidden_size + eps)
        x = scale_by_norm_weight(x_fp32 * rstd, post_weight, weight_offset, dtype, WEIGHT_IN_FP32)

    scaled = (x.to(tl.float32) * residual_scale).to(dtype)
    new_residual = (residual.to(tl.float32) + scaled.to(tl.float32)).to(dtype)
    tl.store(new_residual_ptr + row * stride_out_row + cols, new_residual, mask=mask)

    if NORM:
        r_fp32 = new_residual.to(tl.float32)
        rstd = tl.rsqrt(tl.sum(r_fp32 * r_fp32, axis=0) / hidden_size + eps)
        y = scale_by_norm_weight(r_fp32 * rstd, weight, weight_offset, dtype, WEIGHT_IN_FP32)
        tl.store(normed_ptr + row * stride_out_row + cols, y, mask=mask)


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor | None,
    eps: float,
    *,
    post_weight: torch.Tensor | None = None,
    residual_scale: float = 1.0,
    weight_offset: float = 0.0,
    weight_in_fp32: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel; same contract as `add_rms_norm_ref`.

    Raises:
        ValueError: a shape or dtype differs from that of `x`, or a last dimension is strided.
    """
    if x.ndim == 3:
        check_rows("add_rms_norm", "residual", residual)
        if x.shape[1:] != residual.shape or not x[0].is_contiguous():
            raise ValueError(
                f"add_rms_norm: parts must be [num_parts, *{tuple(residual.shape)}], contiguous; "
                f"got {tuple(x.shape)}, strides {x.stride()}"
            )
        if x.dtype not in (residual.dtype, torch.float32):
            raise ValueError(
                f"add_rms_norm: parts are {x.dtype}, expected {residual.dtype} or float32"
            )
    else:
        check_rows("add_rms_norm", "x", x)
        check_rows("add_rms_norm", "residual", residual, x.shape[1])
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"add_rms_norm: residual is {residual.dtype} {tuple(residual.shape)}, expected "
                f"x's {x.dtype} {tuple(x.shape)}"
            )
    for name, vector in (("weight", weight), ("post_weight", post_weight)):
        if vector is not None:
            check_tensor("add_rms_norm", name, vector, residual.shape[1:], residual.dtype)
    new_residual = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    normed = new_residual if weight is None else torch.empty_like(new_residual)
    block_size = triton.next_power_of_2(residual.shape[1])
    _add_rms_norm_kernel[(residual.shape[0],)](
        x,
        residual,
        weight,
        post_weight,
        normed,
        new_residual,
        x.stride(0) if x.ndim == 3 else 0,
        x.stride(-2),
        residual.stride(0),
        normed.stride(0),
        residual.shape[1],
        eps,
        weight_offset,
        residual_scale,
        NUM_PARTS=x.shape[0] if x.ndim == 3 else 1,
        POST_NORM=post_weight is not None,
        NORM=weight is not None,
        WEIGHT_IN_FP32=weight_in_fp32,
        BLOCK_SIZE=block_size,
        num_warps=norm_warps(block_size),
        **early_start(residual.shape[0], residual.device),
    )
    return normed, new_residual
