"""`infer tune`: choose the tiles of the decode kernels by measuring them on this GPU."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infer_core.cli_options import NumberFormat, Revision, note
from infer_core.errors import RequestError

if TYPE_CHECKING:
    from infer_core.specs import ModelSpec


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Checkpoint folder, hub id (org/name) or reference model."
        ),
    ],
    revision: Revision = None,
    budget: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="Try no more tiles after this time.")
    ] = 60.0,
    context: Annotated[
        int, typer.Option(help="Tokens of the KV cache that steps are timed over.")
    ] = 2048,
    dtype: Annotated[NumberFormat | None, typer.Option(help="Default: the checkpoint's.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what was measured, keep nothing.")
    ] = False,
) -> None:
    """Time decode steps with other tiles, and keep those that are faster than the built-in ones.

    Needs a GPU, but no weights: random ones of the model's shape do. The tiles are kept in the
    user's cache folder, by GPU and shape, and every later run on this GPU uses them.
    """
    from infer_core.device import find_gpu
    from infer_core.model_source import resolve_model
    from infer_core.plugins import load_registry

    gpu = find_gpu()
    if gpu is None:
        raise RequestError(
            "infer tune times kernels on a GPU, and torch sees none here; run it on the machine "
            "that is to decode (on a CPU there is nothing to tune)"
        )
    found = resolve_model(model, load_registry(), device="cuda", revision=revision, weights=False)
    _tune(found.name, found.spec, gpu, dtype, context=context, budget_s=budget, keep=not dry_run)


def _tune(
    name: str,
    spec: "ModelSpec",
    gpu: Any,
    dtype: NumberFormat | None,
    *,
    context: int,
    budget_s: float,
    keep: bool,
) -> None:
    import torch

    from infer_core.chain_tiles import default_tiles
    from infer_core.engine import PREFILL_CHUNK
    from infer_core.kernels._common import num_multiprocessors
    from infer_core.memory_claim import claim_of_model
    from infer_core.step_timer import MIN_CONTEXT, StepTimer
    from infer_core.tuner import compare, forget_tiles, save_tiles, tiles_key

    limit = spec.shape.max_context
    if not MIN_CONTEXT <= context <= limit:
        raise RequestError(f"--context {context}: expected {MIN_CONTEXT} to {limit} tokens")
    if spec.uncommon:
        raise RequestError(
            f"{name} decodes without the fused kernels ({', '.join(spec.uncommon)}), so there are "
            "no tiles to tune"
        )
    dtype_name = dtype.value if dtype else spec.shape.dtype
    claim_of_model(spec, dtype_name, gpu, context=context, prefill_chunk=PREFILL_CHUNK).check()
    torch_dtype = getattr(torch, dtype_name)
    gpu_name = torch.cuda.get_device_name(gpu)
    what = f"timing decode steps, about {budget_s:.0f} s at most"
    note(f"{name}, {dtype_name}, on {gpu_name}: {what}")

    timer = StepTimer(spec, context=context, dtype=torch_dtype, device=gpu)
    built_in = default_tiles(spec, num_multiprocessors(gpu))
    result = compare(built_in, timer, budget_s=budget_s)

    print(f"built-in  {result.built_in_time:8.1f} us a step")
    print(f"tuned     {result.tuned_time:8.1f} us a step ({result.gain:+.1%} tokens/s)")
    before, after = asdict(built_in), asdict(result.tiles)
    for kind in before:
        if before[kind] != after[kind]:
            print(f"  {kind:<9} {_numbers(before[kind])} -> {_numbers(after[kind])}")
    key = tiles_key(spec, torch_dtype, gpu_name)
    num_rounds = len(result.rounds)
    if keep and result.wins == num_rounds:
        print(f"kept in {save_tiles(key, result.tiles)}")
    elif keep:
        forget_tiles(key)  # of an earlier run
        why = f": faster in {result.wins} of {num_rounds} rounds only" if num_rounds > 1 else ""
        print(f"the built-in tiles are as fast: nothing to keep{why}")


def _numbers(tile: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in tile.items())
