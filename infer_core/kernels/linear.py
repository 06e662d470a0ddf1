"""Linear layers of many tokens, with what follows them: an activation, or a sum left in parts.

    linear             y = x @ weight.T + bias
    linear_activation  y = act(g) * u, [g, u] = x @ weight.T + bias     gated
                       y = act(x @ weight.T + bias)                     not gated
    linear_parts       parts, whose sum is x @ weight.T + bias

Parts share a matrix with few rows among all multiprocessors: each is the product over its share of
the width. `add_rms_norm`, which reads the result anyhow, adds them up.

Shapes  x [num_tokens, width]; weight [num_rows, width] (gated: gate rows, then up rows), bias
        [num_rows]; y [num_tokens, num_rows], gated [num_tokens, num_rows / 2]; parts [num_parts,
        num_tokens, num_rows].
Dtypes  x, weight, bias and y share one of float32, float16, bfloat16. Sums are float32, the
        activation too, and y is rounded once; several parts are float32, a single one may be of
        x's dtype.
Bound   memory for few tokens, moves weight.nbytes; compute for many, 2 * num_tokens * num_rows *
        width FLOPs. In half precision that is num_tokens FLOPs a byte of the weight.

Tiles come through tensor descriptors (TMA where the GPU has it). cuBLAS takes what they cannot:
float32, and rows that are no multiple of 16 bytes; and the many-token products at which it was
measured to be as fast or faster: see `linear_tile` and `parts_tile`.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from infer_core.kernels._common import check_rows, num_multiprocessors, shared_memory_bytes
from infer_core.kernels.chain_parts import activate
from infer_core.kernels.gated_activation import activation as plain_activation
from infer_core.kernels.gated_activation import (
    activation_ref,
    gated_activation,
    gated_activation_ref,
)


@dataclass(frozen=True, slots=True)
class LinearTile:
    """Tokens and rows of the weight a program multiplies, width it takes at a time, and parts."""

    tokens: int
    rows: int
    width: int
    warps: int
    stages: int
    parts: int = 1


def linear_ref(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Define `linear` in plain torch."""
    return torch.nn.functional.linear(x, weight, bias)


def linear_activation_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str,
    gated: bool,
) -> torch.Tensor:
    """Define `linear_activation` in plain torch."""
    wide = torch.nn.functional.linear(x, weight, bias)
    return gated_activation_ref(wide, activation) if gated else activation_ref(wide, activation)


def linear_parts_ref(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Define `linear_parts` in plain torch: in one part."""
    return torch.nn.functional.linear(x, weight, bias)[None]


# The number of tokens changes with every prompt: specialising on it would recompile in a request.
@triton.jit(do_not_specialize=["num_tokens"])
def _linear_kernel(
    x_desc,
    weight_desc,
    bias_ptr,
    y_ptr,
    num_tokens,
    num_rows,
    PART_WIDTH: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    # num_rows counts columns of y; a gated weight has the up rows num_rows further down
    # Programs that run at the same time take 8 tiles of tokens by as many of rows, so that both
    # stay in the L2 cache.
    token_tiles = tl.cdiv(num_tokens, BLOCK_TOKENS)
    row_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    band = 8 * row_tiles
    first_tile = tl.program_id(0) // band * 8
    band_tiles = tl.minimum(token_tiles - first_tile, 8)
    first_token = (first_tile + tl.program_id(0) % band % band_tiles) * BLOCK_TOKENS
    first_row = (tl.program_id(0) % band // band_tiles) * BLOCK_ROWS

    part = tl.program_id(1)
    acc = tl.zeros((BLOCK_TOKENS, BLOCK_ROWS), tl.float32)
    up = acc
    for step in range(0, PART_WIDTH, BLOCK_WIDTH):
        col = part * PART_WIDTH + step  # a descriptor gives zeros beyond the width
        x = x_desc.load([first_token, col])
        weight = weight_desc.load([first_row, col])
        acc = tl.dot(x, weight.T, acc, input_precision="ieee")
        if GATED:
            up_weight = weight_desc.load([num_rows + first_row, col])
            up = tl.dot(x, up_weight.T, up, input_precision="ieee")

    tokens = first_token + tl.arange(0, BLOCK_TOKENS)
    rows = first_row + tl.arange(0, BLOCK_ROWS)
    inside = rows < num_rows
    if HAS_BIAS:
        is_first = rows < tl.where(part == 0, num_rows, 0)
        bias = tl.load(bias_ptr + rows, mask=is_first, other=0.0)
        acc += bias.to(tl.float32)[None, :]
        if GATED:
            bias = tl.load(bias_ptr + num_rows + rows, mask=inside, other=0.0)
            up += bias.to(tl.float32)[None, :]
    if ACTIVATION is not None:
        acc = activate(acc, ACTIVATION)
    if GATED:
        acc *= up
    # int64: parts of a long piece of a wide model overflow int32
    y_rows = part.to(tl.int64) * num_tokens + tokens
    y_ptrs = y_ptr + y_rows[:, None] * num_rows + rows[None, :]
    mask = (tokens < num_tokens)[:, None] & inside[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=mask)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Launch the kernel, or cuBLAS for many tokens; same contract as `linear_ref`.

    Raises:
        ValueError: a shape, dtype or stride is not as the file's docstring says.
    """
    check_linear("linear", x, weight, bias)
    tile = linear_tile(x.shape[0], weight.shape[0], num_multiprocessors(x.device))
    if tile is None or not has_descriptors(x, weight):
        return torch.nn.functional.linear(x, weight, bias)
    return launch_linear(x, weight, bias, tile)[0]


def linear_activation(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str,
    gated: bool,
) -> torch.Tensor:
    """Launch the kernel; same contract as `linear_activation_ref`.

    Raises:
        ValueError: a shape, dtype or stride is not as the file's docstring says.
    """
    check_linear("linear_activation", x, weight, bias)
    if gated and weight.shape[0] % 2:
        raise ValueError(
            f"linear_activation: a gated weight holds two halves, but has {weight.shape[0]} rows"
        )
    if not has_descriptors(x, weight):
        wide = torch.nn.functional.linear(x, weight, bias)
        return gated_activation(wide, activation) if gated else plain_activation(wide, activation)
    tile = activation_tile(x.shape[0])
    return launch_linear(x, weight, bias, tile, activation=activation, gated=gated)[0]


def linear_parts(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Launch the kernel, or cuBLAS for many tokens; parts that add up to `linear_ref`.

    Raises:
        ValueError: a shape, dtype or stride is not as the file's docstring says.
    """
    check_linear("linear_parts", x, weight, bias)
    num_rows, width = weight.shape
    tile = parts_tile(x.shape[0], num_rows, width, num_multiprocessors(x.device))
    if tile is None or not has_descriptors(x, weight):
        return torch.nn.functional.linear(x, weight, bias)[None]
    return launch_linear(x, weight, bias, tile)


def launch_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tile: LinearTile,
    *,
    activation: str | None = None,
    gated: bool = False,
) -> torch.Tensor:
    """Launch the kernel with a tile; returns [parts, num_tokens, columns], float32 if several."""
    tile = fit_tile(tile, 2 if gated else 1, x.element_size(), shared_memory_bytes(x.device))
    num_tokens, width = x.shape
    columns = weight.shape[0] // 2 if gated else weight.shape[0]
    steps = triton.cdiv(width, tile.width)
    part_steps = triton.cdiv(steps, tile.parts)
    parts = triton.cdiv(steps, part_steps)  # none of them empty
    dtype = x.dtype if parts == 1 else torch.float32
    y = torch.empty((parts, num_tokens, columns), dtype=dtype, device=x.device)
    tiles = triton.cdiv(num_tokens, tile.tokens) * triton.cdiv(columns, tile.rows)
    _linear_kernel[(tiles, parts)](
        TensorDescriptor.from_tensor(x, [tile.tokens, tile.width]),
        TensorDescriptor.from_tensor(weight, [tile.rows, tile.width]),
        weight if bias is None else bias,
        y,
        num_tokens,
        columns,
        PART_WIDTH=part_steps * tile.width,
        BLOCK_TOKENS=tile.tokens,
        BLOCK_ROWS=tile.rows,
        BLOCK_WIDTH=tile.width,
        ACTIVATION=activation,
        GATED=gated,
        HAS_BIAS=bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y


def check_linear(
    kernel: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Refuse operands that do not fit together."""
    check_rows(kernel, "x", x)
    check_rows(kernel, "weight", weight, x.shape[1])
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError(f"{kernel}: weight and bias must be {x.dtype}, as x is")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{kernel}: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},)"
        )


def has_descriptors(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether tensor cores take the dtype and tensor descriptors the rows of both."""
    return x.dtype != torch.float32 and all(
        t.stride(0) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0 for t in (x, weight)
    )


def fit_tile(tile: LinearTile, num_weights: int, itemsize: int, limit: int) -> LinearTile:
    """Load ahead less, or narrower pieces, until the buffers of `tile` fit `limit` bytes.

    `num_weights`: tiles of the weight beside that of x, two of a gated one.
    """
    while itemsize * tile.stages * tile.width * (tile.tokens + num_weights * tile.rows) > limit:
        if tile.stages > 2:
            tile = replace(tile, stages=tile.stages - 1)
        else:
            tile = replace(tile, width=tile.width // 2)
    return tile


# Tried on an H100 (132 multiprocessors, triton 3.6), bf16, 64, 256 and 1,024 tokens, the four
# matrices of three models of width 1152 and 2048, 7 to 66 tiles each, against cuBLAS.


def linear_tile(num_tokens: int, num_rows: int, num_sms: int) -> LinearTile | None:
    """Return the tile of a product kept whole; None where cuBLAS is as fast or faster."""
    if num_tokens <= 64:
        return LinearTile(64, 32 if num_rows >= 16 * num_sms else 16, 128, 4, 4)
    if num_tokens <= 256:
        tiles = triton.cdiv(num_tokens, 64) * triton.cdiv(num_rows, 128)
        return LinearTile(64, 128 if 3 * tiles >= 2 * num_sms else 64, 128, 4, 4)
    return None


def parts_tile(num_tokens: int, num_rows: int, width: int, num_sms: int) -> LinearTile | None:
    """Return the tile of a product in parts; None where cuBLAS is as fast or faster."""
    if num_tokens <= 64:
        tiles = triton.cdiv(num_rows, 32)
        return LinearTile(64, 32, 128, 4, 4, parts=_parts(tiles, width, num_sms))
    if num_tokens <= 256:
        tiles = triton.cdiv(num_tokens, 64) * triton.cdiv(num_rows, 128)
        return LinearTile(64, 128, 128, 4, 4, parts=_parts(tiles, width, num_sms))
    tiles = triton.cdiv(num_tokens, 128) * triton.cdiv(num_rows, 128)
    if 4 * tiles <= 3 * num_sms and width >= 4096:  # cuBLAS would leave multiprocessors idle
        return LinearTile(128, 128, 64, 8, 3, parts=max(1, 2 * num_sms // tiles))
    return None


def _parts(tiles: int, width: int, num_sms: int) -> int:
    """As many parts, a power of two, as have a multiprocessor each; of 256 columns at least."""
    parts = 1
    while 2 * parts * tiles <= num_sms * 9 // 8 and width >= 512 * parts:
        parts *= 2
    return parts


def activation_tile(num_tokens: int) -> LinearTile:
    """Return the tile of a product with an activation; the gated one has two sums."""
    if num_tokens <= 64:
        return LinearTile(64, 32, 128, 4, 3)
    if num_tokens <= 128:
        return LinearTile(64, 64, 128, 4, 3)
    return LinearTile(128, 128, 64, 8, 4)
