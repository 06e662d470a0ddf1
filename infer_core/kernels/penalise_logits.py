"""Repetition penalty over all logits, and the largest logit of each group of tokens.

    penalised = logits / penalty where logits >= 0 else logits * penalty, for tokens seen
    largest   = max(penalised) of each group of tokens, and the smallest token that has it

One program a group. A group is made of short runs from all over the vocabulary: the likeliest
tokens are often neighbours, and the list of `pick_top_k` stays short if they are in different
groups. The LM head leaves such maxima too, of logits that no penalty has changed.

Shapes  logits, penalised float32 [vocab_size]; seen uint8 [vocab_size]; penalty float64 [1];
        best_value float32, best_index int32 [ceil(vocab_size / GROUP_SIZE)].
Bound   latency: moves up to 9 bytes a token, out of the L2 cache.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infer_core.kernels.chain_types import check_vectors

GROUP_SIZE = 256
RUN = 8  # neighbours in a group: one sector of memory


def group_maxima_ref(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Define the maxima in plain torch; the penalty is `sampling.penalise_repetition`."""
    padded = torch.full((num_groups(len(logits)) * GROUP_SIZE,), -torch.inf, device=logits.device)
    padded[: len(logits)] = logits.where(~logits.isnan(), -torch.inf)
    tokens = torch.arange(len(padded), device=logits.device)
    groups, tokens = (
        flat.view(GROUP_SIZE // RUN, -1, RUN).transpose(0, 1).flatten(1)
        for flat in (padded, tokens)
    )
    value = groups.amax(dim=1)
    return value, tokens.where(groups == value[:, None], len(padded)).amin(dim=1)


@triton.jit
def _penalise_logits_kernel(
    logits_ptr,
    seen_ptr,
    penalty_ptr,
    penalised_ptr,
    best_value_ptr,
    best_index_ptr,
    vocab_size,
    GROUP: tl.constexpr,
    RUN_SIZE: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    place = tl.arange(0, GROUP)
    run = place // RUN_SIZE * tl.num_programs(0) + tl.program_id(0)
    tokens = run * RUN_SIZE + place % RUN_SIZE
    inside = tokens < vocab_size
    logits = tl.load(logits_ptr + tokens, mask=inside, other=float("-inf"))
    seen = tl.load(seen_ptr + tokens, mask=inside, other=0) != 0
    penalty = tl.load(penalty_ptr).to(tl.float32)
    # correctly rounded, as torch divides
    penalised = tl.where(logits < 0, logits * penalty, tl.div_rn(logits, penalty))
    logits = tl.where(seen, penalised, logits)
    tl.store(penalised_ptr + tokens, logits, mask=inside)
    logits = tl.where(logits == logits, logits, float("-inf"))  # NaN is never the largest
    best = tl.max(logits, axis=0)
    # where nothing is a number this is the group's first token: inside the vocabulary
    index = tl.min(tl.where(logits == best, tokens, 2147483647), axis=0)
    tl.store(best_value_ptr + tl.program_id(0), best)
    tl.store(best_index_ptr + tl.program_id(0), index)


def num_groups(vocab_size: int) -> int:
    """Groups of a vocabulary."""
    return -(-vocab_size // GROUP_SIZE)


def penalise_logits(
    logits: torch.Tensor,
    penalised: torch.Tensor,
    best_value: torch.Tensor,
    best_index: torch.Tensor,
    *,
    seen: torch.Tensor,
    penalty: torch.Tensor,
    pdl: bool = False,
) -> None:
    """Launch one program a group, into `penalised`, `best_value` and `best_index`.

    Raises:
        ValueError: a shape, dtype or stride differs from the docstring of this file.
    """
    name, vocab_size, programs = "penalise_logits", logits.shape[0], num_groups(logits.shape[0])
    check_vectors(name, torch.float32, vocab_size, logits=logits, penalised=penalised)
    check_vectors(name, torch.uint8, vocab_size, seen=seen)
    check_vectors(name, torch.float64, 1, penalty=penalty)
    check_vectors(name, torch.float32, programs, best_value=best_value)
    check_vectors(name, torch.int32, programs, best_index=best_index)
    _penalise_logits_kernel[(programs,)](
        logits,
        seen,
        penalty,
        penalised,
        best_value,
        best_index,
        vocab_size,
        GROUP=GROUP_SIZE,
        RUN_SIZE=RUN,
        PDL=pdl,
        num_warps=2,
        launch_pdl=pdl,
    )
