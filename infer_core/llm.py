"""A model that answers text with text: the Python interface."""

import gc
import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload
from weakref import WeakSet

import torch

from infer_core.chat_template import ChatTemplate
from infer_core.completion import Completion
from infer_core.device import pick_device
from infer_core.engine import Engine, find_model
from infer_core.errors import ChatTemplateError, RequestError
from infer_core.generation_defaults import read_generation_defaults, with_generation_defaults
from infer_core.model_source import ResolvedModel
from infer_core.sampling_params import SamplingParams
from infer_core.specs import DType
from infer_core.stop_tokens import stop_token_ids
from infer_core.text_stream import TextStream
from infer_core.tokenizer import Tokenizer, has_tokenizer, no_tokenizer

DEFAULT_MAX_TOKENS = 1024

Prompt = str | Sequence[int]


class LLM:
    """A model and its tokenizer on one device; use as a context manager, or `close` it.

    `model` is a checkpoint folder, a hub id (`org/name`, with `revision`) or the name of a
    reference model (random weights, token ids only). `device` defaults to the GPU when there is
    one, `dtype` to the checkpoint's on a GPU and float32 on a CPU, `max_context` to the model's.

    Each sampling value is the request's, else that of the model's generation_config.json, else
    greedy. `commit` is that of a hub model.

    Raises:
        ModelNotFound, HubError, ConfigError, UnknownArchitecture, PluginError, WeightError,
        TokenizerError, RequestError: as the step that failed says.
        OutOfMemory: the GPU has too little for the weights and a short request; weights of a hub
            id were not fetched then.
    """

    def __init__(
        self,
        model: str | Path | ResolvedModel,
        *,
        device: str | None = None,
        dtype: DType | None = None,
        revision: str | None = None,
        max_context: int | None = None,
    ) -> None:
        device = pick_device(device)
        if not isinstance(model, ResolvedModel):
            model = find_model(str(model), device=device, dtype=dtype, revision=revision)
        limit = model.spec.shape.max_context
        if max_context is not None and not 1 <= max_context <= limit:
            raise RequestError(
                f"max_context is {max_context}; expected 1 to {limit}, what {model.name} was "
                "made for"
            )
        self.name = model.name
        self.commit = model.commit
        self.checkpoint = model.checkpoint
        self.tokenizer: Tokenizer | None = None
        self.sampling_defaults: dict[str, Any] = {}
        spec = model.spec
        if model.checkpoint is not None:
            if has_tokenizer(model.checkpoint):
                self.tokenizer = Tokenizer.load(model.checkpoint)
            self.sampling_defaults = read_generation_defaults(model.checkpoint)
            eos = stop_token_ids(
                {"eos_token_id": spec.eos_token_ids},
                model.checkpoint,
                tokenizer_eos=self.tokenizer.eos_token_id if self.tokenizer else None,
            )
            spec = spec.model_copy(update={"eos_token_ids": eos})
        self._template: ChatTemplate | None = None
        self._streams: WeakSet[TextStream] = WeakSet()
        self._engine: Engine | None = Engine.load(
            replace(model, spec=spec), device=device, dtype=dtype, max_context=max_context
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free weights, caches and graphs; a closed model serves no further request."""
        if self._engine is None:
            return
        for stream in self._streams:
            stream.close()  # one that was not read to its end holds a session
        self._engine.release()
        self._engine.parameters.clear()
        on_gpu = self._engine.device.type == "cuda"
        self._engine = None
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()

    @property
    def engine(self) -> Engine:
        """The engine below, which knows token ids only."""
        if self._engine is None:
            raise RequestError(f"{self.name} is closed; load it again with LLM(...)")
        return self._engine

    @property
    def chat_template(self) -> ChatTemplate:
        """The checkpoint's chat template.

        Raises:
            ChatTemplateError: it has none, or one that is no valid template.
        """
        if self._template is None:
            self._template = load_chat_template(self.name, self.checkpoint, self.tokenizer)
        return self._template

    # a str is a Sequence[str] to a type checker; the first signature wins
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, params: SamplingParams | None = None
    ) -> Completion: ...
    @overload
    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]: ...
    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> Completion | list[Completion]:
        """Continue a prompt, or each of a list of prompts; a prompt is text or token ids.

        All prompts are checked before the first one runs; they run one after another.

        Raises:
            RequestError: an empty prompt, an id outside the vocabulary, or more tokens than the
                context holds.
            TokenizerError: text for a model without a tokenizer.
        """
        if _is_prompt(prompts):
            return self.stream(prompts, params).read()  # type: ignore[arg-type]
        streams = [self.stream(prompt, params) for prompt in prompts]  # type: ignore[arg-type]
        return [stream.read() for stream in streams]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> TextStream:
        """Continue one prompt piece by piece: `for piece in llm.stream(...)`.

        Raises:
            RequestError, TokenizerError: as for `generate`, before anything runs.
        """
        return self.open_stream(self._ids(prompt), params)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Answer messages of the form {"role": ..., "content": ...}.

        `tools` and `variables` (such as enable_thinking) are for the model's chat template.

        Raises:
            ChatTemplateError: the model has no chat template.
            RequestError: as for `generate`, or messages that the template refuses.
        """
        text = self.chat_template.render(messages, tools=tools, variables=variables)
        return self.open_stream(self.encode(text, add_special_tokens=False), params).read()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into token ids.

        Raises:
            TokenizerError: the model has no tokenizer.
        """
        if self.tokenizer is None:
            raise no_tokenizer(self.name, self.checkpoint)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def open_stream(
        self, ids: Sequence[int], params: SamplingParams | None, *, reuse_prefix: bool = False
    ) -> TextStream:
        """Check a request and make it ready; `reuse_prefix` as in `Engine.stream`."""
        engine = self.engine
        asked = params.max_tokens if params is not None else None
        params = with_generation_defaults(params, self.sampling_defaults)
        if params.stop and self.tokenizer is None:
            raise RequestError(f"stop strings need text, and {self.name} has no tokenizer")
        room = engine.max_context - len(ids)
        if room < 1:
            more = engine.max_context < engine.spec.shape.max_context
            raise RequestError(
                f"the prompt has {len(ids)} tokens and the context {engine.max_context}, which "
                f"leaves no room for an answer; shorten the prompt{' or raise max_context' * more}"
            )
        # a length that nobody asked for gives way to the context
        max_tokens = asked or min(params.max_tokens or DEFAULT_MAX_TOKENS, room)
        engine.check(ids, max_tokens)
        params = params.model_copy(update={"max_tokens": max_tokens})
        stream = TextStream(engine, self.tokenizer, ids, params, reuse_prefix=reuse_prefix)
        self._streams.add(stream)
        return stream

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if not prompt:
                raise RequestError("the prompt is empty; give some text")
            return self.encode(prompt)
        try:
            if not isinstance(prompt, bytes):
                return [operator.index(token) for token in prompt]  # of numpy and torch, too
        except TypeError:
            pass  # reported below
        raise RequestError(
            f"a prompt is {reprlib.repr(prompt)}, expected text or a list of token ids; messages "
            "with roles are for `chat`"
        )


def load_chat_template(
    name: str, checkpoint: Path | None, tokenizer: Tokenizer | None
) -> ChatTemplate:
    """Read the chat template of a model.

    Raises:
        ChatTemplateError: it has none, or one that is no valid template.
    """
    if checkpoint is None:
        raise ChatTemplateError(
            f"{name} is a reference model without tokenizer and chat template; give a checkpoint"
        )
    special = tokenizer.special_tokens if tokenizer is not None else {}
    return ChatTemplate.load(checkpoint, special)


def _is_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is one prompt (an empty list, too), and not a list of them."""
    is_list = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    return not is_list or not any(isinstance(each, Sequence) for each in prompts)
