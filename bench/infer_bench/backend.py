"""The machine side of the benchmark: every call into torch or the core goes through here.

Importing this module imports neither torch nor triton; `Backend`'s methods do, on first use.
"""

import gc
import signal
from typing import TYPE_CHECKING

from infer_bench.compilations import Compilations
from infer_bench.engines import LoadedEngine, LoadOptions, find_engine
from infer_bench.environment import read_environment
from infer_bench.errors import UsageError
from infer_bench.gpu_state import GpuState
from infer_bench.gpu_watch import GpuWatch, find_gauge
from infer_bench.job import Machine, Survey

if TYPE_CHECKING:
    from infer_core.model_source import ResolvedModel
    from infer_core.plugins import PluginRegistry


class Backend:
    """The engines, plugins and devices of this machine."""

    def pick_device(self, requested: str | None) -> str:
        """Take the device asked for, else the GPU, else the CPU.

        Raises:
            UsageError: it is no device, or a GPU that is not there.
        """
        from infer_core import RequestError

        # Ctrl-C inside of torch's C++ start-up would abort the process with a C++ message
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            from infer_core.device import pick_device
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        try:
            return pick_device(requested)
        except RequestError as error:
            raise UsageError(f"--{error}") from error

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

    def check_engine(self, engine: str) -> None:
        """Make sure an engine can be used.

        Raises:
            EngineUnavailable: says what is missing.
        """
        find_engine(engine)

    def load_engine(
        self, engine: str, model: "ResolvedModel", options: LoadOptions
    ) -> LoadedEngine:
        """Load one model on one engine."""
        return find_engine(engine).load(model, options)

    def survey(self, survey: Survey) -> Machine:
        """Describe the machine and, on a GPU, measure its ceilings."""
        environment = read_environment(survey.device)
        if survey.device == "cpu":
            return Machine(environment=environment)
        from infer_bench.ceilings import measure_ceilings
        from infer_bench.targets import describe

        gpu = self.gpu_state(survey.device)
        try:
            ceilings = measure_ceilings(survey.device, dtype=survey.dtype or "bfloat16")
        except Exception as error:  # without them there is no MBU, the rest stands
            return Machine(environment=environment, gpu=gpu, problem=describe(error))
        return Machine(environment=environment, ceilings=ceilings, gpu=gpu)

    def gpu_state(self, device: str) -> GpuState | None:
        """Read clocks and power once; None on the CPU or where nobody tells."""
        gauge = find_gauge(_uuid(device))
        return gauge.read() if gauge else None

    def watch_gpu(self, device: str) -> GpuWatch:
        """Give a context that watches the GPU, or nothing on the CPU."""
        return GpuWatch(find_gauge(_uuid(device)))

    def count_compilations(self) -> Compilations:
        """Count the Triton kernels that this process compiles."""
        return Compilations()

    def use_one_thread(self) -> None:
        """Let torch compute with one CPU thread."""
        import torch

        torch.set_num_threads(1)

    def num_threads(self) -> int:
        """Give the number of CPU threads torch computes with."""
        import torch

        return torch.get_num_threads()

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


def _uuid(device: str) -> str | None:
    """Name a GPU as the driver does; None on the CPU and where torch does not tell."""
    if not device.startswith("cuda"):
        return None
    import torch

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if uuid is None else f"GPU-{uuid}".replace("GPU-GPU-", "GPU-")
