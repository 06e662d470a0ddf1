"""Time the loading of safetensors that lie in the page cache.

For every installed reference model: a checkpoint with dummy weights, as its plugin's weight rules
name the tensors, is written to a temporary folder and read once; then `load_checkpoint` to the GPU,
device synchronised, the median of some runs.

    python bench/gpu/load_speed.py [--model NAME ...] [--least 2.0] [--device cuda]

Prints GB/s a line, beside that of reading the file alone into memory that is already there. Exits 1
below `--least`. Needs an NVIDIA GPU; `--device cpu` tries it on tiny models.
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
        room = bytearray(size)

        def read() -> None:
            with file.open("rb", buffering=0) as opened:
                opened.readinto(room)

        read()  # now it lies in the page cache, and `room` in memory
        read_s = seconds(read)
        load_s = seconds(lambda: load_checkpoint(Path(folder), spec, device=device, dtype=dtype))
    speed = size / load_s / 1e9
    good = speed >= least
    print(
        f"{'ok  ' if good else 'FAIL'} {name}: {size / 1e9:.2f} GB in {load_s:.3f} s, "
        f"{speed:.2f} GB/s (reading alone {size / read_s / 1e9:.2f} GB/s)",
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
