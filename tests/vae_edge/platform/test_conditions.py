from __future__ import annotations

from pathlib import Path

from vae_edge.platform import conditions


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def test_a_bare_system_tells_nothing(tmp_path: Path) -> None:
    assert conditions.frequency_mhz(tmp_path) is None
    assert conditions.largest_frequency_mhz(tmp_path) is None
    assert conditions.governor(tmp_path) is None
    assert conditions.temperature_c(tmp_path) is None
    assert conditions.throttle_count(tmp_path) is None
    assert conditions.power_mode(tmp_path) is None
    assert conditions.is_virtual(tmp_path) is None


def test_clock_heat_and_governor_are_read_from_the_system(tmp_path: Path) -> None:
    for core, khz in ((0, 2_400_000), (1, 1_200_000)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", str(khz))
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq", "3400000")
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count", "3")
    write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave")
    for zone, temperature in enumerate(("48500", "-256000", "61250", "")):
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", temperature)
    assert conditions.frequency_mhz(tmp_path) == 1800.0
    assert conditions.largest_frequency_mhz(tmp_path) == 3400.0
    assert conditions.governor(tmp_path) == "powersave"
    assert conditions.temperature_c(tmp_path) == 61.25
    assert conditions.throttle_count(tmp_path) == 6


def test_the_clock_comes_from_cpuinfo_where_cpufreq_is_missing_as_in_a_virtual_machine(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu hypervisor avx2\ncpu MHz\t\t: 2600.5\n")
    assert conditions.frequency_mhz(tmp_path) == 2600.5
    assert conditions.is_virtual(tmp_path) is True


def test_a_jetsons_power_mode_has_its_number_and_its_name(tmp_path: Path) -> None:
    write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002 fmode:quiet")
    assert conditions.power_mode(tmp_path) == "2"
    write(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=15W >\n")
    assert conditions.power_mode(tmp_path) == "2 (15W)"
