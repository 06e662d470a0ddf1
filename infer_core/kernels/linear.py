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

Tiles come through tensor descriptors, which need TMA (compute capability >= 9.0). cuBLAS takes
what they cannot: float32, rows that are no multiple of 16 bytes, and other GPUs; and the
many-token products at which it was measured to be as fast or faster: see `linear_tile` and
`parts_tile`.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from infer_core.kernels._common import (
    check_rows,
    early_start,
    has_descriptors,
    num_multiprocessors,
    shared_memory_bytes,
)
from infer_core.kernels.chain_parts import activate
from infer_core.kernels.gated_activation import activation as plain_activation
from infer_core.kernels.gated_activation import (
    activation_ref,
    gated_activation,
    gated_activation_ref,
)


@dataclass(frozen=True, slots=True)
class LinearTile:
    """Tokens and rows of the weight a program multiplies, width it takes at a time, and parts.

    `halves`: the tiles of a last, mostly idle round of programs may be cut in two.
    """

    tokens: int
    rows: int
    width: int
    warps: int
    stages: int
    parts: int = 1
    halves: bool = False


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


@triton.jit
def _linear_tile(
    x_desc,
    weight_desc,
    bias_ptr,
    y_ptr,
    first_token,
    first_row,
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
    # gate and up side by side in one product: half the loads and barriers of two
    COLUMNS: tl.constexpr = 2 * BLOCK_ROWS if GATED else BLOCK_ROWS
    part = tl.program_id(1)
    acc = tl.zeros((BLOCK_TOKENS, COLUMNS), tl.float32)
    for step in range(0, PART_WIDTH, BLOCK_WIDTH):
        col = part * PART_WIDTH + step  # a descriptor gives zeros beyond the width
        x = x_desc.load([first_token, col])
        weight = tl.reshape(weight_desc.load([0, first_row, col]), (COLUMNS, BLOCK_WIDTH))
        acc = tl.dot(x, weight.T, acc, input_precision="ieee")
    if GATED:
        halves = tl.reshape(acc, (BLOCK_TOKENS, 2, BLOCK_ROWS))
        acc, up = tl.split(tl.permute(halves, (0, 2, 1)))

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


# The number of tokens changes with every prompt: specialising on it would recompile in a request.
@triton.jit(do_not_specialize=["num_tokens", "whole_rows"])
def _linear_kernel(
    x_desc,
    weight_desc,
    half_desc,
    bias_ptr,
    y_ptr,
    num_tokens,
    num_rows,
    whole_rows,
    PART_WIDTH: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HALVES: tl.constexpr,
    RELEASE: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_wait()
    if PDL and RELEASE:
        gdc_launch_dependents()
    # num_rows counts columns of y. The first `whole_rows` tiles of them are whole; two programs
    # share each of the others, which there are with HALVES only.
    token_tiles = tl.cdiv(num_tokens, BLOCK_TOKENS)
    program = tl.program_id(0)
    if program < whole_rows * token_tiles:
        # Programs that run at the same time take 8 tiles of tokens by as many of rows, so that
        # both stay in the L2 cache.
        band = 8 * whole_rows
        first_tile = program // band * 8
        band_tiles = tl.minimum(token_tiles - first_tile, 8)
        _linear_tile(
            x_desc, weight_desc, bias_ptr, y_ptr,
            (first_tile + program % band % band_tiles) * BLOCK_TOKENS,
            (program % band // band_tiles) * BLOCK_ROWS,
            num_tokens, num_rows,
            PART_WIDTH, BLOCK_TOKENS, BLOCK_ROWS, BLOCK_WIDTH, ACTIVATION, GATED, HAS_BIAS,
        )  # fmt: skip
    elif HALVES:
        rest = program - whole_rows * token_tiles
        _linear_tile(
            x_desc, half_desc, bias_ptr, y_ptr,
            rest % token_tiles * BLOCK_TOKENS,
            whole_rows * BLOCK_ROWS + rest // token_tiles * (BLOCK_ROWS // 2),
            num_tokens, num_rows,
            PART_WIDTH, BLOCK_TOKENS, BLOCK_ROWS // 2, BLOCK_WIDTH, ACTIVATION, GATED, HAS_BIAS,
        )  # fmt: skip


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
    return launch_linear(x, weight, bias, tile, release=True)  # a norm follows


def launch_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tile: LinearTile,
    *,
    activation: str | None = None,
    gated: bool = False,
    release: bool = False,
) -> torch.Tensor:
    """Launch the kernel with a tile; returns [parts, num_tokens, columns], float32 if several.

    `release`: let the next kernel start beside this one, where `early_start` allows it.
    """
    num_weights = 2 if gated else 1
    tile = fit_tile(tile, num_weights, x.element_size(), shared_memory_bytes(x.device))
    num_tokens, width = x.shape
    columns = weight.shape[0] // num_weights
    steps = triton.cdiv(width, tile.width)
    part_steps = triton.cdiv(steps, tile.parts)
    parts = triton.cdiv(steps, part_steps)  # none of them empty
    dtype = x.dtype if parts == 1 else torch.float32
    y = torch.empty((parts, num_tokens, columns), dtype=dtype, device=x.device)
    token_tiles = triton.cdiv(num_tokens, tile.tokens)
    row_tiles = triton.cdiv(columns, tile.rows)
    whole_rows = row_tiles
    if tile.halves:
        whole_rows = whole_row_tiles(token_tiles, row_tiles, num_multiprocessors(x.device))
    has_halves = whole_rows < row_tiles
    weights = weight.unflatten(0, (num_weights, columns))
    weight_desc = TensorDescriptor.from_tensor(weights, [num_weights, tile.rows, tile.width])
    half_desc = weight_desc
    if has_halves:
        half_desc = TensorDescriptor.from_tensor(weights, [num_weights, tile.rows // 2, tile.width])
    programs = token_tiles * (2 * row_tiles - whole_rows)
    _linear_kernel[(programs, parts)](
        TensorDescriptor.from_tensor(x, [tile.tokens, tile.width]),
        weight_desc,
        half_desc,
        weight if bias is None else bias,
        y,
        num_tokens,
        columns,
        whole_rows,
        PART_WIDTH=part_steps * tile.width,
        BLOCK_TOKENS=tile.tokens,
        BLOCK_ROWS=tile.rows,
        BLOCK_WIDTH=tile.width,
        ACTIVATION=activation,
        GATED=gated,
        HAS_BIAS=bias is not None,
        HALVES=has_halves,
        RELEASE=release,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **early_start(num_tokens, x.device),
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
        parts = max(1, min(num_sms // tiles, width // 512))
        return LinearTile(64, 128, 128, 4, 4, parts=parts)
    tiles = triton.cdiv(num_tokens, 128) * triton.cdiv(num_rows, 128)
    if 4 * tiles <= 3 * num_sms and width >= 4096:  # cuBLAS would leave multiprocessors idle
        return LinearTile(128, 128, 64, 8, 3, parts=max(1, 2 * num_sms // tiles))
    return None


def whole_row_tiles(token_tiles: int, row_tiles: int, num_sms: int) -> int:
    """How many row tiles to keep whole, for programs of which a multiprocessor holds one.

    The tiles beyond full rounds of programs are cut in two where all halves still fit one round:
    it then takes half as long. A prefill with 432 tiles on 132 multiprocessors gained 3 %, one with
    512, whose last round is nearly full, lost.
    """
    whole = token_tiles * row_tiles // num_sms * num_sms // token_tiles
    fits = 2 * token_tiles * (row_tiles - whole) <= num_sms
    return whole if whole and fits else row_tiles


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
    return LinearTile(128, 128, 64, 8, 4, halves=True)
