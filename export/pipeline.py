"""From a run folder to bundles: every target is checked, compared with the trained model and published as a whole."""

from __future__ import annotations

import logging
import platform
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import vae_edge
from vae_edge.agreement import Outputs, run_backend
from vae_edge.backends.base import Backend, RuntimeOptions, open_backend
from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.bundle import Bundle, check_bundle_name_is_free, new_bundle
from vae_edge.decision import check_askable_rate
from vae_edge.detectability import Detectability
from vae_edge.errors import BundleError, DeviceError, MissingDependencyError, ParityError, UsageError, VaeEdgeError
from vae_edge.export.low_precision import LowPrecision, QuantizedModel
from vae_edge.export.parity import check_parity, measure_parity
from vae_edge.export.provenance import write_provenance
from vae_edge.export.references import BundleReferences, Pictures, TrainedReferences, drawn_pictures, given_pictures
from vae_edge.export.settings import LowPrecisionSettings, ReferenceSettings
from vae_edge.export.targets.base import ONNX_FILE, Source, TargetExporter, open_exporter
from vae_edge.export.targets.onnx_target import export_onnx, export_program
from vae_edge.export.trained_model import TrainedModel, measure_trained_model
from vae_edge.manifest import (
    FP32_TOLERANCE,
    MANIFEST_FILE,
    AccuracyRecord,
    Manifest,
    ParityRecord,
    Provenance,
    RuntimeRecord,
    Thresholds,
    graph_inputs,
    graph_outputs,
)
from vae_edge.manifest_file import manifest_text
from vae_edge.platform.atomic import scratch_folder
from vae_edge.platform.machine import installed_version, installed_versions
from vae_edge.platform.work import StepProgress
from vae_edge.records import file_record
from vae_edge.reference_file import REFERENCES_FILE
from vae_edge.targets import SUPPORTED, Precision, Target, combinations
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.run.folder import RunFolder

_logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "tensorrt", "tensorrt-rtx", "numpy")


@dataclass(frozen=True)
class ExportSettings:
    """What to export and how."""

    targets: tuple[Target, ...]
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    name: str | None = None
    """First part of the bundles' names; None: the run folder's name."""
    data_root: Path | None = None
    """Where the run's images are now; None: where they were in training."""
    false_alarm_rate: float | None = None
    """None: the run's own."""
    scoring: ScoringSettings | None = None
    """None: the run's own."""
    skip_missing_runtimes: bool = False
    """Leave out targets whose runtime is not installed instead of failing on them."""
    only_supported: bool = False
    """Leave out the combinations of target and precision that do not exist instead of refusing them."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    low_precision: LowPrecisionSettings = field(default_factory=LowPrecisionSettings)
    references: ReferenceSettings = field(default_factory=ReferenceSettings)


@dataclass(frozen=True)
class ExportResult:
    """One bundle, or the reason why it was not made."""

    target: Target
    precision: Precision
    bundle: Bundle | None
    error: VaeEdgeError | None = None
    skipped: str | None = None
    warnings: tuple[str, ...] = ()


def export_run(
    run: RunFolder, out: Path, settings: ExportSettings, *, progress: StepProgress | None = None
) -> list[ExportResult]:
    """Export a trained model to every target asked for, each as a bundle in `out`.

    If one target fails, the others are still made; its result holds the error.

    Raises:
        InputError: there is nothing to export, a name is taken, or the run's images cannot be found.
        BundleError: the run folder was changed.
    """
    report = progress or _no_progress
    pairs = combinations(settings.targets, settings.precisions, only_supported=settings.only_supported)
    if not pairs:
        raise UsageError(f"no target was given; expected one or more of {', '.join(SUPPORTED)}, or all")
    if settings.false_alarm_rate is not None:
        check_askable_rate(settings.false_alarm_rate, "false-alarm rate")
    name = settings.name or run.folder.resolve().name
    folders = {pair: out / f"{name}-{pair[0]}-{pair[1]}" for pair in pairs}
    for folder in folders.values():
        check_bundle_name_is_free(folder)

    # Before anything that takes long, for a folder may have none that can be used.
    pictures, remarks = _choose_pictures(run, settings.references)
    trained = measure_trained_model(
        run,
        scoring=settings.scoring,
        data_root=settings.data_root,
        false_alarm_rate=settings.false_alarm_rate,
        progress=report,
    )
    references = _measure_references(trained, pictures, report)
    report("tracing the graph", 0, 1)
    program = export_program(trained.graph)
    report("tracing the graph", 1, 1)
    results = []
    with scratch_folder("export") as scratch:
        onnx_path = Path(scratch) / ONNX_FILE
        report("writing ONNX", 0, 1)
        metadata = _model_metadata(trained, name)
        export_onnx(program, onnx_path, metadata=metadata)
        report("writing ONNX", 1, 1)
        source = Source(program, onnx_path, metadata, settings.engine, report)
        low_precision = LowPrecision(trained, settings.low_precision, settings.data_root, report)
        for (target, precision), folder in folders.items():
            try:
                exporter = open_exporter(target, source)
                one = _BundleExport(trained, references, low_precision, exporter, precision, report).publish(folder)
                results.append(replace(one, warnings=(*one.warnings, *remarks)))
            except MissingDependencyError as error:
                if settings.skip_missing_runtimes:
                    results.append(ExportResult(target, precision, None, skipped=str(error)))
                else:
                    results.append(ExportResult(target, precision, None, error=error))
            except VaeEdgeError as error:
                results.append(ExportResult(target, precision, None, error=error))
    return results


def _choose_pictures(run: RunFolder, settings: ReferenceSettings) -> tuple[Pictures, tuple[str, ...]]:
    """Return the pictures that travel with every bundle, and remarks for the user.

    Raises:
        InputError: a picture of the folder cannot be used.
        BundleError: the run's pictures are damaged.
    """
    preparation = run.record.preparation
    if settings.folder is not None:
        return given_pictures(settings.folder, preparation), ()
    if settings.drawn:
        return drawn_pictures(preparation), ()
    if run.record.references is None:
        remark = (
            f"the run {run.folder.name} is of an earlier version and keeps no pictures for references: drawn ones are "
            "used, which show no part; train again, or pass --references DIR"
        )
        return drawn_pictures(preparation), (remark,)
    return Pictures.of_file(run.read_references(), run.record.references), ()


def _measure_references(trained: TrainedModel, pictures: Pictures, report: StepProgress) -> TrainedReferences:
    """Run the trained model over the pictures; what it gives is what every bundle is compared with.

    Raises:
        ParityError: it gives one no finite score.
    """

    def model(images: NDArray[np.uint8]) -> Outputs:
        return Outputs(*run_graph(trained.graph, images, progress=lambda *n: report("scoring references", *n)))

    return TrainedReferences.measure(
        pictures,
        model,
        threshold=trained.thresholds.image_threshold,
        computed_by=f"torch {installed_version('torch')}, fp32 (the trained model)",
    )


@dataclass(frozen=True)
class _BundleExport:
    """Makes one bundle."""

    trained: TrainedModel
    references: TrainedReferences
    low_precision: LowPrecision
    exporter: TargetExporter
    precision: Precision
    report: StepProgress

    def publish(self, folder: Path) -> ExportResult:
        """Write, check and publish it."""
        target, precision = self.exporter.target, self.precision
        quantized = None
        with new_bundle(folder) as temporary:
            step = f"{target} {precision}: writing"
            self.report(step, 0, 1)
            if precision is Precision.INT8:
                quantized = self.low_precision.quantize(self.exporter)
            written = self.exporter.write(temporary, precision, None if quantized is None else quantized.model)
            self.report(step, 1, 1)
            trust = self._verify(temporary)
            assert trust.references is not None
            trust.references.file.write(temporary / REFERENCES_FILE)
            manifest = self._manifest(folder.name, written.runtime, quantized, trust, temporary)
            (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
            write_provenance(temporary, manifest)
        warnings = written.warnings if quantized is None else (*quantized.calibration.warnings, *written.warnings)
        return ExportResult(target, precision, Bundle.open(folder, obeys_policy=False), warnings=warnings)

    def _manifest(
        self, name: str, runtime: RuntimeRecord, quantized: QuantizedModel | None, trust: _Trust, folder: Path
    ) -> Manifest:
        trained, record = self.trained, self.trained.run.record
        own = None if trust.references is None else trust.references.record.own
        height, width = record.preparation.height, record.preparation.width
        return Manifest(
            name=name,
            target=self.exporter.target,
            precision=self.precision,
            model_file=SUPPORTED[self.exporter.target].model_file,
            runtime=runtime,
            inputs=graph_inputs(height, width),
            outputs=graph_outputs(height, width),
            max_batch=self.exporter.max_batch,
            preparation=record.preparation,
            ignored=record.ignored,
            scoring=trained.graph.describe(),
            thresholds=trust.thresholds,
            calibration_set=None if quantized is None else quantized.calibration.record,
            quantization=None if quantized is None else quantized.record,
            accuracy=trust.accuracy,
            parity=trust.parity,
            detectability=_detectability(trained),
            gate=record.gate,
            references=None if trust.references is None else trust.references.record,
            verified=trust.not_verified_because is None,
            verified_by=None if own is None else f"{own.runtime} on {own.device}",
            not_verified_because=trust.not_verified_because,
            files=tuple(file_record(path) for path in sorted(folder.iterdir())),
            provenance=Provenance(
                created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                vae_edge_version=vae_edge.__version__,
                run=trained.run.folder.resolve().name,
                run_fingerprint=trained.fingerprint,
                data_fingerprint=record.data.train_fingerprint,
                backbone=None if record.feature is None else record.feature.backbone,
                library_versions={"python": platform.python_version(), **installed_versions(_LIBRARIES)},
            ),
        )

    def _verify(self, folder: Path) -> _Trust:
        """Run the exported model here: fit its thresholds on its own scores and compare it with the trained model.

        Raises:
            ParityError: it does not give the trained model's outputs, as far as its precision can.
        """
        target, is_single = self.exporter.target, self.precision is Precision.FP32
        try:
            backend = self._open(folder)
        except (MissingDependencyError, DeviceError, BundleError) as error:
            if self.exporter.opens_with_own_reader and isinstance(error, BundleError):
                raise
            _logger.info("the %s bundle cannot run here: %s", target, error)
            return self._not_verified(folder, str(error))
        with backend:
            outputs = run_backend(
                backend,
                self.trained.images if is_single else self.low_precision.baseline.images,
                progress=lambda done, total: self.report(f"{target} {self.precision}: verifying", done, total),
            )
            pictured = run_backend(backend, self.references.pictures.images)
        ran = backend.version, backend.device.name
        scored_by = " on ".join(ran)
        trust = self._check_single(outputs, scored_by) if is_single else self._check_low(outputs, scored_by)
        return self._with_references(trust, pictured, ran)

    def _with_references(self, trust: _Trust, pictured: Outputs | None, ran: tuple[str, str] | None) -> _Trust:
        """Add what the bundle, or its simulation, gives for the references.

        Raises:
            ParityError: it is not what the trained model gives.
        """
        found = self.references.bundle_references(
            None if pictured is None else self.references.blocks(pictured),
            image_threshold=trust.thresholds.image_threshold,
            precision=self.precision,
            ran=ran,
        )
        check = found.check()
        if check is not None and not check.agrees:
            raise ParityError(
                f"the model does not give the trained model's outputs for its references, {check.images}: "
                f"{check.disagreement()}: the bundle was not written"
            )
        return replace(trust, references=found)

    def _open(self, folder: Path) -> Backend:
        _, height, width, _ = self.trained.images.shape
        return open_backend(
            self.exporter.target,
            folder / SUPPORTED[self.exporter.target].model_file,
            graph_inputs(height, width),
            graph_outputs(height, width),
            max_batch=self.exporter.max_batch,
            # What is verified is the engine that goes into the bundle.
            options=RuntimeOptions(rebuild=False),
        )

    def _not_verified(self, folder: Path, reason: str) -> _Trust:
        """Keep the trained model's thresholds, or, in low precision, those of a simulation of the same graph."""
        simulator, target = self.exporter.simulated_by, self.exporter.target
        if self.precision is Precision.FP32 or simulator is None:
            return self._with_references(_Trust(self.trained.thresholds, not_verified_because=reason), None, None)
        outputs = self.exporter.simulate(
            folder,
            self.low_precision.baseline.images,
            lambda done, total: self.report(f"{target}: simulating", done, total),
        )
        pictured = self.exporter.simulate(folder, self.references.pictures.images)
        trust = replace(self._check_low(outputs, simulator), not_verified_because=reason)
        return self._with_references(trust, pictured, None)

    def _check_single(self, outputs: Outputs, scored_by: str) -> _Trust:
        trained = self.trained
        thresholds = trained.rule.fit(outputs.take(slice(trained.n_normals)), scored_by=scored_by)
        parity = measure_parity(
            trained.outputs,
            trained.thresholds.image_threshold,
            outputs,
            thresholds.image_threshold,
            names=trained.names,
            images=trained.description,
            tolerance=FP32_TOLERANCE,
        )
        check_parity(parity)
        return _Trust(thresholds, parity)

    def _check_low(self, outputs: Outputs, scored_by: str) -> _Trust:
        trained, baseline = self.trained, self.low_precision.baseline
        judgement = self.low_precision.judge(outputs, scored_by=scored_by)
        parity = measure_parity(
            baseline.outputs,
            baseline.thresholds.image_threshold,
            outputs,
            judgement.thresholds.image_threshold,
            names=(*trained.names[: trained.n_normals], *baseline.judging.names),
            images=f"{trained.rule.describe_normals()} and {baseline.judging.description}",
        )
        return _Trust(judgement.thresholds, parity, judgement.accuracy)


def _detectability(trained: TrainedModel) -> Detectability | None:
    """Return the run's table of pasted defects if the export uses the same scoring and rate."""
    run = trained.run
    same_rate = trained.rule.false_alarm_rate == run.thresholds.false_alarm_rate_requested
    return run.metrics.detectability if same_rate and trained.fingerprint == run.fingerprint else None


@dataclass(frozen=True)
class _Trust:
    """How far a bundle can be trusted, measured on its own outputs."""

    thresholds: Thresholds
    parity: ParityRecord | None = None
    accuracy: AccuracyRecord | None = None
    not_verified_because: str | None = None
    references: BundleReferences | None = None


def _model_metadata(trained: TrainedModel, name: str) -> dict[str, str]:
    """The metadata of a single model file; a bundle's own thresholds are in its manifest, fitted afterwards."""
    record = trained.run.record
    return {
        "vae_edge_version": vae_edge.__version__,
        "name": name,
        "run_fingerprint": trained.fingerprint,
        "preparation": record.preparation.model_dump_json(),
        "scoring": trained.graph.describe(),
        "trained_model_image_threshold": repr(trained.thresholds.image_threshold),
        "trained_model_pixel_threshold": repr(trained.thresholds.pixel_threshold),
        "false_alarm_rate": repr(trained.thresholds.false_alarm_rate),
    }


def _no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""
