"""The trade-off section: one chart for each pair of axes, of which one is shown."""

from __future__ import annotations

from collections.abc import Mapping

from vae_edge.benchmarks.formats import ABSENT
from vae_edge.benchmarks.page.markup import Markup, element, join
from vae_edge.benchmarks.page.overview import COLUMNS, Column
from vae_edge.benchmarks.page.plot import Look
from vae_edge.benchmarks.page.tables import data_table, folded, scrolled, section, with_interval
from vae_edge.benchmarks.page.tradeoff import TradeoffPoint, pareto_front, tradeoff_chart
from vae_edge.benchmarks.report import Report

_COSTS = {
    "latency.file.p50_ms": "median latency, file to verdict, ms (log)",
    "latency.file.p99_ms": "p99 latency, file to verdict, ms (log)",
    "memory.peak_resident_bytes": "peak memory, MiB (log)",
}
_QUALITIES = {
    "accuracy.metrics.image_auroc": "image AUROC",
    "accuracy.metrics.recall": "recall",
    "accuracy.metrics.aupro": "AUPRO",
}
_SCALES = {"memory.peak_resident_bytes": 1 / 2**20}


def tradeoff_section(report: Report, looks: Mapping[str, Look]) -> Markup:
    """Return the section; without accuracy it says so."""
    title = "Latency against accuracy"
    columns = {column.path: column for column in COLUMNS}
    charts: list[tuple[str, Markup, Markup]] = []
    for quality, quality_title in _QUALITIES.items():
        for cost, cost_title in _COSTS.items():
            points = _points(report, looks, columns[cost], columns[quality])
            if points:
                label = f"{quality_title} against {cost_title.partition(',')[0]}"
                name = f"tradeoff-{len(charts)}"
                chart = tradeoff_chart(name, points, cost_title, quality_title)
                table = _table(points, columns[cost], columns[quality])
                charts.append((label, chart, table))
    if not charts:
        reason = report.data.no_accuracy_because or "no bundle ran"
        return section("tradeoff", title, element("p", f"There is no accuracy to set against the latency: {reason}."))
    options = [element("option", label, value=str(position)) for position, (label, _, _) in enumerate(charts)]
    picker = element(
        "p",
        element("label", "Show ", for_="tradeoff-axes"),
        element("select", options, id="tradeoff-axes", autocomplete="off"),
        class_="only-script",
    )
    legend = (
        "Up and to the left is better. The stepped line is the Pareto front: what lies on it, no other bundle beats in "
        "both. Bars are 95 % intervals: bundles whose bars overlap may as well be in the other order."
    )
    ring = (
        " The ring marks the recommended bundle."
        if report.recommendation is not None and report.recommendation.chosen is not None
        else ""
    )
    panels = [
        element(
            "div",
            scrolled(f"Chart: {label}", chart),
            folded("The same as a table", table),
            hidden=position > 0,
            data_panel=str(position),
        )
        for position, (label, chart, table) in enumerate(charts)
    ]
    figure = element("figure", element("figcaption", legend, ring), panels, id="tradeoff-charts")
    return section("tradeoff", title, picker, figure)


def _points(report: Report, looks: Mapping[str, Look], cost: Column, quality: Column) -> list[TradeoffPoint]:
    chosen = report.recommendation.chosen if report.recommendation else None
    scale = _SCALES.get(cost.path, 1.0)
    found = []
    for bundle in report.bundles:
        x, y = cost.value(bundle), quality.value(bundle)
        if x is not None and y is not None:
            found.append(
                TradeoffPoint(
                    bundle.name,
                    looks[bundle.name],
                    x * scale,
                    y,
                    cost.interval(bundle),
                    quality.interval(bundle),
                    bundle.name == chosen,
                )
            )
    return found


def _table(points: list[TradeoffPoint], cost: Column, quality: Column) -> Markup:
    front = {point.name for point in pareto_front(points)}
    scale = _SCALES.get(cost.path, 1.0)
    rows = [
        [
            point.name,
            "yes" if point.name in front else ABSENT,
            with_interval(point.cost / scale, point.cost_interval, cost.formatter),
            with_interval(point.quality, point.quality_interval, quality.formatter),
        ]
        for point in points
    ]
    return data_table(
        join(quality.title, " against ", cost.title),
        ("bundle", "on the front", cost.title, quality.title),
        rows,
        n_names=2,
    )
