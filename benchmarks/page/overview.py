"""The table of all bundles, sortable by every column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby

from vae_edge.benchmarks.estimates import Interval, Ratio
from vae_edge.benchmarks.formats import mebibytes, milliseconds, percent, rate, seconds, share
from vae_edge.benchmarks.page.markup import Child, Markup, element, join
from vae_edge.benchmarks.page.plot import Look, named
from vae_edge.benchmarks.page.tables import scrolled, with_interval
from vae_edge.benchmarks.report import BundleResult, Report
from vae_edge.manifest import ThresholdMethod


@dataclass(frozen=True)
class Column:
    """One column of the table."""

    group: str
    title: str
    path: str
    """Where the number stands in a bundle of report.json, such as `latency.file.p50_ms`."""
    formatter: Callable[[float], str]
    interval: Callable[[BundleResult], Interval | None] = lambda _: None
    meaning: str = ""
    """Shown when the pointer rests on the title."""
    more: Callable[[BundleResult], Child] = lambda _: None
    """Written below the number."""

    def value(self, bundle: BundleResult) -> float | None:
        """Return the number, None where it was not measured."""
        found: object = bundle
        for name in self.path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        return found if isinstance(found, (int, float)) else None


def _bytes(value: float) -> str:
    return mebibytes(int(value))


def _whole(value: float) -> str:
    return f"{value:.0f}"


def times(value: float) -> str:
    """Return a ratio: `0.43x`."""
    return f"{value:.2f}x"


def _latency_interval(name: str) -> Callable[[BundleResult], Interval | None]:
    return lambda bundle: bundle.latency.file.intervals.get(name) if bundle.latency else None


def _accuracy_interval(name: str) -> Callable[[BundleResult], Interval | None]:
    return lambda bundle: bundle.accuracy.intervals.get(name) if bundle.accuracy else None


def _ratio_interval(bundle: BundleResult) -> Interval | None:
    ratio: Ratio | None = bundle.ratios.get("p50_ms")
    return ratio.interval if ratio else None


def _promise(bundle: BundleResult) -> Child:
    promise = bundle.accuracy.promise if bundle.accuracy else None
    if bundle.accuracy is not None and bundle.accuracy.threshold_method is ThresholdMethod.F1_OPTIMAL:
        return element("span", "nothing promised: F1-optimal", class_="interval wraps")
    if promise is None:
        return None
    return element(
        "span",
        f"promised {promise.promised_rate:.1%}{'' if promise.is_kept else ': not kept'}",
        class_="interval wraps" if promise.is_kept else "interval wraps bad",
    )


def _unexplained(bundle: BundleResult) -> Child:
    comparison = bundle.comparison
    if comparison is None or not comparison.label_flips:
        return None
    return element("span", f"{comparison.unexplained_flips} not explained", class_="interval wraps")


COLUMNS = (
    Column(
        "Speed, file to verdict", "p50 ms", "latency.file.p50_ms", milliseconds, _latency_interval("p50_ms"),
        "half of the images take less, from the file to the verdict",
    ),
    Column(
        "Speed, file to verdict", "p99 ms", "latency.file.p99_ms", milliseconds, _latency_interval("p99_ms"),
        "99 of 100 images take less",
    ),
    Column(
        "Speed, file to verdict", "to baseline", "ratios.p50_ms.value", times, _ratio_interval,
        "p50 divided by the baseline's, rounds in pairs: below 1 is faster",
    ),
    Column(
        "Speed, file to verdict", "images/s", "throughput.default.images_per_s", rate,
        lambda bundle: bundle.throughput.default.interval if bundle.throughput else None,
        "verdicts in a second of a stream of files, as opened by default",
    ),
    Column(
        "Needs", "first result s", "start.warm.first_result_s", seconds,
        lambda bundle: bundle.start.warm.interval if bundle.start else None,
        "from starting Python to the first verdict; what an earlier start compiled is kept",
    ),
    Column(
        "Needs", "memory MiB", "memory.peak_resident_bytes", _bytes,
        meaning="peak of resident memory, libraries included",
    ),
    Column("Needs", "disk MiB", "size_bytes", _bytes, meaning="all files of the bundle"),
    Column(
        "Accuracy", "image AUROC", "accuracy.metrics.image_auroc", share, _accuracy_interval("image_auroc"),
        "chance that a defective part scores higher than a good one",
    ),
    Column(
        "Accuracy", "recall", "accuracy.metrics.recall", percent, _accuracy_interval("recall"),
        "share of the defective test images that are found, at the bundle's own threshold",
    ),
    Column(
        "Accuracy", "false alarms", "accuracy.metrics.false_alarm_rate", percent,
        _accuracy_interval("false_alarm_rate"), "share of the good test images called anomalous, and the rate promised",
        _promise,
    ),
    Column(
        "Accuracy", "pixel AUROC", "accuracy.metrics.pixel_auroc", share, _accuracy_interval("pixel_auroc"),
        "the same for pixels: does the map show where",
    ),
    Column(
        "Accuracy", "AUPRO", "accuracy.metrics.aupro", share, _accuracy_interval("aupro"),
        "mean overlap with the defects' regions, false-positive rates up to 0.3",
    ),
    Column(
        "Accuracy", "flips", "comparison.label_flips", _whole,
        meaning="images that the reference decides otherwise", more=_unexplained,
    ),
)  # fmt: skip


def overview_table(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the table, in the report's order until somebody sorts it."""
    columns = [column for column in COLUMNS if any(column.value(bundle) is not None for bundle in report.bundles)]
    groups = [
        element("th", group, scope="colgroup", colspan=str(len(list(members))))
        for group, members in groupby(columns, key=lambda column: column.group)
    ]
    # Columns of one group must stand together for the browser to know which titles a group is over.
    column_groups = [
        element("colgroup", span=str(len(list(members))))
        for _, members in groupby(columns, lambda column: column.group)
    ]
    head = element(
        "thead",
        element("tr", element("td", class_="corner"), groups) if columns else None,
        element(
            "tr",
            _header("bundle", "text", None),
            [_header(column.title, "number", column.meaning) for column in columns],
        ),
    )
    chosen = report.recommendation.chosen if report.recommendation else None
    body = element("tbody", [_row(bundle, looks[bundle.name], columns, chosen) for bundle in report.bundles])
    caption = element(
        "caption",
        "All bundles. Small numbers: 95 % intervals. ",
        element("span", "Click a title to sort by it.", class_="only-script"),
    )
    table = element(
        "table", caption, element("colgroup"), column_groups, head, body, class_="overview", id="all-bundles"
    )
    return scrolled("Table of all bundles", table)


def _header(title: str, kind: str, meaning: str | None) -> Markup:
    # Without the script the button is disabled and looks like the text it is.
    button = element("button", title, type="button", disabled=True, title=meaning or None)
    return element("th", button, scope="col", class_=None if kind == "text" else "number", data_sort=kind)


def _row(bundle: BundleResult, look: Look, columns: list[Column], chosen: str | None) -> Markup:
    name = element(
        "th",
        named(bundle.name, look),
        [join(" ", element("span", text, class_=f"badge {css}")) for text, css in _badges(bundle, chosen)],
        scope="row",
    )
    if not bundle.has_run:
        reason = join(element("strong", "did not run: "), bundle.not_run_because)
        span = str(len(columns)) if columns else None
        return element("tr", name, element("td", reason, colspan=span, class_="reason"), class_="not-run")
    return element(
        "tr", name, [_cell(column, bundle) for column in columns], class_="chosen" if chosen == bundle.name else None
    )


def _badges(bundle: BundleResult, chosen: str | None) -> list[tuple[str, str]]:
    found = []
    if bundle.name == chosen:
        found.append(("recommended", "good"))
    if bundle.is_baseline:
        found.append(("baseline", ""))
    if bundle.is_reference:
        found.append(("reference", ""))
    if bundle.latency and not bundle.latency.file.is_stable:
        found.append(("not stable", "warn"))
    return found


def _cell(column: Column, bundle: BundleResult) -> Markup:
    value = column.value(bundle)
    if value is None and bundle.is_reference and column.path.startswith("comparison."):
        return element(
            "td", element("span", "is the reference", class_="absent"), class_="number", data_key=column.path
        )
    if value is None and bundle.is_baseline and column.path.startswith("ratios."):
        return element("td", element("span", "is the baseline", class_="absent"), class_="number", data_key=column.path)
    return element(
        "td",
        with_interval(value, column.interval(bundle), column.formatter),
        column.more(bundle),
        class_="number",
        data_key=column.path,
    )
