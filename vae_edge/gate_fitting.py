"""Learns from good parts in which ranges a picture is inspectable, so that one rate holds for all measures together.

The good parts are divided. Of the first part come the mean picture and each measure's median and usual deviation to
either side: to the extreme value, or twice the standard deviation where that is more. A picture's deviation is the
largest over all measures in units of these, so a measure that scatters widely, or has outliers by nature, counts no
more than another. The deviations of the other part, which had no influence on any of this, set the limit by
split-conformal prediction (`vae_edge.decision.fit_image_threshold`): a new good picture is beyond it with a probability
of at most the rate.

n good parts support no rate below 1 / (n + 1), and with few the largest of their deviations would reject every
hundredth good part for ever. So there the ranges are extended to where an exponential tail beyond the k largest
deviations reaches the requested rate (peaks over a threshold: Pickands, "Statistical inference using extreme order
statistics", Annals of Statistics 1975, with shape 0, the limit of Gaussian and exponential tails), with the 90 % upper
bound of the tail's scale; but each measure by no more than its `reach`, or a covered lens would pass. Ranges that are
never narrower keep the conformal proof; the requested rate is an estimate. With 10 to 60 good parts that scatter widely
it was exceeded two to five times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vae_edge.decision import check_askable_rate, fit_image_threshold
from vae_edge.gate import GateRecord, MeasureRange, encode_mean_picture, values_of
from vae_edge.gate_measures import MEASURES, MEASURES_VERSION, Look, MeanPicture, Measure

DEFAULT_REJECTION_RATE = 0.001
"""Share of good pictures that may be called not inspectable."""

MIN_NORMALS = 10
"""Good parts without which nothing is learnt: half of them would say too little about a tail."""

MAX_NORMALS = 1500
"""More good parts are not needed: 999 held-out ones support the default rate."""

_MOST_FITTED = 200
"""Good parts that the usual ranges come from; all others set the rate."""

_DISPLACED_SHARE = 0.1
"""Share of good parts in whose pictures a displacement is looked for: those that are least like their mean."""

_NORMAL_QUANTILE = 1.2816
"""Of 90 %."""


def fit_gate(
    looks: Sequence[Look], *, is_aligned: bool, rejection_rate: float = DEFAULT_REJECTION_RATE, seed: int = 0
) -> GateRecord | None:
    """Learn the ranges.

    Args:
        looks: of good parts, one picture of each part.
        is_aligned: whether the parts lie at the same place, so that place and likeness mean something.
        rejection_rate: share of good pictures that may be called not inspectable.
        seed: of the division.

    Returns:
        None: there are fewer than `MIN_NORMALS`.

    Raises:
        UsageError: the rate is not from 1e-6 to 0.5.
    """
    check_askable_rate(rejection_rate, "rejection rate")
    if len(looks) < MIN_NORMALS:
        return None
    order = np.random.default_rng(seed).permutation(len(looks))
    n_fitted = min(len(looks) // 2, _MOST_FITTED)
    fitted, held_out = ([looks[i] for i in part] for part in (order[:n_fitted], order[n_fitted:]))
    picture = mean = below = None
    if is_aligned:
        picture = np.rint(np.mean([look.place for look in fitted], axis=0)).astype(np.uint8)
        likeness = MeanPicture(picture).likeness
        below = float(np.quantile([likeness(look.place) for look in fitted], _DISPLACED_SHARE))
        mean = MeanPicture(picture, below)
    usual = [
        _Usual(measure, values)
        for measure, values in zip(MEASURES, np.array([values_of(look, mean) for look in fitted]).T, strict=False)
    ]
    deviations = np.array(
        [max(each.deviation(v) for each, v in zip(usual, values_of(look, mean), strict=True)) for look in held_out]
    )
    proven, rate = fit_image_threshold(deviations, rejection_rate)
    # A limit of 0 would make a range without any width.
    limit = proven = max(proven, 1.0)
    if rate > rejection_rate:
        limit = max(limit, tail_limit(deviations, rejection_rate))
    return GateRecord(
        measures_version=MEASURES_VERSION,
        rejection_rate_requested=rejection_rate,
        rejection_rate=rate,
        n_normals=len(held_out),
        n_fitted=n_fitted,
        ranges=tuple(each.range(proven, limit) for each in usual),
        mean_picture=None if picture is None else encode_mean_picture(picture),
        displaced_below=below,
    )


def tail_limit(deviations: NDArray[np.float64], rate: float) -> float:
    """Return where an exponential tail of the largest deviations reaches a rate, its scale at its 90 % upper bound.

    With k values above u, of n in all, P(deviation > t) = k / n * exp(-(t - u) / scale) there. The scale is estimated
    by the mean excess over u; 2 k mean / scale has a chi-squared distribution with 2 k degrees of freedom.

    Args:
        deviations: float64 [n], n of 2 or more.
        rate: smaller than 1 / n.
    """
    ordered = np.sort(deviations)[::-1]
    n = len(ordered)
    k = min(max(n // 5, 5), n - 1)
    start = float(ordered[k])
    scale = float(ordered[:k].mean()) - start
    freedom = 2 * k
    # Wilson and Hilferty's approximation of the 10 % quantile of chi-squared (PNAS 1931).
    quantile = freedom * (1 - 2 / (9 * freedom) - _NORMAL_QUANTILE * math.sqrt(2 / (9 * freedom))) ** 3
    return start + scale * freedom / quantile * math.log(k / (n * rate))


class _Usual:
    """A measure's usual values: median and, for each side, a usual deviation, on the measure's scale."""

    def __init__(self, measure: Measure, values: NDArray[np.float64]) -> None:
        self._measure = measure
        scaled = np.array([measure.scaled(value) for value in values])
        self._median = float(np.median(scaled))
        # Of few values the extreme on one side may happen to be close.
        least = max(2 * float(scaled.std(ddof=1)), measure.resolution)
        self._above = max(float(scaled.max()) - self._median, least)
        self._below = max(self._median - float(scaled.min()), least)

    def deviation(self, value: float) -> float:
        """Return how far a value is from the median, in usual deviations; 0 on a side that does not matter."""
        off = self._measure.scaled(value) - self._median
        if off > 0:
            return 0.0 if self._measure.high is None else off / self._above
        return 0.0 if self._measure.low is None else -off / self._below

    def range(self, proven: float, limit: float) -> MeasureRange:
        """Return the values whose deviation is at most a limit, without going too far beyond the proven one."""
        measure, median = self._measure, self._median
        below, above = (min(limit * usual, proven * usual + measure.reach) for usual in (self._below, self._above))
        least, most = measure.limits()
        low, high = measure.value(median - below), measure.value(median + above)
        return MeasureRange(
            measure=measure.name,
            low=None if measure.low is None or low <= least else low,
            high=None if measure.high is None or high >= most else high,
        )
