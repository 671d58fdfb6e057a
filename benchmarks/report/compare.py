"""Two benchmarks of the same bundles, from their raw samples: did a change make them worse?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_edge.benchmarks.measure.conditions import MachineFacts
from vae_edge.benchmarks.measure.samples import RATIO_METRICS, RawSamples, speed_ratios
from vae_edge.benchmarks.measure.statistics import Interval, Ratio
from vae_edge.benchmarks.report.figures import FIGURES
from vae_edge.benchmarks.report.records.files import read_report, read_samples
from vae_edge.benchmarks.report.records.report import BundleResult, Report
from vae_edge.errors import InputError, UsageError

_SAME_MACHINE = ("board", "processor", "architecture", "cores_usable", "gpus", "frequency_governor", "power_mode")
"""If any of these facts differ, it is a different machine, or the same machine in a different state."""


@dataclass(frozen=True)
class Worsening:
    """One metric of one bundle in the new report divided by the old one, or inverted, so that above 1 is worse."""

    bundle: str
    metric: str
    ratio: Ratio

    def verdict(self, limit: float) -> str:
        """Return `worse`, `uncertain` or `fine`; without an interval nothing is certain."""
        interval = self.ratio.interval
        if interval is None:
            return "uncertain"
        if interval.low > limit:
            return "worse"
        return "uncertain" if interval.high > limit else "fine"


@dataclass(frozen=True)
class ReportComparison:
    """The comparison of two reports for the bundles that both have."""

    worsenings: tuple[Worsening, ...]
    lost: tuple[str, ...]
    """Bundles that ran in the old report but not in the new one."""
    notes: tuple[str, ...]

    def fails(self, limit: float) -> bool:
        """Return whether the gate fails: something is certainly worse by more than the limit, or no longer runs."""
        return bool(self.lost) or any(each.verdict(limit) == "worse" for each in self.worsenings)


def compare_reports(
    old_path: Path,
    new_path: Path,
    *,
    metrics: Sequence[str] = ("p50_ms",),
    allow_different_machine: bool = False,
    allow_different_models: bool = False,
) -> ReportComparison:
    """Compare every bundle that both reports have, by name.

    The rounds of two benchmarks are not paired, so each side is resampled by itself.

    Raises:
        UsageError: raw samples give no ratio of such a metric.
        InputError: a report or its samples cannot be read or were changed, no bundle is in both, or the machines or
            models differ and that was not allowed.
    """
    unknown = [name for name in metrics if name not in RATIO_METRICS]
    if unknown:
        raise UsageError(f"there is no metric {unknown[0]!r} to compare by; choose from {', '.join(RATIO_METRICS)}")
    old, new = read_report(old_path), read_report(new_path)
    notes = [] if allow_different_machine else _check_machines(old.machine, new.machine)
    notes += _setting_notes(old, new)
    before = {bundle.name: bundle for bundle in old.bundles if bundle.has_run}
    after = {bundle.name: bundle for bundle in new.bundles if bundle.has_run}
    common = [name for name in before if name in after]
    if not common:
        raise InputError(
            f"no bundle ran in both reports: {', '.join(before) or 'none'} in {old_path}, "
            f"{', '.join(after) or 'none'} in {new_path}; bundles are compared by name"
        )
    worsenings = []
    for name in common:
        if not allow_different_models:
            _check_models(before[name], after[name])
        samples = [
            RawSamples.from_dict(read_samples(path, bundle))
            for path, bundle in ((new_path, after[name]), (old_path, before[name]))
        ]
        try:
            ratios = speed_ratios(*samples, paired=False)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"the raw samples of {name} are damaged ({error!r}); run vae-bench again") from error
        for metric in metrics:
            if metric in ratios:
                worsenings.append(Worsening(name, metric, _as_worsening(metric, ratios[metric])))
            else:
                notes.append(f"{name}: {metric} was not measured in both reports")
    notes += [f"{name} is new" for name in after if name not in before]
    return ReportComparison(
        worsenings=tuple(worsenings), lost=tuple(name for name in before if name not in after), notes=tuple(notes)
    )


def gate_lines(found: ReportComparison, limit: float | None) -> list[str]:
    """Return what the terminal shows: a line for each ratio, then the gate's answer."""
    lines = []
    for each in found.worsenings:
        ratio = each.ratio
        interval = "no interval, too few samples or rounds" if ratio.interval is None else _range(ratio.interval)
        line = f"{each.bundle} {each.metric}: {ratio.value:.3f} ({interval})"
        if limit is None:
            meaning = {"worse": "certainly worse", "uncertain": "no certain difference", "fine": "certainly better"}
            lines.append(f"{line}: {meaning[each.verdict(1.0)]}")
        else:
            meaning = {
                "worse": f"certainly above {limit:g}",
                "uncertain": f"may be above {limit:g}, not certain: measure more rounds",
                "fine": f"not above {limit:g}",
            }
            lines.append(f"{line}: {meaning[each.verdict(limit)]}")
    lines += [f"{name} ran in the old report but not in the new one" for name in found.lost]
    lines += found.notes
    lines.append("New divided by old, or inverted, so that above 1 is worse; in brackets the 95 % interval.")
    if limit is not None:
        lines.append(
            f"The gate fails: a whole interval lies above {limit:g}, or a bundle no longer runs."
            if found.fails(limit)
            else f"The gate passes: no whole interval lies above {limit:g}."
        )
    return lines


def _as_worsening(metric: str, ratio: Ratio) -> Ratio:
    if FIGURES[metric].smaller_is_better:
        return ratio
    interval = ratio.interval
    turned = None if interval is None else Interval(low=1 / interval.high, high=1 / interval.low)
    return Ratio(value=1 / ratio.value, interval=turned, n_rounds=ratio.n_rounds)


def _check_machines(old: MachineFacts, new: MachineFacts) -> list[str]:
    """Refuse reports of two machines; return what else differs."""
    differing = [name for name in _SAME_MACHINE if getattr(old, name) != getattr(new, name)]
    if differing:
        what = "; ".join(f"{name}: {getattr(old, name)} and {getattr(new, name)}" for name in differing)
        raise InputError(
            f"the reports are from different machines ({what}); measure both on one, or pass --allow-different-machine"
        )
    return [
        f"{name} {old.packages.get(name, 'missing')} in the old report, {new.packages.get(name, 'missing')} in the new"
        for name in sorted({*old.packages, *new.packages})
        if old.packages.get(name) != new.packages.get(name)
    ]


def _check_models(old: BundleResult, new: BundleResult) -> None:
    if old.model_sha256 != new.model_sha256:
        raise InputError(
            f"{old.name} holds different models in the two reports; measure the same bundle, or pass "
            "--allow-different-models"
        )


def _setting_notes(old: Report, new: Report) -> list[str]:
    names = ("device", "threads", "rules", "n_timing_images")
    differing = [name for name in names if getattr(old.settings, name) != getattr(new.settings, name)]
    notes = [f"measured differently: {name} is not the same in both reports" for name in differing]
    if old.data.timing_image_sizes != new.data.timing_image_sizes:
        notes.append("the timed images have different sizes, on which decoding and resizing depend")
    return notes


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"
