"""Prefill once, decode many: one model on one device, one request at a time."""

import struct
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self, cast

import torch

from infer_core.decode_chain import supports
from infer_core.decoder import decoder_class
from infer_core.device import pick_device
from infer_core.errors import OutOfMemory, RequestError
from infer_core.memory import format_bytes, memory_need
from infer_core.memory_claim import MemoryClaim, claim_of_model, or_in_bfloat16
from infer_core.model_source import ResolvedModel, resolve_model
from infer_core.ops import ops_for
from infer_core.plugins import PluginRegistry, load_registry
from infer_core.sampling_params import SamplingParams
from infer_core.session import RUN_AHEAD, GraphPool, Session, context_bucket, pack_tokens
from infer_core.specs import DType, ModelSpec
from infer_core.weights import dummy_weights, load_checkpoint

# Longer prompts run in pieces of this many tokens, which bounds the activations' memory.
PREFILL_CHUNK = 2048
PLAIN_GREEDY = SamplingParams()  # validated once, not in every request


@dataclass(frozen=True, slots=True)
class Generation:
    """One finished request; times in milliseconds or seconds as named.

    `step_ms` holds one entry a decode step, so one fewer than `tokens` (the prefill gives the
    first token); on CUDA they are device times. `warm_up_s` is what this call spent on
    compiling and capturing before the request could start, 0 once the engine is warm.
    `num_cached_tokens` of the prompt were in the cache already. `finish_reason` "stop" means that
    the caller asked for it.
    """

    tokens: list[int]
    finish_reason: Literal["length", "eos", "stop"]
    ttft_ms: float
    step_ms: list[float]
    decode_s: float
    e2e_s: float
    kv_cache_bytes: int
    warm_up_s: float
    num_cached_tokens: int = 0


class Engine:
    """A loaded model that turns prompt ids into new ids."""

    def __init__(
        self,
        spec: ModelSpec,
        parameters: dict[str, torch.Tensor],
        *,
        weights_kind: Literal["checkpoint", "dummy"] = "checkpoint",
        max_context: int | None = None,
        kv_cache: bool = True,
        cuda_graph: bool = True,
        prefill_chunk: int = PREFILL_CHUNK,
    ) -> None:
        embed = parameters["embed"]
        self.spec = spec
        self.parameters = parameters
        self.device = embed.device
        self.dtype = embed.dtype
        self.weights_kind = weights_kind
        self.weight_bytes = sum(parameter.nbytes for parameter in parameters.values())
        self.max_context = max_context or spec.shape.max_context
        self.load_s = 0.0
        self._ops = ops_for(self.device)
        self._decoder_class = decoder_class(spec)
        self._use_kv_cache = kv_cache
        self._use_graph = cuda_graph and kv_cache and self.device.type == "cuda"
        self._prefill_chunk = prefill_chunk
        # by context, the longest unused first: they are dropped in that order when memory is short
        self._sessions: dict[int, Session] = {}
        self._graph_pool = GraphPool()
        self._latest: Session | None = None  # holds the last request's keys and values
        self._request: object | None = None  # the one that may go on

    @classmethod
    def load(
        cls,
        model: str | ResolvedModel,
        *,
        device: str | None = None,
        dtype: DType | None = None,
        weights: Literal["auto", "dummy"] = "auto",
        max_context: int | None = None,
        kv_cache: bool = True,
        cuda_graph: bool = True,
        seed: int = 0,
        registry: PluginRegistry | None = None,
    ) -> Self:
        """Load a checkpoint folder, or a reference model with seeded random weights.

        `device` defaults to the GPU when there is one, and "cuda:N" becomes the current GPU of
        this process; `dtype` defaults to the checkpoint's on a GPU and to float32 on a CPU.
        `weights="dummy"` fills a checkpoint's architecture with random weights without reading its
        tensors.

        Raises:
            RequestError: `device` names no device, or a GPU that is not there.
            ModelNotFound, ConfigError, UnknownArchitecture, PluginError, WeightError: as the
                step that failed says.
            OutOfMemory: the weights and a short request do not fit the GPU; nothing was read yet.
        """
        began = time.perf_counter()
        device = pick_device(device)
        if isinstance(model, str):
            model = find_model(model, device=device, dtype=dtype, registry=registry)
        torch_dtype = getattr(torch, dtype or _default_dtype(model.spec, device))
        claim = _claim_to_load(model.spec, device, dtype)
        claim.check()
        if torch.device(device).index is not None:
            # streams, graphs and kernels go to the current GPU, one a process
            torch.cuda.set_device(device)
        try:
            if weights == "dummy" or model.checkpoint is None:
                parameters = dummy_weights(model.spec, device=device, dtype=torch_dtype, seed=seed)
            else:
                parameters = load_checkpoint(
                    model.checkpoint, model.spec, device=device, dtype=torch_dtype
                )
        except torch.OutOfMemoryError as error:
            raise claim.explain(error) from error
        engine = cls(
            model.spec,
            parameters,
            weights_kind="dummy" if weights == "dummy" or not model.checkpoint else "checkpoint",
            max_context=max_context,
            kv_cache=kv_cache,
            cuda_graph=cuda_graph,
        )
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        engine.load_s = time.perf_counter() - began
        return engine

    @property
    def kernels(self) -> Literal["triton", "reference"]:
        """Which implementation of the operations runs."""
        return self._ops.name

    @property
    def unfused(self) -> bool:
        """Whether the fused decode kernels do not cover this model, on whatever device it runs."""
        return not supports(self.spec)

    def release(self) -> None:
        """Free caches and captured graphs; the weights stay."""
        self._sessions.clear()
        self._latest = self._request = None

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams | None = None,
        ignore_eos: bool = False,
        on_token: Callable[[int], bool | None] | None = None,
    ) -> Generation:
        """Continue `prompt` by up to `max_new_tokens` ids, an end-of-sequence id included.

        `on_token` is called with each id as it reaches the host, and stops by returning True.

        Raises:
            RequestError: empty prompt, an id outside the vocabulary, or more tokens than the
                context holds; nothing has run then.
            OutOfMemory: the GPU lacks the memory, by prediction (nothing has run then) or in
                fact; either way the engine goes on serving requests that fit.
        """
        steps = self.stream(
            prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            ignore_eos=ignore_eos,
            look=on_token is not None,
        )
        stop: bool | None = None
        while True:
            try:
                token = steps.send(stop)
            except StopIteration as done:
                generation: Generation = done.value
                return generation
            stop = on_token(token) if on_token else None

    @torch.inference_mode()
    def stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams | None = None,
        ignore_eos: bool = False,
        look: bool = True,
        reuse_prefix: bool = False,
        on_logits: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
    ) -> Generator[int, bool | None, Generation]:
        """Yield the ids of `generate` one by one; sending True stops; returns the Generation.

        Without `look` and with nothing that may stop, no id is read before the last was computed.
        `reuse_prefix` keeps what the request before left in the KV cache of the tokens that both
        begin with. `on_logits` gets the logits [vocab_size] and the token [1] of each step, on
        the device and until the next step only; also of steps beyond the last id.

        Raises:
            RequestError, OutOfMemory: as for `generate`, when the first id is asked for; a
                RequestError also when another request has begun since, which took over cache
                and buffers.
        """
        try:
            return (
                yield from self._stream(
                    prompt,
                    max_new_tokens=max_new_tokens,
                    sampling=sampling,
                    ignore_eos=ignore_eos,
                    look=look,
                    reuse_prefix=reuse_prefix,
                    on_logits=on_logits,
                )
            )
        except torch.OutOfMemoryError as error:
            tokens = self._tokens(prompt, max_new_tokens, reuse_prefix)
            raise self._explain(error, tokens, len(prompt)) from error

    def _stream(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams | None,
        ignore_eos: bool,
        look: bool,
        reuse_prefix: bool,
        on_logits: Callable[[torch.Tensor, torch.Tensor], None] | None,
    ) -> Generator[int, bool | None, Generation]:
        began = time.perf_counter()
        packed = self._checked(prompt, max_new_tokens)
        sampling = sampling or PLAIN_GREEDY
        eos = frozenset() if ignore_eos else frozenset(self.spec.eos_token_ids)
        session, keep = self._open(prompt, max_new_tokens, reuse_prefix)
        request = self._request = object()
        session.begin(sampling, len(prompt), keep=keep)
        warmed = session.prepare(
            make_room=partial(self._make_room, session.decoder.context, len(prompt))
        )
        warm_up_s = time.perf_counter() - began if warmed else 0.0

        def on_step(index: int) -> None:
            if on_logits is not None:
                on_logits(session.logits[0], session.token(index))

        session.prefill(packed, max_new_tokens)
        on_step(0)
        tokens = [session.read_first()]
        first_token_at = time.perf_counter()

        finish_reason: Literal["length", "eos", "stop"] = "length"
        following = session.decode(
            max_new_tokens - 1,
            look=look or bool(eos),
            # a ring that ran further ahead would have lost what the next request needs
            run_ahead=1 if reuse_prefix else RUN_AHEAD,
            on_step=on_step if on_logits is not None else None,
        )
        while True:
            stop = yield tokens[-1]
            if self._request is not request:
                raise RequestError(
                    "this answer cannot go on: another request has begun on the same model, or it "
                    "was released; read an answer to its end before asking for the next"
                )
            if tokens[-1] in eos or stop:
                finish_reason = "eos" if tokens[-1] in eos else "stop"
                break
            if (token := next(following, None)) is None:
                break
            tokens.append(token)
        done = time.perf_counter()
        return Generation(
            tokens=tokens,
            finish_reason=finish_reason,
            ttft_ms=1e3 * (first_token_at - began),
            step_ms=session.step_ms(len(tokens) - 1),
            decode_s=done - first_token_at,
            e2e_s=done - began,
            kv_cache_bytes=session.cache.num_bytes if self._use_kv_cache else 0,
            warm_up_s=warm_up_s,
            num_cached_tokens=keep,
        )

    @torch.inference_mode()
    def score(self, ids: Sequence[int], *, prompt_len: int) -> torch.Tensor:
        """Give the logits that follow each of `ids` from the last prompt token on.

        The first `prompt_len` ids run as prefill and the rest one decode step each, so that
        both paths can be compared with another implementation on the same tokens.

        Shapes: returns [len(ids) - prompt_len + 1, vocab_size], float32.

        Raises:
            RequestError: as for `generate`.
        """
        prompt, forced = list(ids[:prompt_len]), list(ids[prompt_len:])
        self.check(prompt, len(forced) + 1)
        self._request = None
        try:
            return self._score(prompt, forced)
        except torch.OutOfMemoryError as error:
            raise self._explain(error, len(ids) + 1, prompt_len) from error

    def _score(self, prompt: list[int], forced: list[int]) -> torch.Tensor:
        session = self._session(len(prompt) + len(forced) + 1, len(prompt))
        session.begin(PLAIN_GREEDY, len(prompt))
        session.prefill(pack_tokens(prompt), len(forced) + 1)
        rows = [session.logits[0].clone()]
        rows.extend(session.force(token).clone() for token in forced)
        return torch.stack(rows)

    def check(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        """Raise the RequestError that such a request would meet; nothing runs."""
        self._checked(prompt, max_new_tokens)

    def _checked(self, prompt: Sequence[int], max_new_tokens: int) -> bytes:
        """Check a request; its prompt packed, which finds negative ids and is needed anyhow."""
        vocab = self.spec.shape.vocab_size
        if not prompt:
            raise RequestError("the prompt is empty; give at least one token id")
        if max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
        try:
            packed = pack_tokens(prompt)
        except struct.error:
            packed = b""
        if not packed or max(prompt) >= vocab:
            outside = next((token for token in prompt if token not in range(vocab)), prompt[0])
            raise RequestError(
                f"prompt id {outside} is outside the vocabulary of {vocab} tokens; "
                f"was the text encoded with another model's tokenizer?"
            )
        total = len(prompt) + max_new_tokens
        if total > self.max_context:
            raise RequestError(
                f"{len(prompt)} prompt tokens + {max_new_tokens} new tokens = {total}, "
                f"more than the context of {self.max_context}; shorten one of them"
            )
        return packed

    def _open(
        self, prompt: Sequence[int], max_new_tokens: int, reuse_prefix: bool
    ) -> tuple[Session, int]:
        """The session of a request, and how many of the prompt's tokens its cache holds."""
        session = self._session(self._tokens(prompt, max_new_tokens, reuse_prefix), len(prompt))
        latest, self._latest = self._latest, session
        keep = latest.reusable_prefix(prompt) if latest is not None and reuse_prefix else 0
        if keep and latest is not None and latest is not session:
            session.cache.take_over(latest.cache, keep)
        return session, keep

    def _tokens(self, prompt: Sequence[int], max_new_tokens: int, reuse_prefix: bool) -> int:
        """Tokens a request's session must hold."""
        total = len(prompt) + max_new_tokens
        if reuse_prefix:
            # powers of two, so that a growing conversation seldom moves
            total = min(max(1024, 1 << (total - 1).bit_length()), self.max_context)
        return total

    def _session(self, tokens: int, prompt: int) -> Session:
        """The session that serves `tokens` tokens, of which `prompt` are the prompt."""
        context = context_bucket(tokens, self.max_context)
        session = self._sessions.pop(context, None)
        if session is None:
            self._make_room(context, prompt)
            session = Session(
                self.spec,
                self.parameters,
                self._decoder_class(
                    self.spec,
                    self.parameters,
                    context=context,
                    padding=self._prefill_chunk,
                    ops=self._ops,
                ),
                use_kv_cache=self._use_kv_cache,
                use_graph=self._use_graph,
                prefill_chunk=self._prefill_chunk,
                graph_pool=self._graph_pool,
            )
        self._sessions[context] = session  # the last is the latest used
        return session

    def _make_room(self, context: int, prompt: int) -> None:
        """Drop other sessions until the GPU has memory for one of `context`, if need be.

        Raises:
            OutOfMemory: it has not with all others gone.
        """
        claim = self._claim(context, prompt)
        others = (other for other in tuple(self._sessions) if other != context)
        while claim.lacking() and (other := next(others, None)) is not None:
            if self._sessions.pop(other) is self._latest:
                self._latest = None
        claim.check()

    def _claim(self, context: int, prompt: int) -> MemoryClaim:
        """What a request takes that runs `prompt` tokens in a session of `context`."""
        dtype = _dtype_name(self.dtype)
        need = memory_need(
            self.spec,
            context=context,
            prompt=prompt,
            max_context=self.max_context,
            dtype=dtype,
            prefill_chunk=self._prefill_chunk,
            kv_cache=self._use_kv_cache,
            device=self.device,
        )
        parts = {"workspace": need.pass_bytes}
        if context not in self._sessions:
            parts = {"KV cache": need.kv_cache_bytes, "workspace": need.workspace_bytes}
        weights = f"{format_bytes(self.weight_bytes)} of {dtype} weights"
        return MemoryClaim(
            f"a context of {context} tokens, beside the {weights},",
            parts,
            self.device,
            mend="Ask for fewer tokens, load with a smaller context (--context, max_context)"
            + or_in_bfloat16(dtype),
        )

    def _explain(self, error: torch.OutOfMemoryError, tokens: int, prompt: int) -> OutOfMemory:
        """Say torch's own error as ours, and drop every session: none is left half made."""
        self.release()
        claim = self._claim(context_bucket(tokens, self.max_context), prompt)
        return claim.explain(error)


def find_model(
    model: str,
    *,
    device: str,
    dtype: DType | None,
    revision: str | None = None,
    registry: PluginRegistry | None = None,
) -> ResolvedModel:
    """Resolve a model to load on `device`; one too large for the GPU is never downloaded.

    Raises:
        OutOfMemory: the weights of a hub model and a short request do not fit the GPU.
        ModelNotFound, RequestError, HubError, WeightError, ConfigError, UnknownArchitecture,
            PluginError: as for `resolve_model`.
    """
    return resolve_model(
        model,
        registry or load_registry(),
        device=device,
        revision=revision,
        before_download=lambda spec: _claim_to_load(spec, device, dtype).check(),
    )


def _claim_to_load(spec: ModelSpec, device: str, dtype: DType | None) -> MemoryClaim:
    """What a model takes with the shortest request there is."""
    return claim_of_model(
        spec,
        dtype or _default_dtype(spec, device),
        torch.device(device),
        context=1,
        prefill_chunk=PREFILL_CHUNK,
    )


def _default_dtype(spec: ModelSpec, device: str) -> DType:
    return "float32" if device == "cpu" else spec.shape.dtype


def _dtype_name(dtype: torch.dtype) -> DType:
    return cast(DType, str(dtype).removeprefix("torch."))
