"""One context size of an engine: its cache, its device-side state, its captured decode graphs."""

import ctypes
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch

from infer_core.decode_chain import DecodeChain, supports
from infer_core.decoder import Decoder, Piece
from infer_core.kv_cache import KVCache
from infer_core.sampling import GREEDY, Sampler, SamplingKind, kind_of
from infer_core.sampling_params import SamplingParams
from infer_core.specs import ModelSpec

# Steps the host may be ahead of the token it waits for, when it must look at tokens at all.
RUN_AHEAD = 8
# Sizes of captured contexts and prompts are multiples of these, at least.
CONTEXT_SLOTS = 64
PREFILL_ROWS = 16
HEADER = 4  # numbers that come before the prompt in a request's message to the device
TOKEN_BYTES = 8  # an int64


class GraphKey(NamedTuple):
    """What a captured graph does: a piece of a prompt, at `rows` rows, or a decode step.

    `kind`: how it picks a token; None for the pieces before the last, which pick none.
    `is_fresh`: the piece is the prompt's first and nothing was cached before it.
    """

    kind: SamplingKind | None
    rows: int = 0
    is_fresh: bool = False


class GraphPool:
    """The memory that graphs work in, one for all sessions of an engine.

    They may share it because they never run at the same time, and what a graph leaves behind (the
    logits) is read before the next one runs. What must live on between two replays of a graph is
    kept outside, in static buffers, except those logits: whoever keeps the graph keeps them.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    @property
    def handle(self) -> Any:
        """What the next capture is told; torch refuses that of a pool whose last graph is gone."""
        if self._handle is None or not self._graphs:
            self._handle = torch.cuda.graph_pool_handle()
        return self._handle

    def add(self, graph: torch.cuda.CUDAGraph) -> None:
        """Remember that `graph` was captured with `handle`."""
        self._graphs.add(graph)


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
        graph_pool: GraphPool,
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
        self._graph_pool = graph_pool
        self.begin(SamplingParams(), prompt_len=1)
        self._num_written = 0  # positions, from 0 on, that the cache was given since prefill
        # What a request brings, in one copy: the header, and the prompt. Tokens stay there by
        # position: a step reads one entry and writes the next.
        pinned = device.type == "cuda"
        self._inbox = torch.zeros(HEADER + context + 1, dtype=torch.int64, device=device)
        self._outbox = torch.zeros(HEADER + context + 1, dtype=torch.int64, pin_memory=pinned)
        self._first_token = torch.zeros(1, dtype=torch.int64, pin_memory=pinned)
        # The host's side of both without torch, whose operations cost tens of microseconds here.
        self._mail = memoryview(_as_numbers(self._outbox)).cast("B")
        self._first = _as_numbers(self._first_token)
        self._sequence = self._inbox[HEADER:]
        # The header on the device: where the last piece of the prompt starts, how many of its
        # rows are not padding, the last of those, and its position, which decode then counts up.
        self._control = torch.zeros(HEADER, dtype=torch.int32, device=device)
        self._start, self._count, self._last_row, self._position = self._control.split(1)
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

    def begin(self, sampling: SamplingParams, prompt_len: int, *, keep: int = 0) -> None:
        """Take up a request, whose first `keep` tokens are cached (see `reusable_prefix`).

        `prepare` and `prefill` are about the request taken up last. Until the prompt's graph is
        launched the GPU waits, and the host is slow after a long answer: what needs no torch does
        without, and nothing is worked out twice.
        """
        self._sampling, self._kind = sampling, kind_of(sampling)
        self._prompt_len, self._keep = prompt_len, keep
        # where the last piece of the prompt begins; without a cache it is one piece
        piece = self._prefill_chunk if self._use_kv_cache else prompt_len
        self._last = keep + (prompt_len - keep - 1) // piece * piece
        rows = min(bucket(prompt_len - self._last, smallest=PREFILL_ROWS), self._prefill_chunk)
        self._prompt_graph = GraphKey(self._kind, rows, is_fresh=self._last == 0)
        self._piece_graphs = [
            (start, GraphKey(None, piece, is_fresh=start == 0))
            for start in range(keep, self._last, piece)
        ]

    def prepare(self, *, make_room: Callable[[], None] | None = None) -> bool:
        """Capture the graphs the request needs; say whether any had to be captured.

        `make_room` is called before the first one.
        """
        prompt, step = self._prompt_graph, GraphKey(self._kind)
        keys = {step, prompt, *(key for _, key in self._piece_graphs)}
        if not self._use_graph or keys <= self._graphs.keys():
            return False
        if make_room is not None:
            make_room()
        self._num_written = 0  # unknown until prefill
        bodies: dict[GraphKey, Callable[[], None]] = {
            step: self._step,
            prompt: partial(self._prefill_last, prompt.rows, is_fresh=prompt.is_fresh),
        }
        for _, key in self._piece_graphs:  # after those: what a piece leaves is their logits
            bodies[key] = partial(self._prefill_piece, is_fresh=key.is_fresh)
        for key, body in bodies.items():
            if key in self._graphs:
                continue
            self._sampler.begin(self._sampling, self._sequence[:1], max_new_tokens=1)
            # one token, at the first position that prefill is going to write anyhow
            keep = self._keep
            self._post(keep, bytes(TOKEN_BYTES * (keep + 1)))
            self._inbox[:HEADER].copy_(self._outbox[:HEADER])
            self._control.copy_(self._inbox[:HEADER])
            self._graphs[key] = self._capture(body), self.logits
        return True

    def prefill(self, prompt: bytes, max_new_tokens: int) -> None:
        """Run the prompt, given as `pack_tokens` does, in pieces if it is long; pick a token."""
        num_tokens, last = self._prompt_len, self._last
        self._num_written = 0  # stays so if anything goes wrong
        self._post(last, prompt)
        key = self._prompt_graph
        if not key.is_fresh or self._kind.penalty:  # else the copy is part of the pass
            size = HEADER + num_tokens
            self._inbox[:size].copy_(self._outbox[:size], non_blocking=True)
        self._sampler.kind = self._kind
        if self._kind != GREEDY:  # which has nothing to set up
            self._sampler.begin(
                self._sampling, self._sequence[:num_tokens], max_new_tokens=max_new_tokens
            )
        for start, piece in self._piece_graphs:
            self._start.fill_(start)
            self._count.fill_(piece.rows)
            if piece in self._graphs:
                self._replay(piece)  # leaves what logits there were
            else:
                self._prefill_piece(is_fresh=piece.is_fresh)
        if key in self._graphs:
            self._replay(key)
        else:
            self._prefill_last(num_tokens - last, is_fresh=key.is_fresh)
        self._num_written = num_tokens

    def read_first(self) -> int:
        """Wait for the token that prefill picked and give it to the host."""
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return int(self._first[0])

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
            self._inbox[:HEADER] = torch.tensor([0, length, length - 1, length - 1])
            self._prefill_last(length, is_fresh=True, from_host=False)

    def _post(self, start: int, prompt: bytes) -> None:
        """Write a request into the outbox: its header and its prompt."""
        end = len(prompt) // TOKEN_BYTES
        struct.pack_into("4q", self._mail, 0, start, end - start, end - 1 - start, end - 1)
        begin = TOKEN_BYTES * HEADER
        self._mail[begin : begin + len(prompt)] = prompt

    def _prefill_piece(self, *, is_fresh: bool) -> None:
        """Run a piece before the last, which is whole. Capturable, as `_prefill_last` is.

        How many rows count is on the device nevertheless: a capture runs it for one token, since
        more would take slots of a ring from the tokens that are kept.
        """
        tokens = self._sequence[: self._prefill_chunk]
        if not is_fresh:
            rows = torch.arange(self._prefill_chunk, device=self._device)
            tokens = self._sequence[self._start + rows]
        # only the last piece has a row whose logits anybody wants: here any row will do
        any_row = self._last_row
        piece = Piece(self.cache, self._start, self._count, True, is_fresh, any_row)
        self.decoder.hidden(tokens, piece)

    def _prefill_last(self, num_rows: int, *, is_fresh: bool, from_host: bool = True) -> None:
        """Run the last piece of a prompt at `num_rows` rows, padding included, and pick.

        Capturable: where the piece starts and how many of its rows count is on the device. With
        `from_host` a fresh prompt is still in the outbox: its copy is captured with the rest.
        """
        context = len(self._sequence)
        if is_fresh and from_host:
            size = HEADER + min(num_rows, context)
            self._inbox[:size].copy_(self._outbox[:size], non_blocking=True)
        self._control.copy_(self._inbox[:HEADER])
        if is_fresh and num_rows <= context:
            tokens = self._sequence[:num_rows]
        else:
            rows = self._start + torch.arange(num_rows, device=self._device)
            tokens = self._sequence[rows.clamp(max=context - 1)]
        if self._chain is not None:
            piece = Piece(self.cache, self._start, self._count, True, is_fresh, self._last_row)
            normed = self.decoder.output(tokens, piece)
            self._chain.finish_prefill(normed[0], self._kind)
            self.logits = self._chain.logits[None]
            self._first_token.copy_(self._chain.token, non_blocking=True)
            return
        self.logits = self.decoder.forward(
            tokens,
            self.cache,
            self._start,
            is_prefill=True,
            count=self._count,
            is_fresh=is_fresh,
        )
        token = self._sampler.pick(self.logits[0])
        self._position += 1
        self._sequence.index_copy_(0, self._position.long(), token)
        self._first_token.copy_(token, non_blocking=True)

    def _capture(self, body: Callable[[], None]) -> torch.cuda.CUDAGraph:
        # One stream for every capture of the process: cuBLAS keeps a workspace a stream.
        stream = capture_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            body()  # compiles every kernel: capture must not
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_pool.handle, stream=stream):
            body()
        self._graph_pool.add(graph)
        return graph


def pack_tokens(prompt: Sequence[int]) -> bytes:
    """Give ids as the int64 numbers of a message to the device.

    Raises:
        struct.error: one is negative, or no integer.
    """
    return struct.pack(f"{len(prompt)}Q", *prompt)


def use_chain(spec: ModelSpec, device: torch.device) -> bool:
    """Whether decode runs as the chain of fused kernels."""
    return device.type == "cuda" and supports(spec)


def _as_numbers(tensor: torch.Tensor) -> ctypes.Array[ctypes.c_int64]:
    """View an int64 tensor on the host, which must outlive the view, as an array of numbers."""
    return (ctypes.c_int64 * tensor.numel()).from_address(tensor.data_ptr())


@cache
def capture_stream() -> torch.cuda.Stream:
    """Give the stream that graphs are captured on."""
    return torch.cuda.Stream()


def context_bucket(tokens: int, max_context: int) -> int:
    """Round a request's tokens up to the context of the session that serves it."""
    return min(bucket(tokens, smallest=CONTEXT_SLOTS), max_context)


def bucket(num_tokens: int, *, smallest: int) -> int:
    """Round up to a size graphs are captured for, by less than a quarter or `smallest`."""
    step = max(smallest, 1 << max(0, (num_tokens - 1).bit_length() - 3))
    return -(-num_tokens // step) * step
