"""What a request gives back."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithm of a token's probability, before temperature and filters.

    `top` holds the likeliest tokens of that step as (id, logprob), as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text, ids and times.

    `text` is empty for a model without a tokenizer, and ends before the stop string if one was
    found (`stop` says which); `token_ids` has every generated id, an end-of-sequence id included.
    `finish_reason`: "eos", "stop" (a stop string), "length", or "cancelled" by the caller.
    `num_cached_tokens` of the prompt were still in the KV cache and did not run again.
    `decode_tokens_per_s` leaves the first token out and is None without a second.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["eos", "stop", "length", "cancelled"]
    stop: str | None
    logprobs: list[TokenLogprob] | None
    num_prompt_tokens: int
    num_cached_tokens: int
    ttft_ms: float
    decode_tokens_per_s: float | None
    e2e_s: float
    warm_up_s: float
