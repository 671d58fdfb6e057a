"""What the samples of one call say, and whether they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vae_edge.benchmarks.estimates import Histogram
from vae_edge.benchmarks.measured import LatencyStatistics
from vae_edge.benchmarks.rounds import LatencyRounds, latency_intervals
from vae_edge.benchmarks.statistics import Floats
from vae_edge.errors import InputError

WIDE_SPREAD = 0.10
"""Standard deviation, as a share of the mean, from which a result is called unstable: pyperf's limit too."""

WIDE_DRIFT = 0.05
"""Change of the median from the first half of the rounds to the second from which a result is called unstable: a
processor that heats up or a machine that got busy."""

_BINS = 40
_TAIL_PERCENT = 99.5


def summarize(samples: LatencyRounds) -> LatencyStatistics:
    """Return the statistics of durations that were taken in rounds, with their intervals."""
    values = samples.values()
    figures = {name: float(estimates[0]) for name, estimates in samples.figures().items()}
    reasons = _why_unstable(samples, figures["mean_ms"], figures["std_ms"])
    return LatencyStatistics(
        n=values.size,
        n_rounds=len(samples.rounds),
        min_ms=float(values.min()),
        max_ms=float(values.max()),
        **figures,
        intervals=latency_intervals(samples),
        round_p50_ms=tuple(median(list(part)) for part in samples.rounds.values()),
        histogram=_histogram(values),
        elapsed_s=float(values.sum()) / 1e3,
        is_stable=not reasons,
        unstable_because=reasons,
    )


def nearest_rank(ascending: Sequence[float] | Floats, percent: float) -> float:
    """Return a percentile as the smallest sample that at least `percent` of the samples do not exceed.

    The nearest-rank definition (NIST/SEMATECH e-Handbook, 7.2.6.2, and OpenVINO's benchmark_app): the value was really
    measured, nothing is interpolated. With fewer than 100 samples p99 is the maximum.

    Args:
        ascending: samples from the smallest to the largest.
        percent: above 0, at most 100.

    Raises:
        InputError: there is no sample, or `percent` is outside (0, 100].
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


def _histogram(values: Floats) -> Histogram:
    low, high = float(values.min()), nearest_rank(np.sort(values), _TAIL_PERCENT)
    counts, edges = np.histogram(np.minimum(values, high), _BINS, (low, high) if high > low else (low, low + 1e-6))
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)))


def _why_unstable(samples: LatencyRounds, mean: float, std: float) -> tuple[str, ...]:
    reasons = []
    if std >= WIDE_SPREAD * mean:
        reasons.append(f"the standard deviation is {std / mean:.0%} of the mean")
    rounds = list(samples.rounds.values())
    half = len(rounds) // 2
    if half >= 2:
        early, late = (
            float(np.median([np.median(part) for part in parts])) for parts in (rounds[:half], rounds[-half:])
        )
        if abs(late - early) >= WIDE_DRIFT * early:
            reasons.append(f"the second half's median is {late / early - 1:+.0%} from the first half's")
    return tuple(reasons)
