"""A chat whose history stays in the KV cache, so that each turn runs only what is new."""

from collections.abc import Iterator, Mapping
from typing import Any

from infer_core.completion import Completion
from infer_core.errors import RequestError
from infer_core.generation_defaults import with_generation_defaults
from infer_core.llm import LLM
from infer_core.sampling_params import SamplingParams
from infer_core.text_stream import TextStream


class Conversation:
    """Turns of user and assistant; `messages` is the history, system prompt included."""

    def __init__(
        self,
        llm: LLM,
        *,
        system: str | None = None,
        params: SamplingParams | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self._llm = llm
        self._system = system
        self._params = params
        self._variables = variables
        self._stream: TextStream | None = None
        self._cancelled = False
        self.completion: Completion | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        # the ids the model has read and written, and the text they stand for
        self._ids: list[int] = []
        self._text = ""

    def cancel(self) -> None:
        """End the answer under way after its next token; safe in a signal handler."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def say(self, content: str) -> Iterator[str]:
        """Send a message and yield the answer's pieces; then `completion` has the rest of it.

        An answer that was cancelled stays in the history as far as it came; a turn that fails
        leaves no trace.

        Raises:
            RequestError: an empty message, one the template refuses, or no room left.
        """
        self._cancelled = False
        if not content.strip():
            raise RequestError("the message is empty")
        messages = [*self.messages, {"role": "user", "content": content}]
        text = self._llm.chat_template.render(messages, variables=self._variables)
        ids = self._encode(text)
        self._stream = self._llm.open_stream(ids, self._fitting(ids), reuse_prefix=True)
        if self._cancelled:  # while the message was being encoded
            self._stream.cancel()
        return self._answer(self._stream, messages, ids, text)

    def _answer(
        self, stream: TextStream, messages: list[dict[str, str]], ids: list[int], text: str
    ) -> Iterator[str]:
        yield from stream
        answer = self.completion = stream.completion
        self._stream = None
        if answer.finish_reason == "cancelled" and not answer.text:
            return
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        written = answer.token_ids
        if answer.finish_reason == "eos":
            written = written[:-1]  # the template writes the end of a turn itself
        if answer.finish_reason == "stop":
            self._ids, self._text = ids, text  # the stop string is no part of the message
        else:
            self._ids, self._text = [*ids, *written], text + answer.text

    def _fitting(self, ids: list[int]) -> SamplingParams:
        """The parameters, with an answer no longer than the context still has room for."""
        limit = self._llm.engine.max_context
        room = limit - len(ids)
        if room < 1:
            raise RequestError(
                f"the conversation has {len(ids)} tokens and the context {limit}, which leaves no "
                "room for an answer; say less, reset it, or load with a larger context"
            )
        params = with_generation_defaults(self._params, self._llm.sampling_defaults)
        if params.max_tokens is None:
            return params
        return params.model_copy(update={"max_tokens": min(params.max_tokens, room)})

    def _encode(self, text: str) -> list[int]:
        """Encode a rendered history as the ids that the cache holds, plus the new end.

        Encoding an answer's text need not give the ids that the model chose. Where the template
        rewrites history (drops thoughts, say), everything is encoded anew.
        """
        if self._text and text.startswith(self._text):
            new = text[len(self._text) :]
            return [*self._ids, *self._llm.encode(new, add_special_tokens=False)]
        return self._llm.encode(text, add_special_tokens=False)
