"""The measured process: does one job for one bundle, so that memory and start are that bundle's own.

Nothing but the standard library is imported before the clock runs, and a start imports nothing beyond what a device's
program imports: no metrics, no statistics, no report. What only the rest of a round needs is imported after it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from vae_edge.benchmarks.measure.instruments import MeasuringRules, peak_resident_bytes, tell

if TYPE_CHECKING:
    from vae_edge.detector import Detector

SERIES = ("engine", "predict", "file")
"""What is timed for its own sake, each on its own: see `vae_edge.benchmarks.report.speed_records.LatencyRecord`."""

STAGES = ("decode", "resize", "decision")
"""What is timed for the split into stages, besides the engine."""


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

    rules: MeasuringRules = MeasuringRules()  # noqa: RUF009 - it is frozen
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

_KINDS: dict[str, type[Any]] = {kind.kind: kind for kind in (StartJob, RoundJob, StreamJob, LoadJob, OutputsJob)}


def read_job(content: dict[str, Any]) -> Job:
    """Return the job that `dataclasses.asdict` made this JSON of."""
    values = {**content, "images": tuple(content["images"])}
    if "rules" in values:
        values["rules"] = MeasuringRules(**values["rules"])
    job: Job = _KINDS[content["kind"]](**values)
    return job


def do(content: dict[str, Any]) -> dict[str, Any]:
    """Do a job and return its result."""
    job = read_job(content)
    if isinstance(job, StartJob):
        return run_start(job)
    from vae_edge.benchmarks.measure import worker_jobs

    return worker_jobs.do(job)


def run_start(job: StartJob) -> dict[str, Any]:
    """Open the bundle, give the first verdict, predict other images one by one, keeping nothing; then do the round.

    Returns:
        Seconds of the imports, of opening and of the first verdict (decoding included); the peak of resident memory in
        bytes after the predictions, and what it was before the bundle was opened (None where the system does not
        tell); and the samples of the round, where one was asked for.
    """
    begin = time.perf_counter()
    from vae_edge.detector import Detector

    imported = time.perf_counter()
    before_bytes = peak_resident_bytes()
    with suppress(ImportError):  # Opening the bundle says it better.
        import_module(job.runtime_module)
    runtime_imported = time.perf_counter()
    with Detector.open(job.bundle, device=job.device, threads=job.threads) as detector:
        opened = time.perf_counter()
        detector.predict(job.images[0])
        first = time.perf_counter()
        tell("first_result")
        for image in job.images[1 : job.n_memory_images]:
            detector.predict(image)
        result: dict[str, Any] = {
            "import_s": imported - begin,
            "runtime_import_s": runtime_imported - imported,
            "open_s": opened - runtime_imported,
            "first_predict_s": first - opened,
            "peak_resident_bytes": peak_resident_bytes(),
            "before_open_bytes": before_bytes,
            "n_memory_images": len(job.images[: job.n_memory_images]),
            **_facts(detector),
        }
        if isinstance(job, RoundJob):
            from vae_edge.benchmarks.measure.worker_jobs import measure_round

            result |= measure_round(detector, job)
    return result


def _facts(detector: Detector) -> dict[str, Any]:
    backend = detector.backend
    return {
        "device": backend.device.name,
        "device_reason": backend.device.reason,
        "runtime": backend.version,
        "layout": str(backend.layout),
        "notes": list(backend.notes),
    }
