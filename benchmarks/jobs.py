"""What the suite asks of a worker process, and how the two talk.

Standard library only: the worker that measures start and memory must not pay for what only other jobs need.

A worker is started as `python -m vae_edge.benchmarks.worker JOB.json RESULT.json`. While it works it writes events to
its standard output, one JSON object in a line that begins with `EVENT_PREFIX`; other lines are a runtime's chatter. At
the end it writes the result file: `{"error": null | "a sentence", ...}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

EVENT_PREFIX = "vae-edge-event "

SERIES = ("engine", "predict", "file", "decode", "resize")
"""What is timed, each on its own: see `vae_edge.benchmarks.report.LatencyRecord`."""


@dataclass(frozen=True)
class MeasuringRules:
    """How long a latency is measured.

    Warm-up lasts `warmup_s` and `warmup_iterations`, whichever ends later, but no longer than `max_time_s`. Measuring
    ends after `iterations` that took at least `min_time_s`, or after `max_time_s`, whichever comes first, and
    never before `fewest_iterations`. 1024 queries are the floor of MLPerf's single-stream scenario; 10 iterations that
    of NVIDIA's trtexec.
    """

    warmup_s: float = 1.0
    warmup_iterations: int = 50
    iterations: int = 1024
    min_time_s: float = 1.0
    max_time_s: float = 10.0
    fewest_iterations: int = 10


QUICK_RULES = MeasuringRules(warmup_s=0.2, warmup_iterations=10, iterations=100, min_time_s=0.2, max_time_s=2.0)


@dataclass(frozen=True)
class StartJob:
    """Open a bundle and predict like a device that was just switched on: time to the first verdict, and memory."""

    bundle: str
    device: str
    threads: int | None
    images: tuple[str, ...]
    """Image files, predicted one after the other; the first verdict is on the first of them."""
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class MeasureJob:
    """Time a bundle, and take its outputs for images whose labels are known."""

    bundle: str
    device: str
    threads: int | None
    images: tuple[str, ...]
    """Image files that the timed calls go through in rotation."""
    rules: MeasuringRules
    throughput_s: float
    judged: tuple[str, ...]
    """Image files whose scores and maps are wanted."""
    maps_file: str
    """Where the maps go: a .npy file, float32 [n, H, W]."""
    kind: Literal["measure"] = "measure"


def write_job(path: Path, job: StartJob | MeasureJob) -> None:
    """Write a job for a worker."""
    path.write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(path: Path) -> StartJob | MeasureJob:
    """Read a job that `write_job` wrote."""
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fields["images"] = tuple(fields["images"])
    if fields["kind"] == "start":
        return StartJob(**fields)
    fields["judged"] = tuple(fields["judged"])
    fields["rules"] = MeasuringRules(**fields["rules"])
    return MeasureJob(**fields)
