"""Read bandwidth of the GPU, measured: the ceiling that decode speed is held against.

Torch and triton are imported on use, so that importing this module stays light.
"""

from collections.abc import Callable
from itertools import pairwise
from statistics import median

# Far more than any L2 cache, so that no pass finds its data there.
READ_BYTES = 2 * 10**9
# Elements one program reads, and its warps. One H200, 2 GB: see `docs/performance.md`.
SHAPES = ((4096, 4), (8192, 8), (16384, 8), (16384, 16))
REPEATS = 20


def read_bandwidth(device: str) -> float:
    """Time read-only passes over 2 GB (less on a small GPU) and give the best shape's bytes/s.

    Each shape's figure is the median of 20 passes.
    """
    import torch

    from infer_bench.read_kernel import read_all

    with torch.cuda.device(device):
        free, _ = torch.cuda.mem_get_info()
        num_elements = min(READ_BYTES, free // 2) // 4
        data = torch.zeros(num_elements, dtype=torch.int32, device=device)
        return max(
            data.nbytes / _seconds(lambda: read_all(data, block_size=block, num_warps=warps))
            for block, warps in SHAPES
        )


def _seconds(run: Callable[[], object]) -> float:
    """Time one run on the device: median of the repeats, the first (compilation) left out."""
    import torch

    run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return 1e-3 * median(a.elapsed_time(b) for a, b in pairwise(events))
