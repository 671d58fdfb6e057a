"""What a reader must know before trusting the numbers: warnings that belong to the results."""

from __future__ import annotations

from collections.abc import Sequence

from vae_edge.benchmarks.measure.conditions import BUSY_CORES, STOLEN_SHARE, MachineFacts
from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.benchmarks.measure.statistics import FEW_ROUNDS
from vae_edge.benchmarks.report.records.report import BundleResult
from vae_edge.benchmarks.report.records.speed import RoundRecord
from vae_edge.decision import too_few_normals
from vae_edge.manifest import NEVER_VERIFIED, Manifest, ThresholdMethod
from vae_edge.wording import count

SLOWER_CLOCK = 0.05
"""Change of the spin between rounds from which a warning says that the clock drifted."""

_FEW_SAMPLES = 100

_FEW_NORMALS = 30


def machine_warnings(machine: MachineFacts, settings: SuiteSettings) -> list[str]:
    """Return what makes measurements on this machine unreliable now."""
    found = []
    if settings.quick:
        found.append("quick run: too short to compare machines or versions; leave out --quick for that")
    if settings.rounds < FEW_ROUNDS:
        few = f"{settings.rounds} round{'s' * (settings.rounds > 1)}"
        found.append(
            f"only {few}: {'there are no intervals' if settings.rounds == 1 else 'the intervals are too narrow'}; "
            f"take {FEW_ROUNDS} or more, better 10"
        )
    load = machine.load_average_start
    if load is not None and load > 0.5 * machine.cores_usable:
        found.append(
            f"the load average was {load} on {count(machine.cores_usable, 'core')} "
            "before the benchmark began: other programs "
            "were running; stop them and measure again"
        )
    if machine.frequency_governor in ("powersave", "conservative", "ondemand"):
        found.append(
            f"the processor's frequency governor is {machine.frequency_governor}: clocks follow the load; "
            "set it to performance to measure the device at its best"
        )
    return found


def bundle_warnings(result: BundleResult, manifest: Manifest, settings: SuiteSettings) -> list[str]:
    """Return what makes one bundle's numbers unreliable."""
    found = [
        *_latency_warnings(result),
        *round_warnings(result.rounds),
        *_device_warnings(result, settings),
        *_accuracy_warnings(result),
    ]
    if manifest.schema_version in NEVER_VERIFIED:
        found.append(f"it is not verified: {manifest.not_verified_because}")
    elif not manifest.verified:
        found.append(f"it is not verified: {manifest.not_verified_because or 'its references were never run'}")
    if result.references_agree is False:
        found.append(f"it does not give its reference outputs here: {'; '.join(result.references)}")
    few = too_few_normals(manifest.thresholds)
    if few is not None:
        found.append(few)
    return [f"{result.name}: {warning}" for warning in found]


def round_warnings(rounds: Sequence[RoundRecord]) -> list[str]:
    """Return what disturbed the rounds of one bundle: other programs, a virtual machine's host, the clock, heat."""
    found = []
    busy = [each.foreign_cores for each in rounds if each.foreign_cores is not None and each.foreign_cores > BUSY_CORES]
    if busy:
        found.append(
            f"other programs kept up to {max(busy):.1f} cores busy in {len(busy)} of {count(len(rounds), 'round')}; "
            "stop them and measure again"
        )
    stolen = [
        each.stolen_share for each in rounds if each.stolen_share is not None and each.stolen_share > STOLEN_SHARE
    ]
    if stolen:
        found.append(
            f"the virtual machine's host gave up to {max(stolen):.0%} of the processor time to others in {len(stolen)} "
            f"of {count(len(rounds), 'round')}; measure on a dedicated machine"
        )
    spins = [min(each.spin_before_ms, each.spin_after_ms) for each in rounds]
    if spins and max(spins) > (1 + SLOWER_CLOCK) * min(spins):
        found.append(
            f"the clock drifted: the same computation took {min(spins):.2f} to {max(spins):.2f} ms in different "
            "rounds; let the device cool down, fix its clock, and stop other programs"
        )
    throttled = sum(each.n_throttled or 0 for each in rounds)
    if throttled:
        found.append(
            f"the processor was throttled by heat {count(throttled, 'time')}; improve its cooling, or lower its clock"
        )
    return found


def _latency_warnings(result: BundleResult) -> list[str]:
    if result.latency is None:
        return []
    found, unstable, few_samples = [], [], []
    for what in ("engine", "predict", "file"):
        statistics = getattr(result.latency, what)
        if statistics.unstable_because:
            unstable.append(f"{what} ({'; '.join(statistics.unstable_because)})")
        if statistics.n < _FEW_SAMPLES:
            few_samples.append(f"{what} ({statistics.n})")
    if unstable:
        found.append(f"latency not stable: {', '.join(unstable)}; measure longer, on a quiet machine")
    if few_samples:
        found.append(f"p99 is the maximum, there are fewer than {_FEW_SAMPLES} samples: {', '.join(few_samples)}")
    found += [
        f"it does not keep up with {load.fps:g} images/s: they pile up, and latencies under that load grow with time"
        for load in result.load
        if not load.keeps_up
    ]
    return found


def _device_warnings(result: BundleResult, settings: SuiteSettings) -> list[str]:
    found = [f"as it was loaded: {note}" for note in result.notes]
    asked, used = settings.device.strip().lower(), result.device
    if used is not None and asked != "auto" and _kind(used) != _kind(asked):
        found.append(f"it runs on {used} although {asked} was requested ({result.device_reason})")
    elif used is not None and result.device_reason is not None and "because:" in result.device_reason:
        # A runtime that has a faster device and could not start it.
        found.append(f"it fell back to {used}: {result.device_reason}")
    return found


def _kind(device: str) -> str:
    """Return `cuda` of `cuda:1`, and `gpu` of `gpu.0`."""
    return device.partition(":")[0].partition(".")[0]


def _accuracy_warnings(result: BundleResult) -> list[str]:
    if result.accuracy is None:
        return []
    found = []
    auroc = result.accuracy.intervals.get("image_auroc")
    if auroc is not None and auroc.low <= 0.5:
        found.append(
            f"it may be no better than chance: the interval of its image AUROC goes down to {auroc.low:.3f}; "
            "test on more images, or train it again"
        )
    if result.accuracy.threshold_method is ThresholdMethod.F1_OPTIMAL:
        found.append(
            "its threshold is F1-optimal on labelled images and promises no false-alarm rate; if these are the same "
            "images, its figures flatter it"
        )
    promise = result.accuracy.promise
    if promise is not None and not promise.is_kept:
        found.append(
            f"it called {promise.n_false_alarms} of {promise.n_normal} good test images anomalous, certainly more "
            f"({promise.interval.low:.1%} or above) than the {promise.promised_rate:.1%} that it promises; "
            "re-fit its thresholds on this device: vae-edge verify"
        )
    if promise is not None and promise.n_normal < _FEW_NORMALS:
        found.append(
            f"{promise.n_normal} good test images are few: the false-alarm rate may be anything up to "
            f"{promise.interval.high:.0%}"
        )
    return found
