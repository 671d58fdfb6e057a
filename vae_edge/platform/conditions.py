"""The state of the machine that decides how fast it is: clocks, heat and power mode.

What is not known is None. Facts are read from files below a root, which is `/` except in tests.
"""

from __future__ import annotations

import re
from pathlib import Path

from vae_edge.platform.machine import read_system_file

ROOT = Path("/")


def frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the mean clock of the cores, from cpufreq if available, otherwise from /proc/cpuinfo."""
    files = sorted(_cpu_folder(root).glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    found = [value / 1e3 for file in files if (value := _number(file)) is not None]
    if not found:
        text = read_system_file(root / "proc/cpuinfo")
        found = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(sum(found) / len(found), 1) if found else None


def largest_frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the highest clock that the fastest core may run at."""
    files = _cpu_folder(root).glob("cpu[0-9]*/cpufreq/scaling_max_freq")
    found = [value / 1e3 for file in files if (value := _number(file)) is not None]
    return max(found, default=None)


def governor(root: Path = ROOT) -> str | None:
    """Return what decides the clock of the first core, such as `performance`."""
    return read_system_file(_cpu_folder(root) / "cpu0/cpufreq/scaling_governor") or None


def temperature_c(root: Path = ROOT) -> float | None:
    """Return the temperature of the hottest thermal zone; on a Jetson these are CPU, GPU and others."""
    files = (root / "sys/class/thermal").glob("thermal_zone*/temp")
    # A zone that is switched off reads 0, below 0 or not at all; units are thousandths of a degree.
    found = [value / 1e3 for file in files if (value := _number(file)) is not None and value > 0]
    return max(found, default=None)


def temperatures_c(root: Path = ROOT) -> dict[str, float]:
    """Return the temperature of every thermal zone by its type, such as `cpu-thermal`; of several the hottest."""
    found: dict[str, float] = {}
    for file in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        value = _number(file)
        if value is not None and value > 0:
            name = read_system_file(file.with_name("type")) or file.parent.name
            found[name] = max(found.get(name, 0.0), value / 1e3)
    return found


def gpu_frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the clock of a Jetson's GPU; other NVIDIA GPUs tell only their driver."""
    for file in sorted((root / "sys/class/devfreq").glob("*/cur_freq")):
        value = _number(file)
        if value is not None and re.search(r"gpu|gv11b|ga10b|gp10b|gb10b", file.parent.name):
            return round(value / 1e6, 1)
    return None


def memory_in_use_bytes(root: Path = ROOT) -> int | None:
    """Return the physical memory that this process holds (Linux only)."""
    match = re.search(r"^VmRSS:\s*(\d+) kB", read_system_file(root / "proc/self/status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def throttle_count(root: Path = ROOT) -> int | None:
    """Return how often the processor was throttled by heat since it was switched on (Intel only)."""
    files = _cpu_folder(root).glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    found = [value for file in files if (value := _number(file)) is not None]
    return int(sum(found)) if found else None


def power_mode(root: Path = ROOT) -> str | None:
    """Return a Jetson's power mode as stored by nvpmodel, such as `0 (MAXN)`."""
    status = read_system_file(root / "var/lib/nvpmodel/status")
    match = re.search(r"pmode:(\d+)", status)
    if match is None:
        return None
    number = int(match[1])
    models = read_system_file(root / "etc/nvpmodel.conf")
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", models)
    return f"{number} ({name[1]})" if name else str(number)


def is_virtual(root: Path = ROOT) -> bool | None:
    """Return whether the processor reports that it belongs to a virtual machine (x86 only)."""
    text = read_system_file(root / "proc/cpuinfo")
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return None if flags is None else "hypervisor" in flags[1].split()


def _cpu_folder(root: Path) -> Path:
    return root / "sys/devices/system/cpu"


def _number(file: Path) -> float | None:
    try:
        return float(read_system_file(file))
    except ValueError:
        return None
