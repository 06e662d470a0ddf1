"""RMSNorm over the last dimension; one program normalises one row.

    y = x / sqrt(mean(x**2) + eps) * (weight + weight_offset)

Shapes  x, y [num_tokens, hidden_size]; weight [hidden_size].
        With in_place, y is x.
Dtypes  x, weight and y share one of float32, float16, bfloat16; the mean is float32.
Bound   memory: moves 2 * x.nbytes + weight.nbytes.
Source  arXiv:1910.07467; the two rounding orders are those of the published
        Llama (weight applied after rounding) and Gemma (before) models.
"""

import torch
import triton
import triton.language as tl

from infer_core.kernels._common import (
    at_least_fp32,
    check_rows,
    check_tensor,
    scale_by_norm_weight,
)


def rms_norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    weight_offset: float = 0.0,
    weight_in_fp32: bool = False,
    in_place: bool = False,
) -> torch.Tensor:
    """Define RMSNorm in plain torch, over the last dimension of any shape."""
    wide = at_least_fp32(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight_in_fp32:
        y = (normed * (at_least_fp32(weight) + weight_offset)).to(x.dtype)
    else:
        y = normed.to(x.dtype) * (weight + weight_offset)
    return x.copy_(y) if in_place else y


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    weight_ptr,
    y_ptr,
    stride_x_row,
    stride_y_row,
    hidden_size,
    eps,
    weight_offset,
    WEIGHT_IN_FP32: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    # int64: row * stride would overflow int32 from 2**31 elements on
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size

    x = tl.load(x_ptr + row * stride_x_row + cols, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + cols, mask=mask, other=0.0)
    x_fp32 = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x_fp32 * x_fp32, axis=0) / hidden_size + eps)

    y = scale_by_norm_weight(x_fp32 * rstd, weight, weight_offset, x.dtype, WEIGHT_IN_FP32)
    tl.store(y_ptr + row * stride_y_row + cols, y, mask=mask)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    weight_offset: float = 0.0,
    weight_in_fp32: bool = False,
    in_place: bool = False,
) -> torch.Tensor:
    """Launch the kernel; same contract as `rms_norm_ref`, for two dimensions.

    Raises:
        ValueError: `x` is not 2-D with a contiguous last dimension, or `weight` does not match
            its width and dtype.
    """
    check_rows("rms_norm", "x", x)
    check_tensor("rms_norm", "weight", weight, x.shape[1:], x.dtype)
    # In place is safe: a program has read its whole row, for the mean, before it writes.
    y = x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block_size = triton.next_power_of_2(x.shape[1])
    _rms_norm_kernel[(x.shape[0],)](
        x,
        weight,
        y,
        x.stride(0),
        y.stride(0),
        x.shape[1],
        eps,
        weight_offset,
        WEIGHT_IN_FP32=weight_in_fp32,
        BLOCK_SIZE=block_size,
        num_warps=norm_warps(block_size),
    )
    return y


def norm_warps(block_size: int) -> int:
    """Warps for a row of `block_size`: 16 elements a thread, at most 16 warps."""
    return max(1, min(16, block_size // 512))
