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
    rules: MeasuringRules = MeasuringRules()
    throughput_s: float = Field(default=5.0, gt=0)
    n_starts: int = Field(default=5, ge=1)
    """Fresh processes whose time to the first result is taken."""
    n_memory_images: int = Field(default=16, ge=1)
    """Images that each of these processes predicts."""
    n_timing_images: int = Field(default=32, ge=1)
    """Images that the timed calls go through in rotation, at most."""
    reference: str | None = None
    """Name of the bundle to compare with; None: torch in FP32, or else the first in FP32, of the same training run."""
    baselines: bool = False
    worker_timeout_s: float = Field(default=1800.0, gt=0)
    """A process that measures is given up after that long; rebuilding a TensorRT engine takes minutes."""

    @classmethod
    def make_quick(cls, *, device: str = "auto", threads: int | None = None) -> SuiteSettings:
        """Return shortened settings."""
        return cls(
            device=device,
            threads=threads,
            quick=True,
            rules=QUICK_RULES,
            throughput_s=1.0,
            n_starts=2,
            n_memory_images=8,
            n_timing_images=8,
        )
