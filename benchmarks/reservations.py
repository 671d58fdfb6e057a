"""What a reader must know before trusting the numbers: results that warn about themselves."""

from __future__ import annotations

from vae_edge.benchmarks.machine import MachineFacts
from vae_edge.benchmarks.processor_load import BUSY_CORES, STOLEN_SHARE
from vae_edge.benchmarks.report import BundleResult
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.decision import too_few_normals
from vae_edge.manifest import Manifest


def machine_warnings(machine: MachineFacts, settings: SuiteSettings) -> list[str]:
    """Return what speaks against measuring on this machine now."""
    found = []
    if settings.quick:
        found.append("quick run: too short to compare machines or versions by; leave out --quick for that")
    load = machine.load_average_start
    if load is not None and load > 0.5 * machine.cores_usable:
        found.append(
            f"the load average was {load} on {machine.cores_usable} cores before the benchmark began: other programs "
            "were running; stop them and measure again"
        )
    if machine.frequency_governor in ("powersave", "conservative", "ondemand"):
        found.append(
            f"the processor's frequency governor is {machine.frequency_governor}: clocks follow the load; "
            "set it to performance to measure the device at its best"
        )
    return found


def busy_warnings(name: str, foreign_cores: float | None, stolen_share: float | None) -> list[str]:
    """Return what disturbed one bundle's latencies.

    Args:
        name: the bundle.
        foreign_cores: cores that other programs kept busy on average.
        stolen_share: share of processor time that a virtual machine did not get, 0 to 1.
    """
    found = []
    if foreign_cores is not None and foreign_cores > BUSY_CORES:
        found.append(
            f"{name}: other programs kept {foreign_cores:.1f} cores busy while latencies were measured; "
            "stop them and measure again"
        )
    if stolen_share is not None and stolen_share > STOLEN_SHARE:
        found.append(
            f"{name}: the virtual machine's host gave {stolen_share:.0%} of the processor time to others; "
            "measure on a machine of its own"
        )
    return found


def bundle_warnings(result: BundleResult, manifest: Manifest) -> list[str]:
    """Return what speaks against one bundle's numbers."""
    found: list[str] = []
    unstable: list[str] = []
    few_samples: list[str] = []
    if result.latency is not None:
        for what in ("engine", "predict", "file"):
            statistics = getattr(result.latency, what)
            if statistics.unstable_because:
                unstable.append(f"{what} ({'; '.join(statistics.unstable_because)})")
            if statistics.n < 100:
                few_samples.append(f"{what} ({statistics.n})")
    if unstable:
        found.append(f"{result.name}: latency not stable: {', '.join(unstable)}; measure longer, on a quiet machine")
    if few_samples:
        found.append(f"{result.name}: p99 is the maximum, there are fewer than 100 samples: {', '.join(few_samples)}")
    if not manifest.verified:
        found.append(
            f"{result.name}: its thresholds are not its own ({manifest.not_verified_because or 'not verified'})"
        )
    few = too_few_normals(manifest.thresholds)
    if few is not None:
        found.append(f"{result.name}: {few}")
    return found
