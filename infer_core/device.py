"""Which device a command runs on."""

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
