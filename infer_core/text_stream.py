"""One request as text that arrives piece by piece."""

from collections.abc import Generator, Iterator, Sequence

import torch

from infer_core.completion import Completion, TokenLogprob
from infer_core.detokenizer import Detokenizer
from infer_core.engine import Engine, Generation
from infer_core.errors import RequestError
from infer_core.sampling_params import SamplingParams
from infer_core.stop_strings import StopStrings
from infer_core.tokenizer import Tokenizer


class TextStream:
    """Iterate over the pieces of an answer; `completion` is there once they are through.

    The request starts with the first piece. `params.max_tokens` is set, and the engine's `check`
    has passed.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        reuse_prefix: bool = False,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._params = params
        self._reuse_prefix = reuse_prefix
        self._cancelled = False
        self._completion: Completion | None = None
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def cancel(self) -> None:
        """End the answer after the token under way; safe in a signal handler."""
        self._cancelled = True

    def close(self) -> None:
        """Give up an answer that was not read to its end, and what it holds of the model."""
        self._pieces.close()
        # CPython 3.12 keeps the variables of a closed generator for as long as the generator
        self._pieces = _nothing()

    @property
    def completion(self) -> Completion:
        """The whole answer.

        Raises:
            RequestError: the stream was not read to its end.
        """
        if self._completion is None:
            raise RequestError("the answer is not complete yet; read the stream to its end first")
        return self._completion

    def read(self) -> Completion:
        """Run to the end."""
        for _ in self._pieces:
            pass
        return self.completion

    def _run(self) -> Generator[str]:
        params = self._params
        detokenizer = Detokenizer(self._tokenizer) if self._tokenizer is not None else None
        stops = StopStrings(params.stop)
        logprobs = _Logprobs(params.logprobs) if params.logprobs is not None else None
        shown: list[str] = []
        steps = self._engine.stream(
            self._prompt,
            max_new_tokens=params.max_tokens or 1,
            sampling=params,
            reuse_prefix=self._reuse_prefix,
            on_logits=logprobs,
        )
        stop: bool | None = None
        while True:
            try:
                token = steps.send(stop)
            except StopIteration as done:
                generation: Generation = done.value
                break
            if detokenizer is not None and token not in self._engine.spec.eos_token_ids:
                piece = stops.push(detokenizer.push(token))
                if piece:
                    shown.append(piece)
                    yield piece
            stop = self._cancelled or stops.found is not None
        held = stops.push(detokenizer.finish()) if detokenizer is not None else ""
        if rest := held + stops.finish():
            shown.append(rest)
            yield rest
        self._completion = self._complete("".join(shown), generation, stops.found, logprobs)

    def _complete(
        self,
        text: str,
        generation: Generation,
        stop: str | None,
        logprobs: "_Logprobs | None",
    ) -> Completion:
        reason = generation.finish_reason
        decoded = len(generation.tokens) - 1
        return Completion(
            text=text,
            token_ids=generation.tokens,
            finish_reason="stop"
            if stop is not None
            else "cancelled"
            if reason == "stop"
            else reason,
            stop=stop,
            logprobs=logprobs.of(generation.tokens) if logprobs is not None else None,
            num_prompt_tokens=len(self._prompt),
            num_cached_tokens=generation.num_cached_tokens,
            ttft_ms=generation.ttft_ms,
            decode_tokens_per_s=decoded / generation.decode_s if decoded else None,
            e2e_s=generation.e2e_s,
            warm_up_s=generation.warm_up_s,
        )


def _nothing() -> Generator[str]:
    yield from ()


class _Logprobs:
    """Collects on the device, a few numbers a step, so that no step waits for the host."""

    def __init__(self, num_top: int) -> None:
        self._num_top = num_top
        self._chosen: list[torch.Tensor] = []
        self._top: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, logits: torch.Tensor, token: torch.Tensor) -> None:
        logprobs = logits.float().log_softmax(dim=-1)
        self._chosen.append(logprobs[token])
        values, ids = logprobs.topk(min(self._num_top, len(logprobs)))
        self._top.append((ids, values))

    def of(self, tokens: Sequence[int]) -> list[TokenLogprob]:
        chosen = torch.cat(self._chosen).tolist()
        tops = [zip(ids.tolist(), values.tolist(), strict=True) for ids, values in self._top]
        return [
            TokenLogprob(token, logprob, tuple(top))
            for token, logprob, top in zip(tokens, chosen, tops, strict=False)
        ]
