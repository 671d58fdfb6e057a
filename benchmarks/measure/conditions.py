"""The machine that is measured, and what other programs did on it meanwhile. What is not known is None.

Clocks, heat and power mode are in `vae_edge.platform.conditions`.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from vae_edge import __version__
from vae_edge.benchmarks.measure.process import run_process
from vae_edge.errors import DeviceError
from vae_edge.platform import conditions
from vae_edge.platform.machine import installed_versions, look_at_machine
from vae_edge.records import Record

try:
    import psutil
except ModuleNotFoundError:
    # Comes with the extra `bench`; a device without it loses a few facts, not its benchmark.
    psutil = None

BUSY_CORES = 0.25
"""Processor cores that other programs used on average, from which a warning says that they disturb a measurement."""

STOLEN_SHARE = 0.02
"""Share of processor time that a virtual machine did not get, from which a warning says that it disturbs a
measurement."""


def load_average() -> float | None:
    """Return the load average of the last minute; None if the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def physical_cores() -> int | None:
    """Return the number of processor cores; None if it is not known."""
    return psutil.cpu_count(logical=False) if psutil else None


class CpuClock:
    """Measures how busy the processor was with anything but this process since the object was created."""

    def __init__(self) -> None:
        self._begin = _CpuTimes()

    def foreign_cores(self) -> float | None:
        """Return how many cores other programs kept busy on average; None if the system does not provide it."""
        end = _CpuTimes()
        if end.busy_s is None or self._begin.busy_s is None:
            return None
        elapsed_s = max(end.wall_s - self._begin.wall_s, 1e-9)
        foreign_s = (end.busy_s - self._begin.busy_s) - (end.own_s - self._begin.own_s)
        return max(foreign_s / elapsed_s, 0.0)

    def stolen_share(self) -> float | None:
        """Return the share of processor time that the host of a virtual machine gave to others."""
        end = _CpuTimes()
        if end.stolen_s is None or self._begin.stolen_s is None:
            return None
        elapsed_s = max(end.wall_s - self._begin.wall_s, 1e-9)
        return max((end.stolen_s - self._begin.stolen_s) / elapsed_s / (os.cpu_count() or 1), 0.0)


class _CpuTimes:
    def __init__(self) -> None:
        self.wall_s = time.perf_counter()
        own = os.times()
        self.own_s = own.user + own.system
        self.busy_s: float | None = None
        self.stolen_s: float | None = None
        if psutil is not None:
            times: Any = psutil.cpu_times()
            self.busy_s = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
            self.stolen_s = getattr(times, "steal", None)


_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
)


class MachineFacts(Record):
    """The facts about the machine that decide how fast a model runs."""

    system: str
    architecture: str
    board: str | None = None
    """The board's own name, such as a Jetson's."""
    processor: str | None = None
    cores_usable: int
    """Logical processors that this process may use."""
    cores_physical: int | None = None
    processor_flags: tuple[str, ...] = ()
    frequency_governor: str | None = None
    frequency_mhz: float | None = None
    """Mean over the cores before the benchmark."""
    largest_frequency_mhz: float | None = None
    """Highest clock that the processor may run at."""
    temperature_c: float | None = None
    """The hottest thermal zone before the benchmark."""
    power_mode: str | None = None
    """A Jetson's, as nvpmodel calls it."""
    is_virtual: bool | None = None
    """Whether this is a virtual machine; the clock and other guests of its host cannot be observed."""
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    """Name and driver of each NVIDIA GPU."""
    python: str
    vae_edge: str
    packages: dict[str, str]
    load_average_start: float | None = None
    """Processes that were running or waiting to run, averaged over the last minute before the benchmark."""
    load_average_end: float | None = None


def machine_facts() -> MachineFacts:
    """Inspect this machine."""
    machine = look_at_machine()
    return MachineFacts(
        system=machine.system,
        architecture=machine.architecture,
        board=machine.board,
        processor=machine.processor,
        cores_usable=machine.n_cores,
        cores_physical=physical_cores(),
        processor_flags=machine.processor_flags,
        frequency_governor=conditions.governor(),
        frequency_mhz=conditions.frequency_mhz(),
        largest_frequency_mhz=conditions.largest_frequency_mhz(),
        temperature_c=conditions.temperature_c(),
        power_mode=conditions.power_mode(),
        is_virtual=conditions.is_virtual(),
        memory_bytes=machine.memory_bytes,
        gpus=_gpus(),
        python=machine.python,
        vae_edge=__version__,
        packages=installed_versions(_PACKAGES),
        load_average_start=load_average(),
    )


def _gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listing = run_process([tool, "--query-gpu=name,driver_version", "--format=csv,noheader"], 20.0).output
    except DeviceError:
        # The tool without its driver, as in a container: there is no GPU to speak of.
        return ()
    return tuple(line.strip().replace(", ", ", driver ") for line in listing.splitlines() if line.strip())
