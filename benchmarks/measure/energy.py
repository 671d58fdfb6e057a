"""Energy counters and power rails, if they are readable: RAPL on x86, INA3221 monitors on a Jetson.

They measure the whole chip or board with everything that runs on it, including idle power.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from vae_edge.platform.conditions import ROOT
from vae_edge.platform.machine import read_system_file

_SAMPLE_EVERY_S = 0.1

_TOTAL_RAILS = re.compile(r"VDD_IN|POM_5V_IN|VIN_SYS|VDD_TOTAL|VIN", re.IGNORECASE)
"""Rails that feed the whole module, by the names they have had on Jetson boards."""


@dataclass(frozen=True)
class EnergyReading:
    """Energy used while a block ran, or why it is not known."""

    joules: float | None
    source: str | None
    not_available_because: str | None = None


class EnergyMeter:
    """Measures the energy used between entering and leaving a `with` block.

    Args:
        root: root of the file system; another folder in tests.
        every_s: time between two readings of a power rail; counters are read only at the start and the end.
    """

    def __init__(self, root: Path = ROOT, *, every_s: float = _SAMPLE_EVERY_S) -> None:
        self._packages, why_not = _rapl_packages(root)
        self._rails = [] if self._packages else _total_rails(root)
        self._every_s = every_s
        self._begin: list[int] = []
        self._watts: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._watcher: threading.Thread | None = None
        self.reading = EnergyReading(None, None, why_not)

    def __enter__(self) -> EnergyMeter:
        self._begin = [_counter(package / "energy_uj") or 0 for package in self._packages]
        if self._rails:
            self._look()
            self._watcher = threading.Thread(target=self._watch, name="vae-edge-power", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._packages:
            self.reading = EnergyReading(self._counted_joules(), _names(self._packages))
        elif self._watcher is not None:
            self._done.set()
            self._watcher.join()
            self._look()
            self.reading = EnergyReading(
                self._integrated_joules(), f"rail {', '.join(rail.name for rail in self._rails)}"
            )

    def _counted_joules(self) -> float | None:
        total_uj = 0
        for package, begin in zip(self._packages, self._begin, strict=True):
            end = _counter(package / "energy_uj")
            if end is None:
                return None
            # The counter starts again at 0 once it is full.
            total_uj += end - begin if end >= begin else end - begin + (_counter(package / "max_energy_range_uj") or 0)
        return total_uj / 1e6

    def _look(self) -> None:
        watts = [value for rail in self._rails if (value := rail.watts()) is not None]
        if watts:
            self._watts.append((time.perf_counter(), sum(watts)))

    def _watch(self) -> None:
        while not self._done.wait(self._every_s):
            self._look()

    def _integrated_joules(self) -> float | None:
        """Return the integral of the power over time, by the trapezoidal rule."""
        if len(self._watts) < 2:
            return None
        pairs = zip(self._watts, self._watts[1:], strict=False)
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)


@dataclass(frozen=True)
class _Rail:
    name: str
    milliamperes: Path
    millivolts: Path

    def watts(self) -> float | None:
        current, voltage = _counter(self.milliamperes), _counter(self.millivolts)
        return None if current is None or voltage is None else current * voltage / 1e6


def _rapl_packages(root: Path) -> tuple[list[Path], str | None]:
    """Return the folders of the processor packages' counters, or the reason why there are none."""
    folder = root / "sys/class/powercap"
    packages = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    if not packages:
        return [], "no energy counter (RAPL) and no power rail (INA3221) was found on this machine"
    if any(_counter(package / "energy_uj") is None for package in packages):
        return [], f"{packages[0].name} exists but cannot be read; run as root, or let the group read energy_uj"
    return packages, None


def _total_rails(root: Path) -> list[_Rail]:
    """Return the rail that feeds the whole module: the first of the known names on any monitor."""
    for monitor in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*")):
        for label in sorted(monitor.glob("in*_label")):
            name = read_system_file(label)
            number = label.name.removeprefix("in").removesuffix("_label")
            if _TOTAL_RAILS.fullmatch(name):
                return [_Rail(name, monitor / f"curr{number}_input", monitor / f"in{number}_input")]
    return []


def _names(packages: list[Path]) -> str:
    return "RAPL " + ", ".join(read_system_file(package / "name") or package.name for package in packages)


def _counter(file: Path) -> int | None:
    try:
        return int(read_system_file(file))
    except ValueError:
        return None
