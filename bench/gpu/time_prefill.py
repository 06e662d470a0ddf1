"""Time the captured prefill with other tiles than the built-in ones.

    python bench/gpu/time_prefill.py TILES ... [--model NAME] [--prompt-tokens 1024] [--rounds 5]

TILES is KIND:N,N,... or several of them joined by +, which are tried together. Kinds:

    attention              rows, keys, warps, stages[, value parts], where split_from leaves it
    activation             tokens, rows, width, warps, stages[, 1, 1 to cut tiles in two]
    attn_out and mlp_out   tokens, rows, width, warps, stages[, parts]
    alone_from             tokens from which on the last layer ends for one token alone
    early_start            0: a kernel starts only when the one before it has ended
    fused_from             tokens from which on the MLP is one kernel, to which the tiles of
                           activation and mlp_out do not apply
    split_from             tokens from which on attention splits the keys between groups of warps

A prompt of several chunks (2,048 tokens each) is timed from the request to its first token.

All are timed once a round, in an order of chance, with the built-in tiles among them, since a GPU
slows down as it warms up, and each time at other addresses. Prints medians and ranges over the
rounds in ms of the device, the gain a layer, and by how much the logits differ; exits 1 where that
is more than rounding. Dummy weights, published shapes, greedy. Needs an NVIDIA GPU.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from profile_prefill import median_ms

from infer_core import Engine, decoder
from infer_core.engine import PREFILL_CHUNK
from infer_core.kernels import _common, attention, linear, mlp
from infer_core.kernels.attention import AttentionTile
from infer_core.kernels.linear import LinearTile, parts_tile

ROUNDING = 0.06  # of the largest logit, in bf16; validate.py sees 0.014 to 0.018 against fp32
BUILT_IN = "built-in"
KINDS = {
    "attention": AttentionTile,
    "activation": LinearTile,
    "attn_out": LinearTile,
    "mlp_out": LinearTile,
    "alone_from": int,
    "early_start": int,
    "fused_from": int,
    "split_from": int,
}


def parse(text: str) -> dict[str, AttentionTile | LinearTile | int]:
    """Read TILES: a tile for each kind named."""
    tiles: dict[str, AttentionTile | LinearTile | int] = {}
    for one in text.split("+"):
        kind, _, numbers = one.partition(":")
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(
                f"{kind!r} is no kind of tile; expected one of {', '.join(KINDS)}"
            )
        try:
            tiles[kind] = KINDS[kind](*map(int, numbers.split(",")))
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"{one!r}: {error}") from error
    return tiles


def use(tiles: dict[str, Any], mlp_width: int) -> ExitStack:
    """Put tiles in the place of the built-in ones until the stack is closed."""

    def parts(num_tokens: int, num_rows: int, width: int, num_sms: int) -> LinearTile | None:
        tile = tiles.get("mlp_out" if width == mlp_width else "attn_out")
        return tile or parts_tile(num_tokens, num_rows, width, num_sms)

    stack = ExitStack()
    stack.enter_context(mock.patch.object(linear, "parts_tile", parts))
    for kind, module in (("attention", attention), ("activation", linear)):
        if kind in tiles:
            always: Callable[..., Any] = lambda *_, tile=tiles[kind]: tile  # noqa: E731
            stack.enter_context(mock.patch.object(module, f"{kind}_tile", always))
    if "alone_from" in tiles:
        stack.enter_context(mock.patch.object(decoder, "ALONE_FROM", tiles["alone_from"]))
    if "fused_from" in tiles:
        stack.enter_context(mock.patch.object(mlp, "FUSED_FROM", tiles["fused_from"]))
    if "split_from" in tiles:
        stack.enter_context(mock.patch.object(attention, "SPLIT_FROM", tiles["split_from"]))
    if "early_start" in tiles:
        always = lambda _: bool(tiles["early_start"])  # noqa: E731
        stack.enter_context(mock.patch.object(_common, "has_pdl", always))
    return stack


@torch.inference_mode()
def time_prefill(engine: Engine, prompt: list[int]) -> tuple[float, torch.Tensor]:
    """Capture the prefill anew; ms of one replay, or to a first token, and the logits."""
    engine.release()
    torch.cuda.empty_cache()
    sizes = (random.randrange(150 << 20) for _ in range(2))
    in_the_way = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in sizes]
    del in_the_way[0]
    engine.generate(prompt, max_new_tokens=1, ignore_eos=True)
    if len(prompt) > PREFILL_CHUNK:
        requests = (engine.generate(prompt, max_new_tokens=1, ignore_eos=True) for _ in range(5))
        ms = statistics.median(request.ttft_ms for request in requests)
        return ms, engine._latest.logits.float().clone()
    graphs = engine._latest._graphs
    graph, logits = next(kept for key, kept in graphs.items() if key.rows)
    return median_ms(graph.replay), logits.float().clone()


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tiles", nargs="*", metavar="TILES")
    parser.add_argument("--model", default="gemma3-1b")
    parser.add_argument("--prompt-tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    try:
        tried = {text: parse(text) for text in arguments.tiles}
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    tried[BUILT_IN] = {}

    engine = Engine.load(arguments.model, device="cuda", weights="dummy")
    shape = engine.spec.shape
    prompt = torch.randint(shape.vocab_size, (arguments.prompt_tokens,)).tolist()
    _, expected = time_prefill(engine, prompt)
    times: dict[str, list[float]] = {name: [] for name in tried}
    differs = dict.fromkeys(tried, 0.0)
    order = list(tried)
    for _ in range(arguments.rounds):
        random.shuffle(order)
        for name in order:
            with use(tried[name], shape.intermediate_size):
                ms, logits = time_prefill(engine, prompt)
            times[name].append(ms)
            difference = float((logits - expected).abs().max() / expected.abs().max())
            differs[name] = max(differs[name], difference)

    base = statistics.median(times[BUILT_IN])
    print(f"{arguments.model}, {arguments.prompt_tokens} tokens, {torch.cuda.get_device_name()}")
    for name in sorted(tried, key=lambda name: statistics.median(times[name])):
        ms = statistics.median(times[name])
        wrong = "" if differs[name] <= ROUNDING else "  WRONG"
        print(
            f"{ms:8.4f} ms ({min(times[name]):.4f} to {max(times[name]):.4f}) "
            f"{1e3 * (ms - base) / shape.num_layers:+7.2f} us a layer, "
            f"logits differ by {differs[name]:.3f}{wrong}  {name}"
        )
    return int(max(differs.values()) > ROUNDING)


if __name__ == "__main__":
    sys.exit(main())
