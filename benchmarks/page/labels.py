"""Placing names beside points so that no name lies on another, on a marker or on an error bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LINE = 15.0
"""Height that one line of text takes, in pixels."""

_TRIES = (
    (9, 0), (-9, 0), (14, 0), (-14, 0), (0, -13), (0, 13), (9, -12), (9, 12), (-9, -12), (-9, 12),
    (14, -22), (14, 22), (-14, -22),
    (-14, 22), (0, -28), (0, 28), (18, -34), (18, 34), (-18, -34), (-18, 34), (22, -48), (22, 48), (-22, -48),
    (-22, 48), (26, -64), (26, 64), (-26, -64), (-26, 64), (30, -80), (30, 80), (-30, -80), (-30, 80),
)  # fmt: skip
"""Where a name may stand relative to its point, the best first: beside it, then above or below, then farther away."""


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
    """Where the text begins, ends or has its middle, as `anchor` says."""
    baseline: float
    anchor: str
    needs_leader: bool
    """Whether it stands so far away that a thin line should lead to the point."""


def place_labels(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    bounds: Box,
    taken: Sequence[Box] = (),
    lines: Sequence[Box] = (),
) -> tuple[PlacedLabel, ...]:
    """Find a place for every name, those in the thickest crowd first.

    Args:
        points: x and y of what is named.
        widths: of the names.
        bounds: no name leaves it.
        taken: what no name may cover, such as markers.
        lines: what a name may cross rather than stand far away, such as error bars.
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
