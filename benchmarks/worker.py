"""The measured process: does one job for one bundle, so that memory and start are that bundle's own.

Nothing but the standard library is imported before the clock runs, and a start imports nothing beyond what a device's
program imports: no metrics, no statistics, no report. What only the rest of a round needs is imported after it.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.benchmarks.jobs import EVENT_PREFIX, Job, RoundJob, StartJob, read_job
from vae_edge.errors import VaeEdgeError

if TYPE_CHECKING:
    from vae_edge.detector import Detector


def main(arguments: list[str]) -> int:
    """Do the job of the file `arguments[0]` and write its result to `arguments[1]`."""
    job = read_job(Path(arguments[0]))
    try:
        result = do(job)
        result["error"] = None
    except VaeEdgeError as error:
        result = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a runtime's own errors must reach the table as a reason, whatever they are
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")
    return 0 if result["error"] is None else 1


def do(job: Job) -> dict[str, Any]:
    """Do a job and return its result."""
    if isinstance(job, StartJob):
        return run_start(job)
    from vae_edge.benchmarks import worker_streams

    return worker_streams.do(job, tell)


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
            from vae_edge.benchmarks.worker_round import measure_round

            result |= measure_round(detector, job, tell)
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


def tell(event: str, **values: object) -> None:
    """Write an event to the suite, at once."""
    sys.stdout.write(EVENT_PREFIX + json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def high_water_mark(status: Path) -> int | None:
    """Return the peak of resident memory, bytes, that Linux gives in a process's status file; None: it gives none.

    Raises:
        OSError: there is no such file, or the process is gone.
    """
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def peak_resident_bytes() -> int | None:
    """Return the most physical memory this process has held since it was started, in bytes; None: not known here.

    On Linux this is VmHWM of /proc/self/status and not `ru_maxrss` of getrusage: that one is carried over fork and exec
    (see `exec_mmap` in the kernel's fs/exec.c), so a child of a large process starts with the parent's figure. Pages
    of mapped files (libraries, weights) count as long as they are resident; a GPU's own memory does not.
    """
    with suppress(OSError):
        peak_bytes = high_water_mark(Path("/proc/self/status"))
        if peak_bytes is not None:
            return peak_bytes
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
