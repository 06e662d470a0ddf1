"""The engine side of the benchmark: every call into torch or the engine goes through here.

Importing this module imports neither torch nor triton; `Backend`'s methods do, on first use.
"""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from infer_bench.environment import Environment, read_environment
from infer_bench.errors import UsageError
from infer_bench.report import DType
from infer_core import ModelSpec, SamplingParams

if TYPE_CHECKING:
    from infer_core import Generation
    from infer_core.model_source import ResolvedModel
    from infer_core.plugins import PluginRegistry


class EngineUnderTest(Protocol):
    """What the benchmark uses of a loaded engine."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def kernels(self) -> str: ...
    @property
    def unfused(self) -> bool: ...
    @property
    def weights_kind(self) -> str: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def load_s(self) -> float: ...

    def release(self) -> None: ...

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingParams,
        ignore_eos: bool,
    ) -> "Generation": ...


class Backend:
    """This project's engine on one device of this machine."""

    def pick_device(self, requested: str | None) -> str:
        """Take the device asked for, else the GPU, else the CPU.

        Raises:
            UsageError: it is no device, or a GPU that is not there.
        """
        import torch

        if requested is None:
            return "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(requested)
        except RuntimeError as error:
            raise UsageError(f"--device {requested!r}: expected cpu, cuda or cuda:N") from error
        if device.type not in ("cpu", "cuda"):
            raise UsageError(f"--device {requested!r}: expected cpu, cuda or cuda:N")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(
                f"--device {requested}: torch sees {torch.cuda.device_count()} GPUs; "
                "install a CUDA build of torch on a machine with a GPU, or give --device cpu"
            )
        return "cpu" if device.type == "cpu" else requested

    def load_registry(self) -> "PluginRegistry":
        """Find the installed plugins."""
        from infer_core.plugins import load_registry

        return load_registry()

    def resolve(
        self,
        model: str,
        registry: "PluginRegistry",
        device: str,
        *,
        revision: str | None = None,
        weights: bool = True,
    ) -> "ResolvedModel":
        """Turn a --model argument into specs, downloading it if it is a hub id."""
        from infer_core.model_source import resolve_model

        return resolve_model(model, registry, device=device, revision=revision, weights=weights)

    def load_engine(
        self,
        model: "ResolvedModel",
        *,
        device: str,
        dtype: DType | None,
        weights: Literal["auto", "dummy"],
        max_context: int,
        kv_cache: bool,
    ) -> EngineUnderTest:
        """Load one model."""
        from infer_core import Engine

        return Engine.load(
            model,
            device=device,
            dtype=dtype,
            weights=weights,
            max_context=max_context,
            kv_cache=kv_cache,
        )

    def measure_bandwidth(self, device: str) -> float | None:
        """Measure the read bandwidth of the GPU in bytes/s; None on the CPU."""
        if not device.startswith("cuda"):
            return None
        from infer_bench.bandwidth import read_bandwidth

        return read_bandwidth(device)

    def read_environment(self, device: str) -> Environment:
        """Describe machine and software."""
        return read_environment(device)

    def start_peak(self, device: str) -> None:
        """Hand cached memory back and start a new high-water mark."""
        gc.collect()
        if device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def peak_bytes(self, device: str) -> int | None:
        """Give the largest allocation since `start_peak`; None on the CPU."""
        if not device.startswith("cuda"):
            return None
        import torch

        return torch.cuda.max_memory_allocated(device)
