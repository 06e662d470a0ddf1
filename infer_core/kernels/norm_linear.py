"""RMSNorm and a linear layer in one kernel, for one token: y = act(norm(x) @ weight.T + bias).

    residual = x                                        placement 'pre'
    residual = x + norm(delta, post_weight)             with `delta` (sandwich norms)
    normed   = norm(residual, norm_weight)
    y        = normed @ weight.T + bias                 no activation
    y        = act(g) * u, [g, u] = that product        activation, gated
    y        = act(that product)                        activation, not gated

Shapes  x, delta [hidden_size]; weight [num_rows, hidden_size] (gated: gate rows, then up rows);
        y [num_rows], gated [num_rows / 2].
Dtypes  all of one dtype, float32, float16 or bfloat16; sums are float32, and y is rounded once,
        at the end: closer to the truth than a model that rounds after every operation.
Bound   memory: moves weight.nbytes; a norm recomputed by every program costs no extra launch.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_parts import (
    activate,
    dot_rows,
    load_all,
    load_rows,
    load_vector,
    norm_input,
    split_width,
)
from infer_core.kernels.chain_types import Norm, Tile, check_vectors


def rms_norm_vector_ref(x: torch.Tensor, weight: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Define the norm of the chain in plain torch, with both rounding orders."""
    wide = x if x.dtype == torch.float64 else x.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    if norm.weight_in_fp32:
        return (normed * (weight.to(wide.dtype) + norm.weight_offset)).to(x.dtype)
    return normed.to(x.dtype) * (weight + norm.weight_offset)


def activate_ref(x: torch.Tensor, activation: str) -> torch.Tensor:
    """Define the activations: 'silu', 'gelu_tanh', 'gelu'."""
    if activation == "silu":
        return torch.nn.functional.silu(x)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.nn.functional.gelu(x, approximate=approximate)


def norm_linear_ref(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    norm: Norm,
    *,
    bias: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
    post_weight: torch.Tensor | None = None,
    activation: str | None = None,
    gated: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Define the kernel in plain torch; returns (y, the residual stream)."""
    if delta is not None:
        assert post_weight is not None
        x = x + rms_norm_vector_ref(delta, post_weight, norm)
    y = torch.nn.functional.linear(rms_norm_vector_ref(x, norm_weight, norm), weight, bias)
    if activation is None:
        return y, x
    if gated:
        gate, up = y.chunk(2)
        return activate_ref(gate, activation) * up, x
    return activate_ref(y, activation), x


@triton.jit
def _norm_linear_kernel(
    x_ptr,
    delta_ptr,
    x_out_ptr,
    post_weight_ptr,
    norm_weight_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    ADD_NORMED: tl.constexpr,
    ONE_TILE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATED: tl.constexpr,
    PDL: tl.constexpr,
):
    # num_rows counts rows of y; a gated weight has the up rows num_rows further down
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    main, rest = load_rows(weight_ptr, rows, num_rows, WIDTH, MAIN, REST)
    up_ptr = weight_ptr
    up_main, up_rest = main, rest
    if GATED:
        up_ptr = weight_ptr + tl.cast(num_rows, tl.int64) * WIDTH
        up_main, up_rest = load_rows(up_ptr, rows, num_rows, WIDTH, MAIN, REST)
    weight_main, weight_rest = load_vector(norm_weight_ptr, WIDTH, MAIN, REST)
    post_main, post_rest = weight_main, weight_rest
    if ADD_NORMED:
        post_main, post_rest = load_vector(post_weight_ptr, WIDTH, MAIN, REST)
    post_all = post_main
    if ADD_NORMED and REST > 0:
        post_all = load_all(post_weight_ptr, WIDTH, 2 * MAIN)

    if PDL:
        gdc_wait()  # above: only what no kernel of the chain writes
    x_main, x_rest = norm_input(
        x_ptr, delta_ptr, x_out_ptr, weight_main, weight_rest, post_main, post_rest,
        post_all, WIDTH, MAIN, REST, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32, ADD_NORMED,
    )  # fmt: skip

    dtype = y_ptr.dtype.element_ty
    for _ in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        # the next tile, if there is any, is on its way while this one is multiplied
        next_rows = rows + tl.num_programs(0) * ROWS
        next_main, next_rest, next_up_main, next_up_rest = main, rest, up_main, up_rest
        if not ONE_TILE:
            next_main, next_rest = load_rows(weight_ptr, next_rows, num_rows, WIDTH, MAIN, REST)
        if GATED and not ONE_TILE:
            next_up_main, next_up_rest = load_rows(up_ptr, next_rows, num_rows, WIDTH, MAIN, REST)

        inside = rows < num_rows
        acc = dot_rows(main, rest, x_main, x_rest, REST)
        if HAS_BIAS:
            acc += tl.load(bias_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        y = acc
        if ACTIVATION is not None:
            y = activate(y, ACTIVATION)
        if GATED:
            up = dot_rows(up_main, up_rest, x_main, x_rest, REST)
            if HAS_BIAS:
                up += tl.load(bias_ptr + num_rows + rows, mask=inside, other=0.0).to(tl.float32)
            y *= up
        tl.store(y_ptr + rows, y.to(dtype), mask=inside)

        rows = next_rows
        main, rest, up_main, up_rest = next_main, next_rest, next_up_main, next_up_rest


def norm_linear(
    x: torch.Tensor,
    norm_weight: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    norm: Norm,
    *,
    tile: Tile,
    programs: int,
    bias: torch.Tensor | None = None,
    delta: torch.Tensor | None = None,
    post_weight: torch.Tensor | None = None,
    x_out: torch.Tensor | None = None,
    activation: str | None = None,
    gated: bool = False,
    pdl: bool = False,
    early: bool = True,
) -> None:
    """Launch the kernel into `y` (and `x_out`, with `delta`); as `norm_linear_ref`.

    `early=False`: start after the kernel before has ended, and let only those behind start early.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    hidden = x.shape[-1]
    num_rows = weight.shape[0] // 2 if gated else weight.shape[0]
    check_vectors("norm_linear", x.dtype, hidden, x=x, norm_weight=norm_weight, delta=delta,
                  post_weight=post_weight, x_out=x_out)  # fmt: skip
    check_vectors("norm_linear", x.dtype, num_rows, y=y)
    check_vectors("norm_linear", x.dtype, weight.shape[0], bias=bias)
    if weight.shape[1:] != x.shape or not weight.is_contiguous() or weight.dtype != x.dtype:
        raise ValueError(
            f"norm_linear: weight must be contiguous [num_rows, {hidden}] {x.dtype}; "
            f"got {tuple(weight.shape)} {weight.dtype}, strides {weight.stride()}"
        )
    if (delta is None) != (post_weight is None) or (delta is None) != (x_out is None):
        raise ValueError("norm_linear: delta, post_weight and x_out go together; pass all or none")
    if gated and (activation is None or weight.shape[0] % 2):
        raise ValueError(
            f"norm_linear: a gated weight needs an activation and an even number of rows; "
            f"got activation {activation!r}, {weight.shape[0]} rows"
        )
    main, rest = split_width(hidden)
    num_tiles = triton.cdiv(num_rows, tile.rows)
    _norm_linear_kernel[(min(programs, num_tiles),)](
        x,
        x if delta is None else delta,
        x if x_out is None else x_out,
        norm_weight if post_weight is None else post_weight,
        norm_weight,
        weight,
        weight if bias is None else bias,
        y,
        num_rows,
        WIDTH=hidden,
        MAIN=main,
        REST=rest,
        ROWS=tile.rows,
        EPS=norm.eps,
        WEIGHT_OFFSET=norm.weight_offset,
        WEIGHT_IN_FP32=norm.weight_in_fp32,
        ADD_NORMED=delta is not None,
        ONE_TILE=num_tiles <= programs,
        HAS_BIAS=bias is not None,
        ACTIVATION=activation,
        GATED=gated,
        PDL=pdl,
        num_warps=tile.warps,
        num_stages=1,
        launch_pdl=pdl and early,
    )
