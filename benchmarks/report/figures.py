"""Every figure of a bundle, defined once: name, title, unit, format, direction, meaning, source and views.

Requirements and objectives, `compare`, the terminal, report.md and report.html go through this table. A new figure is a
row in `FIGURES` and the field that it is read from; the views that it names show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Flag, auto

from vae_edge.benchmarks.measure.statistics import Interval
from vae_edge.benchmarks.report.records.report import BundleResult
from vae_edge.errors import UsageError
from vae_edge.manifest import ThresholdMethod

ABSENT = "-"
"""What was not measured is shown as a dash, never as a zero."""

MIB = 1024 * 1024

NOT_STABLE = "not stable"
"""Note next to a latency that its own samples show to be unstable."""


def three_digits(value: float) -> str:
    """Return a number with three significant digits: 0.123, 4.56, 78.9, 1234.

    Examples:
        >>> [three_digits(value) for value in (0.1234, 4.561, 78.91, 1234.4)]
        ['0.123', '4.56', '78.9', '1234']
    """
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def share(value: float) -> str:
    """Return a number in [0, 1], such as an AUROC, with three decimals."""
    return f"{value:.3f}"


def percent(value: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{value:.1%}"


def whole(value: float) -> str:
    """Return a count."""
    return f"{value:.0f}"


def times(value: float) -> str:
    """Return a ratio: 0.43x."""
    return f"{value:.2f}x"


Form = Callable[[float], str]


@dataclass(frozen=True)
class Number:
    """A number as a report shows it. As text it has the ends of its interval: `4.56 (4.51 to 4.63)`."""

    value: float | None
    form: Form = three_digits
    interval: Interval | None = None
    note: str = ""
    """A note about it."""
    is_bad: bool = False
    """Whether the note reports a problem."""
    words: str = ""
    """Shown instead of the number, such as `2/110`, or `reference` for the reference's difference from itself."""

    @property
    def text(self) -> str:
        """The number alone, or the text shown instead."""
        return self.words or (ABSENT if self.value is None else self.form(self.value))

    @property
    def ends(self) -> str:
        """The ends of the interval, empty if there is none."""
        if self.value is None or self.interval is None:
            return ""
        return f"{self.form(self.interval.low)} to {self.form(self.interval.high)}"

    def __str__(self) -> str:
        text = f"{self.text} ({self.ends})" if self.ends else self.text
        return f"{text}, {self.note}" if self.note else text


class View(Flag):
    """Where a figure is shown."""

    PAGE = auto()
    """The table of all bundles in report.html."""
    TEXT = auto()
    """The tables of report.md and of a wide terminal."""
    NARROW = auto()
    """The table of a narrow terminal."""
    TILE = auto()
    """Next to the recommended bundle in report.html."""
    ACCURACY = auto()
    """The tables of accuracy; it is a field of `Metrics`."""
    COST = auto()
    """The horizontal axis of the trade-off."""
    QUALITY = auto()
    """Its vertical axis."""


_NOWHERE = View(0)
_ALL_TABLES = View.PAGE | View.TEXT | View.NARROW


@dataclass(frozen=True)
class Figure:
    """One figure of a bundle."""

    name: str
    """Its name in requirements, objectives and `compare`."""
    title: str
    unit: str
    form: Form
    smaller_is_better: bool
    meaning: str
    """What it measures, as a phrase that needs no other figure's to be understood."""
    find: Callable[[BundleResult], Number | None]
    """Returns value, interval and note; None if it was not measured."""
    views: View = _NOWHERE
    group: str = ""
    """Heading over its column and its neighbours'."""

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} {self.unit}".strip()

    def number(self, bundle: BundleResult) -> Number:
        """Return the formatted figure of a bundle, absent if it was not measured."""
        return self.find(bundle) or Number(None, self.form)


def _latencies() -> Iterator[Figure]:
    families = (
        ("", "file", "from file to verdict", ""),
        ("predict_", "predict", "from decoded image to verdict", "predict "),
        ("engine_", "engine", "of the runtime alone", "engine "),
    )
    meanings = {
        "mean_ms": "mean of all images",
        "p50_ms": "half of the images take less",
        "p90_ms": "90 of 100 images take less",
        "p95_ms": "95 of 100 images take less",
        "p99_ms": "99 of 100 images take less",
        "max_ms": "the slowest image",
    }
    shown = {
        "p50_ms": _ALL_TABLES | View.TILE | View.COST,
        "p99_ms": _ALL_TABLES | View.TILE | View.COST,
        "engine_p50_ms": View.TEXT,
    }
    for prefix, series, what, title in families:
        for figure, meaning in meanings.items():

            def find(bundle: BundleResult, series: str = series, figure: str = figure) -> Number | None:
                if bundle.latency is None:
                    return None
                found = getattr(bundle.latency, series)
                note = "" if found.is_stable or figure != "p50_ms" else NOT_STABLE
                return Number(getattr(found, figure), three_digits, found.intervals.get(figure), note=note)

            yield Figure(
                f"{prefix}{figure}",
                title + figure.removesuffix("_ms"),
                "ms",
                three_digits,
                True,
                f"{meaning}, {what}",
                find,
                shown.get(f"{prefix}{figure}", _NOWHERE),
                "File to verdict",
            )


def _ratio(bundle: BundleResult) -> Number | None:
    if bundle.is_baseline:
        return Number(1.0, times, words="baseline")
    ratio = bundle.ratios.get("p50_ms")
    return None if ratio is None else Number(ratio.value, times, ratio.interval)


def _throughput(*, best: bool) -> Callable[[BundleResult], Number | None]:
    def find(bundle: BundleResult) -> Number | None:
        if bundle.throughput is None:
            return None
        record = bundle.throughput.best if best else bundle.throughput.default
        return Number(record.images_per_s, three_digits, record.interval)

    return find


def _missed(bundle: BundleResult) -> Number | None:
    worst = max(bundle.load, key=lambda record: record.missed_share, default=None)
    return None if worst is None else Number(worst.missed_share, percent, worst.missed_interval)


def _load_p99(bundle: BundleResult) -> Number | None:
    worst = max((record.latency for record in bundle.load), key=lambda latency: latency.p99_ms, default=None)
    return None if worst is None else Number(worst.p99_ms, three_digits, worst.intervals.get("p99_ms"))


def _start(*, cold: bool) -> Callable[[BundleResult], Number | None]:
    def find(bundle: BundleResult) -> Number | None:
        start = None if bundle.start is None else bundle.start.cold if cold else bundle.start.warm
        return None if start is None else Number(start.first_result_s, three_digits, start.interval)

    return find


def _memory(bundle: BundleResult) -> Number | None:
    return None if bundle.memory is None else Number(bundle.memory.peak_resident_bytes / MIB)


def _size(bundle: BundleResult) -> Number | None:
    return None if bundle.size_bytes is None else Number(bundle.size_bytes / MIB)


def _energy(bundle: BundleResult) -> Number | None:
    if bundle.energy is None or bundle.energy.joules_per_image is None:
        return None
    return Number(bundle.energy.joules_per_image, three_digits, bundle.energy.interval)


def _accuracy(name: str, form: Form) -> Callable[[BundleResult], Number | None]:
    def find(bundle: BundleResult) -> Number | None:
        if bundle.accuracy is None or (value := getattr(bundle.accuracy.metrics, name)) is None:
            return None
        return Number(value, form, bundle.accuracy.intervals.get(name))

    return find


def _false_alarms(bundle: BundleResult) -> Number | None:
    found = _accuracy("false_alarm_rate", percent)(bundle)
    if found is None or bundle.accuracy is None:
        return None
    promise, is_bad = bundle.accuracy.promise, False
    if bundle.accuracy.threshold_method is ThresholdMethod.F1_OPTIMAL:
        note = "no promise: F1-optimal"
    elif promise is None:
        return found
    else:
        is_bad = not promise.is_kept
        note = f"promised {percent(promise.promised_rate)}{': not kept' if is_bad else ''}"
    return Number(found.value, percent, found.interval, note=note, is_bad=is_bad)


def _recall(bundle: BundleResult) -> Number | None:
    found = _accuracy("recall", percent)(bundle)
    if found is None or bundle.accuracy is None:
        return found
    is_f1 = bundle.accuracy.threshold_method is ThresholdMethod.F1_OPTIMAL
    return replace(found, note="no rate promised: F1-optimal") if is_f1 else found


def _flips(bundle: BundleResult) -> Number | None:
    if bundle.is_reference:
        return Number(0.0, whole, words="reference")
    found = bundle.comparison
    if found is None:
        return None
    note = f"{found.unexplained_flips} not explained" if found.label_flips else ""
    return Number(float(found.label_flips), whole, note=note, words=f"{found.label_flips}/{found.n_images}")


def _unexplained_flips(bundle: BundleResult) -> Number | None:
    if bundle.is_reference:
        return Number(0.0, whole, words="reference")
    return None if bundle.comparison is None else Number(float(bundle.comparison.unexplained_flips), whole)


def _accuracy_figures() -> Iterator[Figure]:
    for name, title, form, smaller_is_better, views, meaning in (
        ("image_auroc", "image AUROC", share, False, _ALL_TABLES | View.TILE | View.QUALITY,
         "area under the ROC curve of the images: the chance that a defective part scores higher than a good one"),
        ("recall", "recall at promised rate", percent, False, _ALL_TABLES | View.TILE | View.QUALITY,
         "share of the defective test images that are found, at the bundle's own threshold, which promises the "
         "false-alarm rate beside it"),
        ("image_aupr", "image AUPR", share, False, _NOWHERE, "average precision of the images"),
        ("image_f1", "F1", share, False, View.TEXT, "F1 at the bundle's own threshold"),
        ("false_alarm_rate", "false alarms", percent, True, View.PAGE | View.TILE,
         "share of the good test images called anomalous, and the promised rate"),
        ("pixel_auroc", "pixel AUROC", share, False, View.PAGE | View.TEXT,
         "area under the ROC curve of the pixels: whether the map shows where the defects are"),
        ("aupro", "AUPRO", share, False, View.PAGE | View.QUALITY,
         "mean overlap with the defects' regions, false-positive rates up to 0.3"),
    ):  # fmt: skip
        find = {"false_alarm_rate": _false_alarms, "recall": _recall}.get(name) or _accuracy(name, form)
        yield Figure(name, title, "", form, smaller_is_better, meaning, find, views | View.ACCURACY, "Accuracy")


FIGURES: dict[str, Figure] = {
    each.name: each
    for each in (
        *_latencies(),
        Figure("p50_ratio", "ratio", "", times, True,
               "p50 divided by the baseline's, rounds in pairs: below 1 is faster", _ratio, View.PAGE | View.TEXT,
               "File to verdict"),
        Figure("images_per_s", "images/s", "", three_digits, False,
               "verdicts per second of a stream of files, opened with its defaults", _throughput(best=False),
               _ALL_TABLES, "File to verdict"),
        Figure("best_images_per_s", "best images/s", "", three_digits, False,
               "verdicts per second of a stream of files, in the fastest configuration measured",
               _throughput(best=True)),
        Figure("missed_share", "deadlines missed", "", percent, True,
               "share of deadlines missed at the worst of --load-fps", _missed),
        Figure("load_p99_ms", "p99 under load", "ms", three_digits, True,
               "p99 from due time to verdict at the worst of --load-fps", _load_p99),
        Figure("first_result_s", "start", "s", three_digits, True,
               "from starting Python to the first verdict, with the model that an earlier start compiled",
               _start(cold=False), View.PAGE | View.TEXT, "Needs"),
        Figure("cold_first_result_s", "cold start", "s", three_digits, True,
               "from starting Python to the first verdict, with nothing compiled yet", _start(cold=True)),
        Figure("peak_memory_mib", "memory", "MiB", three_digits, True, "peak of resident memory, including libraries",
               _memory, _ALL_TABLES | View.TILE | View.COST, "Needs"),
        Figure("size_mib", "disk", "MiB", three_digits, True, "all files of the bundle", _size,
               View.PAGE | View.TEXT, "Needs"),
        Figure("joules_per_image", "energy", "J", three_digits, True, "energy of the chip or board for a verdict",
               _energy),
        *_accuracy_figures(),
        Figure("flips", "flips", "", whole, True, "images that the reference judges differently", _flips, _ALL_TABLES,
               "Accuracy"),
        Figure("unexplained_flips", "unexplained flips", "", whole, True,
               "images that the reference judges differently although they are not near the threshold",
               _unexplained_flips),
    )
}  # fmt: skip
"""By name. A bundle without a value for a figure does not meet a requirement on it."""


def figures(view: View) -> list[Figure]:
    """Return the figures that a view shows, in order."""
    return [figure for figure in FIGURES.values() if view in figure.views]


def figure(name: str) -> Figure:
    """Return the figure of that name.

    Raises:
        UsageError: there is none; the message lists the known names.
    """
    if name not in FIGURES:
        raise UsageError(f"there is no metric {name!r}; choose from {', '.join(FIGURES)}")
    return FIGURES[name]


def figure_help() -> str:
    """Return all names for a help text, with the families of latencies abbreviated."""
    latencies = [each.name for each in _latencies()]
    return (
        "mean_ms, p50_ms, p90_ms, p95_ms, p99_ms, max_ms (from file to verdict; with the prefix predict_: "
        "from a decoded image; engine_: the runtime alone), "
        + ", ".join(name for name in FIGURES if name not in latencies)
    )


def relative(difference: float | None, scale: float | None) -> str:
    """Return a difference and its share of the scale: `1.2e-05 (3.0e-07)`.

    Examples:
        >>> relative(1.2e-05, 40.0)
        '1.2e-05 (3.0e-07)'
    """
    if difference is None:
        return ABSENT
    return f"{difference:.1e}" + (f" ({difference / scale:.1e})" if scale else "")
