"""The measured process: does one job for one bundle, so that memory and start are that bundle's own.

Nothing but the standard library is imported before the clock runs, and `start` imports nothing beyond what a device's
program imports: no metrics, no statistics, no report.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.benchmarks.jobs import EVENT_PREFIX, MeasureJob, StartJob, read_job
from vae_edge.errors import VaeEdgeError

if TYPE_CHECKING:
    from vae_edge.detector import Detector


def main(arguments: list[str]) -> int:
    """Do the job of the file `arguments[0]` and write its result to `arguments[1]`."""
    job = read_job(Path(arguments[0]))
    try:
        result = run_start(job) if isinstance(job, StartJob) else run_measure(job)
        result["error"] = None
    except VaeEdgeError as error:
        result = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a runtime's own errors must reach the table as a reason, whatever they are
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")
    return 0 if result["error"] is None else 1


def run_start(job: StartJob) -> dict[str, Any]:
    """Open the bundle, give the first verdict, then predict the other images one by one, keeping nothing.

    Returns:
        Seconds of the import, of opening and of the first verdict (decoding included); the peak of resident memory in
        bytes at the end, and what it was before the bundle was opened. None where the system does not tell.
    """
    begin = time.perf_counter()
    from vae_edge.detector import Detector

    imported = time.perf_counter()
    before_bytes = peak_resident_bytes()
    with Detector.open(job.bundle, device=job.device, threads=job.threads) as detector:
        opened = time.perf_counter()
        detector.predict(job.images[0])
        first = time.perf_counter()
        tell("first_result")
        for image in job.images[1:]:
            detector.predict(image)
        peak_bytes = peak_resident_bytes()
    return {
        "import_s": imported - begin,
        "open_s": opened - imported,
        "first_predict_s": first - opened,
        "peak_resident_bytes": peak_bytes,
        "before_open_bytes": before_bytes,
    }


def run_measure(job: MeasureJob) -> dict[str, Any]:
    """Time the bundle, then its throughput, then take its outputs: scores here, maps into the job's file."""
    from vae_edge.benchmarks.processor_load import CpuClock
    from vae_edge.detector import Detector

    with Detector.open(job.bundle, device=job.device, threads=job.threads) as detector:
        clock = CpuClock()
        series = _time_all(detector, job)
        foreign = clock.foreign_cores()
        stolen = clock.stolen_share()
        tell("step", name="throughput")
        throughput = _throughput(detector, job)
        scores = _take_outputs(detector, job)
        return {
            "device": detector.backend.device.name,
            "device_reason": detector.backend.device.reason,
            "runtime": detector.backend.version,
            "series": series,
            "foreign_cores": foreign,
            "stolen_share": stolen,
            "throughput": throughput,
            "scores": scores,
        }


def _time_all(detector: Detector, job: MeasureJob) -> dict[str, Any]:
    from dataclasses import replace

    from vae_edge.benchmarks.latency import measure
    from vae_edge.image import prepare, read_image

    preparation = detector.bundle.manifest.preparation
    decoded = [read_image(path, white_level=preparation.white_level) for path in job.images]
    feeds = [{"image": prepare(image, preparation)[None]} for image in decoded]
    # Decoding and resizing are measured for the split only, so they get a tenth of the time.
    short = replace(job.rules, warmup_s=0.1 * job.rules.warmup_s, min_time_s=0.0, max_time_s=0.1 * job.rules.max_time_s)
    series: dict[str, Any] = {}
    tell("step", name="engine")
    series["engine"] = measure(detector.backend.run, feeds, job.rules)
    tell("step", name="predict")
    series["predict"] = measure(detector.predict, decoded, job.rules)
    tell("step", name="file")
    series["file"] = measure(detector.predict, job.images, job.rules)
    tell("step", name="decode and resize")
    series["decode"] = measure(lambda path: read_image(path, white_level=preparation.white_level), job.images, short)
    series["resize"] = measure(lambda image: prepare(image, preparation), decoded, short)
    return {name: samples.as_dict() for name, samples in series.items()}


def _throughput(detector: Detector, job: MeasureJob) -> dict[str, Any]:
    """Count the verdicts of `Detector.stream` over image files, after the first ones have filled the pipeline."""
    from itertools import cycle

    n_images = 0
    begin = end = 0
    stream = detector.stream(cycle(job.images))
    for position, _ in enumerate(stream):
        if position == job.rules.fewest_iterations:
            begin = time.perf_counter_ns()
            n_images = 0
            continue
        n_images += 1
        end = time.perf_counter_ns()
        if begin and end - begin >= job.throughput_s * 1e9:
            break
    return {"n_images": n_images, "elapsed_ns": end - begin}


def _take_outputs(detector: Detector, job: MeasureJob) -> list[float]:
    import numpy as np

    if not job.judged:
        return []
    preparation = detector.bundle.manifest.preparation
    shape = (len(job.judged), preparation.height, preparation.width)
    # Written as they come: the maps of a large test set need not fit into a small device's memory.
    maps = np.lib.format.open_memmap(job.maps_file, mode="w+", dtype=np.float32, shape=shape)
    scores = []
    for position, prediction in enumerate(detector.stream(job.judged)):
        maps[position] = prediction.anomaly_map
        scores.append(prediction.score)
        tell("outputs", done=position + 1, total=len(job.judged))
    maps.flush()
    return scores


def tell(event: str, **values: object) -> None:
    """Write an event to the suite, at once."""
    sys.stdout.write(EVENT_PREFIX + json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def peak_resident_bytes() -> int | None:
    """Return the most physical memory this process has held since it was started, in bytes; None: not known here.

    On Linux this is VmHWM of /proc/self/status and not `ru_maxrss` of getrusage: that one is carried over fork and exec
    (see `exec_mmap` in the kernel's fs/exec.c), so a child of a large process starts with the parent's figure. Pages
    of mapped files (libraries, weights) count as long as they are resident; a GPU's own memory does not.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
