"""Read bandwidth of the GPU, measured: the ceiling that decode speed is held against.

Torch and triton are imported on use, so that importing this module stays light.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median

# Far more than any L2 cache, so that no pass finds its data there.
READ_BYTES = 2 * 10**9
# (elements one program reads, its warps). One H200: 4.57 and 4.58 TB/s; 2048 to 32768 elements
# with 4 to 16 warps, or several tiles a program, all lie within 1 % of that, torch.sum at 4.33.
SHAPES = ((8192, 8), (16384, 8))
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
        seconds = [
            _seconds(partial(read_all, data, block_size=block_size, num_warps=num_warps))
            for block_size, num_warps in SHAPES
        ]
    return data.nbytes / min(seconds)


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
    return 1e-3 * float(median(a.elapsed_time(b) for a, b in pairwise(events)))
