"""The state of the processor while it is measured: clock, heat, power mode. What is not known is None.

Everything is read from files below a root, which is `/` but in tests.
"""

from __future__ import annotations

import re
from pathlib import Path

from vae_edge.machine import read_system_file

ROOT = Path("/")


def frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the mean clock of the cores, by cpufreq where it is there, else by /proc/cpuinfo."""
    files = sorted(_cpu_folder(root).glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    found = [value / 1e3 for file in files if (value := _number(file)) is not None]
    if not found:
        text = read_system_file(root / "proc/cpuinfo")
        found = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return round(sum(found) / len(found), 1) if found else None


def largest_frequency_mhz(root: Path = ROOT) -> float | None:
    """Return the highest clock that the fastest core is allowed."""
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


def throttle_count(root: Path = ROOT) -> int | None:
    """Return how often the processor slowed down for heat since it was switched on (Intel only)."""
    files = _cpu_folder(root).glob("cpu[0-9]*/thermal_throttle/*_throttle_count")
    found = [value for file in files if (value := _number(file)) is not None]
    return int(sum(found)) if found else None


def power_mode(root: Path = ROOT) -> str | None:
    """Return a Jetson's power mode as nvpmodel has stored it, such as `0 (MAXN)`."""
    status = read_system_file(root / "var/lib/nvpmodel/status")
    match = re.search(r"pmode:(\d+)", status)
    if match is None:
        return None
    number = int(match[1])
    models = read_system_file(root / "etc/nvpmodel.conf")
    name = re.search(rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=(\S+)\s*>", models)
    return f"{number} ({name[1]})" if name else str(number)


def is_virtual(root: Path = ROOT) -> bool | None:
    """Tell whether the processor says that it is a virtual machine's (x86 only)."""
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
