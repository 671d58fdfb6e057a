"""Do two models agree? Their verdicts, scores and anomaly maps for the same images, side by side.

The one measurement behind every comparison: an export with the trained model, a bundle in a benchmark with another, a
folder for Model API with its bundle. The tolerances differ, so each of them has its own acceptance rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.backends.base import Backend
from vae_edge.platform.work import Progress

_MAPS_AT_ONCE = 64
"""Maps compared at a time: they may be on disk, and all of them may not fit into memory."""


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for some images, in their order."""

    maps: NDArray[Any]
    """float32 [n, H, W]; may lie on disk. Or block means of them, float64."""
    scores: NDArray[Any]
    """float32 or float64 [n]"""

    def take(self, positions: slice) -> Outputs:
        """Return the outputs of some of the images."""
        return Outputs(self.maps[positions], self.scores[positions])

    def verdicts(self, image_threshold: float) -> NDArray[np.bool_]:
        """Return which images are anomalous by a threshold, bool [n].

        In float64, as the device decides: compared with a float32 array, the threshold would be rounded to float32.
        """
        return np.asarray(self.scores.astype(np.float64) > image_threshold)


@dataclass(frozen=True)
class Difference:
    """How far a model's values are from the reference's. NaN or infinite where one of them is."""

    largest: float
    """Of the absolute differences."""
    mean: float
    """Of the differences, model - reference: its sign says in which direction they moved. Of maps, of absolute ones."""
    scale: float
    """Largest absolute value of the reference, to judge the difference by."""

    @property
    def is_finite(self) -> bool:
        """Whether all values of both are finite; no verdict follows from one that is not."""
        return bool(np.isfinite(self.largest) and np.isfinite(self.scale))


@dataclass(frozen=True)
class Agreement:
    """What separates a model from a reference."""

    flipped: tuple[int, ...]
    """Positions of the images that get a different verdict, ascending."""
    scores: Difference
    maps: Difference | None
    """None: there are none, or they are not of one size."""

    def names(self, images: Sequence[str]) -> tuple[str, ...]:
        """Return the names of the flipped images."""
        return tuple(images[position] for position in self.flipped)


def compare_scores(
    reference: NDArray[Any], scores: NDArray[Any], *, reference_verdicts: NDArray[Any], verdicts: NDArray[Any]
) -> Agreement:
    """Compare a model's scores and verdicts with a reference's for the same images.

    Args:
        reference: float [n], scores of the reference model.
        scores: float [n], scores of the model to compare.
        reference_verdicts: bool [n], which images the reference calls anomalous; usually at its own threshold.
        verdicts: bool [n], which ones the model calls anomalous.

    Raises:
        ValueError: the arrays are not for the same number of images, or there is none.

    Examples:
        >>> found = compare_scores(
        ...     np.array([0.2, 0.5, 0.9]),
        ...     np.array([0.2, 0.75, 0.9]),
        ...     reference_verdicts=np.array([False, False, True]),
        ...     verdicts=np.array([False, True, True]),
        ... )
        >>> found.flipped, found.scores.largest
        ((1,), 0.25)
    """
    lengths = {len(reference), len(scores), len(reference_verdicts), len(verdicts)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"scores and verdicts for {sorted(lengths)} images; expected one number, 1 or more")
    moved = scores.astype(np.float64) - reference.astype(np.float64)
    return Agreement(
        flipped=tuple(map(int, np.flatnonzero(reference_verdicts != verdicts))),
        scores=Difference(float(np.max(np.abs(moved))), float(np.mean(moved)), float(np.max(np.abs(reference)))),
        maps=None,
    )


def compare_outputs(
    reference: Outputs, outputs: Outputs, *, reference_verdicts: NDArray[Any], verdicts: NDArray[Any]
) -> Agreement:
    """Compare a model's outputs, maps included, with a reference's; see `compare_scores`."""
    found = compare_scores(reference.scores, outputs.scores, reference_verdicts=reference_verdicts, verdicts=verdicts)
    same_size = reference.maps.shape == outputs.maps.shape
    return replace(found, maps=_compare_maps(reference.maps, outputs.maps) if same_size else None)


def run_backend(backend: Backend, images: NDArray[np.uint8], *, progress: Progress | None = None) -> Outputs:
    """Run a model over prepared images, uint8 [n, H, W, 3], one at a time as a device does.

    Raises:
        DeviceError: the runtime failed.
    """

    def run(image: NDArray[np.uint8]) -> tuple[Any, Any]:
        outputs = backend.run({"image": image})
        return outputs["anomaly_map"], outputs["score"]

    return run_each(run, images, progress)


def run_each(
    run: Callable[[NDArray[np.uint8]], Sequence[Any]], images: NDArray[np.uint8], progress: Progress | None = None
) -> Outputs:
    """Collect the outputs of prepared images, uint8 [n, H, W, 3], one at a time.

    Args:
        run: from uint8 [1, H, W, 3] to the map, [1, H, W], and the score, [1]; they may be views that the next call
            writes to.
        images: to run over.
        progress: called with images done and in all.
    """
    outputs = Outputs(np.empty(images.shape[:3], dtype=np.float32), np.empty(len(images), dtype=np.float32))
    for position in range(len(images)):
        one = slice(position, position + 1)
        outputs.maps[one], outputs.scores[one] = run(images[one])
        if progress is not None:
            progress(position + 1, len(images))
    return outputs


def _compare_maps(reference: NDArray[Any], maps: NDArray[Any]) -> Difference:
    largest = total = scale = 0.0
    for start in range(0, len(reference), _MAPS_AT_ONCE):
        block = np.asarray(reference[start : start + _MAPS_AT_ONCE])
        scale = float(np.maximum(scale, np.max(np.abs(block))))  # np.maximum keeps a NaN
        difference = np.abs(maps[start : start + _MAPS_AT_ONCE] - block)
        largest = float(np.maximum(largest, np.max(difference)))
        total += float(difference.sum(dtype=np.float64))
    return Difference(largest, total / reference.size, scale)
