"""The report in the terminal: everything at 120 columns, the essentials at 80."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from vae_edge.benchmarks.accuracy import BaselineRecord
from vae_edge.benchmarks.formats import ABSENT, mebibytes, milliseconds, rate, seconds, share
from vae_edge.benchmarks.latency import LatencyStatistics
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


def _wide(report: Report) -> Table:
    table = _new_table(report)
    _add_columns(
        table, "engine\np50 ms", "p99", "predict\np50 ms", "file\np50 ms", "stream\nimg/s", "first\ns",
        "memory\nMiB", "disk\nMiB", "image\nAUROC", "F1", "pixel\nAUROC", "flips",
    )  # fmt: skip
    for bundle in report.bundles:
        if not bundle.has_run:
            blanks = [ABSENT] * 6
            table.add_row(_name(bundle), "did not run", *blanks, mebibytes(bundle.size_bytes), *[ABSENT] * 4)
            continue
        latency, metrics = bundle.latency, bundle.accuracy
        table.add_row(
            _name(bundle),
            _p(latency.engine if latency else None),
            _p(latency.engine if latency else None, "p99_ms", mark=False),
            _p(latency.predict if latency else None),
            _p(latency.file if latency else None),
            rate(bundle.throughput.images_per_s if bundle.throughput else None),
            seconds(bundle.start.first_result_s if bundle.start else None),
            mebibytes(bundle.memory.peak_resident_bytes if bundle.memory else None),
            mebibytes(bundle.size_bytes),
            share(metrics.image_auroc if metrics else None),
            share(metrics.image_f1 if metrics else None),
            share(metrics.pixel_auroc if metrics else None),
            _flips(bundle),
        )
    for record in report.baselines:
        found = record.metrics
        blanks = [ABSENT] * 8
        label = Text(_baseline_name(record), style="dim")
        table.add_row(label, *blanks, share(found.image_auroc), ABSENT, share(found.pixel_auroc), ABSENT)
    return table


def _compact(report: Report) -> Table:
    table = _new_table(report)
    _add_columns(table, "engine\np50 ms", "p99", "file\np50 ms", "img/s", "MiB", "AUROC", "flips")
    for bundle in report.bundles:
        if not bundle.has_run:
            table.add_row(_name(bundle), "did not run", *[ABSENT] * 6)
            continue
        latency = bundle.latency
        table.add_row(
            _name(bundle),
            _p(latency.engine if latency else None),
            _p(latency.engine if latency else None, "p99_ms", mark=False),
            _p(latency.file if latency else None),
            rate(bundle.throughput.images_per_s if bundle.throughput else None),
            mebibytes(bundle.memory.peak_resident_bytes if bundle.memory else None),
            share(bundle.accuracy.image_auroc if bundle.accuracy else None),
            _flips(bundle),
        )
    for record in report.baselines:
        label = Text(_baseline_name(record), style="dim")
        table.add_row(label, *[ABSENT] * 5, share(record.metrics.image_auroc), ABSENT)
    return table


def _new_table(report: Report) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0, header_style="bold", show_edge=False)
    # A name is worth more than the width of a number's column, up to a point.
    names = [bundle.name for bundle in report.bundles] + [_baseline_name(record) for record in report.baselines]
    table.add_column("bundle", overflow="fold", min_width=min(max(map(len, names)), _LONGEST_NAME))
    return table


def _add_columns(table: Table, *headers: str) -> None:
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def _baseline_name(record: BaselineRecord) -> str:
    return f"baseline: {record.name}"


def _name(bundle: BundleResult) -> Text:
    return Text(bundle.name, style="" if bundle.has_run else "dim")


def _p(statistics: LatencyStatistics | None, value: str = "p50_ms", *, mark: bool = True) -> str:
    if statistics is None:
        return ABSENT
    return milliseconds(getattr(statistics, value)) + ("~" if mark and not statistics.is_stable else "")


def _flips(bundle: BundleResult) -> str:
    if bundle.is_reference:
        return "ref"
    return ABSENT if bundle.comparison is None else f"{bundle.comparison.label_flips}/{bundle.comparison.n_images}"
