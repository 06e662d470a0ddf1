"""Last kernel of a decode step: finish the argmax, advance, append the token, embed it.

    token    = smallest index among the candidates with the largest value   (PICK)
    token    = what a sampler wrote to `token`                              (not PICK)
    seen[token] = 1                                                         (with `seen`)
    position += 1;  sequence[position] = token
    x        = embed[token] * embedding_scale

Shapes  best_value, best_index [num_candidates]; token int64 [1]; position int32 [1]; sequence int64
        [context + 1]; embed [vocab_size, hidden_size]; x [hidden_size]; seen uint8 [vocab_size].
Bound   latency: one program, a few dependent loads.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


class NextInput(NamedTuple):
    """What the end of a step writes (`token`, `position`, `sequence`, `x`), and from which table.

    `scale` is that of the embeddings.
    """

    token: torch.Tensor
    position: torch.Tensor
    sequence: torch.Tensor
    embed: torch.Tensor
    x: torch.Tensor
    scale: float = 1.0

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All but the scale, in order."""
        return self[:5]

    @property
    def rounded_scale(self) -> float:
        """The scale as the dtype holds it."""
        return float(torch.tensor(self.scale, dtype=self.x.dtype))

    def check(self, kernel: str, vocab_size: int | None = None) -> int:
        """Return hidden_size; raise ValueError if the table does not fit `x` or the vocabulary."""
        shape = (vocab_size or self.embed.shape[0], self.x.shape[0])
        x, embed = self.x, self.embed
        if embed.shape != shape or x.dtype != embed.dtype or not embed.is_contiguous():
            raise ValueError(
                f"{kernel}: embed must be contiguous [{vocab_size or 'vocab_size'}, {shape[1]}] "
                f"{x.dtype}; got {tuple(embed.shape)} {embed.dtype}"
            )
        return shape[1]


def pick_ref(best_value: torch.Tensor, best_index: torch.Tensor) -> int:
    """Define the pick in plain torch; token 0 if no value is a number."""
    largest = best_index[best_value == best_value.max()]
    return int(largest.min()) if len(largest) else 0


def embed_token_ref(embed: torch.Tensor, token: int, scale: float) -> torch.Tensor:
    """Define the embedding in plain torch; the scale is rounded to the dtype first."""
    return embed[token] * torch.tensor(scale, dtype=embed.dtype)


@triton.jit
def append_and_embed(
    token,
    position_ptr,
    sequence_ptr,
    embed_ptr,
    x_ptr,
    hidden_size,
    SCALE: tl.constexpr,
    COLS: tl.constexpr,
    ADVANCE: tl.constexpr,
):
    """Make `token` (int64) the input of the next step; without ADVANCE that of this one."""
    cols = tl.arange(0, COLS)
    inside = cols < hidden_size
    row = tl.load(embed_ptr + token * hidden_size + cols, mask=inside, other=0.0)
    tl.store(x_ptr + cols, (row.to(tl.float32) * SCALE).to(row.dtype), mask=inside)
    if ADVANCE:
        position = tl.load(position_ptr) + 1
        tl.store(sequence_ptr + position, token)
        tl.store(position_ptr, position)


@triton.jit
def _pick_embed_kernel(
    best_value_ptr,
    best_index_ptr,
    seen_ptr,
    token_ptr,
    position_ptr,
    sequence_ptr,
    embed_ptr,
    x_ptr,
    num_candidates,
    hidden_size,
    SCALE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    COLS: tl.constexpr,
    PICK: tl.constexpr,
    MARK_SEEN: tl.constexpr,
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
    if MARK_SEEN:
        tl.store(seen_ptr + token, 1)
    append_and_embed(
        token, position_ptr, sequence_ptr, embed_ptr, x_ptr, hidden_size, SCALE, COLS, ADVANCE
    )


def pick_embed(
    output: NextInput,
    *,
    candidates: tuple[torch.Tensor, torch.Tensor] | None = None,
    seen: torch.Tensor | None = None,
    advance: bool = True,
    pdl: bool = False,
) -> None:
    """Launch the kernel; without `candidates` the token is already in `token`.

    `advance=False` only embeds, for the first token of a generation.

    Raises:
        ValueError: `x` and `embed` of `output` disagree in width or dtype.
    """
    hidden_size = output.check("pick_embed")
    best_value, best_index = candidates if candidates is not None else (output.x,) * 2
    num_candidates = best_value.shape[0] if candidates is not None else 1
    _pick_embed_kernel[(1,)](
        best_value,
        best_index,
        output.token if seen is None else seen,
        *output.tensors,
        num_candidates,
        hidden_size,
        SCALE=output.rounded_scale,
        CANDIDATES=triton.next_power_of_2(num_candidates),
        COLS=triton.next_power_of_2(hidden_size),
        PICK=candidates is not None,
        MARK_SEEN=seen is not None,
        ADVANCE=advance,
        PDL=pdl,
        num_warps=8,
        launch_pdl=pdl,
    )
