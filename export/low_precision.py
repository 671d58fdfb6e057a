"""FP16 and INT8 model files for every target, within the accuracy that they may cost.

| target   | fp16                                        | int8                                                    |
|----------|---------------------------------------------|---------------------------------------------------------|
| onnx     | network in FP16, for its size: CPUs convert | Q/DQ by ONNX Runtime's quantizer, decoder rewritten     |
| openvino | weights stored in FP16, a CPU computes FP32 | NNCF, PERFORMANCE preset                                |
| tensorrt | network in FP16, strongly typed             | Q/DQ with FP16 scales, FP16 rest, decoder rewritten     |

Smoothing, normalization, pooling and the residual stay in float32 everywhere. benchmarks/PRECISION.md holds the
measurements behind each cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx

from vae_edge.agreement import Outputs
from vae_edge.errors import ParityError
from vae_edge.export.accuracy_control import Baseline, Judgement, keep_accuracy
from vae_edge.export.calibration import CalibrationSet, draw_calibration_set
from vae_edge.export.half_precision import to_half
from vae_edge.export.judging import JudgingSet, draw_judging_set
from vae_edge.export.nncf_calls import QuantizationSettings
from vae_edge.export.onnx_precision import slower_in_half
from vae_edge.export.onnx_quantizer import OnnxQuantizer, run_onnx
from vae_edge.export.openvino_export import export_openvino, save_ir
from vae_edge.export.openvino_precision import OpenVinoQuantizer
from vae_edge.export.reference import Reference
from vae_edge.export.settings import LowPrecisionSettings
from vae_edge.manifest import QuantizationRecord, RuntimeRecord
from vae_edge.progress import Progress, StepProgress
from vae_edge.targets import SUPPORTED, Precision, Target

_ONNX_FILE = SUPPORTED[Target.ONNX].model_file


@dataclass(frozen=True)
class LowPrecisionModel:
    """A model file that was written, and how."""

    quantization: QuantizationRecord | None = None
    calibration: CalibrationSet | None = None
    runtime: RuntimeRecord | None = None
    """What made the file; None where that is still to be told, as of an ONNX file."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class LowPrecisionWriter:
    """Writes FP16 and INT8 model files; what they share is made once, when it is first needed.

    Args:
        reference: the trained model.
        onnx_path: its graph in FP32.
        metadata: what a lone model file says about itself.
        settings: how to write them.
        data_root: where the run's images are now; None: where they were.
        report: is told of every step.
    """

    reference: Reference
    onnx_path: Path
    metadata: Mapping[str, str]
    settings: LowPrecisionSettings
    data_root: Path | None
    report: StepProgress

    @cached_property
    def judging(self) -> JudgingSet:
        """The images that judge every model."""
        return draw_judging_set(self.reference.run, data_root=self.data_root, progress=self.report)

    @cached_property
    def baseline(self) -> Baseline:
        """The trained model's outputs for them."""
        return Baseline.measure(self.reference, self.judging, self.report)

    @cached_property
    def calibration(self) -> CalibrationSet:
        """The images that all INT8 models are calibrated on.

        Raises:
            InputError: they cannot be used.
        """
        return draw_calibration_set(
            self.reference,
            self.judging,
            n_images=self.settings.n_calibration_images,
            data=self.settings.calibration_data,
            data_root=self.data_root,
            progress=self.report,
        )

    def write(self, target: Target, precision: Precision, folder: Path) -> LowPrecisionModel:
        """Write a target's model file; for TensorRT the ONNX file that its engine is built from.

        Raises:
            InputError: the calibration set cannot be used.
            MissingDependencyError: a package that this needs is not installed.
            ParityError: INT8 cannot keep to the budget.
        """
        if precision is Precision.FP16:
            return self._write_half(target, folder)
        return self._write_int8(target, folder)

    def judge(self, outputs: Outputs, *, scored_by: str) -> Judgement:
        """Fit a model's thresholds on its outputs for `baseline.images` and refuse it if it costs too much.

        Raises:
            ParityError: it does.
        """
        judgement = self.baseline.judge(outputs, scored_by=scored_by)
        broken = self.settings.budget.exceeded_by(judgement.accuracy)
        if broken:
            raise ParityError(
                f"{' and '.join(broken)}, judged on {self.judging.description}; allow more with --max-auroc-drop or "
                "--max-flip-rate, or export in fp32; no bundle was made"
            )
        return judgement

    def simulate(self, folder: Path) -> Outputs:
        """Run a TensorRT bundle's ONNX file with ONNX Runtime over `baseline.images`."""
        return run_onnx(onnx.load(str(folder / _ONNX_FILE)), self.baseline.images, self._steps("tensorrt: simulating"))

    def _write_half(self, target: Target, folder: Path) -> LowPrecisionModel:
        if target is Target.OPENVINO:
            path = folder / SUPPORTED[target].model_file
            runtime = export_openvino(self.onnx_path, path, metadata=self.metadata, precision=Precision.FP16)
            return LowPrecisionModel(runtime=runtime)
        single = onnx.load(str(self.onnx_path))
        half = to_half(single)
        onnx.save(half, str(folder / _ONNX_FILE))
        slower = slower_in_half(single, half) if target is Target.ONNX else None
        return LowPrecisionModel(warnings=() if slower is None else (slower,))

    def _write_int8(self, target: Target, folder: Path) -> LowPrecisionModel:
        images, estimator = self.calibration.images, self.settings.estimator
        calibrating = self._steps(f"{target} int8: calibrating")
        quantizer: OpenVinoQuantizer | OnnxQuantizer
        if target is Target.OPENVINO:
            quantizer = OpenVinoQuantizer(
                self.onnx_path, images, QuantizationSettings(estimator=estimator), progress=calibrating
            )
        else:
            quantizer = OnnxQuantizer(onnx.load(str(self.onnx_path)), target, images, estimator, calibrating)
        control = keep_accuracy(
            quantizer,
            self.baseline,
            self.settings.budget,
            scored_by=f"{target} int8 on this machine",
            progress=lambda step, done, total: self.report(f"{target} int8: {step}", done, total),
        )
        runtime = None
        if isinstance(quantizer, OpenVinoQuantizer):
            path = folder / SUPPORTED[target].model_file
            model = quantizer.model(control.keep_float)
            runtime = save_ir(model, path, metadata=self.metadata, precision=Precision.INT8)
        else:
            onnx.save(quantizer.model(control.keep_float), str(folder / _ONNX_FILE))
        record = QuantizationRecord(
            estimator=estimator.value,
            layers=control.layers,
            given_back=control.given_back,
            n_passes=len(control.passes),
        )
        return LowPrecisionModel(record, self.calibration, runtime)

    def _steps(self, step: str) -> Progress:
        return lambda done, total: self.report(step, done, total)
