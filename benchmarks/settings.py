"""What a benchmark is asked to do."""

from __future__ import annotations

from pydantic import Field

from vae_edge.benchmarks.jobs import QUICK_RULES, MeasuringRules
from vae_edge.records import Record


class SuiteSettings(Record):
    """How bundles are measured; the report repeats it."""

    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    quick: bool = False
    """Shortened: good for trying things out, too short to compare machines by."""
    rounds: int = Field(default=10, ge=1)
    """Times that each bundle is started afresh and measured, the bundles taking turns."""
    rules: MeasuringRules = MeasuringRules()
    """How long each latency is measured in each round."""
    throughput_s: float = Field(default=1.0, gt=0)
    """In each round, for each configuration."""
    requests: tuple[int, ...] = ()
    """Numbers of requests to measure the throughput with, beside the device's own choice."""
    batch_sizes: tuple[int, ...] = ()
    """Batch sizes to measure the throughput with, each with each of `requests`."""
    load_fps: tuple[float, ...] = ()
    """Rates of a paced source, images a second."""
    load_s: float = Field(default=3.0, gt=0)
    """In each round, for each rate."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """None: the time between two images of the paced source."""
    cold_starts: int = Field(default=3, ge=0)
    """Starts with an empty cache of compiled models, one in each of the first rounds."""
    n_memory_images: int = Field(default=16, ge=1)
    """Images that each fresh process predicts before its peak of memory is taken."""
    n_timing_images: int = Field(default=32, ge=1)
    """Images that the timed calls go through in rotation, at most."""
    reference: str | None = None
    """Name of the bundle whose verdicts the others are compared with; None: torch in FP32, or else the first in FP32,
    of the same training run."""
    baseline: str | None = None
    """Name of the bundle that ratios of speed and memory are to; None: the reference of the first bundle."""
    simple_method: bool = False
    """Whether a method without a network is measured too."""
    n_examples: int = Field(default=3, ge=0)
    """Pictures of each kind (hit, miss, false alarm, flip) for each bundle."""
    worker_timeout_s: float = Field(default=1800.0, gt=0)
    """A process that measures is given up after that long; rebuilding a TensorRT engine takes minutes."""

    @classmethod
    def make_quick(cls, *, device: str = "auto", threads: int | None = None) -> SuiteSettings:
        """Return shortened settings."""
        return cls(
            device=device,
            threads=threads,
            quick=True,
            rounds=5,
            rules=QUICK_RULES,
            throughput_s=0.3,
            load_s=1.0,
            cold_starts=1,
            n_memory_images=8,
            n_timing_images=8,
        )
