"""Final norm, LM head and the first half of argmax in one kernel, for one token.

    residual = x, or x + norm(delta, post_weight) with sandwich norms
    logits   = norm(residual, norm_weight) @ weight.T, then cap * tanh(logits / cap) if capped
    without a norm, x @ weight.T: the last row of a prefill comes normalised

Every program also leaves the largest of its logits and the smallest row that has it;
`pick_embed` finishes the argmax over these candidates.

Shapes  x, delta [hidden_size]; weight [vocab_size, hidden_size]; logits [vocab_size];
        best_value float32 and best_index int32 [programs].
Dtypes  x and weight of one dtype; sums and logits are float32, not rounded again. Candidates are
        those of an argmax over `logits`.
Bound   memory: moves weight.nbytes.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_parts import (
    dot_rows,
    load_all,
    load_rows,
    load_vector,
    norm_input,
    soft_cap,
    split_width,
)
from infer_core.kernels.chain_types import Norm, Tile, check_vectors
from infer_core.kernels.norm_linear import norm_linear_ref


def lm_head_ref(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    weight: torch.Tensor,
    norm: Norm | None,
    *,
    delta: torch.Tensor | None = None,
    post_weight: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Define the logits in plain torch; the candidates are those of `logits.argmax()`."""
    if norm_weight is None or norm is None:
        logits = torch.nn.functional.linear(x, weight)
    else:
        logits, _ = norm_linear_ref(
            x, norm_weight, weight, norm, delta=delta, post_weight=post_weight
        )
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


@triton.jit
def _lm_head_kernel(
    x_ptr,
    delta_ptr,
    x_out_ptr,
    post_weight_ptr,
    norm_weight_ptr,
    weight_ptr,
    logits_ptr,
    best_value_ptr,
    best_index_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
    WEIGHT_OFFSET: tl.constexpr,
    WEIGHT_IN_FP32: tl.constexpr,
    ADD_NORMED: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    main, rest = load_rows(weight_ptr, rows, num_rows, WIDTH, MAIN, REST)
    weight_main, weight_rest = main, rest
    if NORM:
        weight_main, weight_rest = load_vector(norm_weight_ptr, WIDTH, MAIN, REST)
    post_main, post_rest = weight_main, weight_rest
    if ADD_NORMED:
        post_main, post_rest = load_vector(post_weight_ptr, WIDTH, MAIN, REST)
    post_all = post_main
    if ADD_NORMED and REST > 0:
        post_all = load_all(post_weight_ptr, WIDTH, 2 * MAIN)

    if PDL:
        gdc_wait()  # above: only what no kernel of the chain writes
    if NORM:
        x_main, x_rest = norm_input(
            x_ptr, delta_ptr, x_out_ptr, weight_main, weight_rest, post_main, post_rest,
            post_all, WIDTH, MAIN, REST, EPS, WEIGHT_OFFSET, WEIGHT_IN_FP32, ADD_NORMED,
        )  # fmt: skip
    else:
        x_main, x_rest = load_vector(x_ptr, WIDTH, MAIN, REST)
        x_main = x_main.to(tl.float32)
        x_rest = x_rest.to(tl.float32)

    best_value = tl.full((ROWS,), float("-inf"), tl.float32)
    best_index = tl.full((ROWS,), 2147483647, tl.int32)
    for _ in range(tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.num_programs(0)):
        # the next tile is on its way while this one is multiplied
        next_rows = rows + tl.num_programs(0) * ROWS
        next_main, next_rest = load_rows(weight_ptr, next_rows, num_rows, WIDTH, MAIN, REST)

        inside = rows < num_rows
        logits = dot_rows(main, rest, x_main, x_rest, REST)
        if SOFTCAP is not None:
            logits = soft_cap(logits, SOFTCAP)
        tl.store(logits_ptr + rows, logits, mask=inside)
        better = inside & (logits > best_value)
        best_value = tl.where(better, logits, best_value)
        best_index = tl.where(better, rows, best_index)

        rows = next_rows
        main, rest = next_main, next_rest

    best = tl.max(best_value, axis=0)
    index = tl.min(tl.where(best_value == best, best_index, 2147483647), axis=0)
    tl.store(best_value_ptr + tl.program_id(0), best)
    tl.store(best_index_ptr + tl.program_id(0), index)


def lm_head(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    weight: torch.Tensor,
    logits: torch.Tensor,
    best_value: torch.Tensor,
    best_index: torch.Tensor,
    norm: Norm | None,
    *,
    tile: Tile,
    delta: torch.Tensor | None = None,
    post_weight: torch.Tensor | None = None,
    x_out: torch.Tensor | None = None,
    softcap: float | None = None,
    pdl: bool = False,
) -> None:
    """Launch one program per candidate slot, into `logits`, `best_value` and `best_index`.

    Without `norm_weight` and `norm`, `x` is normalised already.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    vocab_size, hidden = weight.shape
    check_vectors("lm_head", x.dtype, hidden, x=x, norm_weight=norm_weight, delta=delta,
                  post_weight=post_weight, x_out=x_out)  # fmt: skip
    check_vectors("lm_head", torch.float32, vocab_size, logits=logits)
    programs = best_value.shape[0]
    check_vectors("lm_head", torch.float32, programs, best_value=best_value)
    check_vectors("lm_head", torch.int32, programs, best_index=best_index)
    if (norm is None) != (norm_weight is None) or (norm is None and delta is not None):
        raise ValueError("lm_head: norm and norm_weight go together, and delta needs both")
    if (delta is None) != (post_weight is None) or (delta is None) != (x_out is None):
        raise ValueError("lm_head: delta, post_weight and x_out go together; pass all or none")
    if weight.dtype != x.dtype or not weight.is_contiguous():
        raise ValueError(f"lm_head: weight must be contiguous {x.dtype}, is {weight.dtype}")
    main, rest = split_width(hidden)
    _lm_head_kernel[(programs,)](
        x,
        x if delta is None else delta,
        x if x_out is None else x_out,
        x if post_weight is None else post_weight,
        x if norm_weight is None else norm_weight,
        weight,
        logits,
        best_value,
        best_index,
        vocab_size,
        WIDTH=hidden,
        MAIN=main,
        REST=rest,
        ROWS=tile.rows,
        NORM=norm is not None,
        EPS=norm.eps if norm is not None else 0.0,
        WEIGHT_OFFSET=norm.weight_offset if norm is not None else 0.0,
        WEIGHT_IN_FP32=norm is not None and norm.weight_in_fp32,
        ADD_NORMED=delta is not None,
        SOFTCAP=softcap,
        PDL=pdl,
        num_warps=tile.warps,
        num_stages=1,
        launch_pdl=pdl,
    )
