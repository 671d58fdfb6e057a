"""FP16 and INT8 within a limit on lost accuracy: what the targets share.

| target   | fp16                                        | int8                                                    |
|----------|---------------------------------------------|---------------------------------------------------------|
| onnx     | network in FP16, for its size: CPUs convert | Q/DQ by ONNX Runtime's quantizer, decoder rewritten     |
| openvino | weights stored in FP16, a CPU computes FP32 | NNCF, PERFORMANCE preset                                |
| tensorrt | network in FP16, strongly typed             | Q/DQ with FP16 scales, FP16 rest, decoder rewritten     |

Smoothing, normalization, pooling and the residual stay in float32 everywhere. benchmarks/PRECISION.md holds the
measurements behind each cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vae_edge.agreement import Outputs
from vae_edge.errors import ParityError
from vae_edge.export.calibration.calibration_set import CalibrationSet, draw_calibration_set
from vae_edge.export.calibration.judging import JudgingSet, draw_judging_set
from vae_edge.export.quantization.accuracy_control import Baseline, Judgement, keep_accuracy
from vae_edge.export.settings import LowPrecisionSettings
from vae_edge.export.targets.base import Quantizer, TargetExporter
from vae_edge.export.trained_model import TrainedModel
from vae_edge.manifest import QuantizationRecord, SaturationRecord
from vae_edge.platform.work import StepProgress
from vae_edge.targets import Precision
from vae_edge.train.data.inspection_set import spread_places

N_SATURATION_IMAGES = 64
"""Judging images on which saturated values are counted; each gives millions of values."""


@dataclass(frozen=True)
class QuantizedModel:
    """A network in INT8 that keeps to its budget."""

    model: Any
    """As the target's `write` takes it."""
    record: QuantizationRecord
    calibration: CalibrationSet


@dataclass(frozen=True)
class LowPrecision:
    """Quantizes and judges the models of one run; what they share is made once, when first needed.

    Args:
        trained: the model.
        settings: how to quantize, and how much accuracy it may cost.
        data_root: where the run's images are now; None: where they were.
        report: receives the progress of every step.
    """

    trained: TrainedModel
    settings: LowPrecisionSettings
    data_root: Path | None
    report: StepProgress

    @cached_property
    def judging(self) -> JudgingSet:
        """The images that judge every model."""
        return draw_judging_set(self.trained.run, data_root=self.data_root, progress=self.report)

    @cached_property
    def baseline(self) -> Baseline:
        """The trained model's outputs for them."""
        return Baseline.measure(self.trained, self.judging, self.report)

    @cached_property
    def calibration(self) -> CalibrationSet:
        """The images that all INT8 models are calibrated on.

        Raises:
            InputError: they cannot be used.
        """
        return draw_calibration_set(
            self.trained,
            self.judging,
            n_images=self.settings.n_calibration_images,
            data=self.settings.calibration_data,
            data_root=self.data_root,
            progress=self.report,
        )

    def quantize(self, exporter: TargetExporter) -> QuantizedModel:
        """Quantize the network for a target, with as many layers in INT8 as the budget allows.

        Raises:
            InputError: the calibration set cannot be used.
            MissingDependencyError: a package that this needs is not installed.
            ParityError: INT8 cannot keep to the budget.
        """
        what = f"{exporter.target} {Precision.INT8}"
        quantizer = exporter.quantize(
            self.calibration.images,
            self.settings.estimator,
            lambda done, total: self.report(f"{what}: calibrating", done, total),
        )
        control = keep_accuracy(
            quantizer,
            self.baseline,
            self.settings.budget,
            scored_by=f"{what} on this machine",
            progress=lambda step, done, total: self.report(f"{what}: {step}", done, total),
        )
        record = QuantizationRecord(
            estimator=self.settings.estimator.value,
            layers=control.layers,
            given_back=control.given_back,
            n_passes=len(control.passes),
            saturation=self._saturation(quantizer, control.keep_float, what),
        )
        return QuantizedModel(quantizer.model(control.keep_float), record, self.calibration)

    def _saturation(self, quantizer: Quantizer, keep_float: frozenset[str], what: str) -> SaturationRecord:
        """Find the layer with the largest share of input values beyond its range, over some of the judging images."""
        images = self.judging.images
        some = images[spread_places(len(images), N_SATURATION_IMAGES)]
        self.report(f"{what}: counting values beyond their ranges", 0, 1)
        shares = quantizer.saturation(some, keep_float)
        self.report(f"{what}: counting values beyond their ranges", 1, 1)
        worst = max(shares, key=shares.__getitem__)
        return SaturationRecord(layer=worst, share=shares[worst], n_images=len(some))

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
