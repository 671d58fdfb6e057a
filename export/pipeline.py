"""From a run folder to bundles: every target, checked, measured against the trained model and published whole."""

from __future__ import annotations

import logging
import platform
import shutil
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import onnx
import torch

import vae_edge
from vae_edge.agreement import Outputs, run_backend
from vae_edge.atomic import scratch_folder
from vae_edge.backends.base import Backend, RuntimeOptions, open_backend
from vae_edge.backends.tensorrt_build import EngineSettings, build_engine
from vae_edge.bundle import Bundle, check_bundle_name_is_free, manifest_text, new_bundle
from vae_edge.decision import check_askable_rate
from vae_edge.errors import BundleError, DeviceError, MissingDependencyError, UsageError, VaeEdgeError
from vae_edge.export.low_precision import LowPrecisionModel, LowPrecisionWriter
from vae_edge.export.onnx_export import export_onnx, export_program
from vae_edge.export.openvino_export import export_openvino
from vae_edge.export.parity import FP32_TOLERANCE, check_parity, measure_parity
from vae_edge.export.reference import Reference, measure_reference
from vae_edge.export.settings import LowPrecisionSettings
from vae_edge.export.torch_export import save_program
from vae_edge.machine import installed_versions
from vae_edge.manifest import (
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
from vae_edge.progress import StepProgress
from vae_edge.records import file_record
from vae_edge.targets import SUPPORTED, Precision, Target, combinations
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.run.folder import RunFolder

_logger = logging.getLogger(__name__)

_ONNX_FILE = SUPPORTED[Target.ONNX].model_file
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


@dataclass(frozen=True)
class ExportResult:
    """One bundle, or why there is none."""

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

    One target's failure does not keep the others from being made; its result holds the error.

    Raises:
        InputError: nothing to export, a name that is taken, or the run's images are not to be found.
        BundleError: the run folder was changed.
    """
    report = progress or _no_progress
    pairs = combinations(settings.targets, settings.precisions, only_supported=settings.only_supported)
    if not pairs:
        raise UsageError(f"no target was given; expected one or several of {', '.join(SUPPORTED)}, or all")
    if settings.false_alarm_rate is not None:
        check_askable_rate(settings.false_alarm_rate, "false-alarm rate")
    name = settings.name or run.folder.resolve().name
    folders = {pair: out / f"{name}-{pair[0]}-{pair[1]}" for pair in pairs}
    for folder in folders.values():
        check_bundle_name_is_free(folder)

    reference = measure_reference(
        run,
        scoring=settings.scoring,
        data_root=settings.data_root,
        false_alarm_rate=settings.false_alarm_rate,
        progress=report,
    )
    report("tracing the graph", 0, 1)
    program = export_program(reference.graph)
    report("tracing the graph", 1, 1)
    results = []
    with scratch_folder("export") as scratch:
        onnx_path = Path(scratch) / _ONNX_FILE
        report("writing ONNX", 0, 1)
        metadata = _model_metadata(reference, name)
        export_onnx(program, onnx_path, metadata=metadata)
        report("writing ONNX", 1, 1)
        low = LowPrecisionWriter(reference, onnx_path, metadata, settings.low_precision, settings.data_root, report)
        exporter = _Exporter(reference, program, onnx_path, metadata, settings.engine, low, report)
        for (target, precision), folder in folders.items():
            try:
                results.append(exporter.export(target, precision, folder))
            except MissingDependencyError as error:
                if settings.skip_missing_runtimes:
                    results.append(ExportResult(target, precision, None, skipped=str(error)))
                else:
                    results.append(ExportResult(target, precision, None, error=error))
            except VaeEdgeError as error:
                results.append(ExportResult(target, precision, None, error=error))
    return results


@dataclass(frozen=True)
class _Exporter:
    """What every bundle of one run is made from."""

    reference: Reference
    program: torch.export.ExportedProgram
    onnx_path: Path
    metadata: dict[str, str]
    """What a lone model file says about itself; a bundle's own thresholds are in its manifest, fitted afterwards."""
    engine: EngineSettings
    low_precision: LowPrecisionWriter
    report: StepProgress

    def export(self, target: Target, precision: Precision, folder: Path) -> ExportResult:
        """Make, check and publish one bundle."""
        with new_bundle(folder) as temporary:
            step = f"{target} {precision}: writing"
            self.report(step, 0, 1)
            model = LowPrecisionModel()
            if precision is not Precision.FP32:
                model = self.low_precision.write(target, precision, temporary)
            runtime = model.runtime or self._write_model(target, precision, temporary)
            self.report(step, 1, 1)
            trust = self._verify(target, precision, temporary)
            manifest = self._manifest(folder.name, target, precision, runtime, model, trust, temporary)
            (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
        warnings = model.warnings if model.calibration is None else (*model.calibration.warnings, *model.warnings)
        return ExportResult(target, precision, Bundle.open(folder), warnings=warnings)

    def _manifest(
        self,
        name: str,
        target: Target,
        precision: Precision,
        runtime: RuntimeRecord,
        model: LowPrecisionModel,
        trust: _Trust,
        folder: Path,
    ) -> Manifest:
        reference, record = self.reference, self.reference.run.record
        height, width = record.preparation.height, record.preparation.width
        return Manifest(
            name=name,
            target=target,
            precision=precision,
            model_file=SUPPORTED[target].model_file,
            runtime=runtime,
            inputs=graph_inputs(height, width),
            outputs=graph_outputs(height, width),
            max_batch=self._max_batch(target),
            preparation=record.preparation,
            scoring=reference.graph.describe(),
            thresholds=trust.thresholds,
            calibration_set=None if model.calibration is None else model.calibration.record,
            quantization=model.quantization,
            accuracy=trust.accuracy,
            parity=trust.parity,
            verified=trust.not_verified_because is None,
            not_verified_because=trust.not_verified_because,
            files=tuple(file_record(path) for path in sorted(folder.iterdir())),
            provenance=Provenance(
                created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                vae_edge_version=vae_edge.__version__,
                run=reference.run.folder.resolve().name,
                run_fingerprint=reference.fingerprint,
                data_fingerprint=record.data.train_fingerprint,
                library_versions={"python": platform.python_version(), **installed_versions(_LIBRARIES)},
            ),
        )

    def _max_batch(self, target: Target) -> int | None:
        return self.engine.max_batch if target is Target.TENSORRT else None

    def _write_model(self, target: Target, precision: Precision, folder: Path) -> RuntimeRecord:
        """Write the model file; in FP16 and INT8 the writer of those left it, or the ONNX file for an engine."""
        path, is_single = folder / SUPPORTED[target].model_file, precision is Precision.FP32
        if target is Target.ONNX:
            if is_single:
                shutil.copyfile(self.onnx_path, path)
            opset = max(entry.version for entry in onnx.load(str(path)).opset_import if entry.domain == "")
            return RuntimeRecord(flavour="onnx", version=onnx.__version__, details={"opset": str(opset)})
        if target is Target.OPENVINO:
            return export_openvino(self.onnx_path, path, metadata=self.metadata)
        if target is Target.TENSORRT:
            if is_single:
                shutil.copyfile(self.onnx_path, folder / _ONNX_FILE)
            return build_engine(
                folder / _ONNX_FILE,
                path,
                self.engine,
                progress=lambda phase, done, total: self.report(f"{target} {precision}: {phase}", done, total),
            )
        save_program(self.program, path)
        return RuntimeRecord(flavour="torch", version=torch.__version__)

    def _verify(self, target: Target, precision: Precision, folder: Path) -> _Trust:
        """Run the exported model here: fit its thresholds on its own scores and hold it against the trained model."""
        try:
            backend = self._open(target, folder)
        except (MissingDependencyError, DeviceError, BundleError) as error:
            if target is Target.TORCH and isinstance(error, BundleError):
                raise  # Its reader is this package's own: no device will open what is refused here.
            _logger.info("the %s bundle cannot run here: %s", target, error)
            return self._not_verified(target, precision, folder, str(error))
        images = self.reference.images if precision is Precision.FP32 else self.low_precision.baseline.images
        with backend:
            outputs = run_backend(
                backend,
                images,
                progress=lambda done, total: self.report(f"{target} {precision}: verifying", done, total),
            )
        scored_by = f"{backend.version} on {backend.device.name}"
        if precision is Precision.FP32:
            return self._check_single(outputs, scored_by)
        return self._check_low(outputs, scored_by)

    def _open(self, target: Target, folder: Path) -> Backend:
        _, height, width, _ = self.reference.images.shape
        return open_backend(
            target,
            folder / SUPPORTED[target].model_file,
            graph_inputs(height, width),
            graph_outputs(height, width),
            max_batch=self._max_batch(target),
            # What is verified is the engine that goes into the bundle.
            options=RuntimeOptions(rebuild=False),
        )

    def _not_verified(self, target: Target, precision: Precision, folder: Path, reason: str) -> _Trust:
        """Keep the trained model's thresholds, or in low precision those of a simulation of the same graph."""
        if precision is Precision.FP32 or target is not Target.TENSORRT:
            return _Trust(self.reference.thresholds, not_verified_because=reason)
        trust = self._check_low(self.low_precision.simulate(folder), "ONNX Runtime, simulating TensorRT's graph")
        return replace(trust, not_verified_because=reason)

    def _check_single(self, outputs: Outputs, scored_by: str) -> _Trust:
        reference = self.reference
        thresholds = reference.rule.fit(outputs.take(slice(reference.n_normals)), scored_by=scored_by)
        parity = measure_parity(
            reference.outputs,
            reference.thresholds.image_threshold,
            outputs,
            thresholds.image_threshold,
            names=reference.names,
            images=reference.description,
            tolerance=FP32_TOLERANCE,
        )
        check_parity(parity)
        return _Trust(thresholds, parity)

    def _check_low(self, outputs: Outputs, scored_by: str) -> _Trust:
        reference, baseline = self.reference, self.low_precision.baseline
        judgement = self.low_precision.judge(outputs, scored_by=scored_by)
        parity = measure_parity(
            baseline.outputs,
            baseline.thresholds.image_threshold,
            outputs,
            judgement.thresholds.image_threshold,
            names=(*reference.names[: reference.n_normals], *baseline.judging.names),
            images=f"{reference.rule.describe_normals()} and {baseline.judging.description}",
        )
        return _Trust(judgement.thresholds, parity, judgement.accuracy)


@dataclass(frozen=True)
class _Trust:
    """How far a bundle can be trusted, measured on its own outputs."""

    thresholds: Thresholds
    parity: ParityRecord | None = None
    accuracy: AccuracyRecord | None = None
    not_verified_because: str | None = None


def _model_metadata(reference: Reference, name: str) -> dict[str, str]:
    """What a lone model file says about itself; a bundle's own thresholds are in its manifest, fitted afterwards."""
    record = reference.run.record
    return {
        "vae_edge_version": vae_edge.__version__,
        "name": name,
        "run_fingerprint": reference.fingerprint,
        "preparation": record.preparation.model_dump_json(),
        "scoring": reference.graph.describe(),
        "trained_model_image_threshold": repr(reference.thresholds.image_threshold),
        "trained_model_pixel_threshold": repr(reference.thresholds.pixel_threshold),
        "false_alarm_rate": repr(reference.thresholds.false_alarm_rate),
    }


def _no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""
