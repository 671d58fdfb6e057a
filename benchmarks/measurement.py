"""Measuring one bundle: the processes it takes, and what their results mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.benchmarks.accuracy import Outputs, judge
from vae_edge.benchmarks.images import BenchmarkImages
from vae_edge.benchmarks.jobs import SERIES, MeasureJob, StartJob
from vae_edge.benchmarks.latency import median, summarize
from vae_edge.benchmarks.processes import WorkerResult, run_worker
from vae_edge.benchmarks.report import BundleResult, LatencyRecord, MemoryRecord, StartRecord, ThroughputRecord
from vae_edge.benchmarks.reservations import bundle_warnings, busy_warnings
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError
from vae_edge.manifest import Manifest

_MEASURE_STEPS = 6
"""Steps that a `MeasureJob` tells of: engine, predict, file, decode and resize, throughput, outputs."""


@dataclass(frozen=True)
class SuiteProgress:
    """What is being measured, and how far the whole benchmark is."""

    bundle: str
    doing: str
    step: int
    """Steps done before this one."""
    n_steps: int


@dataclass
class Row:
    """A bundle while it is being measured."""

    name: str
    folder: Path
    manifest: Manifest | None = None
    result: BundleResult = field(default_factory=lambda: BundleResult(name=""))
    outputs: Outputs | None = None
    samples: dict[str, Any] = field(default_factory=dict)


class Steps:
    """Counts steps and tells the caller."""

    def __init__(self, n_steps: int, progress: Callable[[SuiteProgress], None] | None) -> None:
        self.done = 0
        self._n_steps = n_steps
        self._progress = progress

    def begin(self, bundle: str, doing: str) -> None:
        """Tell that a step begins, and count it."""
        if self._progress is not None:
            self._progress(SuiteProgress(bundle, doing, min(self.done, self._n_steps), self._n_steps))
        self.done += 1


def steps_of_a_bundle(settings: SuiteSettings) -> int:
    """Return how many steps one bundle takes: its starts, those of its `MeasureJob`, and judging it."""
    return settings.n_starts + _MEASURE_STEPS + 1


def measure_row(row: Row, images: BenchmarkImages, settings: SuiteSettings, maps_file: Path, steps: Steps) -> list[str]:
    """Run all processes of one bundle and fill the row; return warnings.

    Raises:
        VaeEdgeError: the bundle cannot be read or cannot run; the message is the reason.
    """
    row.manifest = Bundle.open(row.folder, check_files=False).manifest
    starts = _run_starts(row, images, settings, steps)

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            steps.begin(row.name, event["name"])
        elif event["event"] == "outputs" and event["done"] == 1:
            steps.begin(row.name, "outputs")

    measured = run_worker(
        MeasureJob(
            bundle=str(row.folder.resolve()),
            device=settings.device,
            threads=settings.threads,
            images=tuple(str(path.resolve()) for path in images.timing),
            rules=settings.rules,
            throughput_s=settings.throughput_s,
            judged=tuple(str(file.path.resolve()) for file in images.judged),
            maps_file=str(maps_file),
        ),
        settings.worker_timeout_s,
        listen,
    )
    row.outputs = Outputs(
        np.asarray(measured["scores"], dtype=np.float64),
        np.load(maps_file, mmap_mode="r", allow_pickle=False),
        row.manifest.thresholds.image_threshold,
    )
    series: dict[str, Any] = {name: measured["series"][name] for name in SERIES}
    row.samples = {
        "unit": "ns",
        "latency": series,
        "start": [start.first_result_ns for start in starts],
        "throughput": measured["throughput"],
    }
    row.result = describe(
        row,
        device=measured["device"],
        runtime=measured["runtime"],
        start=_start_record(starts),
        memory=_memory_record(starts, min(settings.n_memory_images, len(images.timing))),
        latency=LatencyRecord(**{name: summarize(samples["measured_ns"]) for name, samples in series.items()}),
        throughput=_throughput_record(measured["throughput"]),
    )
    warnings = busy_warnings(row.name, measured["foreign_cores"], measured["stolen_share"])
    warnings += bundle_warnings(row.result, row.manifest)
    if images.has_labels:
        steps.begin(row.name, "accuracy")
        try:
            metrics = judge(images.judged, row.manifest.preparation, row.outputs)
            row.result = row.result.model_copy(update={"accuracy": metrics})
        except InputError as error:
            warnings.append(f"{row.name}: no accuracy: {error}")
    return warnings


def _run_starts(row: Row, images: BenchmarkImages, settings: SuiteSettings, steps: Steps) -> list[WorkerResult]:
    job = StartJob(
        bundle=str(row.folder.resolve()),
        device=settings.device,
        threads=settings.threads,
        images=tuple(str(path.resolve()) for path in images.timing[: settings.n_memory_images]),
    )
    starts = []
    for number in range(settings.n_starts):
        steps.begin(row.name, f"start {number + 1} of {settings.n_starts}")
        starts.append(run_worker(job, settings.worker_timeout_s))
    return starts


def describe(row: Row, **measured: Any) -> BundleResult:
    """Return a result with what the manifest says, where it could be read."""
    if row.manifest is None:
        return BundleResult(name=row.name, **measured)
    manifest = row.manifest
    return BundleResult(
        name=row.name,
        target=manifest.target,
        precision=manifest.precision,
        height=manifest.preparation.height,
        width=manifest.preparation.width,
        run=manifest.provenance.run,
        run_fingerprint=manifest.provenance.run_fingerprint,
        size_bytes=Bundle(row.folder, manifest).size_bytes,
        exported_parity=manifest.parity,
        **measured,
    )


def _start_record(starts: Sequence[WorkerResult]) -> StartRecord:
    return StartRecord(
        n_starts=len(starts),
        first_result_s=median([start.first_result_ns / 1e9 for start in starts if start.first_result_ns is not None]),
        import_s=median([start["import_s"] for start in starts]),
        open_s=median([start["open_s"] for start in starts]),
        first_predict_s=median([start["first_predict_s"] for start in starts]),
    )


def _memory_record(starts: Sequence[WorkerResult], n_images: int) -> MemoryRecord | None:
    peaks = [start["peak_resident_bytes"] for start in starts if start["peak_resident_bytes"] is not None]
    before = [start["before_open_bytes"] for start in starts if start["before_open_bytes"] is not None]
    if not peaks:
        return None
    return MemoryRecord(
        peak_resident_bytes=max(peaks), before_open_bytes=max(before) if before else None, n_images=n_images
    )


def _throughput_record(counted: dict[str, int]) -> ThroughputRecord:
    elapsed_s = counted["elapsed_ns"] / 1e9
    return ThroughputRecord(
        images_per_s=counted["n_images"] / elapsed_s, n_images=counted["n_images"], elapsed_s=elapsed_s
    )
