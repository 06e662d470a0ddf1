"""Embedding rows, times a scale; one program copies one block of one row.

    y[i] = weight[tokens[i]] * scale

Shapes  tokens [num_tokens]; weight [vocab_size, hidden_size]; y [num_tokens, hidden_size].
Dtypes  tokens int32 or int64; weight and y share one of float32, float16, bfloat16. `scale` is
        rounded to that dtype first, then the product is rounded once.
Bound   memory: moves 2 * y.nbytes + tokens.nbytes.
Source  the published Gemma models, which round sqrt(hidden_size) to the weights' dtype.
"""

import torch
import triton
import triton.language as tl

from infer_core.kernels._common import check_rows


def embed_ref(tokens: torch.Tensor, weight: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Define the kernel in plain torch."""
    return weight[tokens] * torch.tensor(scale, dtype=weight.dtype)


@triton.jit
def _embed_kernel(
    tokens_ptr,
    weight_ptr,
    y_ptr,
    stride_weight_row,
    vocab_size,
    hidden_size,
    scale,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = cols < hidden_size

    token = tl.load(tokens_ptr + row).to(tl.int64)
    known = (token >= 0) & (token < vocab_size)
    x_ptrs = weight_ptr + tl.where(known, token, 0) * stride_weight_row + cols
    x = tl.load(x_ptrs, mask=mask, other=0.0)
    # an unknown token becomes NaN: reading past the table would give someone else's numbers
    y = tl.where(known, x.to(tl.float32) * scale, float("nan")).to(x.dtype)
    tl.store(y_ptr + row * hidden_size + cols, y, mask=mask)


def embed(tokens: torch.Tensor, weight: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Launch the kernel; as `embed_ref`, but a token outside the vocabulary gives a row of NaN.

    Raises:
        ValueError: `tokens` is not a contiguous vector of integers, or `weight` no float matrix.
    """
    if tokens.ndim != 1 or tokens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"embed: tokens must be [num_tokens], int32 or int64; "
            f"got shape {tuple(tokens.shape)}, {tokens.dtype}"
        )
    if not tokens.is_contiguous():
        raise ValueError(f"embed: tokens must be contiguous; got strides {tokens.stride()}")
    check_rows("embed", "weight", weight)
    vocab_size, hidden_size = weight.shape
    y = torch.empty((tokens.shape[0], hidden_size), dtype=weight.dtype, device=weight.device)
    block_size = min(1024, triton.next_power_of_2(hidden_size))
    _embed_kernel[(tokens.shape[0], triton.cdiv(hidden_size, block_size))](
        tokens,
        weight,
        y,
        weight.stride(0),
        vocab_size,
        hidden_size,
        torch.tensor(scale, dtype=weight.dtype, device="cpu").item(),  # no device sync
        BLOCK_SIZE=block_size,
    )
    return y
