"""One context size of an engine: its cache, its device-side state, its captured decode graphs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from infer_core.decode_chain import DecodeChain, supports
from infer_core.decoder import Decoder
from infer_core.kv_cache import KVCache
from infer_core.sampling import GREEDY, Sampler, SamplingKind, kind_of
from infer_core.sampling_params import SamplingParams
from infer_core.specs import ModelSpec

# Steps the host may be ahead of the token it waits for, when it must look at tokens at all.
RUN_AHEAD = 8
# Sizes of captured contexts and prompts are multiples of these, at least.
CONTEXT_SLOTS = 64
PREFILL_ROWS = 16


@dataclass(frozen=True, slots=True)
class GraphKey:
    """What a captured graph does: the last piece of a prompt, at `rows` rows, or a decode step.

    `is_fresh`: the piece is the whole prompt and nothing was cached before it.
    """

    kind: SamplingKind
    rows: int = 0
    is_fresh: bool = False


class Session:
    """The state of one context size: cache, device-side position and token, captured graphs.

    Everything a decode step reads or writes is a static device buffer, so that one captured
    graph serves every request of its kind.
    """

    def __init__(
        self,
        spec: ModelSpec,
        parameters: dict[str, torch.Tensor],
        decoder: Decoder,
        *,
        use_kv_cache: bool,
        use_graph: bool,
        prefill_chunk: int,
    ) -> None:
        embed = parameters["embed"]
        device, context = embed.device, decoder.context
        self.decoder = decoder
        # Without a cache each pass starts at position 0 and reads back nothing: one slot will do.
        self.cache = KVCache(
            spec, context=context if use_kv_cache else 1, device=device, dtype=embed.dtype
        )
        self.logits: torch.Tensor  # [1, vocab_size] of the latest pass
        self._sampler = Sampler(spec.shape.vocab_size, max_new_tokens=context, device=device)
        self._device = device
        self._use_kv_cache = use_kv_cache
        self._use_graph = use_graph
        self._prefill_chunk = prefill_chunk
        # with each the logits it leaves, which must live on or another graph would use their memory
        self._graphs: dict[GraphKey, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if use_graph else None
        self._kind = GREEDY
        self._prompt_len = 0
        self._num_written = 0  # positions, from 0 on, that the cache was given since prefill
        # What a request brings, in one copy: where the last piece of its prompt starts, how many
        # rows of that piece are not padding, and the prompt. Tokens stay there by position: a
        # step reads one entry and writes the next.
        self._inbox = torch.zeros(context + 3, dtype=torch.int64, device=device)
        self._outbox = torch.zeros(context + 3, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._sequence = self._inbox[2:]
        self._position = torch.zeros(1, dtype=torch.int32, device=device)
        self._control = torch.zeros(2, dtype=torch.int32, device=device)
        self._start, self._count = self._control.split(1)
        # The fused decode step, on a GPU; without it (or without a cache) the decoder runs it.
        self._chain: DecodeChain | None = None
        if use_kv_cache and use_chain(spec, device):
            self._chain = DecodeChain(
                spec,
                parameters,
                decoder.rope,
                list(zip(self.cache.keys, self.cache.values, strict=True)),
                max_context=context,
                sequence=self._sequence,
                position=self._position,
                sampler=self._sampler.state,
            )
        self._marks: list[float | torch.cuda.Event] = []
        self._reader = torch.cuda.Stream() if device.type == "cuda" else None

    def reusable_prefix(self, prompt: Sequence[int]) -> int:
        """Count the leading tokens of `prompt` whose keys and values the cache still holds.

        The last token always runs again, for its logits. A ring that has wrapped holds only the
        window before its newest position: it can be taken up there or one before, nowhere else.
        """
        if not self._use_kv_cache:
            return 0
        cached = self._sequence[: self._num_written].tolist()
        pairs = zip(cached, prompt[:-1], strict=False)
        common = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if common is None:
            common = min(len(cached), len(prompt) - 1)
        wrapped = any(keys.shape[1] < self._num_written for keys in self.cache.keys)
        return common if not wrapped or common >= self._num_written - 1 else 0

    def prepare(self, sampling: SamplingParams, prompt_len: int, *, keep: int = 0) -> bool:
        """Capture the graphs this request needs; say whether any had to be captured."""
        self._kind = kind_of(sampling)
        if not self._use_graph:
            return False
        prompt = self._prompt_graph(prompt_len, keep)
        wanted: dict[GraphKey, Callable[[], None]] = {
            GraphKey(self._kind): self._step,
            prompt: lambda: self._prefill_last(prompt.rows, is_fresh=prompt.is_fresh),
        }
        missing = {key: body for key, body in wanted.items() if key not in self._graphs}
        if missing:
            self._num_written = 0  # unknown until prefill
        for key, body in missing.items():
            self._sampler.begin(sampling, self._sequence[:1], max_new_tokens=1)
            # the first position that prefill is going to write anyhow
            self._inbox[:2] = torch.tensor([keep, 1])
            self._position.fill_(keep)
            self._graphs[key] = self._capture(body), self.logits
        return bool(missing)

    def prefill(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams,
        max_new_tokens: int,
        *,
        keep: int = 0,
    ) -> None:
        """Run the prompt, in pieces if it is long, and pick the first token.

        The first `keep` tokens are in the cache already (see `reusable_prefix`).
        """
        num_tokens = self._prompt_len = len(prompt)
        self._num_written = 0  # stays so if anything goes wrong
        self._kind = kind_of(sampling)
        piece = self._prefill_chunk if self._use_kv_cache else num_tokens
        last = keep + (num_tokens - keep - 1) // piece * piece
        message = [last, num_tokens - last, *prompt]
        self._outbox[: len(message)] = torch.tensor(message, dtype=torch.int64)
        self._inbox[: len(message)].copy_(self._outbox[: len(message)], non_blocking=True)
        self._sampler.begin(sampling, self._sequence[:num_tokens], max_new_tokens=max_new_tokens)
        for start in range(keep, last, piece):
            self._start.fill_(start)
            tokens = self._sequence[start : start + piece]
            self.decoder.forward(tokens, self.cache, self._start, is_prefill=True)
        key = self._prompt_graph(num_tokens, keep)
        if key in self._graphs:
            self._replay(key)
        else:
            self._prefill_last(num_tokens - last, is_fresh=key.is_fresh)
        self._num_written = num_tokens

    def read(self, index: int) -> int:
        """Wait for the new token number `index` and give it to the host."""
        return int(self.token(index))

    def token(self, index: int) -> torch.Tensor:
        """The new token number `index`, on the device: [1], int64."""
        at = self._prompt_len + index
        return self._sequence[at : at + 1]

    def decode(
        self,
        steps: int,
        *,
        look: bool,
        run_ahead: int = RUN_AHEAD,
        on_step: Callable[[int], None] | None = None,
    ) -> Iterator[int]:
        """Yield the tokens of `steps` decode steps.

        With `look` each token is yielded while at most `run_ahead` further steps are under way
        on the GPU; without, all steps are enqueued before the first token is read. `on_step` is
        called with the number of each step once it is enqueued, while `logits` are its own.
        """
        self._marks = [self._mark()]

        def run(index: int) -> None:
            self._run_step()
            if on_step is not None:
                on_step(index)
            self._marks.append(self._mark())

        if not look:
            for index in range(1, steps + 1):
                run(index)
            first = self._prompt_len + 1
            yield from self._sequence[first : first + steps].tolist()
            return
        ahead = run_ahead if self._reader is not None else 0
        for index in range(1, steps + ahead + 1):
            if index <= steps:
                run(index)
            if index > ahead:
                yield self._read_behind(index - ahead)

    def force(self, token: int) -> torch.Tensor:
        """Put `token` in place of the latest pick and run a step: its logits [vocab_size]."""
        if self._chain is not None:
            self._chain.token.fill_(token)
            self._position -= 1
            self._chain.advance()
        else:
            self._sequence.index_fill_(0, self._position.long(), token)
        self._num_written = 0  # no request to continue from
        self._step()
        return self.logits[0]

    def step_ms(self, steps: int) -> list[float]:
        """Give the duration of each of the first `steps` decode steps."""
        pairs = zip(self._marks[:steps], self._marks[1 : steps + 1], strict=True)
        durations = []
        for before, after in pairs:
            if isinstance(before, float) and isinstance(after, float):
                durations.append(1e3 * (after - before))
            elif isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
                durations.append(before.elapsed_time(after))
        return durations

    def _read_behind(self, index: int) -> int:
        mark = self._marks[index]
        if self._reader is None or isinstance(mark, float):
            return self.read(index)
        # on a stream of its own: a read on the main stream would queue behind the steps ahead
        with torch.cuda.stream(self._reader):
            self._reader.wait_event(mark)
            return self.read(index)

    def _mark(self) -> float | torch.cuda.Event:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _run_step(self) -> None:
        written, self._num_written = self._num_written, 0  # unknown if Ctrl-C comes in between
        if self._use_graph:
            self._replay(GraphKey(self._kind))
        else:
            self._step()
        self._num_written = written + 1

    def _replay(self, key: GraphKey) -> None:
        graph, self.logits = self._graphs[key]
        graph.replay()

    def _step(self) -> None:
        """One decode step over static buffers; capturable, since nothing visits the host."""
        if self._chain is not None:
            self._chain.step(self._kind)
            self.logits = self._chain.logits[None]
        elif self._use_kv_cache:
            index = self._position.long()
            token = self._sequence.index_select(0, index)
            self.logits = self.decoder.forward(token, self.cache, self._position, is_prefill=False)
            self._sequence.index_copy_(0, index + 1, self._sampler.pick(self.logits[0]))
            self._position += 1
        else:
            length = int(self._position) + 1
            self._inbox[:2] = torch.tensor([0, length])
            self._prefill_last(length, is_fresh=True)

    def _prefill_last(self, num_rows: int, *, is_fresh: bool) -> None:
        """Run the last piece of a prompt at `num_rows` rows, padding included, and pick.

        Capturable: where the piece starts and how many of its rows count is on the device.
        """
        self._control.copy_(self._inbox[:2])
        rows = self._start + torch.arange(num_rows, device=self._device)
        tokens = self._sequence[rows.clamp(max=len(self._sequence) - 1)]
        self.logits = self.decoder.forward(
            tokens,
            self.cache,
            self._start,
            is_prefill=True,
            count=self._count,
            is_fresh=is_fresh,
        )
        end = self._start + self._count
        if self._chain is not None:
            self._position.copy_(end - 1)
            self._chain.pick(self.logits[0], self._kind)
        else:
            self._sequence.index_copy_(0, end.long(), self._sampler.pick(self.logits[0]))
            self._position.copy_(end)

    def _prompt_graph(self, num_tokens: int, keep: int) -> GraphKey:
        """Name the graph that runs the last piece of a prompt, the first `keep` tokens cached."""
        pieces, last_piece = divmod(num_tokens - keep - 1, self._prefill_chunk)
        rows = min(bucket(last_piece + 1, smallest=PREFILL_ROWS), self._prefill_chunk)
        return GraphKey(self._kind, rows, is_fresh=pieces == keep == 0)

    def _capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # One stream for every capture of the process: cuBLAS keeps a workspace a stream.
        stream = capture_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()  # compiles every kernel: capture must not
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # One pool for all: they never run at the same time, and what a graph leaves behind
        # (the logits) is read before the next one runs.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            body()
        return graph


def use_chain(spec: ModelSpec, device: torch.device) -> bool:
    """Whether decode runs as the chain of fused kernels."""
    return device.type == "cuda" and supports(spec)


@cache
def capture_stream() -> torch.cuda.Stream:
    """Give the stream that graphs are captured on."""
    return torch.cuda.Stream()


def bucket(num_tokens: int, *, smallest: int) -> int:
    """Round up to a size graphs are captured for, by less than a quarter or `smallest`."""
    step = max(smallest, 1 << max(0, (num_tokens - 1).bit_length() - 3))
    return -(-num_tokens // step) * step
