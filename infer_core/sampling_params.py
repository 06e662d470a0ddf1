"""What a request may ask of sampling; checked when built, no torch."""

from typing import Self

from pydantic import Field, field_validator, model_validator

from infer_core.specs import Spec


class SamplingParams(Spec):
    """How the next token is chosen from the logits; the defaults are greedy.

    `temperature` 0 is greedy: the token of the largest (penalised) logit. The transforms run in
    the order transformers applies them: repetition penalty, temperature, top-k, top-p, min-p.
    `seed` fixes the draws of a request on every device.

    `max_tokens`, `stop` and `logprobs` are for `LLM`, where a field that is not given takes the
    value of the model's generation_config.json, if that has one; `Engine` knows no text and takes
    its length as an argument.
    """

    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0.0, le=1.0)
    min_p: float | None = Field(default=None, ge=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0)
    seed: int = 0
    max_tokens: int | None = Field(
        default=None, ge=1, description="None: 1024, or what is left of the context if less"
    )
    stop: tuple[str, ...] = Field(default=(), description="strings that end the answer")
    logprobs: int | None = Field(
        default=None, ge=0, le=100, description="also report this many likeliest tokens a step"
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a stop string is empty; leave it out, or give its text")
        return value

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
