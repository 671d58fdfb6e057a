"""The measured process, `python -m vae_edge.benchmarks.measure.worker JOB.json RESULT.json`.

It does one job for one bundle, so that memory and start are that bundle's own. Only the standard library is imported
before the clock starts, and a start imports nothing beyond what a program on a device imports: no metrics, no
statistics, no report. What only the rest of a round and the other jobs need is in `after_start.py`, imported after it.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vae_edge.benchmarks.measure.instruments import peak_resident_bytes, serve, tell
from vae_edge.benchmarks.measure.jobs import RoundJob, StartJob, read_job
from vae_edge.errors import VaeEdgeError

if TYPE_CHECKING:
    from vae_edge.detector import Detector


def do(content: dict[str, Any]) -> dict[str, Any]:
    """Do a job and return its result."""
    job = read_job(content)
    if isinstance(job, StartJob):
        return run_start(job)
    from vae_edge.benchmarks.measure import after_start

    return after_start.do(job)


def run_start(job: StartJob) -> dict[str, Any]:
    """Open the bundle, give the first verdict, predict other images one by one, keeping nothing; then do the round.

    Returns:
        Seconds of the imports, of opening and of the first verdict (decoding included); the peak of resident memory in
        bytes after the predictions, and what it was before the bundle was opened (None if the system does not provide
        it); and the samples of the round, if one was requested.
    """
    begin = time.perf_counter()
    from vae_edge.detector import Detector

    imported = time.perf_counter()
    before_bytes = peak_resident_bytes()
    with suppress(ImportError):  # Opening the bundle says it better.
        import_module(job.runtime_module)
    runtime_imported = time.perf_counter()
    with Detector.open(job.bundle, device=job.device, threads=job.threads, arithmetic=job.arithmetic) as detector:
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
            from vae_edge.benchmarks.measure.after_start import measure_round

            result |= measure_round(detector, job)
    return result


def _facts(detector: Detector) -> dict[str, Any]:
    backend = detector.backend
    return {
        "device": backend.device.name,
        "device_reason": backend.device.reason,
        "reduced_to": backend.reduced_to,
        "runtime": backend.version,
        "layout": str(backend.layout),
        "notes": list(backend.notes),
    }


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:], do, (VaeEdgeError,)))
