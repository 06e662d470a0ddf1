"""Tune the tiles of the decode chain on this GPU and keep them in the user's cache folder.

    python bench/gpu/tune_chain.py [--model NAME ...] [--budget SECONDS] [--forget]

For every installed reference model, dummy weights: the time of a whole step in a captured graph,
with the built-in tiles and with the tuned ones, over the full model's weights, so that nothing
stays in the L2 cache that would not in use. Needs an NVIDIA GPU. `--forget` only prints.
"""

import argparse
from statistics import median

import torch

from infer_core.chain_tiles import ChainTiles, default_tiles
from infer_core.decode_chain import DecodeChain, num_multiprocessors
from infer_core.dummy_weights import dummy_weights
from infer_core.kv_cache import KVCache
from infer_core.plugins import load_registry
from infer_core.rope import rope_tables
from infer_core.tuner import save_tiles, tiles_key, tune

CONTEXT = 2048
POSITIONS = (80, 500, 1500)


def main() -> None:
    """Tune the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--budget", type=float, default=60.0)
    parser.add_argument("--forget", action="store_true")
    arguments = parser.parse_args()
    registry = load_registry()
    names = arguments.model or [model.name for _, model in registry.reference_models()]
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    for name in names:
        spec = registry.resolve(registry.reference_model(name).config)
        dtype = torch.bfloat16
        parameters = dummy_weights(spec, device=device, dtype=dtype)
        cache = KVCache(spec, context=CONTEXT, device=device, dtype=dtype)
        pairs = list(zip(cache.keys, cache.values, strict=True))
        angles = [rope_tables(a.rope, a.rotary_dim, CONTEXT, device) for a in spec.attention]

        def step_us(tiles: ChainTiles) -> float:
            chain = DecodeChain(
                spec, parameters, angles, pairs, max_context=CONTEXT, tiles=tiles  # noqa: B023
            )  # fmt: skip
            return sum(time_us(chain, position) for position in POSITIONS) / len(POSITIONS)

        start = default_tiles(spec, num_multiprocessors(device))
        before = step_us(start)
        tiles, after = tune(start, step_us, budget_s=arguments.budget)
        print(f"{name}: built-in {before:.1f} us, tuned {after:.1f} us ({before / after - 1:+.1%})")
        print(f"  {tiles}")
        if not arguments.forget:
            print(f"  kept in {save_tiles(tiles_key(spec, dtype, gpu), tiles)}")


def time_us(chain: DecodeChain, position: int, *, steps: int = 24, repeats: int = 3) -> float:
    """Median time of a greedy step from `position` on."""
    chain.begin(5, position)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        chain.step()  # compiles; capture must not
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain.step()
    times = []
    for _ in range(repeats):
        chain.begin(5, position)
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            graph.replay()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / steps * 1e3)
    return median(times)


if __name__ == "__main__":
    main()
