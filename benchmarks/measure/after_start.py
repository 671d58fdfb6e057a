"""What the measured process (`worker.py`) does after the start: a round of timing, throughput, fixed rate, outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, Tensors
from vae_edge.benchmarks.measure.conditions import CpuClock
from vae_edge.benchmarks.measure.energy import EnergyMeter
from vae_edge.benchmarks.measure.instruments import PacedSource, count_stream, measure, spin_ns
from vae_edge.benchmarks.measure.jobs import LoadJob, OutputsJob, RoundJob, StartJob, StreamJob
from vae_edge.detector import Detector, Source
from vae_edge.errors import DeviceError
from vae_edge.image import prepare, read_image
from vae_edge.platform.conditions import frequency_mhz, temperature_c, throttle_count


def measure_round(detector: Detector, job: RoundJob) -> dict[str, Any]:
    """Time every series and stage once, then the throughput; record the state of the machine before and after."""
    preparation = detector.bundle.manifest.preparation
    decoded = [read_image(path, white_level=preparation.white_level) for path in job.images]
    prepared = [prepare(image, preparation) for image in decoded]
    feeds = [{"image": image[None]} for image in prepared]
    spin_before = spin_ns()
    throttled = throttle_count()
    clock = CpuClock()
    series = {
        "engine": measure(detector.backend.run, feeds, job.rules),
        "predict": measure(detector.predict, decoded, job.rules),
    }
    with EnergyMeter() as meter:
        series["file"] = measure(detector.predict, job.images, job.rules)
    foreign, stolen = clock.foreign_cores(), clock.stolen_share()
    series |= _stages(detector, job, decoded, prepared)
    spin_after = spin_ns()
    throttled_after = throttle_count()
    result = {
        "series": {name: samples.as_dict() for name, samples in series.items()},
        "spin_before_ns": spin_before,
        "spin_after_ns": spin_after,
        "frequency_mhz": frequency_mhz(),
        "temperature_c": temperature_c(),
        "n_throttled": None if throttled is None or throttled_after is None else throttled_after - throttled,
        "foreign_cores": foreign,
        "stolen_share": stolen,
        "energy": {
            "joules": meter.reading.joules,
            # The counter runs during the warm-up as well.
            "n_images": len(series["file"].warmup_ns) + len(series["file"].measured_ns),
            "elapsed_ns": sum(series["file"].warmup_ns) + sum(series["file"].measured_ns),
            "source": meter.reading.source,
            "not_available_because": meter.reading.not_available_because,
        },
    }
    result["throughput"] = count_verdicts(detector, job.images, 1, job.throughput_s)
    result["stream_layout"] = str(detector.stream_backend().layout)
    return result


def _stages(
    detector: Detector, job: RoundJob, decoded: list[NDArray[np.uint8]], prepared: list[NDArray[np.uint8]]
) -> dict[str, Any]:
    """Time the steps around the engine, each alone; they serve only the split, so they get a tenth of the time."""
    preparation = detector.bundle.manifest.preparation
    short = replace(job.rules, warmup_s=0.1 * job.rules.warmup_s, round_s=0.1 * job.rules.round_s)
    outputs = detector.backend.run({"image": prepared[0][None]})
    decider = Detector(detector.bundle, _StoredOutputs(detector.backend, outputs))
    return {
        "decode": measure(lambda path: read_image(path, white_level=preparation.white_level), job.images, short),
        "resize": measure(lambda image: prepare(image, preparation), decoded, short),
        "decision": measure(decider.predict, prepared, short),
    }


class _StoredOutputs(Backend):
    """Returns the same outputs at every call, so that timing `Detector.predict` measures only its own work."""

    def __init__(self, like: Backend, outputs: Tensors) -> None:
        super().__init__(
            like.inputs, like.outputs, max_batch=None, device=like.device, layout=like.layout, version=like.version
        )
        self._outputs = outputs

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._outputs

    def _free(self) -> None:
        pass


_WARMING = 16
"""Verdicts that warm up a stream before images arrive at a fixed rate."""

_PATIENCE = 3.0
"""After this many times the duration of the load, images without a verdict are given up."""


def do(job: StreamJob | LoadJob | OutputsJob | StartJob) -> dict[str, Any]:
    """Do one of these jobs and return its result."""
    if isinstance(job, StreamJob):
        return _run_stream(job)
    if isinstance(job, LoadJob):
        return _run_load(job)
    assert isinstance(job, OutputsJob)
    return _take_outputs(job)


def count_verdicts(detector: Detector, images: Sequence[Source], batch_size: int, duration_s: float) -> dict[str, int]:
    """Count the verdicts of `Detector.stream` over images in rotation, see `count_stream`."""
    return count_stream(detector.stream(cycle(images), batch_size=batch_size), duration_s, batch_size)


def _run_stream(job: StreamJob) -> dict[str, Any]:
    with Detector.open(
        job.bundle,
        device=job.device,
        threads=job.threads,
        arithmetic=job.arithmetic,
        hint="throughput",
        requests=job.requests,
    ) as detector:
        result: dict[str, Any] = count_verdicts(detector, job.images, job.batch_size, job.throughput_s)
        return result | {"layout": str(detector.stream_backend().layout)}


def _run_load(job: LoadJob) -> dict[str, Any]:
    """Judge images that become due at a fixed rate; see `PacedSource`.

    Returns:
        `latencies_ns` from when each image was due until its verdict arrived, and `n_waiting`: images that were due and
        had no verdict when the last one became due. If the detector is far too slow, the wait is cut off: the latencies
        of `n_without_verdict` images are the times they had waited by then, which are lower bounds.
    """
    with Detector.open(job.bundle, device=job.device, threads=job.threads, arithmetic=job.arithmetic) as detector:
        white_level = detector.bundle.manifest.preparation.white_level
        frames = [read_image(path, white_level=white_level) for path in job.images]
        # The stream's own layout is loaded and warm before the first image is due.
        for _ in detector.stream(frames[:1] * _WARMING):
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


def _take_outputs(job: OutputsJob) -> dict[str, Any]:
    """Compute the scores (returned) and maps (written to the job's file) of all images, and run the references.

    Raises:
        DeviceError: a faster arithmetic was asked for, and it computes in FP32.
    """
    with Detector.open(job.bundle, device=job.device, threads=job.threads, arithmetic=job.arithmetic) as detector:
        if job.arithmetic == "auto" and detector.backend.reduced_to is None:
            raise DeviceError(f"it would compute in FP32 all the same ({detector.backend.device.reason})")
        check = None if detector.bundle.manifest.references is None else detector.check_references()
        preparation = detector.bundle.manifest.preparation
        shape = (len(job.images), preparation.height, preparation.width)
        # Written as they come: the maps of a large test set need not fit into a small device's memory.
        maps = np.lib.format.open_memmap(job.maps_file, mode="w+", dtype=np.float32, shape=shape)
        scores = []
        for position, prediction in enumerate(detector.stream(job.images)):
            maps[position] = prediction.anomaly_map
            scores.append(prediction.score)
        maps.flush()
        references = None if check is None else {"agrees": check.agrees, "measures": check.lines()}
        return {"scores": scores, "references": references}
