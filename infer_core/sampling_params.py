"""What a request may ask of sampling; checked when built, no torch."""

from typing import Self

from pydantic import Field, model_validator

from infer_core.specs import Spec


class SamplingParams(Spec):
    """How the next token is chosen from the logits; the defaults are greedy.

    `temperature` 0 is greedy: the token of the largest (penalised) logit. The transforms run in
    the order transformers applies them: repetition penalty, temperature, top-k, top-p, min-p.
    `seed` fixes the draws of a request on every device.
    """

    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    seed: int = 0

    @model_validator(mode="after")
    def _filters_need_a_temperature(self) -> Self:
        if self.temperature == 0.0 and any((self.top_k, self.top_p, self.min_p)):
            raise ValueError(
                "top_k, top_p and min_p choose among sampled tokens, but temperature is 0 "
                "(greedy); give a temperature above 0 or leave them out"
            )
        return self

    @property
    def greedy(self) -> bool:
        """Whether no random draw happens."""
        return self.temperature == 0.0
