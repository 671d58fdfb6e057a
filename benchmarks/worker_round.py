"""One round of timing in the measured process, after the start and the memory have been taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend, Tensors
from vae_edge.benchmarks.conditions import frequency_mhz, temperature_c, throttle_count
from vae_edge.benchmarks.energy import EnergyMeter
from vae_edge.benchmarks.jobs import RoundJob
from vae_edge.benchmarks.processor_load import CpuClock
from vae_edge.benchmarks.timing import measure, spin_ns
from vae_edge.benchmarks.worker_streams import count_verdicts
from vae_edge.detector import Detector
from vae_edge.image import prepare, read_image

Tell = Callable[..., None]


def measure_round(detector: Detector, job: RoundJob, tell: Tell) -> dict[str, Any]:
    """Time every series and stage once, then the throughput; with the state of the machine before and after."""
    tell("step", name="latency")
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
    tell("step", name="throughput")
    result["throughput"] = count_verdicts(detector, job.images, 1, job.throughput_s)
    result["stream_layout"] = str(detector.stream_backend().layout)
    return result


def _stages(
    detector: Detector, job: RoundJob, decoded: list[NDArray[np.uint8]], prepared: list[NDArray[np.uint8]]
) -> dict[str, Any]:
    """Time the steps around the engine, each alone; for the split only, so they get a tenth of the time."""
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
    """Gives the same outputs at every call: what is left of `Detector.predict` is what it does itself."""

    def __init__(self, like: Backend, outputs: Tensors) -> None:
        super().__init__(
            like.inputs, like.outputs, max_batch=None, device=like.device, layout=like.layout, version=like.version
        )
        self._outputs = outputs

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        return self._outputs

    def _free(self) -> None:
        pass
