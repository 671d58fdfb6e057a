"""Measuring one call's latency, and what the samples say.

The rules: one image at a time, synchronous, host array in to host result out, by `time.perf_counter_ns`; real
inputs in rotation, so that neither caches nor branches learn a single one; warm-up apart (`MeasuringRules`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, TypeVar

import numpy as np
from pydantic import Field

from vae_edge.benchmarks.jobs import MeasuringRules
from vae_edge.errors import InputError
from vae_edge.records import Record

_Input = TypeVar("_Input")

WIDE_SPREAD = 0.10
"""Standard deviation, as a share of the mean, from which a result is called unstable: pyperf's limit too."""

WIDE_DRIFT = 0.05
"""Change of the median from the first half of the samples to the second from which a result is called unstable: a
processor that heats up or a machine that got busy."""


@dataclass(frozen=True)
class Samples:
    """Durations of single calls, in the order they were made."""

    warmup_ns: tuple[int, ...]
    measured_ns: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the samples as JSON takes them."""
        return asdict(self)


class LatencyStatistics(Record):
    """What the samples of one call say; milliseconds."""

    n: int = Field(ge=1)
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    std_ms: float
    """Standard deviation of the samples (n - 1 in the denominator); 0 for a single one."""
    elapsed_s: float
    """Sum of the samples."""
    is_stable: bool
    unstable_because: tuple[str, ...] = ()


def measure(call: Callable[[_Input], object], inputs: Sequence[_Input], rules: MeasuringRules) -> Samples:
    """Time `call(input)` over the inputs in rotation, by the rules.

    Raises:
        InputError: there is no input.
    """
    if not inputs:
        raise InputError("there is no input to time a call with; expected at least one image")
    rotation = cycle(inputs)
    clock = time.perf_counter_ns

    def run(is_done: Callable[[int, float], bool]) -> tuple[int, ...]:
        samples: list[int] = []
        begin = clock()
        while not is_done(len(samples), (clock() - begin) / 1e9):
            item = next(rotation)
            start = clock()
            call(item)
            samples.append(clock() - start)
        return tuple(samples)

    def is_warm(n: int, elapsed_s: float) -> bool:
        # One call at least: the first one often compiles or allocates.
        return n >= 1 and (
            elapsed_s >= rules.max_time_s or (n >= rules.warmup_iterations and elapsed_s >= rules.warmup_s)
        )

    def is_measured(n: int, elapsed_s: float) -> bool:
        return n >= rules.fewest_iterations and (
            elapsed_s >= rules.max_time_s or (n >= rules.iterations and elapsed_s >= rules.min_time_s)
        )

    warmup = run(is_warm)
    return Samples(warmup, run(is_measured))


def summarize(samples_ns: Sequence[int]) -> LatencyStatistics:
    """Return the statistics of durations in nanoseconds.

    Raises:
        InputError: there is no sample.
    """
    if not samples_ns:
        raise InputError("there are no samples to summarize; expected at least one")
    values_ms = np.asarray(samples_ns, dtype=np.float64) / 1e6
    ascending = np.sort(values_ms)
    mean = float(values_ms.mean())
    std = float(values_ms.std(ddof=1)) if values_ms.size > 1 else 0.0
    reasons = _why_unstable(values_ms, mean, std)
    return LatencyStatistics(
        n=values_ms.size,
        min_ms=float(ascending[0]),
        mean_ms=mean,
        p50_ms=nearest_rank(ascending, 50),
        p90_ms=nearest_rank(ascending, 90),
        p95_ms=nearest_rank(ascending, 95),
        p99_ms=nearest_rank(ascending, 99),
        max_ms=float(ascending[-1]),
        std_ms=std,
        elapsed_s=float(values_ms.sum()) / 1e3,
        is_stable=not reasons,
        unstable_because=reasons,
    )


def nearest_rank(ascending: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], percent: float) -> float:
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


def _why_unstable(values_ms: np.ndarray[Any, np.dtype[np.float64]], mean: float, std: float) -> tuple[str, ...]:
    reasons = []
    if std >= WIDE_SPREAD * mean:
        reasons.append(f"the standard deviation is {std / mean:.0%} of the mean")
    half = values_ms.size // 2
    if half >= 5:
        early, late = float(np.median(values_ms[:half])), float(np.median(values_ms[half:]))
        if abs(late - early) >= WIDE_DRIFT * early:
            reasons.append(f"the second half's median is {late / early - 1:+.0%} from the first half's")
    return tuple(reasons)
