"""What a GPU says of its clocks, power and limits at one moment, and over a stretch of time."""

from infer_bench.record import Record, quantity

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that mean "slower than it could be".
# Idle, application clocks, sync boost and display clocks are settings, not a state to flag.
THROTTLE_BITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


class GpuState(Record):
    """One reading; None where the driver does not tell."""

    sm_clock_mhz: float | None = quantity("MHz", "streaming multiprocessors", default=None)
    memory_clock_mhz: float | None = quantity("MHz", "device memory", default=None)
    power_w: float | None = quantity("W", "drawn by the board", default=None)
    temperature_c: float | None = quantity("degrees Celsius", "of the GPU", default=None)
    throttle: tuple[str, ...] = ()


class GpuActivity(Record):
    """The trials of one row, seen from the driver."""

    before: GpuState
    after: GpuState
    throttle: tuple[str, ...] = ()
    min_sm_clock_mhz: float | None = quantity("MHz", "lowest seen", default=None)
    mean_power_w: float | None = quantity("W", "over the trials", default=None)
    energy_j: float | None = quantity("J", "over the trials", default=None)


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """Name the bits that say that the GPU is held back."""
    return tuple(name for bit, name in THROTTLE_BITS.items() if bits & bit)
