"""Facts about the machine a benchmark ran on, and whether something else kept it busy. What is not known is absent."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from vae_edge import __version__
from vae_edge.manifest import Record

try:
    import psutil
except ModuleNotFoundError:
    # Comes with the extra `bench`; a device without it loses a few facts, not its benchmark.
    psutil = None

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

_TELLING_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""Instruction sets that decide how fast FP32, FP16 and INT8 are."""

BUSY_CORES = 0.25
"""Processor cores that other programs used on average, from which they are said to disturb a measurement."""

STOLEN_SHARE = 0.02
"""Share of processor time that a virtual machine did not get, from which that is said to disturb a measurement."""


class MachineFacts(Record):
    """The machine, as far as it decides how fast a model runs."""

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
    memory_bytes: int | None = None
    gpus: tuple[str, ...] = ()
    """Name and driver of each NVIDIA GPU."""
    python: str
    vae_edge: str
    packages: dict[str, str]
    load_average_start: float | None = None
    """Processes that ran or waited to, averaged over the last minute before the benchmark."""
    load_average_end: float | None = None


def machine_facts() -> MachineFacts:
    """Look at this machine."""
    cpu = _cpuinfo()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return MachineFacts(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        board=_text(Path("/proc/device-tree/model")),
        processor=cpu.get("model name") or platform.processor() or None,
        cores_usable=cores_usable(),
        cores_physical=psutil.cpu_count(logical=False) if psutil else None,
        processor_flags=tuple(flag for flag in _TELLING_FLAGS if flag in flags),
        frequency_governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        memory_bytes=_memory_bytes(),
        gpus=_gpus(),
        python=platform.python_version(),
        vae_edge=__version__,
        packages=_versions(),
        load_average_start=load_average(),
    )


def load_average() -> float | None:
    """Return the load average of the last minute, None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def cores_usable() -> int:
    """Return the number of logical processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CpuClock:
    """Says, for the time since it was made, how busy the processor was with anything but this process."""

    def __init__(self) -> None:
        self._begin = _CpuTimes()

    def foreign_cores(self) -> float | None:
        """Return how many cores other programs kept busy on average; None where the system does not tell."""
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


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo; empty where there is none."""
    first = (_text(Path("/proc/cpuinfo")) or "").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\x00\n ") or None
    except OSError:
        return None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return int(psutil.virtual_memory().total) if psutil else None


def _gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        listing = subprocess.run(
            [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        # The tool without its driver, as in a container: there is no GPU to speak of.
        return ()
    return tuple(line.strip().replace(", ", ", driver ") for line in listing.stdout.splitlines() if line.strip())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
