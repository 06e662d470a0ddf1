"""Time the loading of safetensors that lie in the page cache.

For every installed reference model: a checkpoint with dummy weights, as its plugin's weight rules
name the tensors, is written to a temporary folder and read once; then `load_checkpoint` to the GPU,
device synchronised, the median of some runs.

    python bench/gpu/load_speed.py [--model NAME ...] [--least 2.0] [--device cuda]

Prints GB/s a line, and of what could be the limit: reading the file, and mapping it, each into
memory that is there already. Exits 1 below `--least`. Needs an NVIDIA GPU; `--device cpu` tries it
on tiny models (memory new to the process then costs more than the loading).
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors import safe_open

from infer_core.dummy_weights import dummy_weights
from infer_core.model_source import resolve_model
from infer_core.plugins import load_registry
from infer_core.specs import ModelSpec
from infer_core.testing.case import save_by_table
from infer_core.weights import load_checkpoint

RUNS = 3


def write_checkpoint(spec: ModelSpec, folder: Path, device: str, dtype: torch.dtype) -> Path:
    """Write a checkpoint of `spec`: one safetensors file, which is returned."""
    weights = dummy_weights(spec, device=device, dtype=dtype)
    save_by_table(spec, {name: weight.cpu() for name, weight in weights.items()}, folder)
    return folder / "model.safetensors"


def seconds(run: Callable[[], object]) -> float:
    """Median time of the runs, the device's work included."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        result = run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        del result
        gc.collect()
    return median(times)


def check(name: str, device: str, least: float) -> bool:
    """Time one model."""
    spec = resolve_model(name, load_registry(), device=device, weights=False).spec
    dtype = getattr(torch, spec.shape.dtype)
    with tempfile.TemporaryDirectory() as folder:
        file = write_checkpoint(spec, Path(folder), device, dtype)
        size = file.stat().st_size
        room = torch.zeros(size, dtype=torch.uint8)

        def read() -> None:
            piece = room[: 64 * 2**20].numpy()
            with file.open("rb", buffering=0) as opened:
                while opened.readinto(piece):
                    pass

        def read_mapped() -> None:
            with safe_open(file, framework="pt", device="cpu") as opened:
                for name in opened.keys():  # noqa: SIM118 (no dict: it cannot be iterated)
                    tensor = opened.get_tensor(name)
                    room[: tensor.nbytes].copy_(tensor.view(-1).view(torch.uint8))

        read()  # now it lies in the page cache
        took = {
            "loading": seconds(
                lambda: load_checkpoint(Path(folder), spec, device=device, dtype=dtype)
            ),
            "reading": seconds(read),
            "mapping": seconds(read_mapped),
        }
    speeds = {what: size / second / 1e9 for what, second in took.items()}
    good = speeds["loading"] >= least
    listed = ", ".join(f"{what} {speed:.2f}" for what, speed in speeds.items())
    verdict = "ok  " if good else "FAIL"
    print(
        f"{verdict} {name}: {size / 1e9:.2f} GB in {took['loading']:.3f} s; GB/s: {listed}",
        flush=True,
    )
    return good


def main() -> int:
    """Time the models asked for, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*")
    parser.add_argument("--least", type=float, default=2.0, help="GB/s")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    names = arguments.model or [m.name for _, m in load_registry().reference_models()]
    results = [check(name, arguments.device, arguments.least) for name in names]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
