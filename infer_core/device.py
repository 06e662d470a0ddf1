"""Which device a command runs on, and what its memory is like."""

import torch

from infer_core.errors import RequestError


def pick_device(requested: str | None) -> str:
    """Take the device asked for, else the GPU, else the CPU.

    Raises:
        RequestError: it is no device, or a GPU that is not there.
    """
    if requested is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(requested)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise RequestError(f"device {requested!r} is unknown; expected cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"device {requested}: torch sees {torch.cuda.device_count()} GPUs; install a CUDA "
            "build of torch on a machine with a GPU, or use cpu"
        )
    return "cpu" if device.type == "cpu" else requested


def find_gpu() -> torch.device | None:
    """The GPU that torch uses now, if it sees one."""
    if not torch.cuda.is_available():
        return None
    return torch.device("cuda", torch.cuda.current_device())


def free_bytes(device: torch.device) -> int | None:
    """Bytes a GPU can still give: what is free, and what torch holds and can use again.

    None on a CPU, whose memory nobody plans here.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + held)


def cublas_workspace_bytes(device: torch.device | str) -> int:
    """Bytes torch sets aside for cuBLAS, a stream; for compute capability 9.0 without a GPU.

    Sizes as torch documents them for `CUBLAS_WORKSPACE_CONFIG`: 32 MiB there, else :4096:2:16:8.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return 0
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) != (9, 0):
        return 2 * 4096 * 1024 + 8 * 16 * 1024
    return 32 * 2**20
