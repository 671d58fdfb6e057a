"""The names that requirements, objectives and comparisons are written with, and where each is in a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.formats import MIB
from vae_edge.benchmarks.report import BundleResult
from vae_edge.errors import UsageError

Found = tuple[float, Interval | None] | None
"""A value with its interval, where it has one; None where it was not measured."""


@dataclass(frozen=True)
class Metric:
    """One figure of a bundle."""

    name: str
    what: str
    smaller_is_better: bool
    find: Callable[[BundleResult], Found]


def metric(name: str) -> Metric:
    """Return the metric of that name.

    Raises:
        UsageError: there is none; with those that there are.
    """
    if name not in METRICS:
        raise UsageError(f"there is no metric {name!r}; choose from {', '.join(METRICS)}")
    return METRICS[name]


def metric_help() -> str:
    """Return all names for a help text, the families of latencies in short."""
    return (
        "mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, max_ms (from file to verdict; with predict_ or engine_ in front: "
        "of a decoded image, of the runtime alone), " + ", ".join(name for name in METRICS if name not in _LATENCIES)
    )


def _latency(series: str, figure: str) -> Callable[[BundleResult], Found]:
    def find(bundle: BundleResult) -> Found:
        if bundle.latency is None:
            return None
        statistics = getattr(bundle.latency, series)
        return getattr(statistics, figure), statistics.intervals.get(figure)

    return find


def _accuracy(field: str) -> Callable[[BundleResult], Found]:
    def find(bundle: BundleResult) -> Found:
        if bundle.accuracy is None or (value := getattr(bundle.accuracy.metrics, field)) is None:
            return None
        return value, bundle.accuracy.intervals.get(field)

    return find


def _throughput(*, best: bool) -> Callable[[BundleResult], Found]:
    def find(bundle: BundleResult) -> Found:
        if bundle.throughput is None:
            return None
        record = bundle.throughput.best if best else bundle.throughput.default
        return record.images_per_s, record.interval

    return find


def _warm_start(bundle: BundleResult) -> Found:
    return None if bundle.start is None else (bundle.start.warm.first_result_s, bundle.start.warm.interval)


def _cold_start(bundle: BundleResult) -> Found:
    cold = None if bundle.start is None else bundle.start.cold
    return None if cold is None else (cold.first_result_s, cold.interval)


def _memory(bundle: BundleResult) -> Found:
    return None if bundle.memory is None else (bundle.memory.peak_resident_bytes / MIB, None)


def _size(bundle: BundleResult) -> Found:
    return None if bundle.size_bytes is None else (bundle.size_bytes / MIB, None)


def _energy(bundle: BundleResult) -> Found:
    if bundle.energy is None or bundle.energy.joules_per_image is None:
        return None
    return bundle.energy.joules_per_image, bundle.energy.interval


def _missed(bundle: BundleResult) -> Found:
    worst = max(bundle.load, key=lambda record: record.missed_share, default=None)
    return None if worst is None else (worst.missed_share, worst.missed_interval)


def _load_p99(bundle: BundleResult) -> Found:
    worst = max((record.latency for record in bundle.load), key=lambda latency: latency.p99_ms, default=None)
    return None if worst is None else (worst.p99_ms, worst.intervals.get("p99_ms"))


def _flips(bundle: BundleResult) -> Found:
    if bundle.is_reference:
        return 0.0, None
    return None if bundle.comparison is None else (float(bundle.comparison.label_flips), None)


def _unexplained_flips(bundle: BundleResult) -> Found:
    if bundle.is_reference:
        return 0.0, None
    return None if bundle.comparison is None else (float(bundle.comparison.unexplained_flips), None)


_LATENCIES = [
    f"{prefix}{figure}"
    for prefix in ("", "predict_", "engine_")
    for figure in ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
]


def _latency_metrics() -> Iterable[Metric]:
    families = {"": ("file", "file to verdict"), "predict_": ("predict", "decoded image to verdict"),
                "engine_": ("engine", "the runtime alone")}  # fmt: skip
    for prefix, (series, what) in families.items():
        for figure in ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"):
            words = f"{figure.removesuffix('_ms')} of {what}, milliseconds"
            yield Metric(f"{prefix}{figure}", words, True, _latency(series, figure))


METRICS: dict[str, Metric] = {
    each.name: each
    for each in (
        *_latency_metrics(),
        Metric("images_per_s", "verdicts in a second of a stream, opened by default", False, _throughput(best=False)),
        Metric("best_images_per_s", "the same in the best configuration measured", False, _throughput(best=True)),
        Metric("missed_share", "share of deadlines missed at the worst of --load-fps", True, _missed),
        Metric("load_p99_ms", "p99 from due time to verdict at the worst of --load-fps", True, _load_p99),
        Metric("first_result_s", "start of the process to the first verdict, seconds", True, _warm_start),
        Metric("cold_first_result_s", "the same with nothing compiled yet", True, _cold_start),
        Metric("peak_memory_mib", "peak resident memory, MiB", True, _memory),
        Metric("size_mib", "size of the bundle, MiB", True, _size),
        Metric("joules_per_image", "energy of chip or board for a verdict", True, _energy),
        Metric("image_auroc", "area under the ROC curve of the images", False, _accuracy("image_auroc")),
        Metric("image_aupr", "average precision of the images", False, _accuracy("image_aupr")),
        Metric("image_f1", "F1 at the bundle's own threshold", False, _accuracy("image_f1")),
        Metric("recall", "share of defective images found at the bundle's own threshold", False, _accuracy("recall")),
        Metric("false_alarm_rate", "share of good test images called anomalous", True, _accuracy("false_alarm_rate")),
        Metric("pixel_auroc", "area under the ROC curve of the pixels", False, _accuracy("pixel_auroc")),
        Metric("aupro", "area under the per-region-overlap curve", False, _accuracy("aupro")),
        Metric("flips", "images that the reference decides differently", True, _flips),
        Metric("unexplained_flips", "of these, those not near the threshold", True, _unexplained_flips),
    )
}
"""By name. What a bundle has no value of keeps no requirement."""
