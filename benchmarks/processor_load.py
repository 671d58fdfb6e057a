"""How busy the processor is with other things, which disturbs a measurement. What is not known is absent."""

from __future__ import annotations

import os
import time
from typing import Any

try:
    import psutil
except ModuleNotFoundError:
    # Comes with the extra `bench`; a device without it loses a few facts, not its benchmark.
    psutil = None

BUSY_CORES = 0.25
"""Processor cores that other programs used on average, from which they are said to disturb a measurement."""

STOLEN_SHARE = 0.02
"""Share of processor time that a virtual machine did not get, from which that is said to disturb a measurement."""


def load_average() -> float | None:
    """Return the load average of the last minute, None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def physical_cores() -> int | None:
    """Return the number of processor cores, None where it is not known."""
    return psutil.cpu_count(logical=False) if psutil else None


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
