"""The images that a quantized model is judged on, and the judgement: how much accuracy its precision costs.

Three sets of images never share an image: normals that fit the thresholds, images that calibrate a quantizer, and those
that judge the result. An image in two of them would make the model look better than it is;
`calibration_set.check_disjoint` checks this. A run with cross-conformal calibration has too few normals for that: all
of them fit the thresholds, and some also calibrate or judge. The images that calibrate and those that judge are
disjoint even there.

Everything here is a function of its arguments: a judgement keeps nothing from the one before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.agreement import Outputs, compare_outputs
from vae_edge.errors import InputError, ParityError
from vae_edge.manifest import AccuracyRecord, Thresholds
from vae_edge.platform.work import StepProgress
from vae_edge.train.choice.synthetic_defects import paste_defects
from vae_edge.train.data.inspection_set import load_images, load_masks, spread
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.run.metrics import image_auroc, pixel_auroc
from vae_edge.wording import count, verb

MAX_IMAGES = 200
"""Images to judge on by default: accuracy control runs them many times, and it compares models on the same images,
where few suffice to see a difference."""

_NOT_FINITE = (
    "the model gives scores or maps that are not finite numbers: the precision is too low for this network; export "
    "it in another"
)

_DEFECTIVE_WANTED = 32
"""Synthetic defects that a small run is judged on; each of its normals gets a few."""


@dataclass(frozen=True)
class JudgingSet:
    """Labelled images that fitted no threshold and calibrated nothing."""

    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3], prepared."""
    labels: NDArray[np.bool_]
    """bool [n], true for anomalous; both kinds occur."""
    names: tuple[str, ...]
    masks: NDArray[np.bool_] | None
    """bool [n, H, W], true at defects; None: it is not known where the defects are."""
    has_mask: NDArray[np.bool_]
    """bool [n]; false for an anomalous image whose mask is not known. It does not count in pixel metrics."""
    description: str
    """What the images are, in words."""

    def __post_init__(self) -> None:
        n = len(self.images)
        if not len(self.labels) == len(self.names) == len(self.has_mask) == n:
            raise AssertionError("the judging set does not have one label and one name for each image")
        if self.labels.all() or not self.labels.any():
            raise InputError(
                f"the {count(n, 'image')} to judge accuracy on {verb(n, 'is', 'are all')} "
                f"{'anomalous' if n and self.labels.all() else 'normal'}; "
                "expected both kinds"
            )


def draw_judging_set(
    run: RunFolder,
    *,
    data_root: Path | None = None,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
    progress: StepProgress | None = None,
) -> JudgingSet:
    """Take the run's labelled test images; if they are not of both kinds, make defects.

    The defects are pasted onto the normals that set the scale of the residual. These are held out from the network's
    training, and are neither those of the thresholds nor calibration images. Each normal is in the set both as it is
    and with defects.

    Args:
        run: the trained model.
        data_root: where the run's images are now; None: where they were.
        max_images: take at most this many, spread evenly over the normal and over the anomalous test images, both in
            their share of the test set.
        seed: of the synthetic defects.
        progress: receives every step.

    Raises:
        InputError: the run's images cannot be found, or `max_images` is below 4.
    """
    if max_images < 4:
        raise InputError(f"max_images is {max_images}; expected 4 or more to judge accuracy on")
    report = None if progress is None else lambda done, total: progress("reading judging images", done, total)
    preparation = run.record.preparation
    tests = run.find_images(("test",), data_root)
    anomalous = [file for file in tests if file.is_anomalous]
    normal = [file for file in tests if not file.is_anomalous]
    if not anomalous or not normal:
        normals = spread(run.find_images(("statistics",), data_root), max_images // 3)
        images = load_images(normals, preparation, report)
        return with_synthetic_defects(images, [file.name for file in normals], max_images=max_images, seed=seed)
    n_normal = min(max(round(max_images * len(normal) / len(tests)), 1), max_images - 1)
    files = (*spread(normal, n_normal), *spread(anomalous, max_images - n_normal))
    masks = load_masks(files, preparation)
    labels = np.array([file.is_anomalous for file in files])
    known = bool((masks.has_mask & labels).any())
    n_anomalous = int(labels.sum())
    return JudgingSet(
        images=load_images(files, preparation, report),
        labels=labels,
        names=tuple(file.name for file in files),
        masks=masks.masks if known else None,
        has_mask=masks.has_mask,
        description=f"{len(files) - n_anomalous} normal and {count(n_anomalous, 'anomalous test image')}",
    )


def with_synthetic_defects(
    images: NDArray[np.uint8], names: Sequence[str], *, max_images: int = MAX_IMAGES, seed: int = 0
) -> JudgingSet:
    """Make a judging set of normals alone: each as it is, and two or more times with a defect.

    Args:
        images: uint8 [n, H, W, 3], prepared normals, n of 1 or more.
        names: what they are called.
        max_images: make at most this many images; two for each normal are made in any case.
        seed: of the defects.

    Raises:
        InputError: there is no normal.
    """
    n = len(images)
    if n == 0:
        raise InputError("there is no held-out normal to put synthetic defects on; expected at least 1: train again")
    n_variants = min(max(-(-_DEFECTIVE_WANTED // n), 2), max(max_images // n - 1, 1))
    pasted = paste_defects(images, n_variants, seed=seed)
    n_pasted = len(pasted.images)
    return JudgingSet(
        images=np.concatenate([images, pasted.images]),
        labels=np.arange(n + n_pasted) >= n,
        names=(*names, *(f"{names[i]}+{kind}" for i, kind in zip(pasted.sources, pasted.kinds, strict=True))),
        masks=np.concatenate([np.zeros(images.shape[:3], dtype=np.bool_), pasted.masks]),
        has_mask=np.ones(n + n_pasted, dtype=np.bool_),
        description=f"{n} held-out normals and {n_pasted} synthetic defects on them",
    )


def judge(
    reference: Outputs,
    outputs: Outputs,
    judging: JudgingSet,
    reference_thresholds: Thresholds,
    thresholds: Thresholds,
) -> AccuracyRecord:
    """Hold a model's outputs against the FP32 reference's.

    Args:
        reference: outputs of the trained model for the judging set's images.
        outputs: outputs of the model for the same images.
        judging: the images.
        reference_thresholds: the trained model's.
        thresholds: the model's own, fitted on its own scores of normals.

    Raises:
        ParityError: an output is not a finite number.
    """
    expected = reference.verdicts(reference_thresholds.image_threshold)
    verdicts = outputs.verdicts(thresholds.image_threshold)
    found = compare_outputs(reference, outputs, reference_verdicts=expected, verdicts=verdicts)
    if found.maps is None or not (found.scores.is_finite and found.maps.is_finite):
        raise ParityError(_NOT_FINITE)
    moved = np.flatnonzero(expected != outputs.verdicts(reference_thresholds.image_threshold))
    at_reference = tuple(judging.names[position] for position in moved)
    return AccuracyRecord(
        images=judging.description,
        n_normal=int(np.count_nonzero(~judging.labels)),
        n_anomalous=int(np.count_nonzero(judging.labels)),
        reference_image_auroc=_image_auroc(reference, judging),
        image_auroc=_image_auroc(outputs, judging),
        reference_pixel_auroc=_pixel_auroc(reference, judging),
        pixel_auroc=_pixel_auroc(outputs, judging),
        label_flips=len(found.flipped),
        flipped_images=found.names(judging.names),
        label_flips_at_reference_threshold=len(at_reference),
        flipped_images_at_reference_threshold=at_reference,
        max_score_difference=found.scores.largest,
        max_map_difference=found.maps.largest,
        reference_score_scale=found.scores.scale,
        reference_map_scale=found.maps.scale,
    )


def check_finite(outputs: Outputs) -> None:
    """Refuse outputs that no verdict follows from.

    Raises:
        ParityError: a score or a pixel of a map is not a finite number.
    """
    if not (np.isfinite(outputs.scores).all() and np.isfinite(outputs.maps).all()):
        raise ParityError(_NOT_FINITE)


def content_hashes(images: NDArray[np.uint8]) -> tuple[str, ...]:
    """Return the SHA-256 of each prepared image's pixels: equal whatever file they came from."""
    return tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images)


def _image_auroc(outputs: Outputs, judging: JudgingSet) -> float:
    value = image_auroc(judging.labels, outputs.scores)
    assert value is not None  # the set holds both kinds
    return value


def _pixel_auroc(outputs: Outputs, judging: JudgingSet) -> float | None:
    if judging.masks is None:
        return None
    used = judging.has_mask
    return pixel_auroc(judging.masks[used], outputs.maps[used])
