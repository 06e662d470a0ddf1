"""Time decode steps with other tiles than the built-in ones, each against the built-in ones.

    python bench/gpu/time_decode.py TILES ... [--model NAME] [--rounds 3] [--placements 3]

TILES is KIND:N,N,... or several of them joined by +, which are tried together. Kinds:

    qkv, attn_out, gate_up, mlp_out, lm_head    rows, warps, programs a multiprocessor
    attention                                   elements of K, warps

Greedy steps of a whole model run back to back at four positions. Where weights and caches lie in
memory moves a step by up to 2 %, so all is repeated at several placements, and what counts is the
difference to the built-in tiles at the same one. Prints us a step, and of that difference median
and range over the placements; also by how much the logits differ, and exits 1 where that is more
than rounding. Dummy weights, published shapes, bfloat16. Needs an NVIDIA GPU.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from infer_core.chain_tiles import ChainTiles, default_tiles
from infer_core.decode_chain import DecodeChain
from infer_core.decoder import Decoder
from infer_core.dummy_weights import dummy_weights
from infer_core.kernels._common import num_multiprocessors
from infer_core.kernels.chain_types import AttentionTile, Tile
from infer_core.kv_cache import KVCache
from infer_core.model_source import resolve_model
from infer_core.ops import ops_for
from infer_core.plugins import load_registry
from infer_core.specs import ModelSpec
from infer_core.step_timer import capture, step_us

POSITIONS = {128: 40, 512: 352, 1152: 560, 2048: 1500}  # by the context that is captured for
ROUNDING = 0.06  # of the largest logit, in bf16; validate.py sees 0.014 to 0.018 against fp32
BUILT_IN = "built-in"


def parse(text: str) -> dict[str, Tile | AttentionTile]:
    """Read TILES: a tile for each kind named."""
    tiles: dict[str, Tile | AttentionTile] = {}
    for one in text.split("+"):
        kind, _, numbers = one.partition(":")
        if kind not in ChainTiles.__slots__:
            raise argparse.ArgumentTypeError(
                f"{kind!r} is no kind of tile; expected one of {', '.join(ChainTiles.__slots__)}"
            )
        try:
            values = map(int, numbers.split(","))
            tiles[kind] = AttentionTile(*values) if kind == "attention" else Tile(*values)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{one!r}: {error}") from error
    return tiles


class Placement:
    """A model and its caches somewhere in memory, and a captured step for all that is tried."""

    def __init__(
        self, spec: ModelSpec, tried: dict[str, dict[str, Any]], device: torch.device
    ) -> None:
        in_the_way = [
            torch.empty(random.randrange(1, 300 << 20), dtype=torch.uint8, device=device)
            for _ in range(2)
        ]
        del in_the_way[0]
        dtype = torch.bfloat16
        parameters = dummy_weights(spec, device=device, dtype=dtype)
        built_in = default_tiles(spec, num_multiprocessors(device))
        self.steps: dict[tuple[str, int], tuple[DecodeChain, torch.cuda.CUDAGraph]] = {}
        self.logits: dict[tuple[str, int], torch.Tensor] = {}
        for context, position in POSITIONS.items():
            cache = KVCache(spec, context=context, device=device, dtype=dtype)
            pairs = list(zip(cache.keys, cache.values, strict=True))
            rope = Decoder(spec, parameters, context=context, ops=ops_for(device)).rope
            for name, tiles in tried.items():
                chain = DecodeChain(
                    spec,
                    parameters,
                    rope,
                    pairs,
                    max_context=context,
                    tiles=replace(built_in, **tiles),
                )
                graph = capture(chain)
                for tensor in (*cache.keys, *cache.values):
                    tensor.zero_()
                chain.begin(1, position)
                graph.replay()
                self.steps[name, context] = chain, graph
                self.logits[name, context] = chain.logits.clone()

    def step_us(self, name: str, context: int) -> float:
        """Time steps back to back; microseconds of one."""
        return step_us(*self.steps[name, context], POSITIONS[context])

    def errors(self) -> Iterator[tuple[str, float]]:
        """Give the largest difference of each one's logits to the built-in tiles', by name."""
        for (name, context), logits in self.logits.items():
            expected = self.logits[BUILT_IN, context]
            yield name, float((logits - expected).abs().max() / expected.abs().max())


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tiles", nargs="*", metavar="TILES")
    parser.add_argument("--model", default="gemma3-1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--placements", type=int, default=3)
    arguments = parser.parse_args()
    try:
        tried = {BUILT_IN: {}, **{text: parse(text) for text in arguments.tiles}}
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    spec = resolve_model(arguments.model, load_registry(), device="cuda", weights=False).spec

    times: dict[tuple[str, int], list[float]] = {}
    errors = dict.fromkeys(tried, 0.0)
    with torch.inference_mode():
        for _ in range(arguments.placements):
            placement = Placement(spec, tried, torch.device("cuda"))
            for name, error in placement.errors():
                errors[name] = max(errors[name], error)
            here: dict[tuple[str, int], list[float]] = {key: [] for key in placement.steps}
            for _ in range(arguments.rounds):
                for name, context in random.sample(list(here), len(here)):
                    here[name, context].append(placement.step_us(name, context))
            for key, rounds in here.items():
                times.setdefault(key, []).append(statistics.median(rounds))
            del placement
            torch.cuda.empty_cache()

    at = ", ".join(f"{position} of {context}" for context, position in POSITIONS.items())
    print(f"{arguments.model}, {torch.cuda.get_device_name()}, us a step at position {at}")
    for name in tried:
        cells = []
        for context in POSITIONS:
            here_us, base_us = times[name, context], times[BUILT_IN, context]
            gains = [us - base for us, base in zip(here_us, base_us, strict=True)]
            cells.append(
                f"{statistics.median(here_us):7.1f} {statistics.median(gains):+6.1f} "
                f"({min(gains):+.1f} to {max(gains):+.1f})"
            )
        wrong = "" if errors[name] <= ROUNDING else "  WRONG"
        print(f"{' | '.join(cells)}  logits differ by {errors[name]:.3f}{wrong}  {name}")
    return int(max(errors.values()) > ROUNDING)


if __name__ == "__main__":
    sys.exit(main())
