"""How right a bundle is on labelled images, how far it is from the FP32 reference, and how a mean image would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vae_edge.errors import InputError
from vae_edge.image import Preparation
from vae_edge.records import Record
from vae_edge.train.inspection_set import ImageFile
from vae_edge.train.loading import load_images, load_masks
from vae_edge.train.metrics import Metrics, evaluate
from vae_edge.train.template_baseline import TemplateBaseline

_MAPS_AT_ONCE = 64


@dataclass(frozen=True)
class Outputs:
    """A bundle's outputs for the judged images, in their order."""

    scores: NDArray[np.float64]
    """float64 [n]"""
    maps: NDArray[np.float32]
    """float32 [n, H, W]; may lie on disk."""
    threshold: float
    """The bundle's own image threshold."""

    @property
    def verdicts(self) -> NDArray[np.bool_]:
        """Which images it calls anomalous, bool [n]."""
        return np.asarray(self.scores > self.threshold)


class Comparison(Record):
    """How far a bundle's outputs are from the reference's on the same images."""

    reference: str
    """Name of the reference bundle."""
    same_run: bool
    """Whether both come from one training run: between two runs the differences are not the export's."""
    n_images: int = Field(ge=1)
    label_flips: int = Field(ge=0)
    """Images that one calls anomalous and the other does not, each by its own threshold."""
    flipped_images: tuple[str, ...] = ()
    max_score_difference: float = Field(ge=0)
    reference_score_scale: float = Field(ge=0)
    """Largest absolute score of the reference, to judge the difference by."""
    max_map_difference: float | None = Field(default=None, ge=0)
    """Absent where the two models have different sizes."""
    reference_map_scale: float | None = Field(default=None, ge=0)
    score_rank_correlation: float | None = None
    """Spearman's; absent where either gives all images the same score."""


class BaselineRecord(Record):
    """A method without a network on the same images."""

    name: str
    description: str
    n_train: int
    height: int
    width: int
    metrics: Metrics


def judge(files: Sequence[ImageFile], preparation: Preparation, outputs: Outputs) -> Metrics:
    """Measure a bundle's outputs against the labels and masks of the images they are for.

    Raises:
        InputError: a mask cannot be decoded, or an output is not finite.
    """
    return _evaluate(files, preparation, outputs.scores, outputs.maps, outputs.threshold)


def compare(
    names: Sequence[str], reference_name: str, reference: Outputs, outputs: Outputs, *, same_run: bool
) -> Comparison:
    """Compare a bundle's outputs with the reference's.

    Args:
        names: what the images are called.
        reference_name: what the reference is called.
        reference: its outputs.
        outputs: the outputs of the bundle that is judged, for the same images.
        same_run: whether both come from one training run.

    Raises:
        InputError: the outputs are not for the same number of images, there is none, or a score or map is not finite.
    """
    if not names or not len(names) == len(reference.scores) == len(outputs.scores):
        raise InputError(
            f"{len(names)} images, {len(reference.scores)} scores of the reference and {len(outputs.scores)} of the "
            "bundle cannot be compared; expected the same number of each, 1 or more"
        )
    for whose, scores in (("reference's", reference.scores), ("bundle's", outputs.scores)):
        if not np.isfinite(scores).all():
            raise InputError(f"one of the {whose} scores is not a finite number; export the bundle again")
    flips = reference.verdicts != outputs.verdicts
    same_size = reference.maps.shape == outputs.maps.shape
    return Comparison(
        reference=reference_name,
        same_run=same_run,
        n_images=len(names),
        label_flips=int(flips.sum()),
        flipped_images=tuple(name for name, flipped in zip(names, flips, strict=True) if flipped),
        max_score_difference=float(np.max(np.abs(outputs.scores - reference.scores))),
        reference_score_scale=float(np.max(np.abs(reference.scores))),
        max_map_difference=_largest_difference(reference.maps, outputs.maps) if same_size else None,
        reference_map_scale=_largest_difference(reference.maps, None) if same_size else None,
        score_rank_correlation=rank_correlation(reference.scores, outputs.scores),
    )


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float | None:
    """Return Spearman's rank correlation: Pearson's of the ranks, ties having the mean of their ranks.

    Args:
        first: numbers, [n].
        second: numbers, [n].

    Returns:
        In [-1, 1]; None where there are fewer than two values or either side is constant.
    """
    if len(first) < 2:
        return None
    a, b = _ranks(first), _ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else None


def template_baseline(
    train: Sequence[ImageFile], test: Sequence[ImageFile], preparation: Preparation
) -> BaselineRecord | None:
    """Fit the template baseline on the train images and measure it on the test images; None with fewer than two.

    It has no threshold, so the metrics at a threshold are absent.

    Raises:
        InputError: an image or a mask cannot be decoded.
    """
    if len(train) < 2 or not test:
        return None
    baseline = TemplateBaseline.fit(load_images(train, preparation))
    images = load_images(test, preparation)
    scores = np.asarray(baseline.scores(images), dtype=np.float64)
    return BaselineRecord(
        name="template",
        description="distance of each pixel from the mean of the good parts, in standard deviations; no network",
        n_train=len(train),
        height=preparation.height,
        width=preparation.width,
        metrics=_evaluate(test, preparation, scores, baseline.anomaly_maps(images), None),
    )


def _evaluate(
    files: Sequence[ImageFile],
    preparation: Preparation,
    scores: NDArray[np.float64],
    maps: NDArray[np.float32],
    threshold: float | None,
) -> Metrics:
    masks = load_masks(files, preparation)
    return evaluate(
        [file.is_anomalous for file in files],
        scores,
        [file.defect for file in files],
        maps,
        masks.masks,
        masks.has_mask,
        threshold,
    )


def _largest_difference(first: NDArray[np.float32], second: NDArray[np.float32] | None) -> float:
    """Return max |first - second|, or max |first|, a few maps at a time: they may lie on disk."""
    largest = 0.0
    for start in range(0, len(first), _MAPS_AT_ONCE):
        block = np.asarray(first[start : start + _MAPS_AT_ONCE])
        if second is not None:
            block = block - second[start : start + _MAPS_AT_ONCE]
        largest = float(np.maximum(largest, np.max(np.abs(block))))
        if not np.isfinite(largest):
            raise InputError("an anomaly map holds a value that is not a finite number; export the bundle again")
    return largest


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[places], dtype=np.float64)
