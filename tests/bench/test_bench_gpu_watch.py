"""Readings of a GPU through both ways there are; a GPU is played by a module and by a program."""

import stat
import sys
import time
from types import SimpleNamespace

import pytest
from infer_bench.gpu_state import GpuState
from infer_bench.gpu_watch import GpuWatch, find_gauge

HOT = GpuState(
    sm_clock_mhz=1755.0,
    memory_clock_mhz=3201.0,
    power_w=412.5,
    temperature_c=61.0,
    throttle=("power cap", "thermal (software)"),
)

SMI = """#!/bin/sh
case "$*" in
  *--id=GPU-other*) echo "No devices were found"; exit 6 ;;
  *{refused}*) echo 'Field "x" is not a valid field to query.'; exit 2 ;;
  *--loop-ms*) while :; do echo "{line}"; sleep 0.02; done ;;
  *) echo "{line}" ;;
esac
"""


@pytest.fixture
def no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it raises ImportError


@pytest.fixture
def smi(tmp_path, monkeypatch, no_nvml):
    """Put an nvidia-smi on the PATH that prints one line, over and over when asked to loop."""

    def install(line="1755, 3201, 412.50, 61, 0x0000000000000024", refused="nothing"):
        program = tmp_path / "nvidia-smi"
        program.write_text(SMI.format(line=line, refused=refused))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    return install


def test_nvidia_smi_stands_in_where_nvml_is_not_installed(smi):
    smi()

    assert find_gauge("GPU-1").read() == HOT


def test_an_older_driver_knows_the_reasons_by_their_older_name(smi):
    smi(refused="clocks_event_reasons")

    assert find_gauge("GPU-1").read() == HOT


def test_what_the_driver_does_not_tell_is_not_known(smi):
    smi("[N/A], 3201, [Not Supported], 61, [N/A]")

    assert find_gauge("GPU-1").read() == GpuState(memory_clock_mhz=3201.0, temperature_c=61.0)


@pytest.mark.parametrize("uuid", [None, "GPU-other"])
def test_a_gpu_nobody_can_read_has_no_gauge(smi, uuid):
    smi()

    assert find_gauge(uuid) is None


def test_without_nvml_and_nvidia_smi_there_is_no_gauge(no_nvml, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert find_gauge("GPU-1") is None


def test_power_over_time_stands_in_for_the_energy_counter(smi):
    smi()

    with GpuWatch(find_gauge("GPU-1")) as watch:
        time.sleep(0.4)

    activity = watch.activity
    assert activity.before == activity.after == HOT
    assert activity.throttle == HOT.throttle
    assert activity.min_sm_clock_mhz == 1755.0
    assert activity.mean_power_w == pytest.approx(412.5)
    # 0.4 s at 412.5 W, plus what starting the streaming process takes
    assert 412.5 * 0.4 <= activity.energy_j < 412.5 * 10


def test_a_watch_without_a_gauge_sees_nothing():
    with GpuWatch(None) as watch:
        pass

    assert watch.activity is None


class FakeNvml(SimpleNamespace):
    """As much of pynvml as is used; power cannot be read, energy grows by 7 J a question."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    energy = 100_000

    def nvmlInit(self): ...  # noqa: N802

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid != "GPU-1":
            raise self.NVMLError("not found")
        return "handle"

    def nvmlDeviceGetClockInfo(self, gpu, kind):  # noqa: N802
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetPowerUsage(self, gpu):  # noqa: N802
        raise self.NVMLError("not supported")

    def nvmlDeviceGetTemperature(self, gpu, kind):  # noqa: N802
        return 44

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):  # noqa: N802
        return 0x1 | 0x80  # idle is no reason to worry

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):  # noqa: N802
        FakeNvml.energy += 7000
        return FakeNvml.energy


@pytest.fixture
def nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())


def test_nvml_is_asked_first_and_may_refuse_a_single_field(nvml):
    assert find_gauge("GPU-1").read() == GpuState(
        sm_clock_mhz=1980.0, memory_clock_mhz=3201.0, temperature_c=44.0, throttle=("power brake",)
    )


def test_energy_comes_from_the_counter_where_there_is_one(nvml):
    with GpuWatch(find_gauge("GPU-1")) as watch:
        time.sleep(0.05)

    assert watch.activity.energy_j == 7.0
    assert watch.activity.mean_power_w == pytest.approx(7.0 / 0.05, rel=0.9)


def test_a_reading_that_fails_costs_the_reading_not_the_row():
    class Moody:
        def read(self):
            raise OSError("the driver is gone")

        def energy_j(self):
            return None

        def stream(self, stop):
            raise OSError("the driver is gone")

    with GpuWatch(Moody()) as watch:
        pass

    assert watch.activity.before == GpuState()
    assert watch.activity.energy_j is None
