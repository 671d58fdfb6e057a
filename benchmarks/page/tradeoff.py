"""Latency against accuracy, and which bundles no other one beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.page.axes import Axis, linear_axis, log_axis
from vae_edge.benchmarks.page.labels import Box, place_labels
from vae_edge.benchmarks.page.markup import Markup, element, join
from vae_edge.benchmarks.page.plot import Look, Plot, drawing, line, marker, polyline, shortened, text, text_width

_WIDTH, _HEIGHT = 860.0, 460.0
_MOST_LETTERS = 34


@dataclass(frozen=True)
class TradeoffPoint:
    """One bundle."""

    name: str
    look: Look
    cost: float
    """Latency, memory, size: less is better."""
    quality: float
    """Accuracy: more is better."""
    cost_interval: Interval | None = None
    quality_interval: Interval | None = None
    is_chosen: bool = False


def pareto_front(points: Sequence[TradeoffPoint]) -> tuple[TradeoffPoint, ...]:
    """Return the points that no other one beats, from the cheapest to the best.

    A point is beaten by one that is no worse in both and better in one; equal points stay together.
    """
    front = [
        point
        for point in points
        if not any(
            other.cost <= point.cost
            and other.quality >= point.quality
            and (other.cost < point.cost or other.quality > point.quality)
            for other in points
        )
    ]
    return tuple(sorted(front, key=lambda point: (point.cost, -point.quality)))


def tradeoff_chart(name: str, points: Sequence[TradeoffPoint], cost_title: str, quality_title: str) -> Markup:
    """Return the chart; costs on a log axis.

    Args:
        name: an identifier that no other chart of the page has.
        points: at least one.
        cost_title: of the horizontal axis, with its unit.
        quality_title: of the vertical axis.
    """
    front = pareto_front(points)
    plot = Plot(_cost_axis(points), _quality_axis(points), 58, 40, _WIDTH - 58 - 24, _HEIGHT - 40 - 48)
    at = [(plot.px(point.cost), plot.py(point.quality)) for point in points]
    reach = [12.0 if point.is_chosen else 8.0 for point in points]
    markers = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip(at, reach, strict=True)]
    lines = [*_front_boxes(plot, front), *(box for point in points for box in _error_boxes(plot, point))]
    texts = [shortened(point.name, _MOST_LETTERS) for point in points]
    # The chosen name is bold, which is about a tenth wider.
    sizes = [13.8 if point.is_chosen else 12.5 for point in points]
    widths = [text_width(label, size) + 6 for label, size in zip(texts, sizes, strict=True)]
    bounds = Box(plot.left + 2, plot.top - 2, plot.right + 20, plot.bottom - 2)
    labels = place_labels(at, widths, bounds, markers, lines)
    return drawing(
        _WIDTH,
        _HEIGHT,
        plot.frame(cost_title, quality_title),
        _front_line(plot, front),
        [_error_bars(plot, point) for point in points],
        [
            line(label.x, label.baseline - 4, x, y, class_="leader")
            for label, (x, y) in zip(labels, at, strict=True)
            if label.needs_leader
        ],
        [_point(point, x, y, cost_title, quality_title) for point, (x, y) in zip(points, at, strict=True)],
        [
            text(content, label.x, label.baseline, anchor=label.anchor, class_="label chosen" if chosen else "label")
            for content, label, chosen in zip(texts, labels, (point.is_chosen for point in points), strict=True)
        ],
        name=name,
        title=f"{quality_title} against {cost_title}",
        description=_describe(points, front, cost_title, quality_title),
        css="chart wide",
    )


def _cost_axis(points: Sequence[TradeoffPoint]) -> Axis:
    ends = [
        end for point in points if point.cost_interval for end in (point.cost_interval.low, point.cost_interval.high)
    ]
    return log_axis([*(point.cost for point in points), *ends], margin=1.3, n_ticks=5, max_ticks=12)


def _quality_axis(points: Sequence[TradeoffPoint]) -> Axis:
    ends = [
        end
        for point in points
        if point.quality_interval
        for end in (point.quality_interval.low, point.quality_interval.high)
    ]
    values = [*(point.quality for point in points), *ends]
    # A few thousandths between equal bundles would fill the axis and look like a difference.
    low, high = min(values), max(values)
    if high - low < 0.05:
        low, high = max(min(low, high - 0.05), 0.0), min(max(high, low + 0.05), 1.0)
    return linear_axis([low, high, *values], at_most=1.0, n_ticks=6)


def _front_corners(plot: Plot, front: Sequence[TradeoffPoint]) -> list[tuple[float, float]]:
    """Return the step line: at a cost, the best quality that is to be had for it."""
    corners: list[tuple[float, float]] = []
    for point in front:
        x, y = plot.px(point.cost), plot.py(point.quality)
        # No line up to the first one: it would lie on that bundle's error bar.
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return [*corners, (plot.right, corners[-1][1])]


def _front_line(plot: Plot, front: Sequence[TradeoffPoint]) -> Markup | None:
    return polyline(_front_corners(plot, front), class_="front") if front else None


def _front_boxes(plot: Plot, front: Sequence[TradeoffPoint]) -> list[Box]:
    corners = _front_corners(plot, front) if front else []
    return [
        Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)
        for (x1, y1), (x2, y2) in pairwise(corners)
    ]


def _error_boxes(plot: Plot, point: TradeoffPoint) -> list[Box]:
    x, y = plot.px(point.cost), plot.py(point.quality)
    boxes = []
    if point.cost_interval:
        boxes.append(Box(plot.px(point.cost_interval.low), y - 3, plot.px(point.cost_interval.high), y + 3))
    if point.quality_interval:
        boxes.append(Box(x - 3, plot.py(point.quality_interval.high), x + 3, plot.py(point.quality_interval.low)))
    return boxes


def _error_bars(plot: Plot, point: TradeoffPoint) -> Markup:
    x, y = plot.px(point.cost), plot.py(point.quality)
    css = f"error {point.look.css}"
    parts = []
    if point.cost_interval:
        low, high = plot.px(point.cost_interval.low), plot.px(point.cost_interval.high)
        parts += [line(low, y, high, y, class_=css), *(line(end, y - 4, end, y + 4, class_=css) for end in (low, high))]
    if point.quality_interval:
        low, high = plot.py(point.quality_interval.low), plot.py(point.quality_interval.high)
        parts += [line(x, low, x, high, class_=css), *(line(x - 4, end, x + 4, end, class_=css) for end in (low, high))]
    return join(parts)


def _point(point: TradeoffPoint, x: float, y: float, cost_title: str, quality_title: str) -> Markup:
    ring = element("circle", cx=x, cy=y, r=10, class_="ring") if point.is_chosen else None
    title = f"{point.name}: {cost_title} {point.cost:g}, {quality_title} {point.quality:g}"
    return join(ring, marker(point.look, x, y, title=title))


def _describe(
    points: Sequence[TradeoffPoint], front: Sequence[TradeoffPoint], cost_title: str, quality_title: str
) -> str:
    chosen = [point.name for point in points if point.is_chosen]
    return (
        f"{len(points)} bundles. On the Pareto front, from the smallest {cost_title} to the best {quality_title}: "
        f"{', '.join(point.name for point in front)}." + (f" Recommended: {chosen[0]}." if chosen else "")
    )
