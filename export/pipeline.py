"""From a run folder to bundles: every target, checked, measured against the trained model and published whole."""

from __future__ import annotations

import logging
import platform
import shutil
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch

import vae_edge
from vae_edge.backends.base import open_backend
from vae_edge.bundle import Bundle, check_bundle_name_is_free, manifest_text, new_bundle
from vae_edge.decision import check_rate, fit_thresholds
from vae_edge.errors import DeviceError, MissingDependencyError, UsageError, VaeEdgeError
from vae_edge.export.onnx_export import OPSET, export_onnx, export_program
from vae_edge.export.openvino_export import export_openvino
from vae_edge.export.parity import check_parity, run_backend
from vae_edge.export.reference import Reference, measure_reference
from vae_edge.export.tensorrt_build import EngineSettings, build_engine
from vae_edge.export.torch_export import save_program
from vae_edge.machine import installed_versions
from vae_edge.manifest import (
    MANIFEST_FILE,
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
from vae_edge.train.run_folder import RunFolder
from vae_edge.train.scoring import ScoringSettings

_logger = logging.getLogger(__name__)

_ONNX_FILE = SUPPORTED[Target.ONNX].model_file
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "numpy")


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
    engine: EngineSettings = field(default_factory=EngineSettings)


@dataclass(frozen=True)
class ExportResult:
    """One bundle, or why there is none."""

    target: Target
    precision: Precision
    bundle: Bundle | None
    error: VaeEdgeError | None = None
    skipped: str | None = None


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
    pairs = combinations(settings.targets, settings.precisions)
    if not pairs:
        raise UsageError(f"no target was given; expected one or several of {', '.join(SUPPORTED)}, or all")
    if settings.false_alarm_rate is not None:
        check_rate(settings.false_alarm_rate, "false-alarm rate")
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
    with TemporaryDirectory(prefix="vae-edge-export-") as scratch:
        onnx_path = Path(scratch) / _ONNX_FILE
        report("writing ONNX", 0, 1)
        metadata = _model_metadata(reference, name)
        export_onnx(program, onnx_path, metadata=metadata)
        report("writing ONNX", 1, 1)
        exporter = _Exporter(reference, program, onnx_path, metadata, settings.engine, report)
        for (target, precision), folder in folders.items():
            try:
                results.append(ExportResult(target, precision, exporter.export(target, precision, folder)))
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
    """What a lone model file says about itself."""
    engine: EngineSettings
    report: StepProgress

    def export(self, target: Target, precision: Precision, folder: Path) -> Bundle:
        """Make, check and publish one bundle."""
        reference, record = self.reference, self.reference.run.record
        height, width = record.preparation.height, record.preparation.width
        with new_bundle(folder) as temporary:
            self.report(f"{target}: writing", 0, 1)
            runtime = self._write_model(target, temporary)
            self.report(f"{target}: writing", 1, 1)
            max_batch = self.engine.max_batch if target is Target.TENSORRT else None
            thresholds, parity, reason = self._verify(target, precision, temporary, max_batch)
            manifest = Manifest(
                name=folder.name,
                target=target,
                precision=precision,
                model_file=SUPPORTED[target].model_file,
                runtime=runtime,
                inputs=graph_inputs(height, width),
                outputs=graph_outputs(height, width),
                max_batch=max_batch,
                preparation=record.preparation,
                scoring=reference.graph.settings.describe(),
                thresholds=thresholds,
                parity=parity,
                verified=parity is not None,
                not_verified_because=reason,
                files=tuple(file_record(path) for path in sorted(temporary.iterdir())),
                provenance=Provenance(
                    created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    vae_edge_version=vae_edge.__version__,
                    run=reference.run.folder.resolve().name,
                    run_fingerprint=reference.fingerprint,
                    data_fingerprint=record.data.train_fingerprint,
                    library_versions={"python": platform.python_version(), **installed_versions(_LIBRARIES)},
                ),
            )
            (temporary / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
        return Bundle.open(folder)

    def _write_model(self, target: Target, folder: Path) -> RuntimeRecord:
        path = folder / SUPPORTED[target].model_file
        if target is Target.ONNX:
            shutil.copyfile(self.onnx_path, path)
            return RuntimeRecord(flavour="onnx", version=onnx.__version__, details={"opset": str(OPSET)})
        if target is Target.OPENVINO:
            return export_openvino(self.onnx_path, path, metadata=self.metadata)
        if target is Target.TENSORRT:
            shutil.copyfile(self.onnx_path, folder / _ONNX_FILE)
            return build_engine(
                folder / _ONNX_FILE,
                path,
                self.engine,
                progress=lambda phase, done, total: self.report(f"{target}: {phase}", done, total),
            )
        save_program(self.program, path)
        return RuntimeRecord(flavour="torch", version=torch.__version__)

    def _verify(
        self, target: Target, precision: Precision, folder: Path, max_batch: int | None
    ) -> tuple[Thresholds, ParityRecord | None, str | None]:
        """Run the exported model here: fit its thresholds on its own scores and hold it against the trained model.

        Returns:
            Thresholds, parity, and why there is none. A model that cannot run here keeps the trained model's
            thresholds.
        """
        reference = self.reference
        _, height, width, _ = reference.images.shape
        try:
            backend = open_backend(
                target,
                folder / SUPPORTED[target].model_file,
                graph_inputs(height, width),
                graph_outputs(height, width),
                max_batch=max_batch,
            )
        except (MissingDependencyError, DeviceError) as error:
            _logger.info("the %s bundle cannot run here: %s", target, error)
            return reference.thresholds, None, str(error)
        with backend:
            outputs = run_backend(
                backend,
                reference.images,
                progress=lambda done, total: self.report(f"{target}: verifying", done, total),
            )
        normals = outputs.take(slice(reference.n_normals))
        thresholds = fit_thresholds(
            normals.scores,
            normals.maps,
            false_alarm_rate=reference.thresholds.false_alarm_rate_requested,
            pixel_false_positive_rate=reference.thresholds.pixel_false_positive_rate,
            scored_by=f"{backend.version} on {backend.device.name}",
        )
        parity = check_parity(
            reference.outputs,
            reference.thresholds.image_threshold,
            outputs,
            thresholds.image_threshold,
            names=reference.names,
            images=reference.description,
            precision=precision,
        )
        return thresholds, parity, None


def _model_metadata(reference: Reference, name: str) -> dict[str, str]:
    """What a lone model file says about itself."""
    record = reference.run.record
    return {
        "vae_edge_version": vae_edge.__version__,
        "name": name,
        "run_fingerprint": reference.fingerprint,
        "preparation": record.preparation.model_dump_json(),
        "scoring": reference.graph.settings.describe(),
        "image_threshold": repr(reference.thresholds.image_threshold),
        "pixel_threshold": repr(reference.thresholds.pixel_threshold),
        "false_alarm_rate": repr(reference.thresholds.false_alarm_rate),
    }


def _no_progress(what: str, done: int, total: int) -> None:
    """Tell nobody."""
