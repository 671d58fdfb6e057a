"""What the suite asks of a worker process, and how the two talk.

Standard library only: the worker that measures start and memory must not pay for what comes after them.

A worker is started as `python -m vae_edge.benchmarks.worker JOB.json RESULT.json`. While it works it writes events to
its standard output, one JSON object in a line that begins with `EVENT_PREFIX`; other lines are a runtime's chatter. At
the end it writes the result file: `{"error": null | "a sentence", ...}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

EVENT_PREFIX = "vae-edge-event "

SERIES = ("engine", "predict", "file")
"""What is timed for its own sake, each on its own: see `vae_edge.benchmarks.measured.LatencyRecord`."""

STAGES = ("decode", "resize", "decision")
"""What is timed for the split into stages, besides the engine."""


@dataclass(frozen=True)
class MeasuringRules:
    """How long a latency is measured in one round.

    Warm-up lasts `warmup_s` and `warmup_iterations`, whichever ends later, but no longer than `longest_s`. Measuring
    lasts `round_s` or `most_iterations`, whichever ends first, with `fewest_iterations` at least. Over 10 rounds that
    is 10 s or 10,000 samples: MLPerf's single-stream scenario asks for 1024 queries, NVIDIA's trtexec for 10
    iterations and 3 s.
    """

    warmup_s: float = 0.3
    warmup_iterations: int = 10
    round_s: float = 1.0
    most_iterations: int = 1000
    fewest_iterations: int = 10
    longest_s: float = 10.0
    """Of a warm-up; a slow model is warm after few images."""


QUICK_RULES = MeasuringRules(warmup_s=0.05, warmup_iterations=5, round_s=0.2, most_iterations=200, longest_s=2.0)


@dataclass(frozen=True)
class _Opening:
    """What every job needs to open a bundle."""

    bundle: str
    device: str
    threads: int | None
    images: tuple[str, ...]
    """Image files that the timed calls go through in rotation; the first verdict is on the first of them."""


@dataclass(frozen=True)
class StartJob(_Opening):
    """Open a bundle and predict like a device that was just switched on: time to the first verdict, and memory."""

    runtime_module: str
    """The backend's module, imported apart to tell the runtime's share of the start."""
    n_memory_images: int
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class RoundJob(StartJob):
    """Start like a `StartJob`, then time the bundle for one round."""

    rules: MeasuringRules = MeasuringRules()
    throughput_s: float = 1.0
    kind: Literal["round"] = "round"  # type: ignore[assignment] # narrowed to another word


@dataclass(frozen=True)
class StreamJob(_Opening):
    """Count verdicts of `Detector.stream` in one configuration."""

    requests: int | None
    batch_size: int
    throughput_s: float
    kind: Literal["stream"] = "stream"


@dataclass(frozen=True)
class LoadJob(_Opening):
    """Decide images that come at a fixed rate."""

    fps: float
    load_s: float
    kind: Literal["load"] = "load"


@dataclass(frozen=True)
class OutputsJob(_Opening):
    """Take a bundle's outputs for images; `images` are those that are judged."""

    maps_file: str
    """Where the maps go: a .npy file, float32 [n, H, W]."""
    kind: Literal["outputs"] = "outputs"


Job = StartJob | RoundJob | StreamJob | LoadJob | OutputsJob

_KINDS: dict[str, type[Any]] = {
    "start": StartJob,
    "round": RoundJob,
    "stream": StreamJob,
    "load": LoadJob,
    "outputs": OutputsJob,
}


def write_job(path: Path, job: Job) -> None:
    """Write a job for a worker."""
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(path: Path) -> Job:
    """Read a job that `write_job` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    content["images"] = tuple(content["images"])
    if "rules" in content:
        content["rules"] = MeasuringRules(**content["rules"])
    kind = _KINDS[content["kind"]]
    assert set(content) == {field.name for field in fields(kind)}
    job: Job = kind(**content)
    return job
