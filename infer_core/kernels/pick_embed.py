"""Last kernel of a decode step: finish the argmax, advance, append the token, embed it.

    token    = smallest index among the candidates with the largest value   (PICK)
    token    = what a sampler wrote to `token`                              (not PICK)
    position += 1;  sequence[position] = token
    x        = embed[token] * embedding_scale

Shapes  best_value, best_index [num_candidates]; token int64 [1]; position int32 [1]; sequence int64
        [context + 1]; embed [vocab_size, hidden_size]; x [hidden_size].
Bound   latency: one program, a few dependent loads.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


def pick_ref(best_value: torch.Tensor, best_index: torch.Tensor) -> int:
    """Define the pick in plain torch; token 0 if no value is a number."""
    largest = best_index[best_value == best_value.max()]
    return int(largest.min()) if len(largest) else 0


def embed_token_ref(embed: torch.Tensor, token: int, scale: float) -> torch.Tensor:
    """Define the embedding in plain torch; the scale is rounded to the dtype first."""
    return embed[token] * torch.tensor(scale, dtype=embed.dtype)


@triton.jit
def _pick_embed_kernel(
    best_value_ptr,
    best_index_ptr,
    token_ptr,
    position_ptr,
    sequence_ptr,
    embed_ptr,
    x_ptr,
    num_candidates,
    hidden_size,
    SCALE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    BLOCK: tl.constexpr,
    PICK: tl.constexpr,
    ADVANCE: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    if PICK:
        slots = tl.arange(0, CANDIDATES)
        mask = slots < num_candidates
        value = tl.load(best_value_ptr + slots, mask=mask, other=float("-inf"))
        index = tl.load(best_index_ptr + slots, mask=mask, other=2147483647)
        token = tl.min(tl.where(value == tl.max(value, axis=0), index, 2147483647), axis=0)
        # logits that are all NaN equal nothing; token 0 then, rather than a row outside `embed`
        token = tl.where(token == 2147483647, 0, token).to(tl.int64)
        tl.store(token_ptr, token)
    else:
        token = tl.load(token_ptr)
    cols = tl.arange(0, BLOCK)
    inside = cols < hidden_size
    row = tl.load(embed_ptr + token * hidden_size + cols, mask=inside, other=0.0)
    tl.store(x_ptr + cols, (row.to(tl.float32) * SCALE).to(row.dtype), mask=inside)
    if ADVANCE:
        position = tl.load(position_ptr) + 1
        tl.store(sequence_ptr + position, token)
        tl.store(position_ptr, position)


def pick_embed(
    token: torch.Tensor,
    position: torch.Tensor,
    sequence: torch.Tensor,
    embed: torch.Tensor,
    x: torch.Tensor,
    *,
    scale: float = 1.0,
    candidates: tuple[torch.Tensor, torch.Tensor] | None = None,
    advance: bool = True,
    pdl: bool = False,
) -> None:
    """Launch the kernel; without `candidates` the token is already in `token`.

    `advance=False` only embeds, for the first token of a generation.

    Raises:
        ValueError: `x` and `embed` disagree in width or dtype.
    """
    if x.shape != embed.shape[1:] or x.dtype != embed.dtype or not embed.is_contiguous():
        raise ValueError(
            f"pick_embed: embed must be contiguous [vocab_size, {x.shape[0]}] {x.dtype}; "
            f"got {tuple(embed.shape)} {embed.dtype}"
        )
    best_value, best_index = candidates if candidates is not None else (x, x)
    num_candidates = best_value.shape[0] if candidates is not None else 1
    _pick_embed_kernel[(1,)](
        best_value,
        best_index,
        token,
        position,
        sequence,
        embed,
        x,
        num_candidates,
        x.shape[0],
        SCALE=float(torch.tensor(scale, dtype=x.dtype)),
        CANDIDATES=triton.next_power_of_2(num_candidates),
        BLOCK=triton.next_power_of_2(x.shape[0]),
        PICK=candidates is not None,
        ADVANCE=advance,
        PDL=pdl,
        num_warps=8,
        launch_pdl=pdl,
    )
