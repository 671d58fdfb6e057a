"""Latency against accuracy: the bundles that no other one beats in both, and a drawing with readable names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vae_edge.benchmarks.report.figures import Figure, Number, View, figures
from vae_edge.benchmarks.report.pages.charts import Plot, linear_axis, log_axis, shortened, text_width
from vae_edge.benchmarks.report.records.report import Report

WIDTH, HEIGHT = 860.0, 460.0
_MOST_LETTERS = 34

_LINE = 15.0
"""Height that one line of text takes, in pixels."""

_TRIES = (
    (9, 0), (-9, 0), (14, 0), (-14, 0), (0, -13), (0, 13), (9, -12), (9, 12), (-9, -12), (-9, 12),
    *((side * dx, up * dy) for dx, dy in ((14, 22), (0, 28), (18, 34), (22, 48), (26, 64), (30, 80))
      for side in (1, -1) for up in (-1, 1)),
)  # fmt: skip
"""Where a name may be placed relative to its point, the best place first: beside it, then above or below, then farther
away."""


@dataclass(frozen=True)
class TradeoffPoint:
    """One bundle."""

    name: str
    cost: Number
    """Latency, memory, size: less is better."""
    quality: Number
    """Accuracy: more is better."""
    is_chosen: bool = False

    @property
    def at(self) -> tuple[float, float]:
        """Cost and quality."""
        return self.cost.value or 0.0, self.quality.value or 0.0


def pareto_front(points: Sequence[TradeoffPoint]) -> tuple[TradeoffPoint, ...]:
    """Return the points that no other one beats, from the cheapest to the best.

    A point is beaten by one that is no worse in both and better in one; equal points stay together.
    """

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    front = [point for point in points if not any(beats(other.at, point.at) for other in points)]
    return tuple(sorted(front, key=lambda point: (point.at[0], -point.at[1])))


@dataclass(frozen=True)
class Box:
    """A rectangle, in the drawing's pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def contains(self, other: Box) -> bool:
        """Return whether the other lies within."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True)
class PlacedLabel:
    """Where a name goes."""

    box: Box
    x: float
    """Where the text begins, ends or has its middle, depending on `anchor`."""
    baseline: float
    anchor: str
    needs_leader: bool
    """Whether it is so far away that a thin line should lead to the point."""


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    bounds: Box,
    taken: Sequence[Box] = (),
    lines: Sequence[Box] = (),
) -> tuple[PlacedLabel, ...]:
    """Find a place for every name, the most crowded first, that covers no other name, marker or error bar.

    Args:
        points: x and y of what is named.
        widths: of the names.
        bounds: all names stay inside.
        taken: what no name may cover, such as markers.
        lines: what a name may cross if the alternative is far away, such as error bars.
    """
    placed: dict[int, PlacedLabel] = {}
    crowd = {
        i: sum(abs(x - other[0]) < widths[i] and abs(y - other[1]) < 3 * _LINE for other in points)
        for i, (x, y) in enumerate(points)
    }
    for i in sorted(crowd, key=lambda i: -crowd[i]):
        x, y = points[i]
        others = [*taken, *(label.box for label in placed.values())]

        def cost(rank: int, label: PlacedLabel, others: Sequence[Box] = others) -> float:
            covered = sum(label.box.overlap(box) for box in others)
            crossed = sum(label.box.overlap(box) for box in lines)
            return 50.0 * covered + 0.25 * crossed + 4.0 * rank

        tries = [(rank, _label(x, y, dx, dy, widths[i])) for rank, (dx, dy) in enumerate(_TRIES)]
        inside = [(cost(rank, label), rank, label) for rank, label in tries if bounds.contains(label.box)]
        placed[i] = min(inside)[2] if inside else _inside(x, y, widths[i], bounds)
    return tuple(placed[i] for i in range(len(points)))


def _label(x: float, y: float, dx: float, dy: float, width: float) -> PlacedLabel:
    anchor = "middle" if dx == 0 else "start" if dx > 0 else "end"
    left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    box = Box(left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2)
    return PlacedLabel(box, x + dx, y + dy + 4, anchor, abs(dy) > 20)


def _inside(x: float, y: float, width: float, bounds: Box) -> PlacedLabel:
    """Return a place within the bounds for a name that is too wide for any place beside its point."""
    left = min(max(x - width / 2, bounds.left), max(bounds.right - width, bounds.left))
    top = y - 2 * _LINE if y - 2 * _LINE >= bounds.top else y + _LINE
    return PlacedLabel(Box(left, top, left + width, top + _LINE), left, top + _LINE - 4, "start", False)


class Tradeoff:
    """One pair of axes with every bundle that has both figures.

    Args:
        cost: figure of the horizontal axis, which is logarithmic.
        quality: figure of the vertical axis.
        points: at least one.
    """

    width, height = WIDTH, HEIGHT

    def __init__(self, cost: Figure, quality: Figure, points: Sequence[TradeoffPoint]) -> None:
        self.cost, self.quality, self.points = cost, quality, points
        self.front = pareto_front(points)
        costs, qualities = _ends([point.cost for point in points]), _ends([point.quality for point in points])
        # A few thousandths between equal bundles would fill the axis and look like a difference.
        low, high = min(qualities), max(qualities)
        if high - low < 0.05:
            low, high = max(min(low, high - 0.05), 0.0), min(max(high, low + 0.05), 1.0)
        self.plot = Plot(
            log_axis(costs, margin=1.3, n_ticks=5, max_ticks=12),
            linear_axis([low, high, *qualities], at_most=1.0, n_ticks=6),
            58,
            40,
            WIDTH - 24,
            HEIGHT - 48,
        )
        self.names = [shortened(point.name, _MOST_LETTERS) for point in points]
        self.labels = self._place()

    @property
    def title(self) -> str:
        """What it shows."""
        return f"{self.quality.heading} against {self.cost.heading}"

    @property
    def front_line(self) -> list[tuple[float, float]]:
        """The step line, in values: for each cost, the best quality available."""
        corners: list[tuple[float, float]] = []
        for cost, quality in (point.at for point in self.front):
            # No line up to the first one: it would lie on that bundle's error bar.
            corners += [(cost, corners[-1][1]), (cost, quality)] if corners else [(cost, quality)]
        return [*corners, (self.plot.x.high, corners[-1][1])]

    def _place(self) -> tuple[PlacedLabel, ...]:
        plot = self.plot
        at = [(plot.px(point.at[0]), plot.py(point.at[1])) for point in self.points]
        reach = [12.0 if point.is_chosen else 8.0 for point in self.points]
        markers = [Box(x - r, y - r, x + r, y + r) for (x, y), r in zip(at, reach, strict=True)]
        corners = [(plot.px(cost), plot.py(quality)) for cost, quality in self.front_line]
        lines = [
            Box(min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1)
            for (x1, y1), (x2, y2) in pairwise(corners)
        ]
        for point, (x, y) in zip(self.points, at, strict=True):
            if (bar := point.cost.interval) is not None:
                lines.append(Box(plot.px(bar.low), y - 3, plot.px(bar.high), y + 3))
            if (bar := point.quality.interval) is not None:
                lines.append(Box(x - 3, plot.py(bar.high), x + 3, plot.py(bar.low)))
        # The chosen name is bold, which is about a tenth wider.
        sizes = [13.8 if point.is_chosen else 12.5 for point in self.points]
        widths = [text_width(name, size) + 6 for name, size in zip(self.names, sizes, strict=True)]
        bounds = Box(plot.left + 2, plot.top - 2, plot.right + 20, plot.bottom - 2)
        return place_labels(at, widths, bounds, markers, lines)


def tradeoffs(report: Report) -> list[Tradeoff]:
    """Return a drawing for each pair of a cost and a quality that some bundle has both of."""
    chosen = report.recommendation.chosen if report.recommendation else None
    found = []
    for quality in figures(View.QUALITY):
        for cost in figures(View.COST):
            points = [
                TradeoffPoint(bundle.name, x, y, bundle.name == chosen)
                for bundle in report.bundles
                if (x := cost.find(bundle)) is not None and (y := quality.find(bundle)) is not None
            ]
            found += [Tradeoff(cost, quality, points)] if points else []
    return found


def _ends(numbers: Sequence[Number]) -> list[float]:
    """Return the values and the ends of their intervals."""
    found = [number.value or 0.0 for number in numbers]
    return found + [end for each in numbers if each.interval for end in (each.interval.low, each.interval.high)]
