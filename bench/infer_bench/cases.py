"""What is measured: the seven configs and three suites of the log, and ad-hoc cases."""

import random
from collections.abc import Sequence

from pydantic import Field

from infer_bench.errors import UsageError
from infer_bench.record import Record, quantity
from infer_core import SamplingParams


class Case(Record):
    """One request to measure: prompt length, generated length and how tokens are chosen."""

    name: str = Field(min_length=1)
    prompt_tokens: int = quantity("tokens", "length of the prompt", ge=1)
    max_new_tokens: int = quantity("tokens", "exactly this many are generated, EOS ignored", ge=1)
    sampling: SamplingParams = SamplingParams()

    @property
    def context(self) -> int:
        """Tokens in the context at the end of the request, prompt included."""
        return self.prompt_tokens + self.max_new_tokens

    def seeded(self, seed: int) -> "Case":
        """Give the same case with its draws fixed by `seed`."""
        sampling = self.sampling.model_copy(update={"seed": seed})
        return self.model_copy(update={"sampling": sampling})


_SAMPLED = SamplingParams(temperature=0.8, top_k=50, top_p=0.9)
_FULL_PIPE = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, repetition_penalty=1.1)

CASES = {
    case.name: case
    for case in (
        Case(name="short", prompt_tokens=64, max_new_tokens=64),
        Case(name="medium", prompt_tokens=256, max_new_tokens=256),
        Case(name="prefill", prompt_tokens=1024, max_new_tokens=64),
        Case(name="decode", prompt_tokens=64, max_new_tokens=1024),
        Case(name="long", prompt_tokens=1024, max_new_tokens=1024),
        Case(name="sampled", prompt_tokens=256, max_new_tokens=256, sampling=_SAMPLED),
        Case(name="full-pipe", prompt_tokens=256, max_new_tokens=256, sampling=_FULL_PIPE),
    )
}

SUITES = {
    "quick": ("short", "medium"),
    "standard": ("short", "medium", "prefill", "decode", "sampled"),
    "full": tuple(CASES),
}


def named_cases(names: Sequence[str]) -> tuple[Case, ...]:
    """Look up configs by name, in the order given; a name given twice counts once.

    Raises:
        UsageError: a name is not a config.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise UsageError(f"unknown config {unknown[0]!r}; the configs are {', '.join(CASES)}")
    return tuple(CASES[name] for name in dict.fromkeys(names))


def prompt_ids(num_tokens: int, *, vocab_size: int, seed: int) -> list[int]:
    """Draw a prompt of random token ids; the same seed gives the same ids on every machine."""
    return random.Random(seed).choices(range(vocab_size), k=num_tokens)
