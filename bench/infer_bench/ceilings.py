"""What the GPU can do at most, measured: the ceilings that decode and prefill are held against.

Torch and triton are imported on use, so that importing this module stays light. All data are
random: zeros cost a GPU less power, which flatters it, and some GPUs compress them.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from statistics import median

from infer_bench.report import Ceilings, DType

# Far more than any L2 cache, so that no pass finds its data there.
READ_BYTES = 2 * 10**9
# (elements one program reads, its warps). One H200: 4.57 and 4.58 TB/s; 2048 to 32768 elements
# with 4 to 16 warps, or several tiles a program, all lie within 1 % of that, torch.sum at 4.33.
SHAPES = ((8192, 8), (16384, 8))
# Large enough to be bound by the matrix units of any GPU: 1.1e12 operations.
MATMUL_SIZE = 8192
REPEATS = 20


def measure_ceilings(device: str, *, dtype: DType = "bfloat16") -> Ceilings:
    """Measure read bandwidth and the speed of a matrix product in `dtype`."""
    return Ceilings(
        read_bandwidth_bytes_per_s=read_bandwidth(device),
        matmul_flops_per_s=matmul_flops(device, dtype=dtype),
        matmul_dtype=dtype,
    )


def read_bandwidth(device: str) -> float:
    """Time read-only passes over 2 GB (less on a small GPU) and give the best shape's bytes/s.

    Each shape's figure is the median of 20 passes.
    """
    import torch

    from infer_bench.read_kernel import read_all

    with torch.cuda.device(device):
        free, _ = torch.cuda.mem_get_info()
        num_elements = min(READ_BYTES, free // 2) // 4
        data = torch.empty(num_elements, dtype=torch.int32, device=device).random_()
        seconds = [
            _seconds(partial(read_all, data, block_size=block_size, num_warps=num_warps))
            for block_size, num_warps in SHAPES
        ]
    return data.nbytes / min(seconds)


def matmul_flops(device: str, *, dtype: DType) -> float:
    """Time cuBLAS on two square matrices and give operations/s, the median of 20 products."""
    import torch

    with torch.cuda.device(device):
        left, right = (
            torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=getattr(torch, dtype))
            for _ in range(2)
        )
        out = torch.empty_like(left)
        seconds = _seconds(lambda: torch.mm(left, right, out=out))
    return 2 * MATMUL_SIZE**3 / seconds


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
