"""The jobs of a measured process, and the JSON that it reads them from. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from vae_edge.benchmarks.measure.instruments import MeasuringRules

SERIES = ("engine", "predict", "file")
"""What is timed for its own sake, each separately: see `vae_edge.benchmarks.report.records.speed.LatencyRecord`."""


@dataclass(frozen=True)
class _Opening:
    """What every job needs to open a bundle."""

    bundle: str
    device: str
    threads: int | None
    arithmetic: Literal["fp32", "auto"]
    images: tuple[str, ...]
    """Image files that the timed calls go through in rotation; the first verdict is on the first of them."""


@dataclass(frozen=True)
class StartJob(_Opening):
    """Open a bundle and predict like a device that was just switched on: time to the first verdict, and memory."""

    runtime_module: str
    """The backend's module, imported separately to measure the runtime's share of the start."""
    n_memory_images: int
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class RoundJob(StartJob):
    """Start like a `StartJob`, then time the bundle for one round."""

    rules: MeasuringRules = MeasuringRules()  # noqa: RUF009 - it is frozen
    throughput_s: float = 1.0
    kind: Literal["round"] = "round"  # type: ignore[assignment]  # another word than its base has


@dataclass(frozen=True)
class StreamJob(_Opening):
    """Count verdicts of `Detector.stream` in one configuration."""

    requests: int | None
    batch_size: int
    throughput_s: float
    kind: Literal["stream"] = "stream"


@dataclass(frozen=True)
class LoadJob(_Opening):
    """Judge images that arrive at a fixed rate."""

    fps: float
    load_s: float
    kind: Literal["load"] = "load"


@dataclass(frozen=True)
class OutputsJob(_Opening):
    """Compute a bundle's outputs for images; `images` are those that are judged."""

    maps_file: str
    """Where the maps are written: a .npy file, float32 [n, H, W]."""
    kind: Literal["outputs"] = "outputs"


Job = StartJob | RoundJob | StreamJob | LoadJob | OutputsJob

_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (StartJob, RoundJob, StreamJob, LoadJob, OutputsJob)}


def read_job(content: dict[str, Any]) -> Job:
    """Return the job that `dataclasses.asdict` turned into this JSON."""
    values = {**content, "images": tuple(content["images"])}
    if "rules" in values:
        values["rules"] = MeasuringRules(**values["rules"])
    job: Job = _KINDS[content["kind"]](**values)
    return job
