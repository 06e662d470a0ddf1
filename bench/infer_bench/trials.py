"""The timed trials of a row, and what makes them worthless."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infer_bench.cases import Case
from infer_bench.metrics import tokens_sha256
from infer_bench.report import Parity, Sample

if TYPE_CHECKING:
    from infer_core import Generation


@dataclass(slots=True)
class Trials:
    """Samples so far, and the tokens of each."""

    samples: list[Sample] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    @property
    def agree(self) -> bool:
        """Whether every trial gave the same tokens."""
        return all(tokens == self.tokens[0] for tokens in self.tokens)

    def add(self, generation: "Generation") -> None:
        self.tokens.append(generation.tokens)
        self.samples.append(
            Sample(
                num_tokens=len(generation.tokens),
                ttft_ms=generation.ttft_ms,
                step_ms=tuple(round(step, 5) for step in generation.step_ms),
                decode_s=generation.decode_s,
                e2e_s=generation.e2e_s,
                warm_up_s=generation.warm_up_s,
                kv_cache_bytes=generation.kv_cache_bytes,
                tokens_sha256=tokens_sha256(generation.tokens),
            )
        )


def why_invalid(samples: Sequence[Sample], case: Case) -> str | None:
    """Say why no number may be taken from these trials; None when all is well."""
    for number, sample in enumerate(samples, start=1):
        if sample.num_tokens != case.max_new_tokens:
            return (
                f"trial {number} generated {sample.num_tokens} tokens instead of "
                f"exactly {case.max_new_tokens}"
            )
        if len(sample.step_ms) != case.max_new_tokens - 1:
            return (
                f"trial {number} timed {len(sample.step_ms)} decode steps instead of "
                f"{case.max_new_tokens - 1}"
            )
        times = [sample.e2e_s, sample.ttft_ms, *sample.step_ms]
        if sample.step_ms:
            times.append(sample.decode_s)
        if min(times) <= 0:
            return f"trial {number} holds a time that is not above zero"
    return None


def why_different(samples: Sequence[Sample]) -> str:
    """Say that greedy trials are no repeats of each other."""
    prints = ", ".join(sample.tokens_sha256 for sample in samples)
    return f"greedy trials gave different tokens (fingerprints {prints})"


def why_unequal(parity: Parity | None) -> str | None:
    """Say how far tokens are from those of the plain path; None when rounding explains it."""
    if parity is None or parity.agrees:
        return None
    return (
        f"greedy tokens are not those of the plain path ({parity.path}): "
        f"{parity.num_equal} of the first {parity.num_tokens} equal, the worst is "
        f"{parity.largest_gap:.2g} standard deviations of the logits below the best token; "
        f"rounding explains {parity.tolerance:g}"
    )
