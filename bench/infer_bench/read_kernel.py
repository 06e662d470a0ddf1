"""Read an array once and write next to nothing: what a memory-bound kernel can hope for.

    sums[i] = sum(data[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE])

Shapes  data [num_elements], sums [ceil(num_elements / BLOCK_SIZE)].
Dtypes  int32, which wraps on overflow; nobody uses the sums, they keep the loads alive.
Bound   memory: reads data.nbytes, writes 4 / (4 * BLOCK_SIZE) of that.
"""

import torch
import triton
import triton.language as tl


def read_all_ref(data: torch.Tensor, *, block_size: int) -> torch.Tensor:
    """Define the sums in plain torch; the kernel must agree with this."""
    padding = -data.numel() % block_size
    padded = torch.nn.functional.pad(data, (0, padding))
    return padded.view(-1, block_size).sum(1, dtype=torch.int64).to(torch.int32)


@triton.jit
def _read_kernel(data_ptr, sums_ptr, num_elements, BLOCK_SIZE: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    offsets = program * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    values = tl.load(data_ptr + offsets, mask=offsets < num_elements, other=0)
    tl.store(sums_ptr + program, tl.sum(values, axis=0))


def read_all(data: torch.Tensor, *, block_size: int, num_warps: int) -> torch.Tensor:
    """Launch the kernel; same contract as `read_all_ref`. `data` is contiguous int32."""
    num_programs = triton.cdiv(data.numel(), block_size)
    sums = torch.empty(num_programs, dtype=torch.int32, device=data.device)
    _read_kernel[(num_programs,)](
        data, sums, data.numel(), BLOCK_SIZE=block_size, num_warps=num_warps
    )
    return sums
