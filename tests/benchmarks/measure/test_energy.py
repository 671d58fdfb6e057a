from __future__ import annotations

from pathlib import Path

import pytest

from vae_edge.benchmarks.measure.energy import EnergyMeter


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def test_energy_comes_from_the_packages_counters_and_survives_their_wrapping(tmp_path: Path) -> None:
    first = write(tmp_path, "sys/class/powercap/intel-rapl:0/energy_uj", "9000000")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", "10000000")
    write(tmp_path, "sys/class/powercap/intel-rapl:0/name", "package-0")
    write(tmp_path, "sys/class/powercap/intel-rapl:0:0/energy_uj", "77")
    second = write(tmp_path, "sys/class/powercap/intel-rapl:1/energy_uj", "1000000")
    with EnergyMeter(tmp_path) as meter:
        first.write_text("1500000")
        second.write_text("3000000")
    assert meter.reading.joules == pytest.approx(2.5 + 2.0)
    assert meter.reading.source == "RAPL package-0, intel-rapl:1"


def test_a_jetsons_rail_is_integrated_over_time(tmp_path: Path) -> None:
    monitor = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    write(tmp_path, f"{monitor}/in1_label", "VDD_IN")
    write(tmp_path, f"{monitor}/in1_input", "5000")
    write(tmp_path, f"{monitor}/curr1_input", "2000")
    write(tmp_path, f"{monitor}/in2_label", "VDD_CPU_GPU_CV")
    with EnergyMeter(tmp_path, every_s=60.0) as meter:
        pass
    assert meter.reading.source == "rail VDD_IN"
    assert meter.reading.joules is not None
    assert 0 < meter.reading.joules < 10.0 * 60


def test_where_there_is_no_counter_that_is_said(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.reading.joules is None
    assert meter.reading.not_available_because is not None
    assert "no energy counter" in meter.reading.not_available_because


def test_a_counter_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "sys/class/powercap/intel-rapl:0").mkdir(parents=True)
    with EnergyMeter(tmp_path) as meter:
        pass
    assert "run as root" in (meter.reading.not_available_because or "")
