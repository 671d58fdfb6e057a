"""How uncertain a figure is: bootstrap over rounds or images, exact binomial intervals, rank correlation.

Samples of one round resemble each other: the same process, the same memory, the same clock. Resampling single samples
would treat thousands of them as thousands of independent ones and give intervals that are far too narrow. So whole
rounds are resampled (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8), and a round
is a fresh process, because a program's speed differs from one start to the next (Kalibera and Jones, "Rigorous
Benchmarking in Reasonable Time", ISMM 2013). NumPy only; every random draw has a fixed seed.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from vae_edge.errors import InputError
from vae_edge.records import Record

CONFIDENCE = 0.95
"""Confidence of every interval in a report."""

FEW_ROUNDS = 5
"""Rounds below which an interval is called rough: the range of 4 rounds covers a median in only 7 of 8 cases."""


class Interval(Record):
    """A 95 % confidence interval, both ends included."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Return whether the value lies in it."""
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
        """Whether the interval does not include 1: the two differ by more than chance explains at this confidence."""
        return self.interval is not None and not self.interval.contains(1.0)


N_RESAMPLES = 2000
"""Efron and Tibshirani ("An Introduction to the Bootstrap", 1993, section 19.3) recommend 1000 or more for an
interval."""

_SEED = 20240229

Floats = NDArray[np.float64]


def resample_weights(n: int, n_resamples: int = N_RESAMPLES, *, seed: int = _SEED) -> Floats:
    """Draw bootstrap samples of n units with replacement, as how often each unit was drawn.

    Args:
        n: units (rounds or images).
        n_resamples: bootstrap samples.
        seed: the same seed gives the same draws, so that two figures can be resampled in pairs.

    Returns:
        float64 [n_resamples, n], integers; every row sums to n.
    """
    return np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1.0 / n), n_resamples).astype(np.float64)


def percentile_interval(estimates: ArrayLike, n_units: int) -> Interval:
    """Return the expanded percentile interval of bootstrap estimates.

    The percentile interval (Efron and Tibshirani 1993, section 13.3) is too narrow for few units, by the factor
    sqrt((n - 1) / n) and for lack of Student's t; so percentiles further out are taken, which for a mean of normal
    values gives the t interval: alpha' / 2 = Phi(-sqrt(n / (n - 1)) t(1 - alpha / 2, n - 1)) (Hesterberg, "What
    Teachers Should Know About the Bootstrap", The American Statistician 2015, section 5.3). No bootstrap looks beyond
    the smallest and the largest unit: with 5 rounds an interval of a median cannot cover more than 94 %.

    Args:
        estimates: float [n_resamples], the figure of each bootstrap sample.
        n_units: units that were resampled, 2 or more.

    Raises:
        InputError: fewer than 2 units, or no estimates.
    """
    values = np.asarray(estimates, dtype=np.float64)
    if n_units < 2 or values.size == 0:
        raise InputError(
            f"{values.size} bootstrap estimates of {n_units} units give no interval; expected 2 units or more"
        )
    t = student_t_quantile(0.5 + CONFIDENCE / 2, n_units - 1)
    tail = NormalDist().cdf(-math.sqrt(n_units / (n_units - 1)) * t)
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high))


def binomial_interval(n_hits: int, n: int) -> Interval:
    """Return Clopper and Pearson's exact interval of a share ("The use of confidence or fiducial limits", 1934).

    It covers the true share at least as often as promised, whatever the share is; with 0 of n the upper end is near 3.7
    / n.

    Raises:
        InputError: not 0 <= n_hits <= n, or n is 0.

    Examples:
        >>> found = binomial_interval(1, 100)
        >>> round(found.low, 4), round(found.high, 4)
        (0.0003, 0.0545)
    """
    if not 0 <= n_hits <= n or n == 0:
        raise InputError(f"{n_hits} of {n} is not a share; expected 0 to {n} of 1 or more")
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if n_hits == 0 else beta_quantile(tail, n_hits, n - n_hits + 1)
    high = 1.0 if n_hits == n else beta_quantile(1 - tail, n_hits + 1, n - n_hits)
    return Interval(low=low, high=high)


def student_t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Return the quantile of Student's t for probabilities in [0.5, 1), computed from that of the beta distribution."""
    if probability == 0.5:
        return 0.0
    x = beta_quantile(2 * (1 - probability), degrees_of_freedom / 2, 0.5)
    return math.sqrt(degrees_of_freedom * (1 - x) / x)


def beta_quantile(probability: float, a: float, b: float) -> float:
    """Return x with I_x(a, b) = probability, by bisection to the last bit that matters."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if incomplete_beta(a, b, middle) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), by its continued fraction.

    NIST Digital Library of Mathematical Functions, 8.17.22, evaluated by Lentz's method; it converges fast for
    x < (a + 1) / (a + b + 2), and the symmetry I_x(a, b) = 1 - I_(1-x)(b, a) gives the rest.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1.0 / (1.0 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 / (1.0 + step * d or tiny)
            c = 1.0 + step / c or tiny
            fraction *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log_front) * fraction / a


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Return Spearman's rank correlation: Pearson's correlation of the ranks; ties get the mean of their ranks.

    Args:
        first: numbers, [n].
        second: numbers, [n].

    Returns:
        In [-1, 1]; None if there are fewer than two values or either side is constant.

    Examples:
        >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
        0.5
    """
    if len(first) < 2:
        return None
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float(np.clip((a * b).sum() / scale, -1.0, 1.0)) if scale > 0 else None


def _ranks(values: NDArray[Any]) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[places], dtype=np.float64)
