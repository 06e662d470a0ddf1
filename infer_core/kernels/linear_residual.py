"""A linear layer and the residual add in one kernel, for one token: y = residual + x @ weight.T + b.

Shapes  x [width]; weight [num_rows, width]; y, residual [num_rows], which may be one buffer.
Dtypes  all of one dtype; sums are float32, rounded once before the residual add.
Bound   memory: moves weight.nbytes.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_parts import dot_rows, load_rows, load_vector, split_width
from infer_core.kernels.chain_types import Tile, check_vectors


def linear_residual_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Define the kernel in plain torch."""
    y = torch.nn.functional.linear(x, weight, bias)
    return y if residual is None else residual + y


@triton.jit
def _linear_residual_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    main, rest = load_rows(weight_ptr, rows, num_rows, WIDTH, MAIN, REST)

    if PDL:
        gdc_wait()  # above: only what no kernel of the chain writes
    dtype = y_ptr.dtype.element_ty
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + rows, mask=rows < num_rows, other=0.0)
    x_main, x_rest = load_vector(x_ptr, WIDTH, MAIN, REST)
    x_main = x_main.to(tl.float32)
    x_rest = x_rest.to(tl.float32)

    for _ in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        # the next tile is on its way while this one is multiplied
        next_rows = rows + tl.num_programs(0) * ROWS
        next_main, next_rest = load_rows(weight_ptr, next_rows, num_rows, WIDTH, MAIN, REST)

        inside = rows < num_rows
        acc = dot_rows(main, rest, x_main, x_rest, REST)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        y = acc.to(dtype)
        if HAS_RESIDUAL:
            y = (residual.to(tl.float32) + y.to(tl.float32)).to(dtype)
            residual = tl.load(residual_ptr + next_rows, mask=next_rows < num_rows, other=0.0)
        tl.store(y_ptr + rows, y, mask=inside)

        rows = next_rows
        main, rest = next_main, next_rest


def linear_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    *,
    tile: Tile,
    programs: int,
    residual: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    pdl: bool = False,
) -> None:
    """Launch the kernel into `y`; same contract as `linear_residual_ref`.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    num_rows, width = weight.shape
    check_vectors("linear_residual", weight.dtype, width, x=x)
    check_vectors("linear_residual", weight.dtype, num_rows, y=y, residual=residual, bias=bias)
    if not weight.is_contiguous():
        raise ValueError(f"linear_residual: weight must be contiguous, has {weight.stride()}")
    main, rest = split_width(width)
    _linear_residual_kernel[(min(programs, triton.cdiv(num_rows, tile.rows)),)](
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        y,
        num_rows,
        WIDTH=width,
        MAIN=main,
        REST=rest,
        ROWS=tile.rows,
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        PDL=pdl,
        num_warps=tile.warps,
        num_stages=1,
        launch_pdl=pdl,
    )
