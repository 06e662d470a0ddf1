"""The end of a fused step that is not plain argmax: which kernels pick the next token.

    [penalty + maxima] -> list of the likeliest -> pick             a top-k up to SMALL_TOP_K
    [penalty + maxima] -> (7 search rounds for each of top-k and top-p) -> chunks -> draw
    [penalty + maxima] -> argmax                                    greedy

The LM head leaves the maxima of its logits; a penalty changes them, hence the first kernel. The
last one appends the token and embeds it.
"""

import torch
from torch import Tensor

from infer_core.kernels.penalise_logits import num_groups, penalise_logits
from infer_core.kernels.pick_embed import NextInput, pick_embed
from infer_core.kernels.pick_sampled import SearchScratch, pick_sampled
from infer_core.kernels.pick_top_k import TopKList, pick_top_k
from infer_core.kernels.sampling_parts import Filters, SamplerState
from infer_core.sampling import SMALL_TOP_K, SamplingKind


class FusedSampling:
    """Enqueues the sampling kernels for one vocabulary; owns what they tell each other."""

    def __init__(self, state: SamplerState, vocab_size: int, device: torch.device) -> None:
        self._state = state
        self._penalised = torch.zeros(vocab_size, dtype=torch.float32, device=device)
        self._maxima = (
            torch.zeros(num_groups(vocab_size), dtype=torch.float32, device=device),
            torch.zeros(num_groups(vocab_size), dtype=torch.int32, device=device),
        )
        self._list = TopKList.empty(vocab_size, device)
        self._search = SearchScratch.empty(vocab_size, device)

    def pick(
        self,
        kind: SamplingKind,
        logits: Tensor,
        output: NextInput,
        *,
        candidates: tuple[Tensor, Tensor],
        pdl: bool = False,
    ) -> None:
        """Enqueue the pick over `logits` float32 [vocab_size], which stay as they are.

        `candidates`: the largest logit of each of the LM head's programs, and its token.
        """
        state = self._state
        if kind.penalty:
            assert state.seen is not None, "a sampler's state has the tokens seen"
            penalise_logits(
                logits, self._penalised, *self._maxima,
                seen=state.seen, penalty=state.values[:1], pdl=pdl,
            )  # fmt: skip
            logits, candidates = self._penalised, self._maxima
        else:
            state = state._replace(seen=None)
        if kind.greedy:
            pick_embed(output, candidates=candidates, seen=state.seen, pdl=pdl)
            return
        maxima, _ = candidates
        filters = Filters(kind.top_k, kind.top_p, kind.min_p)
        # the list begins at the top_k-th largest of the maxima, so there must be as many
        if kind.small_top_k and len(maxima) >= SMALL_TOP_K:
            pick_top_k(logits, maxima, state, filters, self._list, output, pdl=pdl)
        else:
            pick_sampled(logits, maxima, state, filters, self._search, output, pdl=pdl)
