"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, one draw.

Order and semantics are those of transformers (`GenerationMixin._get_logits_processor` and the
classes of `generation/logits_process.py`); each transform equals its class element for element.

    penalised = logits / penalty where logits >= 0 else logits * penalty, for tokens seen
    filtered  = min_p(top_p(top_k(penalised / temperature)))
    token     = first t with  softmax(filtered)[0] + ... + softmax(filtered)[t] > u

`Sampler` runs them without any host synchronisation, on tensors that never move, so that a CUDA
graph captured for one request serves every later request of the same `SamplingKind`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infer_core.errors import RequestError
from infer_core.sampling_params import SamplingParams

# Beyond these a float32 logit divided by the temperature turns infinite, or a temperature
# does, and softmax gives NaN; inside them the limits (argmax, uniform) are already reached.
MIN_TEMPERATURE = 1e-30
MAX_TEMPERATURE = 1e30


@dataclass(frozen=True, slots=True)
class SamplingKind:
    """Which transforms run: what a captured graph is keyed by. Their values are device data."""

    greedy: bool
    penalty: bool
    top_k: bool
    top_p: bool
    min_p: bool


def kind_of(params: SamplingParams) -> SamplingKind:
    """Say which transforms a request needs; values that change nothing switch them off."""
    return SamplingKind(
        greedy=params.greedy,
        penalty=params.repetition_penalty != 1.0,
        top_k=params.top_k is not None,
        top_p=params.top_p is not None and params.top_p < 1.0,
        min_p=params.min_p is not None and params.min_p > 0.0,
    )


class Sampler:
    """Device state of one request's sampling, in buffers that later requests reuse.

    `begin` starts a request, `pick` chooses its next token. `max_new_tokens` is the largest
    request this sampler can serve. `pick` may be captured in a CUDA graph; the graph replays for
    every request whose `kind` is the captured one. Warm-up runs before a capture advance the
    state, so `begin` comes after them.
    """

    def __init__(self, vocab_size: int, *, max_new_tokens: int, device: torch.device | str) -> None:
        self.kind = kind_of(SamplingParams())
        self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._uniforms = torch.zeros(max_new_tokens, dtype=torch.float32, device=device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        # float64 scalars, for transformers holds Python floats: 1 - top_p must round once.
        # As 0-dim tensors they leave the logits float32.
        self._values = torch.ones(4, dtype=torch.float64, device=device)
        self._penalty, self._temperature, self._top_p, self._min_p = self._values.unbind()
        self._top_k = torch.ones((), dtype=torch.int64, device=device)

    def begin(
        self, params: SamplingParams, prompt_tokens: Sequence[int], *, max_new_tokens: int
    ) -> None:
        """Set up for one request: its parameters, the tokens of its prompt, its random draws.

        Raises:
            RequestError: `max_new_tokens` is more than the sampler was built for.
        """
        if max_new_tokens > len(self._uniforms):
            raise RequestError(
                f"max_new_tokens is {max_new_tokens}, this sampler holds random draws for "
                f"{len(self._uniforms)}; ask for fewer or load with a larger max_context"
            )
        self.kind = kind_of(params)
        if self.kind.greedy and not self.kind.penalty:
            return  # argmax has no state, and every copy to the device delays the first token
        self._step.zero_()
        if self.kind.penalty:
            self._seen.zero_()
            prompt = torch.tensor(list(prompt_tokens), dtype=torch.int64)
            self._seen.scatter_(0, prompt.to(self._seen.device), True)
        self._values.copy_(
            torch.tensor(
                [
                    params.repetition_penalty,
                    min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE),
                    1.0 if params.top_p is None else params.top_p,
                    0.0 if params.min_p is None else params.min_p,
                ],
                dtype=torch.float64,
            )
        )
        if params.top_k is not None:
            self._top_k.fill_(min(params.top_k, len(self._seen)))
        if not self.kind.greedy:
            draws = uniform_draws(params.seed, max_new_tokens)
            self._uniforms[:max_new_tokens].copy_(draws)

    def pick(self, logits: Tensor) -> Tensor:
        """Choose the next token and record it: logits [vocab_size] -> token [1], int64.

        Greedy takes the largest penalised logit, the lowest token among equals.
        """
        logits = logits.float()
        kind = self.kind
        if kind.penalty:
            logits = penalise_repetition(logits, self._seen, self._penalty)
        if kind.greedy:
            token = logits.argmax(dim=-1, keepdim=True)
        else:
            logits = logits / self._temperature
            if kind.top_k:
                logits = keep_top_k(logits, self._top_k)
            if kind.top_p:
                logits = keep_top_p(logits, self._top_p)
            if kind.min_p:
                logits = keep_min_p(logits, self._min_p)
            # A host running ahead of the end of a request may replay past the table.
            step = self._step.clamp(max=len(self._uniforms) - 1)
            token = draw(logits.softmax(dim=-1), self._uniforms[step])
            self._step.add_(1)
        if kind.penalty:
            self._seen.scatter_(0, token, True)
        return token


def uniform_draws(seed: int, num_draws: int) -> Tensor:
    """Draw `num_draws` float32 numbers in [0, 1) on the host.

    One per step, so that device, graph or eager, and context bucket change no draw; a longer
    table begins with the shorter one.
    """
    generator = torch.Generator().manual_seed(seed % 2**64)
    return torch.rand(num_draws, generator=generator, dtype=torch.float32)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: Tensor | float) -> Tensor:
    """Make tokens seen in prompt or answer less likely: `seen` bool [vocab_size]."""
    penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalised, logits)


def keep_top_k(logits: Tensor, k: Tensor | int) -> Tensor:
    """Keep the k largest logits and all that equal the k-th; the others become -inf."""
    ascending = logits.sort().values
    # A device index: k may then differ between replays of one captured graph.
    kth = torch.as_tensor(len(logits) - k, device=logits.device).clamp(min=0)
    return logits.masked_fill(logits < ascending.gather(0, kth.view(1)), -torch.inf)


def keep_top_p(logits: Tensor, p: Tensor | float) -> Tensor:
    """Drop the least likely tokens whose probabilities add up to at most 1 - p.

    Among equal logits at the border the order of `torch.sort` decides, as in transformers.
    """
    ascending, order = logits.sort()
    # Summed in float64, then rounded: transformers' very numbers on a CPU (whose cumsum sums
    # so), and on a GPU independent of the order of a parallel scan, so that a seed repeats.
    below = ascending.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64).float()
    dropped = below <= 1 - p
    dropped[-1:] = False
    return logits.masked_fill(torch.empty_like(dropped).scatter_(0, order, dropped), -torch.inf)


def keep_min_p(logits: Tensor, p: Tensor | float) -> Tensor:
    """Drop tokens less likely than p times the most likely one (which p <= 1 always keeps)."""
    probabilities = logits.softmax(dim=-1)
    floor = probabilities.amax(dim=-1, keepdim=True) * p
    return logits.masked_fill(probabilities < floor, -torch.inf)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution at `uniform` [1] in [0, 1): token [1], int64.

    A token of probability zero is never drawn. The sum is float64: the largest float32 below 1
    lies 6e-8 under it, a thousand times further than the sum can err, so that some token with
    probability always reaches above `uniform * total`.
    """
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    reached = cumulative > uniform * cumulative[-1:]
    # A parallel scan need not be monotone to the last bit, hence the second condition.
    # argmax of 0s and 1s is the first 1.
    return (reached & (probabilities > 0)).int().argmax(dim=-1, keepdim=True)
