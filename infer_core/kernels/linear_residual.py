"""A linear layer and the residual add in one kernel: y = residual + x @ weight.T + bias.

`x` is a vector, or the attention output still in parts (`lse` given), which every program merges:

    weight[p, head] = exp(lse[p, head]) / sum over parts of the same
    x[head, :]      = sum over parts of weight[p, head] * partial[p, head, :]

Shapes  x [width], or partial [num_parts, num_heads * head_dim] with lse [num_parts, num_heads];
        weight [num_rows, width]; y, residual [num_rows], which may be one buffer.
Dtypes  all of one dtype, lse float32; sums are float32, y is rounded once, at the end.
Bound   memory: moves weight.nbytes (and the parts, from L2, once a program).
"""

# mypy: disable-error-code="assignment, unreachable"
# (tuples that grow in an unrolled loop, which only Triton's compiler runs)
import math

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_parts import dot_rows, load_rows, load_vector, split_width
from infer_core.kernels.chain_types import Tile, check_vectors

# Registers a thread may take to merge parts: two programs of 8 warps leave a quarter of those of a
# multiprocessor to the next kernel, which can start early only where it fits beside them. Left to
# itself the compiler takes a few more, or fewer (64) and loads the parts later.
MERGE_REGISTERS = 96


def merge_parts_ref(partial: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    """Define the merge of attention parts; NaN rows are parts that hold no token yet."""
    used = ~lse.isnan().any(-1)
    share = torch.softmax(lse[used].to(torch.promote_types(partial.dtype, torch.float32)), dim=0)
    heads = partial[used].unflatten(-1, (lse.shape[1], -1)).to(share.dtype)
    merged: torch.Tensor = (share[..., None] * heads).sum(0).flatten()
    return merged.to(partial.dtype)


def linear_residual_ref(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    lse: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Define the kernel in plain torch."""
    if lse is not None:
        x = merge_parts_ref(x, lse)
    y = torch.nn.functional.linear(x, weight, bias)
    return y if residual is None else residual + y


@triton.jit
def _merge_parts(
    partial_ptr,
    lse_ptr,
    num_parts,
    FIRST: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VECTOR: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
):
    """Merge SIZE columns from FIRST on, of all parts in use; float32 [SIZE], not yet rounded.

    VECTOR divides HEAD_DIM: so many neighbouring columns share one lse load. Part 0, the new
    token, starts the online softmax; it always exists.
    """
    chunks = FIRST + tl.arange(0, SIZE // VECTOR) * VECTOR
    cols = chunks[:, None] + tl.arange(0, VECTOR)[None, :]
    inside = chunks < WIDTH
    lse_ptr += chunks // HEAD_DIM
    best = tl.load(lse_ptr, mask=inside, other=0.0)
    acc = tl.load(partial_ptr + cols, mask=inside[:, None], other=0.0).to(tl.float32)
    total = tl.full((SIZE // VECTOR,), 1.0, tl.float32)
    for first in range(1, num_parts, PARTS_AT_ONCE):
        # all loads of these parts stand before their first use: the compiler keeps that order
        lses = ()
        partials = ()
        for step in tl.static_range(PARTS_AT_ONCE):
            mask = (chunks < WIDTH) & (chunks * 0 + first + step < num_parts)
            lses += (
                tl.load(
                    lse_ptr + (first + step) * (WIDTH // HEAD_DIM), mask=mask, other=float("-inf")
                ),
            )
            partials += (
                tl.load(partial_ptr + (first + step) * WIDTH + cols, mask=mask[:, None], other=0.0),
            )
        # one maximum for all of them, so that no exponential waits for the one before
        new_best = best
        for step in tl.static_range(PARTS_AT_ONCE):
            new_best = tl.maximum(new_best, lses[step])
        scale = tl.exp(best - new_best)
        total *= scale
        acc *= scale[:, None]
        for step in tl.static_range(PARTS_AT_ONCE):
            share = tl.exp(lses[step] - new_best)
            total += share
            acc += share[:, None] * partials[step].to(tl.float32)
        best = new_best
    return tl.reshape(acc * (1.0 / total)[:, None], (SIZE,))


@triton.jit
def _linear_residual_kernel(
    x_ptr,
    lse_ptr,
    position_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    capacity,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    VECTOR: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
    ONE_TILE: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PDL: tl.constexpr,
):
    # SPLIT: cache slots a split, 0 when x is a plain vector
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    main, rest = load_rows(weight_ptr, rows, num_rows, WIDTH, MAIN, REST)
    num_parts = 0
    if SPLIT > 0:
        # written at the end of an earlier step, so it may be read before the wait
        past = tl.minimum(tl.load(position_ptr), capacity)
        num_parts = 1 + tl.cdiv(past, SPLIT)

    if PDL:
        gdc_wait()  # above: only what no kernel of this step has written
    dtype = y_ptr.dtype.element_ty
    # before the long way to x, so that it is there when the products are
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + rows, mask=rows < num_rows, other=0.0)
    if SPLIT > 0:
        x_main = _merge_parts(
            x_ptr, lse_ptr, num_parts, 0, MAIN, WIDTH, HEAD_DIM, VECTOR, PARTS_AT_ONCE
        )  # fmt: skip
        x_rest = x_main
        if REST > 0:
            x_rest = _merge_parts(
                x_ptr, lse_ptr, num_parts, MAIN, REST, WIDTH, HEAD_DIM, VECTOR, PARTS_AT_ONCE
            )  # fmt: skip
    else:
        x_main, x_rest = load_vector(x_ptr, WIDTH, MAIN, REST)
        x_main = x_main.to(tl.float32)
        x_rest = x_rest.to(tl.float32)

    for _ in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        # the next tile, if there is any, is on its way while this one is multiplied
        next_rows = rows + tl.num_programs(0) * ROWS
        next_main, next_rest = main, rest
        if not ONE_TILE:
            next_main, next_rest = load_rows(weight_ptr, next_rows, num_rows, WIDTH, MAIN, REST)

        inside = rows < num_rows
        acc = dot_rows(main, rest, x_main, x_rest, REST)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            acc += residual.to(tl.float32)
            if not ONE_TILE:
                residual = tl.load(residual_ptr + next_rows, mask=next_rows < num_rows, other=0.0)
        tl.store(y_ptr + rows, acc.to(dtype), mask=inside)

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
    lse: torch.Tensor | None = None,
    position: torch.Tensor | None = None,
    capacity: int = 0,
    split: int = 0,
    pdl: bool = False,
) -> None:
    """Launch the kernel into `y`; as `linear_residual_ref`, reading only the parts in use.

    With `lse`, `position` (int32 [1]), `capacity` and `split` (slots of the cache, slots of a
    part) say how many parts the attention of this step wrote.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    num_rows, width = weight.shape
    if lse is None:
        check_vectors("linear_residual", weight.dtype, width, x=x)
    elif position is None or split < 1 or capacity < 1:
        raise ValueError(
            f"linear_residual: lse needs position, capacity >= 1 and split >= 1; "
            f"got position {position}, capacity {capacity}, split {split}"
        )
    elif (
        x.dtype != weight.dtype
        or not (x.is_contiguous() and lse.is_contiguous())
        or x.shape != (lse.shape[0], width)
        or width % lse.shape[1]
        or (lse.shape[0] - 1) * split < capacity
    ):
        raise ValueError(
            f"linear_residual: partial must be contiguous [num_parts, {width}] {weight.dtype} and "
            f"lse [num_parts, num_heads], (num_parts - 1) * {split} >= {capacity}; got "
            f"{tuple(x.shape)} {x.dtype} and {tuple(lse.shape)}"
        )
    check_vectors("linear_residual", weight.dtype, num_rows, y=y, residual=residual, bias=bias)
    if not weight.is_contiguous():
        raise ValueError(f"linear_residual: weight must be contiguous, has {weight.stride()}")
    main, rest = split_width(width)
    head_dim = 1 if lse is None else width // lse.shape[1]
    parts_at_once = 1 if lse is None else min(8, triton.next_power_of_2(lse.shape[0] - 1))
    # with more to hold than these a thread would spill, which costs more than it gains
    columns = main / (32 * tile.warps)
    holds_little = x.element_size() <= 2 and columns <= 8 and tile.rows * columns <= 64
    num_tiles = triton.cdiv(num_rows, tile.rows)
    _linear_residual_kernel[(min(programs, num_tiles),)](
        x,
        x if lse is None else lse,
        x if position is None else position,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        y,
        num_rows,
        capacity,
        WIDTH=width,
        MAIN=main,
        REST=rest,
        ROWS=tile.rows,
        HEAD_DIM=head_dim,
        SPLIT=0 if lse is None else split,
        VECTOR=math.gcd(head_dim, min(8, max(1, main // (32 * tile.warps)))),
        PARTS_AT_ONCE=parts_at_once,
        ONE_TILE=num_tiles <= programs,
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        PDL=pdl,
        num_warps=tile.warps,
        maxnreg=MERGE_REGISTERS if lse is not None and holds_little else None,
        num_stages=1,
        launch_pdl=pdl,
    )
