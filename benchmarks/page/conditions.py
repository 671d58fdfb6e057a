"""What changed from round to round: clocks, temperature, load from others, and the latency with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vae_edge.benchmarks.measured import RoundRecord
from vae_edge.benchmarks.page.axes import linear_axis
from vae_edge.benchmarks.page.markup import Markup, element
from vae_edge.benchmarks.page.plot import Look, Plot, drawing, key, marker, polyline
from vae_edge.benchmarks.page.tables import figure
from vae_edge.benchmarks.report import BundleResult

_WIDTH, _HEIGHT = 356.0, 230.0

_CHARTS: tuple[tuple[str, str, Callable[[RoundRecord], float | None]], ...] = (
    ("rounds-spin", "spin after, ms", lambda item: item.spin_after_ms),
    ("rounds-clock", "clock, MHz", lambda item: item.frequency_mhz),
    ("rounds-heat", "hottest zone, °C", lambda item: item.temperature_c),
    ("rounds-others", "cores busy with other programs", lambda item: item.foreign_cores),
)


def round_charts(bundles: Sequence[BundleResult], looks: Mapping[str, Look]) -> Markup:
    """Return one chart of each condition that was seen, over the minutes of the benchmark."""
    charts = [_relative_latency(bundles, looks)]
    for name, title, value in _CHARTS:
        series = {
            bundle.name: [(item.begin_s, found) for item in bundle.rounds if (found := value(item)) is not None]
            for bundle in bundles
        }
        if any(series.values()):
            charts.append(_chart(name, title, series, looks))
    names = [bundle.name for bundle in bundles]
    return element("div", key(names, [looks[name] for name in names]), element("div", charts, class_="panels"))


def _relative_latency(bundles: Sequence[BundleResult], looks: Mapping[str, Look]) -> Markup:
    series = {}
    for bundle in bundles:
        middle = sorted(item.engine_p50_ms for item in bundle.rounds)[len(bundle.rounds) // 2]
        series[bundle.name] = [(item.begin_s, item.engine_p50_ms / middle) for item in bundle.rounds]
    return _chart("rounds-latency", "engine p50, share of the bundle's middle round", series, looks)


def _chart(
    name: str, title: str, series: Mapping[str, Sequence[tuple[float, float]]], looks: Mapping[str, Look]
) -> Markup:
    points = [point for values in series.values() for point in values]
    x = linear_axis([0.0, *(at for at, _ in points)], n_ticks=4)
    y = linear_axis([value for _, value in points], n_ticks=4)
    plot = Plot(x, y, 48, 30, _WIDTH - 48 - 12, _HEIGHT - 30 - 42)
    lines = []
    for bundle, values in series.items():
        look = looks[bundle]
        places = [(plot.px(at), plot.py(value)) for at, value in values]
        if len(places) > 1:
            lines.append(polyline(places, class_=f"curve {look.css}", dash=look.dash))
        lines += [marker(look, *place, 3, title=bundle) for place in places]
    heights = [value for _, value in points]
    picture = drawing(
        _WIDTH,
        _HEIGHT,
        plot.frame("s since the benchmark began", ""),
        lines,
        name=name,
        title=title,
        description=f"{min(heights):.4g} to {max(heights):.4g} in {len(points)} rounds of {len(series)} bundles.",
        css="chart square",
    )
    return figure(title[0].upper() + title[1:], picture)
