"""The measured speed, memory and energy of one bundle, as written into the report. Units are in the names."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vae_edge.benchmarks.measure.statistics import Interval
from vae_edge.records import Record


class Histogram(Record):
    """How many values lie between neighbouring edges; the last bin includes its upper edge."""

    edges: tuple[float, ...]
    """One more than counts, ascending."""
    counts: tuple[int, ...]


class LatencyStatistics(Record):
    """Statistics of the samples of one call over all rounds, in milliseconds."""

    n: int = Field(ge=1)
    n_rounds: int = Field(ge=1)
    min_ms: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    std_ms: float
    """Standard deviation of the samples (n - 1 in the denominator); 0 for a single one."""
    intervals: dict[str, Interval] = Field(default_factory=dict)
    """By the figure's name; empty with fewer than 2 rounds, and without the percentiles that fewer than 10 samples lie
    beyond. The smallest and the largest sample have none: the bootstrap fails for extremes (Davison and Hinkley,
    "Bootstrap Methods and their Application", 1997, section 2.6.1)."""
    round_p50_ms: tuple[float, ...]
    """The median of each round, in order."""
    histogram: Histogram
    """Of all samples, in milliseconds; what lies above the 99.5th percentile is in the last bin."""
    elapsed_s: float
    """Sum of the samples."""
    is_stable: bool
    unstable_because: tuple[str, ...] = ()


class LatencyRecord(Record):
    """Latencies of one image at a time, each measured separately."""

    engine: LatencyStatistics
    """`Backend.run`: the prepared image on the host in, anomaly map and score on the host out."""
    predict: LatencyStatistics
    """`Detector.predict` of a decoded image at its own size: resizing, engine, verdict."""
    file: LatencyStatistics
    """`Detector.predict` of an image file, end to end: reading, decoding, resizing, engine, verdict."""


StageName = Literal["decode", "resize", "copy_in", "compute", "copy_out", "engine", "decision"]


class Stage(Record):
    """One step from a file to its verdict, timed alone."""

    name: StageName
    """`engine` includes copying in, computing and copying out if the runtime does not let them be timed separately."""
    what: str
    """What was timed, in words."""
    p50_ms: float
    interval: Interval | None = None


class StageRecord(Record):
    """Where the time goes between a file and its verdict."""

    stages: tuple[Stage, ...]
    """In the order of the work."""
    sum_ms: float
    """Sum of their medians."""
    end_to_end_ms: float
    """Median from file to verdict, measured end to end; the difference from the sum is what the split does not
    cover."""
    note: str
    """Which steps are timed together, and why."""


class StreamRecord(Record):
    """Verdicts per second of `Detector.stream` over image files, in one configuration."""

    requests: int | None = None
    """Requested from `Detector.open`; None: its own choice."""
    batch_size: int = Field(ge=1)
    layout: str
    """What the runtime used, in words."""
    images_per_s: float = Field(gt=0)
    """Images of all rounds divided by the time of all rounds."""
    interval: Interval | None = None
    round_images_per_s: tuple[float, ...]
    n_images: int = Field(ge=1)


class ThroughputRecord(Record):
    """Verdicts per second, with the defaults and by batch size and number of requests."""

    default: StreamRecord
    sweep: tuple[StreamRecord, ...] = ()

    @property
    def best(self) -> StreamRecord:
        """The fastest configuration."""
        return max((self.default, *self.sweep), key=lambda record: record.images_per_s)


class StartFigures(Record):
    """From starting a fresh Python process to the first verdict on a file; nearest-rank medians."""

    n_starts: int = Field(ge=1)
    first_result_s: float
    """Measured from outside: from before the process is created until its first verdict is known."""
    interval: Interval | None = None
    """Of `first_result_s`."""
    process_s: float
    """The part not covered by the following: the operating system, Python itself, and reporting the verdict."""
    import_s: float
    """Importing `vae_edge.detector`."""
    runtime_import_s: float
    """Importing the runtime."""
    open_s: float
    """Checking the bundle's files and loading the model, compiling it where it is not in the cache."""
    first_predict_s: float
    """The first verdict on a file."""


class StartRecord(Record):
    """Time to the first result. The operating system's cache of files is warm in both."""

    warm: StartFigures
    """With what an earlier start compiled for this device."""
    cold: StartFigures | None = None
    """With an empty cache of compiled models, as after an installation."""


class MemoryRecord(Record):
    """Physical memory of a process that opens the bundle and predicts image files one by one; host memory only."""

    peak_resident_bytes: int
    """The largest of the measured starts."""
    before_open_bytes: int | None = None
    """What Python and this library needed before the bundle was opened."""
    n_images: int = Field(ge=1)


class LoadRecord(Record):
    """Latency while images come at a fixed rate, from when an image was due until its verdict arrived."""

    fps: float = Field(gt=0)
    deadline_ms: float = Field(gt=0)
    latency: LatencyStatistics
    missed_share: float = Field(ge=0, le=1)
    """Share of the images whose verdict came after the deadline."""
    missed_interval: Interval | None = None
    n_without_verdict: int = Field(default=0, ge=0)
    """Images that were given up because the detector is far too slow; their latencies are lower bounds."""
    keeps_up: bool
    """Whether the backlog stayed small: when the last image of a round became due, no more than a tenth of the round's
    images (or 4) were without a verdict, in any round."""


class EnergyRecord(Record):
    """Energy of the whole chip or board, not of this program alone, while files were judged one after the other."""

    joules_per_image: float | None = None
    interval: Interval | None = None
    mean_watts: float | None = None
    source: str | None = None
    """Which counter or rail, in words."""
    not_available_because: str | None = None


class RoundRecord(Record):
    """The conditions of one round of one bundle, in which a drift would show."""

    number: int = Field(ge=1)
    begin_s: float
    """Since the benchmark began."""
    engine_p50_ms: float
    spin_before_ms: float
    """Time of a fixed computation on one core, before and after the measurement: longer means a slower clock."""
    spin_after_ms: float
    frequency_mhz: float | None = None
    """Mean over the cores after the measuring."""
    temperature_c: float | None = None
    """The hottest thermal zone after the measuring."""
    n_throttled: int | None = None
    """How often the processor was throttled by heat during the round (Intel only)."""
    foreign_cores: float | None = None
    """Cores that other programs kept busy on average."""
    stolen_share: float | None = None
    """Share of processor time that a virtual machine did not get."""
