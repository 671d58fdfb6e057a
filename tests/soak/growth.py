"""Whether memory, descriptors or threads grow: samples over time, and the slope of a line through them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

LEAST_SAMPLES = 30
LEAST_S = 60.0
"""Fewer samples, or over a shorter time, say nothing about growth."""
_MOST_POINTS = 400


@dataclass(frozen=True)
class Sample:
    """What the processes of a subject held at one time."""

    at_s: float
    """Since the soak began."""
    generation: int
    """Which process, from 1."""
    rss_bytes: int
    n_descriptors: int
    n_threads: int


@dataclass(frozen=True)
class Limit:
    """How much of something may be gained over the time that is judged."""

    what: str
    unit: str
    field: str
    scale: float
    at_least: float
    """Always allowed, in the unit."""
    share: float
    """Of the median, if that is more."""

    def allowed(self, median: float) -> float:
        """Return the largest gain, in the unit."""
        return max(self.at_least, self.share * median)


LIMITS = (
    Limit("memory", "MB", "rss_bytes", 1e-6, at_least=8.0, share=0.05),
    Limit("descriptors", "", "n_descriptors", 1.0, at_least=2.0, share=0.0),
    Limit("threads", "", "n_threads", 1.0, at_least=2.0, share=0.0),
)
"""Memory: 8 MB for allocators that keep pages, and for the 10,000 names that a watched folder remembers."""


@dataclass(frozen=True)
class Growth:
    """The line through the samples of one process after its warm-up."""

    subject: str
    what: str
    unit: str
    n_samples: int
    seconds: float
    median: float
    gain: float
    """Slope times `seconds`, in the unit."""
    per_hour: float
    allowed: float

    @property
    def is_too_large(self) -> bool:
        """Whether it grows."""
        return self.gain > self.allowed

    @property
    def problem(self) -> str:
        """What is wrong, in words."""
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"the {self.what} of {self.subject} grew by {self.gain:.1f}{unit} in {self.seconds / 60:.0f} minutes; "
            f"allowed are {self.allowed:.1f}{unit}"
        )


def sample(pid: int, at_s: float, generation: int) -> Sample | None:
    """Measure a process with its children; None: it has just ended."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        rss = descriptors = threads = 0
        for each in family:
            with each.oneshot():
                rss += each.memory_info().rss
                descriptors += each.num_fds() if hasattr(each, "num_fds") else each.num_handles()
                threads += each.num_threads()
    except psutil.Error:
        return None
    return Sample(at_s, generation, rss, descriptors, threads)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median of the slopes between all pairs of points (Theil and Sen), which outliers do not bend.

    Examples:
        >>> slope([(0, 1.0), (1, 3.0), (2, 5.0), (3, 700.0)])
        2.0
    """
    step = max(1, len(points) // _MOST_POINTS)
    some = points[::step]
    found = [(y2 - y1) / (x2 - x1) for n, (x1, y1) in enumerate(some) for x2, y2 in some[n + 1 :] if x2 > x1]
    return statistics.median_low(found) if found else 0.0


def growths(subject: str, samples: Sequence[Sample], *, from_s: float, to_s: float) -> list[Growth]:
    """Return what the process that ran last gained between two times; nothing if there are too few samples.

    Args:
        subject: its name.
        samples: of all its processes.
        from_s: the end of the warm-up, since the soak began.
        to_s: when it was told to end.
    """
    last = max((each.generation for each in samples), default=0)
    judged = [each for each in samples if each.generation == last and from_s <= each.at_s <= to_s]
    if len(judged) < LEAST_SAMPLES or judged[-1].at_s - judged[0].at_s < LEAST_S:
        return []
    seconds = judged[-1].at_s - judged[0].at_s
    found = []
    for limit in LIMITS:
        values = [limit.scale * getattr(each, limit.field) for each in judged]
        per_s = slope([(each.at_s, value) for each, value in zip(judged, values, strict=True)])
        median = statistics.median(values)
        found.append(
            Growth(
                subject=subject,
                what=limit.what,
                unit=limit.unit,
                n_samples=len(judged),
                seconds=seconds,
                median=median,
                gain=per_s * seconds,
                per_hour=per_s * 3600,
                allowed=limit.allowed(median),
            )
        )
    return found
