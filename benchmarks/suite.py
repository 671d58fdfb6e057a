"""Measuring a set of bundles, comparing them, and writing down what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from vae_edge.benchmarks.accuracy import BaselineRecord, compare, template_baseline
from vae_edge.benchmarks.images import BenchmarkImages, choose_images
from vae_edge.benchmarks.machine import machine_facts
from vae_edge.benchmarks.markdown import to_markdown
from vae_edge.benchmarks.measurement import Row, Steps, SuiteProgress, describe, measure_row, steps_of_a_bundle
from vae_edge.benchmarks.processor_load import load_average
from vae_edge.benchmarks.reference import Candidate, choose_references
from vae_edge.benchmarks.report import (
    Report,
    Samples,
    check_report_folder,
    sample_file_name,
    write_report,
)
from vae_edge.benchmarks.reservations import machine_warnings
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.bundle import bundles_in
from vae_edge.errors import InputError, UsageError, VaeEdgeError
from vae_edge.image import Preparation
from vae_edge.train.inspection_set import InspectionSet


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
    rows = [Row(name, folder) for name, folder in named_bundles(bundles).items()]
    if settings.reference is not None and settings.reference not in [row.name for row in rows]:
        raise UsageError(
            f"the reference {settings.reference!r} is none of the bundles; "
            f"choose from {', '.join(row.name for row in rows)}"
        )
    machine = machine_facts()
    images = choose_images(data, settings.n_timing_images)
    warnings = machine_warnings(machine, settings)
    n_steps = steps_of_a_bundle(settings)
    steps = Steps(len(rows) * n_steps, progress)
    with tempfile.TemporaryDirectory(prefix="vae-bench-maps-") as scratch:
        for position, row in enumerate(rows):
            maps_file = Path(scratch) / f"{position}.npy"
            try:
                warnings += measure_row(row, images, settings, maps_file, steps)
            except VaeEdgeError as error:
                row.result = describe(row, not_run_because=str(error))
                steps.done = (position + 1) * n_steps
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


def _compare_rows(
    rows: Sequence[Row], images: BenchmarkImages, asked: str | None, warnings: list[str]
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


def _baselines(rows: Sequence[Row], images: BenchmarkImages) -> tuple[BaselineRecord, ...]:
    """Measure the baseline once for every size that a model has."""
    if not images.has_labels:
        return ()
    sizes: list[Preparation] = []
    for row in rows:
        if row.manifest is not None and row.result.has_run and row.manifest.preparation not in sizes:
            sizes.append(row.manifest.preparation)
    found = [template_baseline(images.train, images.judged, preparation) for preparation in sizes]
    return tuple(record for record in found if record is not None)


def _name_samples(rows: Sequence[Row]) -> None:
    taken: list[str] = []
    for row in rows:
        if row.samples:
            taken.append(sample_file_name(row.name, taken))
            row.result = row.result.model_copy(update={"samples_file": taken[-1]})
