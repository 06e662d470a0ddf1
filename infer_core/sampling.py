"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, one draw.

Order and semantics are those of transformers (`GenerationMixin._get_logits_processor` and the
classes of `generation/logits_process.py`); each transform equals its class element for element,
but for probabilities: they are float64 here. In float32 those of a whole vocabulary depend, at
the borders of top-p, on the order in which a device adds them up.

    penalised = logits / penalty where logits >= 0 else logits * penalty, for tokens seen
    filtered  = min_p(top_p(top_k(penalised / temperature)))
    token     = first t with  softmax(filtered)[0] + ... + softmax(filtered)[t] > u

`Sampler` runs them without any host synchronisation, on tensors that never move, so that a CUDA
graph captured for one request serves every later request of the same `SamplingKind`. This is the
specification; in the fused decode step kernels do the same (see `fused_sampling`).
"""

import ctypes
import struct
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from infer_core.errors import RequestError
from infer_core.kernels.sampling_parts import SamplerState
from infer_core.sampling_params import SamplingParams

# Beyond these a float32 logit divided by the temperature turns infinite, or a temperature
# does, and softmax gives NaN; inside them the limits (argmax, uniform) are already reached.
MIN_TEMPERATURE = 1e-30
MAX_TEMPERATURE = 1e30
# Up to here the kernels list the likeliest tokens; beyond, they search the whole vocabulary.
SMALL_TOP_K = 128


class SamplingKind(NamedTuple):
    """Which transforms run: what a captured graph is keyed by. Their values are device data."""

    greedy: bool
    penalty: bool
    top_k: bool
    small_top_k: bool
    top_p: bool
    min_p: bool


def kind_of(params: SamplingParams) -> SamplingKind:
    """Say which transforms a request needs; values that change nothing switch them off."""
    return SamplingKind(
        greedy=params.greedy,
        penalty=params.repetition_penalty != 1.0,
        top_k=params.top_k is not None,
        small_top_k=params.top_k is not None and params.top_k <= SMALL_TOP_K,
        top_p=params.top_p is not None and params.top_p < 1.0,
        min_p=params.min_p is not None and params.min_p > 0.0,
    )


GREEDY = kind_of(SamplingParams())


class Sampler:
    """Device state of one request's sampling, in buffers that later requests reuse.

    `begin` starts a request, `pick` chooses its next token. `max_new_tokens` is the largest
    request this sampler can serve. `pick` may be captured in a CUDA graph; the graph replays for
    every request whose `kind` is the captured one. Warm-up runs before a capture advance the
    state, so `begin` comes after them.
    """

    def __init__(self, vocab_size: int, *, max_new_tokens: int, device: torch.device | str) -> None:
        self.kind = kind_of(SamplingParams())
        self._max_new_tokens = max_new_tokens
        self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        # All that a request brings, in one copy from memory that the GPU can read by itself.
        num_bytes = _HEAD_BYTES + 4 * max_new_tokens
        self._data = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self._staging = torch.zeros(
            num_bytes, dtype=torch.uint8, pin_memory=self._data.device.type == "cuda"
        )
        *_, self._staged_uniforms = _views(self._staging)
        # the host's side without torch, whose operations cost microseconds before the first token
        self._head = (ctypes.c_char * _HEAD_BYTES).from_address(self._staging.data_ptr())
        self._generator = torch.Generator()
        self._values, self._counters, self._uniforms = _views(self._data)
        # 0-dim tensors, so that they leave the logits float32
        self._penalty, self._temperature, self._top_p, self._min_p, _ = self._values.unbind()
        self._top_k, self._step = self._counters[0], self._counters[1:]

    def begin(self, params: SamplingParams, prompt: Tensor, *, max_new_tokens: int) -> None:
        """Set up for one request: its parameters, the tokens of its prompt, its random draws.

        `prompt` int64 [num_tokens], on the device. Nothing waits for the device, so the one before
        must have taken its data: it has if any of its tokens was read.

        Raises:
            RequestError: `max_new_tokens` is more than the sampler was built for.
        """
        if max_new_tokens > self._max_new_tokens:
            raise RequestError(
                f"max_new_tokens is {max_new_tokens}, this sampler holds random draws for "
                f"{self._max_new_tokens}; ask for fewer or load with a larger max_context"
            )
        self.kind = kind_of(params)
        if self.kind.greedy and not self.kind.penalty:
            return  # argmax has no state, and every copy to the device delays the first token
        if self.kind.penalty:
            self._seen.zero_()
            self._seen.index_fill_(0, prompt, True)
        top_p = 1.0 if params.top_p is None else params.top_p
        vocab_size = len(self._seen)
        struct.pack_into(
            _HEAD,
            self._head,
            0,
            params.repetition_penalty,
            min(max(params.temperature, MIN_TEMPERATURE), MAX_TEMPERATURE),
            top_p,
            0.0 if params.min_p is None else params.min_p,
            _dropped_share(top_p),
            vocab_size if params.top_k is None else min(params.top_k, vocab_size),
            0,
        )
        num_draws = 0 if self.kind.greedy else max_new_tokens
        if num_draws:
            uniform_draws(params.seed, self._staged_uniforms[:num_draws], self._generator)
        used = slice(_HEAD_BYTES + 4 * num_draws)
        self._data[used].copy_(self._staging[used], non_blocking=True)

    @property
    def state(self) -> SamplerState:
        """What the kernels of the fused step read and write."""
        seen = self._seen.view(torch.uint8)
        return SamplerState(self._values, self._counters, self._uniforms, seen)

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
            token = draw(shares(logits), self._uniforms[step])
            self._step.add_(1)
        if kind.penalty:
            self._seen.scatter_(0, token, True)
        return token


_HEAD = "=5d8x2q"  # 5 float64 values, padding, 2 int64 counters (top_k, draws used)
_HEAD_BYTES = struct.calcsize(_HEAD)


def _views(data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split the bytes of a request: values float64, counters int64, draws float32."""
    return (
        # float64, for transformers holds Python floats: 1 - top_p must round once
        data[:40].view(torch.float64),
        data[48:_HEAD_BYTES].view(torch.int64),
        data[_HEAD_BYTES:].view(torch.float32),
    )


@lru_cache(maxsize=16)
def _dropped_share(top_p: float) -> float:
    """Share of the probability up to which a sum, rounded to float32, is at most 1 - top_p."""
    border = torch.tensor(1 - top_p, dtype=torch.float32)
    above = torch.nextafter(border, torch.tensor(torch.inf))
    return float((border.double() + above.double()) / 2)


def uniform_draws(seed: int, draws: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill `draws` [num_draws], float32, on the host, with numbers in [0, 1); give it back.

    One per step, so that device, graph or eager, and context bucket change no draw; a longer
    table begins with the shorter one. `generator` only saves making one.
    """
    generator = (generator or torch.Generator()).manual_seed(seed % 2**64)
    return torch.rand(len(draws), generator=generator, out=draws)


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

    Of equal logits at the border the first tokens go first. (In transformers the order of an
    unstable sort decides, which differs between devices.)
    """
    ascending, order = logits.sort(stable=True)
    cumulative = shares(ascending).cumsum(dim=-1)
    below = (cumulative / cumulative[-1:]).float()
    dropped = below <= 1 - p
    dropped[-1:] = False
    return logits.masked_fill(torch.empty_like(dropped).scatter_(0, order, dropped), -torch.inf)


def keep_min_p(logits: Tensor, p: Tensor | float) -> Tensor:
    """Drop tokens less likely than p times the most likely one (which p <= 1 always keeps)."""
    return logits.masked_fill(shares(logits) < p, -torch.inf)


def shares(logits: Tensor) -> Tensor:
    """Give probabilities relative to that of the likeliest token, float64; softmax, not divided.

    The difference is that of float32, and what float32 cannot hold is 0, as in its softmax.
    """
    share = (logits - logits.amax(dim=-1, keepdim=True)).double().exp()
    return torch.where(share.float() > 0, share, 0.0)


def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Invert the cumulative distribution at `uniform` [1] in [0, 1): token [1], int64.

    `probabilities` need not add up to 1. A token of probability zero is never drawn. The sum is
    float64: the largest float32 below 1 lies 6e-8 under it, a thousand times further than the sum
    can err, so that some token with probability always reaches above `uniform * total`.
    """
    cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
    reached = cumulative > uniform * cumulative[-1:]
    # A parallel scan need not be monotone to the last bit, hence the second condition.
    # argmax of 0s and 1s is the first 1.
    return (reached & (probabilities > 0)).int().argmax(dim=-1, keepdim=True)
