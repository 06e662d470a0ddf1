"""How long a decode step takes with given tiles, on this GPU: what `infer tune` compares."""

from statistics import fmean, median

import torch

from infer_core.chain_tiles import ChainTiles
from infer_core.decode_chain import DecodeChain
from infer_core.decoder import Decoder
from infer_core.dummy_weights import dummy_weights
from infer_core.kv_cache import KVCache
from infer_core.ops import ops_for
from infer_core.specs import ModelSpec

STEPS = 24  # replayed back to back, as decoding does
REPEATS = 3
# Where in the context steps are timed: most requests are far from filling it.
SHARES = (0.04, 0.25, 0.75)
MIN_CONTEXT = 128  # a quarter of it holds the steps


class StepTimer:
    """Times greedy steps of a whole model, dummy weights.

    A part of it would stay in the L2 cache, as no model does in use.
    """

    def __init__(
        self, spec: ModelSpec, *, context: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._spec = spec
        self._context = context
        self._parameters = dummy_weights(spec, device=device, dtype=dtype)
        cache = KVCache(spec, context=context, device=device, dtype=dtype)
        self._cache = list(zip(cache.keys, cache.values, strict=True))
        self._rope = Decoder(spec, self._parameters, context=context, ops=ops_for(device)).rope

    @torch.inference_mode()
    def __call__(self, tiles: ChainTiles) -> float:
        """Microseconds a step, mean over the positions of the median of the repeats.

        Raises:
            RuntimeError: the tiles do not fit the GPU.
        """
        chain = DecodeChain(
            self._spec,
            self._parameters,
            self._rope,
            self._cache,
            max_context=self._context,
            tiles=tiles,
        )
        graph = capture(chain)
        return fmean(step_us(chain, graph, int(share * self._context)) for share in SHARES)


def capture(chain: DecodeChain) -> torch.cuda.CUDAGraph:
    """Capture one greedy step, and compile its kernels before."""
    chain.begin(0, 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        chain.step()  # compiles; capture must not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.step()
    return graph


def step_us(chain: DecodeChain, graph: torch.cuda.CUDAGraph, position: int) -> float:
    """Microseconds a captured step takes from `position` on; median of the repeats."""
    times: list[float] = []
    for _ in range(REPEATS):
        chain.begin(0, position)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(STEPS):
            graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / STEPS * 1e3)
    return median(times)
