"""The arithmetic of the page's drawings: axes, positions, how bundles look. The SVG is in `templates`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle

from vae_edge.benchmarks.report.records.accuracy import CurveRecord
from vae_edge.benchmarks.report.records.speed import Histogram

_LOG_STEPS: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
"""Multiples of a power of ten that get a tick on a log axis; the coarsest set with enough ticks is used."""

_COLOURS = 8
COLOURS = {
    "grid": ("#e6eaee", "#29313a"),
    "chosen": ("#eaf6ee", "#16291e"),
    "series-0": ("#0072b2", "#58b4f0"),
    "series-1": ("#c44e00", "#ff8f4a"),
    "series-2": ("#00795a", "#3ccb9f"),
    "series-3": ("#8e4ea8", "#d29be8"),
    "series-4": ("#8a6a00", "#e3c34b"),
    "series-5": ("#c2336e", "#ff8fb5"),
    "series-6": ("#4a5568", "#b5c0cf"),
    "series-7": ("#1f7f95", "#6fd3df"),
    "fill-0": ("#b9d7ec", "#3a7bab"),
    "fill-1": ("#f3c39b", "#b06a2c"),
    "fill-2": ("#a9d9c6", "#2f8a6a"),
    "fill-3": ("#dcc1e6", "#8f68a4"),
    "fill-4": ("#e6d48f", "#8c7722"),
    "fill-5": ("#c3cbd6", "#6d7988"),
    "fill-6": ("#efb5ca", "#b05f84"),
    "hatch": ("#18212b", "#12171d"),
}
"""Of drawings, beside those of all pages: see `vae_edge.html_page.COLOURS`. What is drawn has a contrast of 3."""

_MARKERS = ("circle", "square", "triangle", "diamond", "down", "plus", "cross")
_DASHES = (None, "7 3", "2 2.5", "9 3 2 3", "12 4")

_NARROW = {
    **dict.fromkeys("iljtfr.,:;|'!()[] ", 0.4),
    **dict.fromkeys("mwMW@%", 0.95),
    **dict.fromkeys("ABCDEFGH", 0.7),
}


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False
    in_percent: bool = False
    """Whether the tick for 0.2 says `20%`."""

    def share(self, value: float) -> float:
        """Return the position of the value: 0 at the low end, 1 at the high end; values outside are clamped."""
        if self.is_log:
            part = 0.0 if value <= 0 else math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return min(max(part, 0.0), 1.0)

    def percent(self, value: float) -> str:
        """Return the position of the value as a percentage, for an SVG drawing without a fixed width."""
        return f"{100 * self.share(value):.2f}%"

    def labels(self) -> tuple[str, ...]:
        """Return the ticks' texts, with as many decimals as needed to tell them apart."""
        if self.is_log:
            return tuple(f"{tick:g}" for tick in self.ticks)
        if self.in_percent:
            return tuple(f"{tick:.0%}" for tick in self.ticks)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if any(abs(round(tick, decimals) - tick) > 1e-9 * max(1.0, abs(tick)) for tick in self.ticks):
            decimals += 1
        return tuple(f"{tick:.{decimals}f}" for tick in self.ticks)


PERCENT_AXIS = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), in_percent=True)
"""From 0 % to 100 %, for a narrow drawing."""


def linear_axis(
    values: Iterable[float],
    *,
    from_zero: bool = False,
    at_most: float | None = None,
    n_ticks: int = 5,
    whole: bool = False,
) -> Axis:
    """Return a linear axis over the values, ending at round numbers.

    Args:
        values: what must fit; none gives 0 to 1.
        from_zero: begin at 0, as bars must.
        at_most: a value that the scale cannot exceed, such as 1 for a share.
        n_ticks: about how many ticks.
        whole: ticks at integers only, for counts.
    """
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-12 * max(abs(high), 1e-300):
        margin = abs(high) * 0.1 or 1.0
        high, low = high + margin, low if from_zero else low - margin
    step = _round_step((high - low) / n_ticks)
    if whole:
        step = max(math.ceil(step), 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if at_most is not None and last * step > at_most:
        last = max(first + 1, math.floor(at_most / step + 1e-9))
    ticks = tuple(position * step for position in range(first, last + 1))
    return Axis(ticks[0], ticks[-1] if at_most is None else max(ticks[-1], min(high, at_most)), ticks)


def log_axis(values: Iterable[float], *, margin: float = 1.25, n_ticks: int = 4, max_ticks: int = 9) -> Axis:
    """Return a logarithmic axis over the positive values.

    Args:
        values: what must fit; values that are not positive are ignored, none gives 1 to 10.
        margin: the ends lie this factor beyond the values.
        n_ticks: at least this many ticks.
        max_ticks: at most this many.
    """
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
    low, high = min(known) / margin, max(known) * margin
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    chosen: Sequence[float] = ()
    for steps in _LOG_STEPS:
        multiples = (float(f"{step}e{power}") for power in powers for step in steps)
        ticks = [value for value in multiples if low <= value <= high]
        if len(ticks) > max_ticks:
            break
        chosen = ticks
        if len(ticks) >= n_ticks:
            break
    if len(chosen) < 3:
        chosen = [tick for tick in linear_axis([low, high]).ticks if low <= tick <= high and tick > 0]
    return Axis(low, high, tuple(chosen), is_log=True)


def _round_step(step: float) -> float:
    """Return the next of 1, 2, 2.5, 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))


@dataclass(frozen=True)
class Plot:
    """The area inside two axes, in the pixels of a drawing."""

    x: Axis
    y: Axis
    left: float
    top: float
    right: float
    bottom: float

    def px(self, value: float) -> float:
        """Return the horizontal position of a value."""
        return self.left + (self.right - self.left) * self.x.share(value)

    def py(self, value: float) -> float:
        """Return the vertical position of a value; it grows downwards."""
        return self.top + (self.bottom - self.top) * (1.0 - self.y.share(value))

    def path(self, points: Iterable[tuple[float, float]]) -> str:
        """Return a line through values as SVG's `points`."""
        return " ".join(f"{decimal(self.px(x))},{decimal(self.py(y))}" for x, y in points)


@dataclass(frozen=True)
class Look:
    """How one bundle is drawn everywhere: by colour, marker and dash together, never by colour alone."""

    colour: int
    marker: str
    dash: str | None

    @property
    def css(self) -> str:
        """The class that sets `currentColor`."""
        return f"series-{self.colour}"


def looks(n: int) -> tuple[Look, ...]:
    """Return n different looks: the lengths of the three lists have no common divisor, so 280 looks differ."""
    colours, markers, dashes = cycle(range(_COLOURS)), cycle(_MARKERS), cycle(_DASHES)
    return tuple(Look(next(colours), next(markers), next(dashes)) for _ in range(n))


def decimal(value: float) -> str:
    """Return a length with two decimals at most: 12, 12.5, 12.25."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def text_width(content: str, font_px: float) -> float:
    """Return the approximate width of a text, rather too large: the reader's font is unknown here."""
    return font_px * sum(_NARROW.get(letter, 0.6) for letter in content)


def shortened(name: str, most: int) -> str:
    """Return a name that fits, with its middle left out: the ends tell bundles apart."""
    if len(name) <= most:
        return name
    tail = most * 3 // 5
    return f"{name[: most - tail - 1]}…{name[-tail:]}"


def curve_points(curve: CurveRecord, up_to: float) -> list[tuple[float, float]]:
    """Return the part of a curve from 0 to `up_to`, ending exactly there."""
    points = list(zip(curve.false_positive_rate, curve.hit_rate, strict=True))
    inside = [point for point in points if point[0] <= up_to]
    after = next((point for point in points if point[0] > up_to), None)
    if after is not None and inside:
        (x1, y1), (x2, y2) = inside[-1], after
        inside.append((up_to, y1 + (y2 - y1) * (up_to - x1) / (x2 - x1)))
    return inside


def violin(axis: Axis, histogram: Histogram, width: float, height: float) -> str:
    """Return the outline of a histogram mirrored at its own line, as SVG's `points`.

    It is scaled to its highest bin, so bundles are compared by position and shape; on a log axis equal areas would not
    be readable anyway.
    """
    bins = list(zip(histogram.counts, histogram.edges[:-1], histogram.edges[1:], strict=True))
    density = [count / max(high - low, 1e-300) for count, low, high in bins]
    most = max(density, default=0.0) or 1.0
    middle = height / 2
    upper: list[tuple[float, float]] = []
    for value, (_, low, high) in zip(density, bins, strict=True):
        thick = max((middle - 2) * value / most, 0.5 if value else 0.0)
        upper += [(width * axis.share(low), thick), (width * axis.share(high), thick)]
    outline = [(x, middle - thick) for x, thick in upper] + [(x, middle + thick) for x, thick in reversed(upper)]
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in outline)
