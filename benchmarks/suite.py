"""One benchmark: measure a set of bundles alternately, compare them, choose one, and write a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.measure.conditions import MachineFacts, load_average, machine_facts
from vae_edge.benchmarks.measure.measurer import Row, Steps, SuiteProgress, measure_all, rows_of
from vae_edge.benchmarks.measure.plan import BenchmarkImages, SuiteSettings, choose_images, command_line
from vae_edge.benchmarks.measure.samples import speed_ratios
from vae_edge.benchmarks.measure.statistics import Ratio
from vae_edge.benchmarks.report.accuracy import judge, template_method
from vae_edge.benchmarks.report.choosing import options, recommend
from vae_edge.benchmarks.report.examples import Seen, draw_examples
from vae_edge.benchmarks.report.records.accuracy import AccuracyRecord, Comparison, ImageExample, SimpleMethodRecord
from vae_edge.benchmarks.report.records.files import check_report_folder, sample_file_name, samples_file, write_report
from vae_edge.benchmarks.report.records.report import (
    IMAGES_FOLDER,
    BundleResult,
    Objective,
    Report,
    Requirement,
)
from vae_edge.benchmarks.report.references import Candidate, choose_references, compare
from vae_edge.benchmarks.report.reservations import bundle_warnings, machine_warnings
from vae_edge.benchmarks.report.summary import measured_fields
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.image import Preparation
from vae_edge.platform.atomic import scratch_folder
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

    A bundle that cannot run stays in the report with the reason; the others still run. Ctrl-C after the first complete
    round of a bundle ends the measuring; the report is made from the complete rounds and says that it is not complete.

    Args:
        bundles: bundles, or folders of bundles.
        data: see `vae_edge.benchmarks.measure.plan.choose_images`.
        settings: how to measure; None: the defaults.
        requirements: what the bundle to ship must meet.
        objective: the metric to optimize.
        report_folder: where to write report.json, the raw samples and the pictures; None: nothing is written. Pages are
            made from it, see
            `vae_edge.benchmarks.report.pages.html.render_report`.
        progress: called when a step begins.

    Raises:
        InputError: there is no bundle, the data cannot be used, the reference or the baseline is not one of the
            bundles, or the report's folder holds something else.
    """
    settings = settings or SuiteSettings()
    if report_folder is not None:
        check_report_folder(report_folder)
    rows = rows_of(bundles, settings.arithmetic)
    for what, asked in (("reference", settings.reference), ("baseline", settings.baseline)):
        if asked is not None and asked not in [row.name for row in rows]:
            raise UsageError(
                f"the {what} {asked!r} is not one of the bundles; choose from {', '.join(row.name for row in rows)}"
            )
    machine = machine_facts()
    images = choose_images(data, settings.n_timing_images)
    steps = Steps(len(rows) * (settings.rounds + 2), progress)
    begin = time.perf_counter()
    with scratch_folder("maps") as scratch:
        try:
            interrupted = measure_all(rows, images, settings, scratch, steps)
            report, files = _ReportMaker(rows, images, settings).make(
                machine,
                requirements,
                objective,
                steps,
                interrupted_because=interrupted,
                elapsed_s=time.perf_counter() - begin,
            )
        finally:
            for row in rows:
                row.outputs = None  # Windows deletes no file that is mapped.
    if report_folder is not None:
        write_report(report_folder, report, files)
    return report


class _ReportMaker:
    """Assembles the report after the last round; what cannot be computed for a bundle becomes a warning."""

    def __init__(self, rows: Sequence[Row], images: BenchmarkImages, settings: SuiteSettings) -> None:
        self._rows, self._images, self._settings = rows, images, settings
        self._ran = {row.name: row for row in rows if row.has_run}
        self._warnings: list[str] = []
        self._files: dict[str, bytes] = {}

    def make(
        self,
        machine: MachineFacts,
        requirements: Sequence[Requirement],
        objective: Objective | None,
        steps: Steps,
        **known: Any,
    ) -> tuple[Report, dict[str, bytes]]:
        """Return the report and the files next to report.json, by name.

        Args:
            machine: as it was before the benchmark.
            requirements: what the bundle to ship must meet.
            objective: the metric to optimize.
            steps: counts what is done.
            known: other fields of the report.
        """
        settings, ran = self._settings, self._ran
        self._warnings += machine_warnings(machine, settings)
        candidates = [
            Candidate(
                row.name,
                row.manifest.target,
                row.manifest.precision,
                row.manifest.provenance.run_fingerprint,
                may_be_reference=row.arithmetic == "fp32" and (row.references is None or row.references.agrees),
            )
            for row in ran.values()
            if row.manifest is not None and row.outputs is not None
        ]
        references, notes = choose_references(candidates, settings.reference)
        baseline = self._baseline(references)
        bundles = []
        for row in self._rows:
            steps.begin(row.name, "accuracy")
            bundles.append(self._result(row, ran.get(references.get(row.name, "")), baseline))
        examples, pictures = self._examples(references)
        self._files |= {f"{IMAGES_FOLDER}/{name}": picture for name, picture in pictures.items()}

        def ratio(metric: str, bundle: str, other: str) -> Ratio | None:
            return speed_ratios(ran[bundle].samples, ran[other].samples).get(metric)

        source, names = self._images.record.source, [row.name for row in self._rows if row.arithmetic == "fp32"]
        report = Report(
            created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            reproduce=command_line(settings, source, names, options(requirements, objective)),
            settings=settings,
            machine=machine.model_copy(update={"load_average_end": load_average()}),
            data=self._images.record,
            recommendation=recommend(bundles, requirements, objective, ratio) if ran else None,
            baseline=None if baseline is None else baseline.name,
            reference_notes=notes,
            bundles=tuple(bundles),
            simple_methods=self._simple_methods() if settings.simple_method else (),
            examples=examples,
            warnings=tuple(self._warnings),
            **known,
        )
        return report, self._files

    def _baseline(self, references: dict[str, str]) -> Row | None:
        """Return the row that ratios refer to: the requested one, the first one's reference, or the first that ran."""
        asked = self._settings.baseline
        if asked is not None:
            if asked not in self._ran:
                self._warnings.append(f"the requested baseline, {asked}, could not run: there are no ratios")
            return self._ran.get(asked)
        first = next(iter(self._ran), None)
        return None if first is None else self._ran[references.get(first, first)]

    def _result(self, row: Row, reference: Row | None, baseline: Row | None) -> BundleResult:
        """Return a row of the report: what the manifest says, if it could be read, and what was measured."""
        fields: dict[str, Any] = {"name": row.name}
        if (manifest := row.manifest) is not None:
            bundle = Bundle(row.folder, manifest)
            fields |= {
                "target": manifest.target,
                "precision": manifest.precision,
                "height": manifest.preparation.height,
                "width": manifest.preparation.width,
                "run": manifest.provenance.run,
                "run_fingerprint": manifest.provenance.run_fingerprint,
                "model_sha256": bundle.model_sha256,
                "size_bytes": bundle.size_bytes,
                "exported_parity": manifest.parity,
                "detectability": manifest.detectability,
            }
        if not row.has_run or manifest is None:
            reason = row.failure or "the benchmark was interrupted before its first round"
            return BundleResult(not_run_because=reason, **fields)
        if row.references is not None:
            fields |= {"references_agree": row.references.agrees, "references": tuple(row.references.measures)}
        samples, content = samples_file(sample_file_name(row.name, list(self._files)), row.samples.as_dict())
        self._files[samples.name] = content
        result = BundleResult(
            is_reference=reference is row,
            is_baseline=baseline is row,
            ratios={} if baseline in (None, row) else speed_ratios(row.samples, baseline.samples),
            comparison=self._comparison(row, reference),
            accuracy=self._accuracy(row, manifest.preparation),
            samples=samples,
            **fields,
            **measured_fields(row.samples, self._settings),
        )
        self._warnings += bundle_warnings(result, manifest, self._settings)
        if row.failure is not None:
            n = len(row.samples.rounds)
            self._warnings.append(f"{row.name}: it failed after {n} round{'s' * (n > 1)}: {row.failure}")
        return result

    def _comparison(self, row: Row, reference: Row | None) -> Comparison | None:
        if reference is None or reference is row or row.outputs is None or reference.outputs is None:
            return None
        assert row.manifest is not None
        assert reference.manifest is not None
        files = self._images.judged
        try:
            return compare(
                [file.name for file in files],
                reference.name,
                reference.outputs,
                row.outputs,
                same_run=row.manifest.provenance.run_fingerprint == reference.manifest.provenance.run_fingerprint,
                defects=[file.defect for file in files] if self._images.has_labels else None,
            )
        except InputError as error:
            self._warnings.append(f"{row.name}: not compared with {reference.name}: {error}")
            return None

    def _accuracy(self, row: Row, preparation: Preparation) -> AccuracyRecord | None:
        if not self._images.has_labels or row.outputs is None:
            return None
        try:
            return judge(self._images.judged, preparation, row.outputs)
        except InputError as error:
            self._warnings.append(f"{row.name}: no accuracy: {error}")
            return None

    def _examples(self, references: dict[str, str]) -> tuple[tuple[ImageExample, ...], dict[str, bytes]]:
        if not self._images.has_labels or not self._settings.n_examples:
            return (), {}
        seen = [
            Seen(row.name, row.manifest.preparation, row.outputs, None if whose is row else whose.outputs)
            for row in self._rows
            if row.manifest is not None and row.outputs is not None and row.name in references
            for whose in [self._ran[references[row.name]]]
        ]
        try:
            return draw_examples(self._images.judged, seen, self._settings.n_examples)
        except InputError as error:
            self._warnings.append(f"no example pictures: {error}")
            return (), {}

    def _simple_methods(self) -> tuple[SimpleMethodRecord, ...]:
        """Measure the method without a network once for every size that a model has."""
        sizes: list[Preparation] = []
        for row in self._ran.values() if self._images.has_labels else ():
            if row.manifest is not None and row.manifest.preparation not in sizes:
                sizes.append(row.manifest.preparation)
        found = [template_method(self._images.train, self._images.judged, size) for size in sizes]
        return tuple(record for record in found if record is not None)
