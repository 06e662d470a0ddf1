"""Watch a GPU while trials run: clocks, power and what holds it back, ten times a second.

Readings come from NVML through `pynvml` (the distribution nvidia-ml-py) where it is installed,
else from nvidia-smi; with neither, or on a CPU, there are none. Both count GPUs of the machine,
torch those CUDA_VISIBLE_DEVICES leaves, so a GPU is named by its UUID.
"""

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from infer_bench.gpu_state import GpuActivity, GpuState, throttle_reasons

INTERVAL_S = 0.1
# The driver calls the same field by two names: event reasons since 535, throttle reasons before.
SMI_THROTTLE = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
NVML_THROTTLE = (
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)
SMI_FIELDS = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
SMI_TIMEOUT_S = 10


class Gauge(Protocol):
    """Reads one GPU."""

    def read(self) -> GpuState: ...

    def energy_j(self) -> float | None:
        """Give the energy drawn since the driver was loaded; None where nobody counts it."""

    def stream(self, stop: threading.Event) -> Iterator[GpuState]:
        """Yield readings, about ten a second, until told to stop."""


def find_gauge(uuid: str | None) -> Gauge | None:
    """Give the best way there is to read the GPU of that UUID ("GPU-...")."""
    if uuid is None:
        return None
    with contextlib.suppress(Exception):  # not installed, no driver, no such GPU
        return _Nvml(uuid)
    with contextlib.suppress(Exception):
        return _Smi(uuid)
    return None


@dataclass(slots=True)
class GpuWatch:
    """A context: readings while it is open and after; `activity` is there afterwards.

    The reading before is taken when the watch is made, so make it before the warm-up: nvidia-smi
    needs a second, in which a GPU that was warm cools down.
    """

    gauge: Gauge | None
    activity: GpuActivity | None = None
    _before: GpuState = field(default_factory=GpuState)
    _seen: list[GpuState] = field(default_factory=list)
    _energy: float | None = None
    _began: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __post_init__(self) -> None:
        if self.gauge is not None:
            self._before = _read(self.gauge)

    def __enter__(self) -> Self:
        if self.gauge is not None:
            self._thread = threading.Thread(target=self._watch, args=[self.gauge], daemon=True)
            self._thread.start()
            self._energy = self.gauge.energy_j()
        self._began = time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.gauge is None or self._thread is None:
            return
        elapsed_s = time.perf_counter() - self._began
        energy = self.gauge.energy_j()
        self._stop.set()
        after = _read(self.gauge)
        self._thread.join(timeout=SMI_TIMEOUT_S)

        states = [*self._seen, after]
        power = [state.power_w for state in self._seen if state.power_w is not None]
        mean_power = sum(power) / len(power) if power else None
        if energy is not None and self._energy is not None:
            energy_j: float | None = energy - self._energy
            mean_power = energy_j / elapsed_s if energy_j and elapsed_s else mean_power
        else:
            energy_j = None if mean_power is None else mean_power * elapsed_s
        clocks = [s.sm_clock_mhz for s in self._seen if s.sm_clock_mhz is not None]
        self.activity = GpuActivity(
            before=self._before,
            after=after,
            throttle=tuple(dict.fromkeys(name for state in states for name in state.throttle)),
            min_sm_clock_mhz=min(clocks, default=None),
            mean_power_w=mean_power,
            energy_j=energy_j,
        )

    def _watch(self, gauge: Gauge) -> None:
        with contextlib.suppress(Exception):  # fewer readings, never a failed row
            for state in gauge.stream(self._stop):
                self._seen.append(state)


def _read(gauge: Gauge) -> GpuState:
    try:
        return gauge.read()
    except Exception:  # the driver may refuse any single field on any GPU
        return GpuState()


class _Nvml:
    """NVML by way of pynvml."""

    def __init__(self, uuid: str) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def read(self) -> GpuState:
        nvml = self._nvml
        reasons = [getattr(nvml, name) for name in NVML_THROTTLE if hasattr(nvml, name)]
        power = self._ask(nvml.nvmlDeviceGetPowerUsage)
        bits = self._ask(reasons[0]) if reasons else None
        return GpuState(
            sm_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            power_w=None if power is None else power / 1e3,
            temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            throttle=throttle_reasons(int(bits or 0)),
        )

    def energy_j(self) -> float | None:
        millijoules = self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)
        return None if millijoules is None else millijoules / 1e3

    def stream(self, stop: threading.Event) -> Iterator[GpuState]:
        while not stop.wait(INTERVAL_S):
            yield self.read()

    def _ask(self, question: Any, *arguments: Any) -> float | None:
        try:
            return float(question(self._gpu, *arguments))
        except self._nvml.NVMLError:  # not supported on this GPU
            return None


class _Smi:
    """nvidia-smi: it starts slowly, so one process streams while trials run."""

    def __init__(self, uuid: str) -> None:
        self._command = ["nvidia-smi", f"--id={uuid}", "--format=csv,noheader,nounits"]
        for name in SMI_THROTTLE:
            self._query = f"--query-gpu={','.join([*SMI_FIELDS, name])}"
            with contextlib.suppress(subprocess.CalledProcessError):
                self.read()
                return
        raise RuntimeError("nvidia-smi does not tell the state of this GPU")

    def read(self) -> GpuState:
        done = subprocess.run(
            [*self._command, self._query],
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
            check=True,
        )
        return _parse(done.stdout.splitlines()[0])

    def energy_j(self) -> float | None:
        return None  # it has no counter; power over time stands in

    def stream(self, stop: threading.Event) -> Iterator[GpuState]:
        process = subprocess.Popen(
            [*self._command, self._query, f"--loop-ms={round(1e3 * INTERVAL_S)}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None

        def end() -> None:
            stop.wait()
            process.kill()

        # the loop below waits for lines, which may never come
        threading.Thread(target=end, daemon=True).start()
        for line in process.stdout:
            yield _parse(line)
        process.wait()
        process.stdout.close()


def _parse(line: str) -> GpuState:
    """Read one line of nvidia-smi; what is no number ('[N/A]') is not known."""
    *values, bits = [part.strip() for part in line.split(",")]
    numbers: list[float | None] = []
    for value in values:
        try:
            numbers.append(float(value))
        except ValueError:
            numbers.append(None)
    sm_clock, memory_clock, power, temperature = numbers
    try:
        throttle = throttle_reasons(int(bits, 16))
    except ValueError:
        throttle = ()
    return GpuState(
        sm_clock_mhz=sm_clock,
        memory_clock_mhz=memory_clock,
        power_w=power,
        temperature_c=temperature,
        throttle=throttle,
    )
