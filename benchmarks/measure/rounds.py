"""Figures of samples that were taken in rounds, and their intervals, both absolute and as ratios.

A bootstrap sample is given by how often each round was drawn (`resample_weights`), so its figures are weighted figures
of the available samples. Two bundles that were measured in the same rounds are resampled in pairs by the same weights:
what slowed down a round slowed down both, and cancels out of their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vae_edge.benchmarks.measure.statistics import Floats, Interval, Ratio, percentile_interval, resample_weights
from vae_edge.errors import InputError

PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p95_ms": 95, "p99_ms": 99}

TAIL_SAMPLES = 10
"""A percentile above the median has an interval if at least this many samples lie beyond it: p99 from 1000 samples on.
With fewer it is close to the extreme, for which bootstrap intervals are too narrow: of 10 ratios of a p99 that were
truly 1, with 180 samples each, 3 intervals did not include 1."""

_BLOCK_VALUES = 4_000_000
"""Values that are resampled at once; limits memory, of which a small device has little."""


class LatencyRounds:
    """Durations of single calls, by round.

    Args:
        rounds: milliseconds, by the round's number; one or more in each.

    Raises:
        InputError: there are no rounds, or one is empty.
    """

    def __init__(self, rounds: Mapping[int, ArrayLike]) -> None:
        self.rounds = {number: np.asarray(values, dtype=np.float64) for number, values in sorted(rounds.items())}
        if not self.rounds or any(values.size == 0 for values in self.rounds.values()):
            raise InputError("there are no samples to summarize; expected at least one in each round")

    @property
    def numbers(self) -> tuple[int, ...]:
        """The rounds' numbers, ascending."""
        return tuple(self.rounds)

    def values(self) -> Floats:
        """Return all samples, round by round, in the order they were taken."""
        return np.concatenate(list(self.rounds.values()))

    def only(self, numbers: Sequence[int]) -> LatencyRounds:
        """Return some of the rounds."""
        return LatencyRounds({number: self.rounds[number] for number in numbers})

    def figures(self, weights: Floats | None = None) -> dict[str, Floats]:
        """Return mean, standard deviation and percentiles of bootstrap samples.

        Args:
            weights: float64 [n, rounds], see `resample_weights`; None: of the samples as they are, n = 1.

        Returns:
            float64 [n] by the figure's name.
        """
        rounds = list(self.rounds.values())
        weights = np.ones((1, len(rounds))) if weights is None else weights
        values = np.concatenate(rounds)
        # Deviations from the mean: the squares of large numbers would swallow a small spread.
        centre = float(values.mean())
        n = weights @ np.array([part.size for part in rounds], dtype=np.float64)
        first = weights @ np.array([float((part - centre).sum()) for part in rounds])
        second = weights @ np.array([float(((part - centre) ** 2).sum()) for part in rounds])
        variance = np.maximum(second - first**2 / n, 0.0) / np.maximum(n - 1, 1)
        order = np.argsort(values, kind="stable")
        owner = np.repeat(np.arange(len(rounds)), [part.size for part in rounds])[order]
        found = {"mean_ms": centre + first / n, "std_ms": np.sqrt(variance)}
        return found | _weighted_percentiles(values[order], owner, weights)


def _weighted_percentiles(ascending: Floats, owner: NDArray[np.intp], weights: Floats) -> dict[str, Floats]:
    """Return nearest-rank percentiles: the smallest value that is not exceeded by that percentage of the weight."""
    found: dict[str, list[Floats]] = {name: [] for name in PERCENTILES}
    block = max(_BLOCK_VALUES // ascending.size, 1)
    for start in range(0, len(weights), block):
        below = np.cumsum(weights[start : start + block][:, owner], axis=1)
        for name, percent in PERCENTILES.items():
            wanted = np.ceil(percent * below[:, -1] / 100)[:, None]
            # Ascending along a row, so the first that reaches it is where the comparison turns true.
            found[name].append(ascending[np.argmax(below >= wanted, axis=1)])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def latency_intervals(samples: LatencyRounds) -> dict[str, Interval]:
    """Return the interval of every figure that has one (see `TAIL_SAMPLES`); empty with fewer than 2 rounds."""
    n = len(samples.rounds)
    if n < 2:
        return {}
    figures = samples.figures(resample_weights(n))
    return {name: percentile_interval(values, n) for name, values in figures.items() if _has_tail(samples, name)}


def latency_ratios(
    samples: LatencyRounds, baseline: LatencyRounds, names: Sequence[str], *, paired: bool = True
) -> dict[str, Ratio]:
    """Return figures divided by the baseline's; a figure that is 0 in the baseline has no ratio and is left out.

    Args:
        samples: of the bundle in question.
        baseline: what to divide by.
        names: of the figures.
        paired: whether rounds of the same number were measured side by side; only those are then compared. Otherwise
            each side is resampled by itself, and the interval is widened as for the side with fewer rounds.
    """
    mine, other = samples, baseline
    if paired:
        common = [number for number in samples.numbers if number in baseline.rounds]
        if not common:
            return {}
        mine, other = samples.only(common), baseline.only(common)
    drawn, others = (
        side.figures(weights) for side, weights in zip((mine, other), _draw(mine, other, paired), strict=True)
    )
    n = min(len(mine.rounds), len(other.rounds))
    found = _ratios(mine.figures(), other.figures(), drawn, others, names, n)
    # A side with too few samples beyond the percentile takes the interval away.
    return {
        name: ratio if _has_tail(mine, name) and _has_tail(other, name) else ratio.model_copy(update={"interval": None})
        for name, ratio in found.items()
    }


def _draw(mine: _Rounds, other: _Rounds, paired: bool) -> tuple[Floats | None, Floats | None]:
    """Return the weights of both sides, the same for paired rounds; None if one round cannot give an interval."""
    n, m = len(mine.rounds), len(other.rounds)
    if min(n, m) < 2:
        return None, None
    if paired:
        return resample_weights(n), resample_weights(n)
    return resample_weights(n, seed=1), resample_weights(m, seed=2)


def _has_tail(samples: LatencyRounds, figure: str) -> bool:
    percent = PERCENTILES.get(figure, 50)
    return percent <= 50 or samples.values().size * (100 - percent) >= 100 * TAIL_SAMPLES


def _ratios(
    mine: dict[str, Floats],
    other: dict[str, Floats],
    drawn: dict[str, Floats],
    others_drawn: dict[str, Floats],
    names: Sequence[str],
    n_rounds: int,
) -> dict[str, Ratio]:
    found = {}
    for name in names:
        if other[name][0] <= 0 or mine[name][0] <= 0 or np.any(others_drawn[name] <= 0):
            continue
        interval = percentile_interval(drawn[name] / others_drawn[name], n_rounds) if n_rounds > 1 else None
        found[name] = Ratio(value=float(mine[name][0] / other[name][0]), interval=interval, n_rounds=n_rounds)
    return found


class RateRounds:
    """Amounts by round whose sums are divided by one another: images by seconds, joules by images.

    Args:
        rounds: numerator and denominator by the round's number; the denominators above 0.
    """

    def __init__(self, rounds: Mapping[int, tuple[float, float]]) -> None:
        if not rounds or any(below <= 0 for _, below in rounds.values()):
            raise InputError("there is no round to compute a rate from; expected one or more with a duration above 0")
        self.rounds = dict(sorted(rounds.items()))

    def value(self) -> float:
        """Return the rate over all rounds."""
        return float(self.figures(None)[0])

    def figures(self, weights: Floats | None) -> Floats:
        """Return the rates of bootstrap samples, float64 [n]."""
        parts = np.array(list(self.rounds.values()), dtype=np.float64)
        weights = np.ones((1, len(parts))) if weights is None else weights
        return np.asarray((weights @ parts[:, 0]) / (weights @ parts[:, 1]), dtype=np.float64)

    def interval(self) -> Interval | None:
        """Return the interval of the rate; None with fewer than 2 rounds."""
        n = len(self.rounds)
        return percentile_interval(self.figures(resample_weights(n)), n) if n > 1 else None

    def ratio_to(self, baseline: RateRounds, *, paired: bool = True) -> Ratio | None:
        """Return this rate divided by the baseline's; None if one of them is 0 or they have no round in common.

        Args:
            baseline: what to divide by.
            paired: whether rounds of the same number were measured side by side.
        """
        mine, other = self, baseline
        if paired:
            common = [number for number in self.rounds if number in baseline.rounds]
            if not common:
                return None
            mine = RateRounds({number: self.rounds[number] for number in common})
            other = RateRounds({number: baseline.rounds[number] for number in common})
        n = min(len(mine.rounds), len(other.rounds))
        mine_weights, other_weights = _draw(mine, other, paired)
        drawn, others = mine.figures(mine_weights), other.figures(other_weights)
        found = _ratios(
            {"rate": mine.figures(None)}, {"rate": other.figures(None)}, {"rate": drawn}, {"rate": others}, ["rate"], n
        )
        return found.get("rate")


_Rounds = LatencyRounds | RateRounds


def nearest_rank(ascending: Sequence[float] | Floats, percent: float) -> float:
    """Return a percentile as the smallest sample that at least `percent` of the samples do not exceed.

    The nearest-rank definition (NIST/SEMATECH e-Handbook, 7.2.6.2, and OpenVINO's benchmark_app): the value was
    actually measured, nothing is interpolated. With fewer than 100 samples p99 is the maximum.

    Args:
        ascending: samples from the smallest to the largest.
        percent: above 0, at most 100.

    Raises:
        InputError: there is no sample, or `percent` is outside (0, 100].

    Examples:
        >>> nearest_rank([1.0, 2.0, 3.0, 4.0], 75), nearest_rank([1.0, 2.0, 3.0, 4.0], 99)
        (3.0, 4.0)
    """
    if not 0 < percent <= 100 or len(ascending) == 0:
        raise InputError(
            f"percentile {percent} of {len(ascending)} samples; expected above 0, at most 100, of 1 or more"
        )
    return float(ascending[math.ceil(percent * len(ascending) / 100) - 1])


def median(values: Sequence[float]) -> float:
    """Return the nearest-rank median: the lower of the two middle values of an even number of them.

    Raises:
        InputError: there is no value.
    """
    return nearest_rank(sorted(values), 50)
