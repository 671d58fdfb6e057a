"""The report in the terminal: everything at 120 columns, the essentials at 80."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vae_edge.benchmarks.accuracy_records import SimpleMethodRecord
from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.formats import ABSENT, mebibytes, milliseconds, rate, seconds, share
from vae_edge.benchmarks.measured import LatencyStatistics
from vae_edge.benchmarks.report import BundleResult, Report

_LONGEST_NAME = 28

WIDE = 110
"""Columns from which the whole table is shown."""


def result_table(report: Report, width: int) -> Table:
    """Return one row for each bundle, as many columns as `width` has room for.

    Bundles that did not run have their reason below the table, see `reasons`.
    """
    return _wide(report) if width >= WIDE else _compact(report)


def reasons(report: Report) -> list[str]:
    """Return a line for each bundle that did not run."""
    return [f"{bundle.name} did not run: {bundle.not_run_because}" for bundle in report.bundles if not bundle.has_run]


def verdict_lines(report: Report) -> list[str]:
    """Return the recommendation: what to ship, why, by which rule, and why not the others."""
    found = report.recommendation
    if found is None:
        return []
    lines = [f"{'No bundle fits.' if found.chosen is None else f'Put {found.chosen} on this device.'} {found.why}"]
    lines.append(f"Rule: {found.rule}.")
    for judgement in found.judgements:
        if not report.bundle(judgement.bundle).has_run:
            continue
        said = "; ".join((*judgement.reasons, *judgement.caveats))
        if said:
            lines.append(f"  {judgement.bundle}: {'' if judgement.fits else 'does not fit: '}{said}")
    return lines


def _wide(report: Report) -> Table:
    table = _new_table(report)
    _add_columns(
        table, "file\np50 ms", "\n±", "p99", "engine\np50 ms", "ratio\nfile", "stream\nimg/s", "first\ns",
        "memory\nMiB", "disk\nMiB", "image\nAUROC", "F1", "pixel\nAUROC", "flips",
    )  # fmt: skip
    for bundle in report.bundles:
        if not bundle.has_run:
            blanks = [ABSENT] * 7
            table.add_row(_name(bundle), "did not run", *blanks, mebibytes(bundle.size_bytes), *[ABSENT] * 4)
            continue
        latency, metrics = bundle.latency, bundle.accuracy.metrics if bundle.accuracy else None
        table.add_row(
            _name(bundle),
            _p(latency.file if latency else None),
            _half_width(latency.file if latency else None),
            _p(latency.file if latency else None, "p99_ms", mark=False),
            _p(latency.engine if latency else None),
            _ratio(bundle),
            rate(bundle.throughput.default.images_per_s if bundle.throughput else None),
            seconds(bundle.start.warm.first_result_s if bundle.start else None),
            mebibytes(bundle.memory.peak_resident_bytes if bundle.memory else None),
            mebibytes(bundle.size_bytes),
            share(metrics.image_auroc if metrics else None),
            share(metrics.image_f1 if metrics else None),
            share(metrics.pixel_auroc if metrics else None),
            _flips(bundle),
        )
    for record in report.simple_methods:
        found = record.metrics
        label = Text(_simple_name(record), style="dim")
        table.add_row(label, *[ABSENT] * 9, share(found.image_auroc), ABSENT, share(found.pixel_auroc), ABSENT)
    return table


def _compact(report: Report) -> Table:
    table = _new_table(report)
    _add_columns(table, "file\np50 ms", "±", "p99", "img/s", "MiB", "AUROC", "flips")
    for bundle in report.bundles:
        if not bundle.has_run:
            table.add_row(_name(bundle), "did not run", *[ABSENT] * 6)
            continue
        latency = bundle.latency
        table.add_row(
            _name(bundle),
            _p(latency.file if latency else None),
            _half_width(latency.file if latency else None),
            _p(latency.file if latency else None, "p99_ms", mark=False),
            rate(bundle.throughput.default.images_per_s if bundle.throughput else None),
            mebibytes(bundle.memory.peak_resident_bytes if bundle.memory else None),
            share(bundle.accuracy.metrics.image_auroc if bundle.accuracy else None),
            _flips(bundle),
        )
    for record in report.simple_methods:
        label = Text(_simple_name(record), style="dim")
        table.add_row(label, *[ABSENT] * 5, share(record.metrics.image_auroc), ABSENT)
    return table


def _new_table(report: Report) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, header_style="bold", show_edge=False)
    # A name is worth more than the width of a number's column, up to a point.
    names = [bundle.name for bundle in report.bundles] + [_simple_name(record) for record in report.simple_methods]
    table.add_column("bundle", overflow="fold", min_width=min(max(map(len, names)), _LONGEST_NAME))
    return table


def _add_columns(table: Table, *headers: str) -> None:
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def _simple_name(record: SimpleMethodRecord) -> str:
    return f"no network: {record.name}"


def _name(bundle: BundleResult) -> Text:
    return Text(bundle.name, style="" if bundle.has_run else "dim")


def _p(statistics: LatencyStatistics | None, value: str = "p50_ms", *, mark: bool = True) -> str:
    if statistics is None:
        return ABSENT
    return milliseconds(getattr(statistics, value)) + ("~" if mark and not statistics.is_stable else "")


def _half_width(statistics: LatencyStatistics | None) -> str:
    """Return the larger distance from the median to an end of its interval."""
    interval: Interval | None = None if statistics is None else statistics.intervals.get("p50_ms")
    if statistics is None or interval is None:
        return ABSENT
    return milliseconds(max(interval.high - statistics.p50_ms, statistics.p50_ms - interval.low))


def _ratio(bundle: BundleResult) -> str:
    if bundle.is_baseline:
        return "base"
    ratio = bundle.ratios.get("p50_ms")
    return ABSENT if ratio is None else f"{ratio.value:.2f}"


def _flips(bundle: BundleResult) -> str:
    if bundle.is_reference:
        return "ref"
    return ABSENT if bundle.comparison is None else f"{bundle.comparison.label_flips}/{bundle.comparison.n_images}"
