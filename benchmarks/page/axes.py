"""Axes: where a value lies between two ends, and which values get a tick."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_LOG_STEPS: tuple[tuple[float, ...], ...] = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
"""Multiples of a power of ten that get a tick on a log axis: the coarsest that give enough ticks."""


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, with its ticks."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False
    in_percent: bool = False
    """Whether the ticks say `20%` where the value is 0.2."""

    def share(self, value: float) -> float:
        """Return where the value lies: 0 at the low end, 1 at the high one; what is outside goes to the end."""
        if self.is_log:
            if value <= 0:
                return 0.0
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return min(max(part, 0.0), 1.0)

    def labels(self) -> tuple[str, ...]:
        """Return the ticks' texts, with as many decimals as tell them apart."""
        if self.is_log:
            return tuple(f"{tick:g}" for tick in self.ticks)
        if self.in_percent:
            return tuple(f"{tick:.0%}" for tick in self.ticks)
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if any(abs(round(tick, decimals) - tick) > 1e-9 * max(1.0, abs(tick)) for tick in self.ticks):
            decimals += 1
        return tuple(f"{tick:.{decimals}f}" for tick in self.ticks)


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
        whole: ticks at whole numbers only, for counts.
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
        values: what must fit; values that are not positive are passed over, none gives 1 to 10.
        margin: the ends lie that factor beyond the values.
        n_ticks: at least so many ticks.
        max_ticks: at most so many.
    """
    known = [value for value in values if math.isfinite(value) and value > 0] or [1.0, 10.0]
    low, high = min(known) / margin, max(known) * margin
    chosen: Sequence[float] = ()
    for steps in _LOG_STEPS:
        ticks = _log_ticks(low, high, steps)
        if len(ticks) > max_ticks:
            break
        chosen = ticks
        if len(ticks) >= n_ticks:
            break
    if len(chosen) < 3:
        chosen = [tick for tick in linear_axis([low, high]).ticks if low <= tick <= high and tick > 0]
    return Axis(low, high, tuple(chosen), is_log=True)


def share_axis() -> Axis:
    """Return an axis from 0 to 1."""
    return linear_axis([0.0, 1.0])


def percent_axis() -> Axis:
    """Return an axis from 0 % to 100 %, for a narrow drawing."""
    return Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), in_percent=True)


def _log_ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = (float(f"{step}e{power}") for power in powers for step in steps)
    return [value for value in values if low <= value <= high]


def _round_step(step: float) -> float:
    """Return the next of 1, 2, 2.5, 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= step * (1 - 1e-9))
