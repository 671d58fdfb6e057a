"""What the measured process does with `Detector.stream`: throughput, images at a fixed rate, and the outputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from vae_edge.benchmarks.jobs import LoadJob, OutputsJob, StartJob, StreamJob
from vae_edge.benchmarks.pacing import PacedSource
from vae_edge.detector import Detector, Source
from vae_edge.image import read_image

Tell = Callable[..., None]

_FILLING = 16
"""Verdicts that fill the pipeline, at least, before they are counted."""

_PATIENCE = 3.0
"""Times the duration of a load after which images without a verdict are given up."""

_FILLING_SHARE = 0.1
"""Share of the time that the pipeline is filled for, at least."""


def do(job: StreamJob | LoadJob | OutputsJob | StartJob, tell: Tell) -> dict[str, Any]:
    """Do one of these jobs and return its result."""
    if isinstance(job, StreamJob):
        return _run_stream(job)
    if isinstance(job, LoadJob):
        return _run_load(job)
    assert isinstance(job, OutputsJob)
    return _take_outputs(job, tell)


def count_verdicts(detector: Detector, images: Sequence[Source], batch_size: int, duration_s: float) -> dict[str, int]:
    """Count the verdicts of `Detector.stream` over images, after the first ones have filled the pipeline.

    Returns:
        `n_images` that came after the first of them to be counted, and `elapsed_ns` between that one and the last.
    """
    begin = counting_from = time.perf_counter_ns()
    n_images, counting = 0, False
    end = begin
    for position, _ in enumerate(detector.stream(cycle(images), batch_size=batch_size)):
        end = time.perf_counter_ns()
        if counting:
            n_images += 1
            # Verdicts of a batch come together: only whole batches are counted.
            if end - counting_from >= duration_s * 1e9 and n_images % batch_size == 0:
                break
        elif (position + 1) % batch_size == 0:
            counting = position + 1 >= _FILLING and end - begin >= _FILLING_SHARE * duration_s * 1e9
            counting_from = end
    return {"n_images": n_images, "elapsed_ns": end - counting_from}


def _run_stream(job: StreamJob) -> dict[str, Any]:
    with Detector.open(
        job.bundle, device=job.device, threads=job.threads, hint="throughput", requests=job.requests
    ) as detector:
        result: dict[str, Any] = count_verdicts(detector, job.images, job.batch_size, job.throughput_s)
        return result | {"layout": str(detector.stream_backend().layout)}


def _run_load(job: LoadJob) -> dict[str, Any]:
    """Decide images that become due at a fixed rate; see `PacedSource`.

    Returns:
        `latencies_ns` from when each image was due until its verdict was here, and `n_waiting`: images that were due
        and had no verdict when the last one became due. A detector that is far too slow is not waited for:
        `n_without_verdict` images have the time they had waited when patience ended, so theirs are lower bounds.
    """
    with Detector.open(job.bundle, device=job.device, threads=job.threads) as detector:
        white_level = detector.bundle.manifest.preparation.white_level
        frames = [read_image(path, white_level=white_level) for path in job.images]
        # The stream's own layout is loaded and warm before the first image is due.
        for _ in detector.stream(frames[:1] * _FILLING):
            pass
        source = PacedSource(frames, job.fps, job.load_s)
        known_ns: list[int] = []
        begin = now = time.perf_counter_ns()
        for _ in detector.stream(source):
            now = time.perf_counter_ns()
            known_ns.append(now)
            if now - begin > _PATIENCE * job.load_s * 1e9:
                break
        due_ns = source.due_ns
        unknown = len(due_ns) - len(known_ns)
        return {
            "latencies_ns": [known - due for known, due in zip([*known_ns, *[now] * unknown], due_ns, strict=True)],
            "n_waiting": sum(known > due_ns[-1] for known in known_ns[:-1]) + unknown,
            "n_without_verdict": unknown,
            "layout": str(detector.stream_backend().layout),
        }


def _take_outputs(job: OutputsJob, tell: Tell) -> dict[str, Any]:
    """Take scores (here) and maps (into the job's file) of all images, and the device they were computed on."""
    with Detector.open(job.bundle, device=job.device, threads=job.threads) as detector:
        preparation = detector.bundle.manifest.preparation
        shape = (len(job.images), preparation.height, preparation.width)
        # Written as they come: the maps of a large test set need not fit into a small device's memory.
        maps = np.lib.format.open_memmap(job.maps_file, mode="w+", dtype=np.float32, shape=shape)
        scores = []
        for position, prediction in enumerate(detector.stream(job.images)):
            maps[position] = prediction.anomaly_map
            scores.append(prediction.score)
            tell("outputs", done=position + 1, total=len(job.images))
        maps.flush()
        return {"scores": scores}
