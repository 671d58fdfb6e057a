"""The settings of an export: its kind of source, its form, and how much accuracy FP16 or INT8 may cost.

Loads neither torch nor onnx: the command line reads it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vae_edge.errors import UsageError
from vae_edge.manifest import AccuracyRecord
from vae_edge.text_enum import TextEnum
from vae_edge.wording import verb

DEFAULT_N_IMAGES = 300

BACKBONE = "backbone."
"""Prefix of the names of a pretrained backbone's nodes, in ONNX files and in OpenVINO IR: what may be quantized."""

BACKBONE_IN_FLOAT = (f"{BACKBONE}stem.", f"{BACKBONE}blocks.0.depthwise.")
"""Prefixes of the names of its two layers that are never in INT8. At half the picture's size they read and write 32
channels whose weights range from 0 to 18 once the batch norms are folded into them, while the outputs are cut off at 6.
On the sample set's `dial` INT8 of these two alone cost 0.04 of the AUROC and that of the 31 others 0.0005."""

CHECKPOINT_SUFFIXES = (".ckpt", ".pt", ".pth")
"""Suffixes of files that hold a network trained by anomalib."""


class Estimator(TextEnum):
    """How a range follows from the values seen.

    Begin with `MIN_MAX`: on two trained networks it kept the scores of normals about as well as
    `ENTROPY`, and better than `PERCENTILE` where that mattered (benchmarks/PRECISION.md). It needs half the time, too.
    """

    MIN_MAX = "min-max"
    """All values seen are inside."""
    PERCENTILE = "percentile"
    """99.99 % of the absolute values are inside; the rarest saturate and the others get finer steps."""
    ENTROPY = "entropy"
    """The range whose quantized values have the distribution nearest to the original one (Migacz 2017, "8-bit inference
    with TensorRT": least Kullback-Leibler divergence)."""


class ExportLayout(TextEnum):
    """The form of an export."""

    PLAIN = "plain"
    """A bundle, for `Detector`."""
    MODEL_API = "model-api"
    """A folder that OpenVINO Model API opens as AnomalyDetection, beside the bundle it is made from."""
    TRITON = "triton"
    """A model in a Triton model repository, made from a bundle."""


@dataclass(frozen=True)
class Budget:
    """How much accuracy a bundle may cost; None: no limit.

    The AUROC is a mean over pairs of images and moves little; single verdicts move more easily, by one image whose
    score is close to the threshold, hence a rate of 0.02. A rate below 1 / n of n images allows no flip at all.

    Examples:
        >>> Budget(max_flip_rate=1.5)
        Traceback (most recent call last):
        ...
        vae_edge.errors.UsageError: max_flip_rate is 1.5; expected 0 to 1, such as 0.01, or nothing for no limit
    """

    max_auroc_drop: float | None = 0.01
    """Of the image AUROC."""
    max_pixel_auroc_drop: float | None = 0.02
    """Of the pixel AUROC, where it exists."""
    max_flip_rate: float | None = 0.02
    """Share of the judging images that get a different verdict, each model by its own threshold."""

    def __post_init__(self) -> None:
        for name in ("max_auroc_drop", "max_pixel_auroc_drop", "max_flip_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; expected 0 to 1, such as 0.01, or nothing for no limit")

    def exceeded_by(self, accuracy: AccuracyRecord) -> tuple[str, ...]:
        """Describe the limits that a model exceeds, each as a part of a sentence; empty if it keeps all."""
        broken = []
        for what, drop, limit in (
            ("image", accuracy.image_auroc_drop, self.max_auroc_drop),
            ("pixel", accuracy.pixel_auroc_drop, self.max_pixel_auroc_drop),
        ):
            if drop is not None and limit is not None and drop > limit:
                broken.append(f"the {what} AUROC falls by {drop:.4f} (at most {limit:g} is allowed)")
        if self.max_flip_rate is not None and accuracy.flip_rate > self.max_flip_rate:
            broken.append(
                f"{accuracy.label_flips} of {accuracy.n_images} verdicts "
                f"{verb(accuracy.label_flips, 'flips', 'flip')}, a share of {accuracy.flip_rate:.4f} "
                f"(at most {self.max_flip_rate:g} is allowed)"
            )
        return tuple(broken)


@dataclass(frozen=True)
class ReferenceSettings:
    """Which pictures travel with the bundles as references; by default those that the run keeps."""

    folder: Path | None = None
    """Pictures of a folder instead."""
    drawn: bool = False
    """Drawn ones instead, which show no part."""


@dataclass(frozen=True)
class LowPrecisionSettings:
    """How FP16 and INT8 models are made and how much accuracy they may cost."""

    calibration_data: Path | None = None
    """Normal images to calibrate on; None: those that the network was fitted on."""
    n_calibration_images: int = DEFAULT_N_IMAGES
    estimator: Estimator = Estimator.MIN_MAX
    budget: Budget = field(default_factory=Budget)
