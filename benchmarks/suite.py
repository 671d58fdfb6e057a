"""Measuring a set of bundles: one process for each thing that must be a bundle's own, then what compares them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.benchmarks.accuracy import BaselineRecord, Outputs, compare, judge, template_baseline
from vae_edge.benchmarks.images import BenchmarkImages, choose_images
from vae_edge.benchmarks.jobs import SERIES, MeasureJob, StartJob
from vae_edge.benchmarks.latency import median, summarize
from vae_edge.benchmarks.machine import load_average, machine_facts
from vae_edge.benchmarks.markdown import to_markdown
from vae_edge.benchmarks.processes import WorkerResult, run_worker
from vae_edge.benchmarks.reference import Candidate, choose_references
from vae_edge.benchmarks.report import (
    BundleResult,
    LatencyRecord,
    MemoryRecord,
    Report,
    Samples,
    StartRecord,
    ThroughputRecord,
    check_report_folder,
    sample_file_name,
    write_report,
)
from vae_edge.benchmarks.reservations import bundle_warnings, busy_warnings, machine_warnings
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.image import Preparation
from vae_edge.manifest import Manifest
from vae_edge.train.inspection_set import InspectionSet

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
class _Row:
    """A bundle while it is being measured."""

    name: str
    folder: Path
    manifest: Manifest | None = None
    result: BundleResult = field(default_factory=lambda: BundleResult(name=""))
    outputs: Outputs | None = None
    samples: dict[str, Any] = field(default_factory=dict)


class _Steps:
    """Counts steps and tells the caller."""

    def __init__(self, n_steps: int, progress: Callable[[SuiteProgress], None] | None) -> None:
        self.done = 0
        self._n_steps = n_steps
        self._progress = progress

    def begin(self, bundle: str, doing: str) -> None:
        if self._progress is not None:
            self._progress(SuiteProgress(bundle, doing, min(self.done, self._n_steps), self._n_steps))
        self.done += 1


def run_suite(
    bundles: Sequence[Path],
    data: str | Path | InspectionSet | None = None,
    settings: SuiteSettings | None = None,
    *,
    report_folder: Path | None = None,
    progress: Callable[[SuiteProgress], None] | None = None,
) -> Report:
    """Measure bundles on this machine.

    A bundle that cannot run stays in the report with the reason and keeps none of the others from running.

    Args:
        bundles: bundles, or folders of bundles.
        data: see `vae_edge.benchmarks.images.choose_images`.
        settings: how to measure; None: the defaults.
        report_folder: where to write report.json, report.md and the raw samples; None: nothing is written.
        progress: called when a step begins.

    Raises:
        InputError: there is no bundle, the data cannot be used, the reference is none of the bundles, or the report's
            folder holds something else.
    """
    settings = settings or SuiteSettings()
    if report_folder is not None:
        check_report_folder(report_folder)
    rows = [_Row(name, folder) for name, folder in named_bundles(bundles).items()]
    if settings.reference is not None and settings.reference not in [row.name for row in rows]:
        raise InputError(
            f"the reference {settings.reference!r} is none of the bundles; "
            f"choose from {', '.join(row.name for row in rows)}"
        )
    machine = machine_facts()
    images = choose_images(data, settings.n_timing_images)
    warnings = machine_warnings(machine, settings)
    steps = _Steps(len(rows) * (settings.n_starts + _MEASURE_STEPS + 1), progress)
    with tempfile.TemporaryDirectory(prefix="vae-bench-maps-") as scratch:
        for position, row in enumerate(rows):
            maps_file = Path(scratch) / f"{position}.npy"
            try:
                warnings += _measure_row(row, images, settings, maps_file, steps)
            except VaeEdgeError as error:
                row.result = _described(row, not_run_because=str(error))
                steps.done = (position + 1) * (settings.n_starts + _MEASURE_STEPS + 1)
        notes = _compare_rows(rows, images, settings.reference, warnings)
        baselines = _baselines(rows, images) if settings.baselines else ()
    _name_samples(rows)
    report = Report(
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=settings,
        machine=machine.model_copy(update={"load_average_end": load_average()}),
        data=images.record,
        reference_notes=notes,
        bundles=tuple(row.result for row in rows),
        baselines=baselines,
        warnings=tuple(warnings),
    )
    if report_folder is not None:
        samples: dict[str, Samples] = {row.result.samples_file: row.samples for row in rows if row.result.samples_file}
        write_report(report_folder, report, to_markdown(report), samples)
    return report


def named_bundles(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the bundles in the given folders, each once, by a name that no other has.

    The name is the folder's; where two folders have the same one, with as much of the path as tells them apart.

    Raises:
        InputError: a path is no bundle and holds none, or there is no path.
    """
    found = {folder.resolve(): folder for path in paths for folder in bundles_in(Path(path))}
    if not found:
        raise InputError("no bundle was given; expected at least one folder that export made")
    names: dict[str, Path] = {}
    for place, folder in found.items():
        depth = 1
        while sum(other.parts[-depth:] == place.parts[-depth:] for other in found) > 1:
            depth += 1
        names["/".join(place.parts[-depth:])] = folder
    return names


def _measure_row(
    row: _Row, images: BenchmarkImages, settings: SuiteSettings, maps_file: Path, steps: _Steps
) -> list[str]:
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
    row.result = _described(
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


def _run_starts(row: _Row, images: BenchmarkImages, settings: SuiteSettings, steps: _Steps) -> list[WorkerResult]:
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


def _described(row: _Row, **measured: Any) -> BundleResult:
    """Return the row's result with what the manifest says, where it could be read."""
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


def _compare_rows(
    rows: Sequence[_Row], images: BenchmarkImages, asked: str | None, warnings: list[str]
) -> tuple[str, ...]:
    """Compare every bundle with its reference; return who is whose reference."""
    by_name = {row.name: row for row in rows}
    candidates = [
        Candidate(row.name, row.manifest.target, row.manifest.precision, row.manifest.provenance.run_fingerprint)
        for row in rows
        if row.manifest is not None and row.outputs is not None
    ]
    references, notes = choose_references(candidates, asked)
    names = [file.name for file in images.judged]
    for name, reference_name in references.items():
        row, reference = by_name[name], by_name[reference_name]
        if name == reference_name:
            row.result = row.result.model_copy(update={"is_reference": True})
            continue
        assert row.outputs is not None
        assert reference.outputs is not None
        same_run = row.result.run_fingerprint == reference.result.run_fingerprint
        try:
            comparison = compare(names, reference_name, reference.outputs, row.outputs, same_run=same_run)
        except InputError as error:
            warnings.append(f"{name}: not compared with {reference_name}: {error}")
            continue
        row.result = row.result.model_copy(update={"comparison": comparison})
    return notes


def _baselines(rows: Sequence[_Row], images: BenchmarkImages) -> tuple[BaselineRecord, ...]:
    """Measure the baseline once for every size that a model has."""
    if not images.has_labels:
        return ()
    sizes: list[Preparation] = []
    for row in rows:
        if row.manifest is not None and row.result.has_run and row.manifest.preparation not in sizes:
            sizes.append(row.manifest.preparation)
    found = [template_baseline(images.train, images.judged, preparation) for preparation in sizes]
    return tuple(record for record in found if record is not None)


def _name_samples(rows: Sequence[_Row]) -> None:
    taken: list[str] = []
    for row in rows:
        if row.samples:
            taken.append(sample_file_name(row.name, taken))
            row.result = row.result.model_copy(update={"samples_file": taken[-1]})
