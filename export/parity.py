"""Does an exported model give the trained model's verdict? Measured on real images, written into the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend
from vae_edge.errors import ParityError
from vae_edge.manifest import ParityRecord
from vae_edge.progress import Progress

FP32_TOLERANCE = 1e-3
"""Largest difference allowed between FP32 models in maps and scores, as a share of the reference's largest value.

Rounding in another order moves them by about 1e-5 of it; ten times that is a mistake."""


@dataclass(frozen=True)
class Outputs:
    """Maps, float32 [n, H, W], and scores, float32 [n], of the same images in the same order."""

    maps: NDArray[np.float32]
    scores: NDArray[np.float32]

    def take(self, positions: slice) -> Outputs:
        """Return the outputs of some of the images."""
        return Outputs(self.maps[positions], self.scores[positions])


def run_backend(
    backend: Backend,
    images: NDArray[np.uint8],
    *,
    progress: Progress | None = None,
) -> Outputs:
    """Run an exported model over prepared images, uint8 [n, H, W, 3], one at a time as a device does."""
    maps = np.empty(images.shape[:3], dtype=np.float32)
    scores = np.empty(len(images), dtype=np.float32)
    for position in range(len(images)):
        outputs = backend.run({"image": images[position : position + 1]})
        maps[position], scores[position] = outputs["anomaly_map"][0], outputs["score"][0]
        if progress is not None:
            progress(position + 1, len(images))
    return Outputs(maps, scores)


def measure_parity(
    reference: Outputs,
    reference_threshold: float,
    outputs: Outputs,
    threshold: float,
    *,
    names: Sequence[str],
    images: str,
    tolerance: float | None = None,
) -> ParityRecord:
    """Compare an exported model's outputs with the FP32 torch reference's.

    A flip is an image that one calls anomalous and the other does not, each by its own threshold.

    Args:
        reference: outputs of the trained model.
        reference_threshold: its image threshold.
        outputs: outputs of the exported model for the same images.
        threshold: its image threshold.
        names: what the images are called, to name the flipped ones.
        images: what the images are, in words, for the record.
        tolerance: for the record.

    Raises:
        ParityError: an output is not finite.
    """
    flips = (reference.scores > reference_threshold) != (outputs.scores > threshold)
    return ParityRecord(
        reference="torch fp32",
        images=images,
        n_images=len(names),
        max_score_difference=_largest(outputs.scores - reference.scores),
        max_map_difference=_largest(outputs.maps - reference.maps),
        reference_score_scale=_largest(reference.scores),
        reference_map_scale=_largest(reference.maps),
        label_flips=int(flips.sum()),
        flipped_images=tuple(name for name, flipped in zip(names, flips, strict=True) if flipped),
        tolerance=tolerance,
    )


def check_parity(record: ParityRecord) -> None:
    """Refuse an FP32 model that is not the trained model: rounding in another order flips nothing and moves little.

    Raises:
        ParityError: a label flips, or a difference is beyond the tolerance.
    """
    tolerance = record.tolerance or FP32_TOLERANCE
    for what, difference, scale in (
        ("score", record.max_score_difference, record.reference_score_scale),
        ("anomaly map", record.max_map_difference, record.reference_map_scale),
    ):
        if difference > tolerance * scale:
            raise ParityError(
                f"the {what} differs from the trained model's by up to {difference:.3g}, which is "
                f"{difference / max(scale, 1e-30):.2%} of its largest value; at most {tolerance:.2%} is "
                "allowed: the bundle was not written"
            )
    if record.label_flips:
        raise ParityError(
            f"{record.label_flips} of {record.n_images} images get another verdict than from the trained model "
            f"({', '.join(record.flipped_images[:5])}{', ...' if record.label_flips > 5 else ''}): "
            "the bundle was not written"
        )


def _largest(values: NDArray[np.float32]) -> float:
    largest = float(np.max(np.abs(values)))
    if not np.isfinite(largest):
        raise ParityError("the model's output holds a value that is not a finite number: the bundle was not written")
    return largest
