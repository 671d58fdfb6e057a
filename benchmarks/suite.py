"""Measuring a set of bundles in rounds, comparing them, and writing down what was found.

From what was measured of all bundles to the report and the files beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.measure.conditions import MachineFacts, load_average, machine_facts
from vae_edge.benchmarks.measure.measurer import Row, Steps, SuiteProgress, measure_all, named_bundles
from vae_edge.benchmarks.measure.plan import BenchmarkImages, SuiteSettings, choose_images
from vae_edge.benchmarks.measure.samples import speed_ratios
from vae_edge.benchmarks.measure.statistics import Ratio
from vae_edge.benchmarks.report.accuracy import judge, template_method
from vae_edge.benchmarks.report.accuracy_records import Comparison, SimpleMethodRecord
from vae_edge.benchmarks.report.choosing import recommend
from vae_edge.benchmarks.report.examples import Seen, draw_examples
from vae_edge.benchmarks.report.files import check_report_folder, sample_file_name, samples_file, write_report
from vae_edge.benchmarks.report.records import (
    IMAGES_FOLDER,
    BundleResult,
    Objective,
    Report,
    Requirement,
)
from vae_edge.benchmarks.report.references import Candidate, choose_references, compare
from vae_edge.benchmarks.report.reproducing import command_line
from vae_edge.benchmarks.report.reservations import bundle_warnings, machine_warnings
from vae_edge.benchmarks.report.summary import measured_fields
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.image import Preparation
from vae_edge.train.data.inspection_set import InspectionSet


def run_suite(
    bundles: Sequence[Path],
    data: str | Path | InspectionSet | None = None,
    settings: SuiteSettings | None = None,
    *,
    requirements: Sequence[Requirement] = (),
    objective: Objective | None = None,
    report_folder: Path | None = None,
    progress: Callable[[SuiteProgress], None] | None = None,
) -> Report:
    """Measure bundles on this machine.

    A bundle that cannot run stays in the report with the reason and keeps none of the others from running. Ctrl-C after
    the first complete round of a bundle ends the measuring; the report is made of what is complete and says so.

    Args:
        bundles: bundles, or folders of bundles.
        data: see `vae_edge.benchmarks.measure.plan.choose_images`.
        settings: how to measure; None: the defaults.
        requirements: what the bundle to ship has to keep.
        objective: what it is to be the best in.
        report_folder: where to write report.json, the raw samples and the pictures; None: nothing is written. Pages are
            made from it, see `vae_edge.benchmarks.report.html.render_report`.
        progress: called when a step begins.

    Raises:
        InputError: there is no bundle, the data cannot be used, the reference or the baseline is none of the bundles,
            or the report's folder holds something else.
    """
    settings = settings or SuiteSettings()
    if report_folder is not None:
        check_report_folder(report_folder)
    rows = [Row(name, folder) for name, folder in named_bundles(bundles).items()]
    for what, asked in (("reference", settings.reference), ("baseline", settings.baseline)):
        if asked is not None and asked not in [row.name for row in rows]:
            raise UsageError(
                f"the {what} {asked!r} is none of the bundles; choose from {', '.join(row.name for row in rows)}"
            )
    machine = machine_facts()
    images = choose_images(data, settings.n_timing_images)
    warnings = machine_warnings(machine, settings)
    steps = Steps(len(rows) * (settings.rounds + 2), progress)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vae-bench-maps-") as scratch:
        interrupted = measure_all(rows, images, settings, Path(scratch), steps)
        report, files = make_report(
            Findings(
                rows=rows,
                images=images,
                settings=settings,
                machine=machine,
                warnings=tuple(warnings),
                interrupted_because=interrupted,
                elapsed_s=time.perf_counter() - begin,
                requirements=tuple(requirements),
                objective=objective,
            ),
            steps,
        )
    if report_folder is not None:
        write_report(report_folder, report, files)
    return report


@dataclass(frozen=True)
class Findings:
    """Everything that a benchmark has gathered when its last round is over."""

    rows: Sequence[Row]
    images: BenchmarkImages
    settings: SuiteSettings
    machine: MachineFacts
    warnings: tuple[str, ...]
    interrupted_because: str | None
    elapsed_s: float
    requirements: tuple[Requirement, ...] = ()
    objective: Objective | None = None


def make_report(findings: Findings, steps: Steps) -> tuple[Report, dict[str, bytes]]:
    """Return the report and the files that lie beside report.json, by name."""
    rows, images, settings = findings.rows, findings.images, findings.settings
    warnings = list(findings.warnings)
    references, notes = _references(rows, settings.reference)
    baseline = _baseline(rows, settings.baseline, references, warnings)
    files: dict[str, bytes] = {}
    bundles = []
    for row in rows:
        steps.begin(row.name, "accuracy")
        result = _describe(row, settings)
        if row.has_run:
            result = result.model_copy(
                update={
                    "is_reference": references.get(row.name) == row.name,
                    "is_baseline": baseline is not None and row.name == baseline.name,
                    "ratios": {} if baseline in (None, row) else speed_ratios(row.samples, baseline.samples),
                    "comparison": _comparison(row, rows, references, images, warnings),
                    "accuracy": _accuracy(row, images, warnings),
                }
            )
            record, content = samples_file(sample_file_name(row.name, list(files)), row.samples.as_dict())
            files[record.name] = content
            result = result.model_copy(update={"samples": record})
            assert row.manifest is not None
            warnings += bundle_warnings(result, row.manifest, settings)
        if row.has_run and row.failure is not None:
            n = len(row.samples.rounds)
            warnings.append(f"{row.name}: it failed after {n} round{'s' * (n > 1)}: {row.failure}")
        bundles.append(result)
    examples, pictures = _examples(findings, references, warnings)
    samples_of = {row.name: row.samples for row in rows if row.has_run}

    def ratio(metric: str, bundle: str, other: str) -> Ratio | None:
        return speed_ratios(samples_of[bundle], samples_of[other]).get(metric)

    report = Report(
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        elapsed_s=findings.elapsed_s,
        interrupted_because=findings.interrupted_because,
        reproduce=command_line(
            settings, images.record.source, [row.name for row in rows], findings.requirements, findings.objective
        ),
        settings=settings,
        machine=findings.machine.model_copy(update={"load_average_end": load_average()}),
        data=images.record,
        recommendation=recommend(bundles, findings.requirements, findings.objective, ratio) if samples_of else None,
        baseline=None if baseline is None else baseline.name,
        reference_notes=notes,
        bundles=tuple(bundles),
        simple_methods=_simple_methods(rows, images) if settings.simple_method else (),
        examples=examples,
        warnings=tuple(warnings),
    )
    files |= {f"{IMAGES_FOLDER}/{name}": picture for name, picture in pictures.items()}
    return report, files


def _describe(row: Row, settings: SuiteSettings) -> BundleResult:
    """Return a result with what the manifest says, where it could be read, and what was measured."""
    fields: dict[str, Any] = measured_fields(row.samples, settings) if row.has_run else {}
    if not row.has_run:
        fields["not_run_because"] = row.failure or "the benchmark was interrupted before its first round"
    if row.manifest is None:
        return BundleResult(name=row.name, **fields)
    manifest = row.manifest
    bundle = Bundle(row.folder, manifest)
    return BundleResult(
        name=row.name,
        target=manifest.target,
        precision=manifest.precision,
        height=manifest.preparation.height,
        width=manifest.preparation.width,
        run=manifest.provenance.run,
        run_fingerprint=manifest.provenance.run_fingerprint,
        model_sha256=bundle.model_sha256,
        size_bytes=bundle.size_bytes,
        exported_parity=manifest.parity,
        **fields,
    )


def _references(rows: Sequence[Row], asked: str | None) -> tuple[dict[str, str], tuple[str, ...]]:
    return choose_references(
        [
            Candidate(row.name, row.manifest.target, row.manifest.precision, row.manifest.provenance.run_fingerprint)
            for row in rows
            if row.manifest is not None and row.outputs is not None and row.has_run
        ],
        asked,
    )


def _baseline(rows: Sequence[Row], asked: str | None, references: dict[str, str], warnings: list[str]) -> Row | None:
    """Return the row that ratios are to: the one asked for, or the first bundle's reference, or the first that ran."""
    ran = {row.name: row for row in rows if row.has_run}
    if asked is not None:
        if asked not in ran:
            warnings.append(f"the baseline asked for, {asked}, could not run: there are no ratios")
        return ran.get(asked)
    first = next(iter(ran), None)
    return None if first is None else ran[references.get(first, first)]


def _comparison(
    row: Row, rows: Sequence[Row], references: dict[str, str], images: BenchmarkImages, warnings: list[str]
) -> Comparison | None:
    reference = next((other for other in rows if other.name == references.get(row.name)), None)
    if reference is None or reference is row:
        return None
    assert row.outputs is not None
    assert row.manifest is not None
    assert reference.outputs is not None
    assert reference.manifest is not None
    try:
        return compare(
            [file.name for file in images.judged],
            reference.name,
            reference.outputs,
            row.outputs,
            same_run=row.manifest.provenance.run_fingerprint == reference.manifest.provenance.run_fingerprint,
            defects=[file.defect for file in images.judged] if images.has_labels else None,
        )
    except InputError as error:
        warnings.append(f"{row.name}: not compared with {reference.name}: {error}")
        return None


def _accuracy(row: Row, images: BenchmarkImages, warnings: list[str]) -> Any:
    if not images.has_labels or row.outputs is None or row.manifest is None:
        return None
    try:
        return judge(images.judged, row.manifest.preparation, row.outputs)
    except InputError as error:
        warnings.append(f"{row.name}: no accuracy: {error}")
        return None


def _examples(findings: Findings, references: dict[str, str], warnings: list[str]) -> Any:
    if not findings.images.has_labels or not findings.settings.n_examples:
        return (), {}
    outputs = {row.name: row.outputs for row in findings.rows}
    seen = [
        Seen(
            bundle=row.name,
            preparation=row.manifest.preparation,
            outputs=row.outputs,
            reference=None if references[row.name] == row.name else outputs[references[row.name]],
        )
        for row in findings.rows
        if row.manifest is not None and row.outputs is not None and row.name in references
    ]
    try:
        return draw_examples(findings.images.judged, seen, findings.settings.n_examples)
    except InputError as error:
        warnings.append(f"no example pictures: {error}")
        return (), {}


def _simple_methods(rows: Sequence[Row], images: BenchmarkImages) -> tuple[SimpleMethodRecord, ...]:
    """Measure the method without a network once for every size that a model has."""
    if not images.has_labels:
        return ()
    sizes: list[Preparation] = []
    for row in rows:
        if row.manifest is not None and row.has_run and row.manifest.preparation not in sizes:
            sizes.append(row.manifest.preparation)
    found = [template_method(images.train, images.judged, preparation) for preparation in sizes]
    return tuple(record for record in found if record is not None)
