"""Numbers with their uncertainty, as the report writes them."""

from __future__ import annotations

from pydantic import Field

from vae_edge.records import Record

CONFIDENCE = 0.95
"""Confidence of every interval in a report."""

FEW_ROUNDS = 5
"""Rounds below which an interval is called rough: the range of 4 rounds covers a median in 7 of 8 cases only."""


class Interval(Record):
    """A 95 % confidence interval, both ends included."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Tell whether the value lies in it."""
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> Interval:
        """Return the interval in another unit; the factor is positive."""
        return Interval(low=self.low * factor, high=self.high * factor)


class Ratio(Record):
    """A figure divided by the baseline bundle's, the rounds taken in pairs: 0.5 is half of it."""

    value: float = Field(gt=0)
    interval: Interval | None = None
    """None with fewer than 2 rounds, or too few samples beyond the percentile."""
    n_rounds: int = Field(ge=1)
    """Rounds that both bundles finished."""

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out 1: the two differ, beyond what chance does at this confidence."""
        return self.interval is not None and not self.interval.contains(1.0)


class Histogram(Record):
    """How many values lie between neighbouring edges; the last bin includes its upper edge."""

    edges: tuple[float, ...]
    """One more than counts, ascending."""
    counts: tuple[int, ...]


class CurveRecord(Record):
    """The corners of a ROC or PRO curve, thinned for a drawing; straight between them."""

    false_positive_rate: tuple[float, ...]
    """Ascending from 0 to 1."""
    hit_rate: tuple[float, ...]
    """True-positive rate of a ROC curve, mean overlap with the defects' regions of a PRO curve."""
