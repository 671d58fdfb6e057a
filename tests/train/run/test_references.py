"""Which pictures a run keeps: about half good and half with a defect, clear of the threshold, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.tiny_models import surfaces
from vae_edge.decision import fit_thresholds
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.reference_file import ReferenceKind
from vae_edge.train.run.references import choose_references


def spread(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Score a picture by its largest distance from its own mean: a defect stands out."""
    values = images.astype(np.float64).mean(axis=3)
    distances = np.abs(values - values.mean(axis=(1, 2), keepdims=True)).max(axis=(1, 2))
    return np.asarray(distances, dtype=np.float32)


def thresholds_of(scores: NDArray[np.float32]) -> Thresholds:
    return fit_thresholds(scores, np.ones((len(scores), 2, 2), np.float32), scored_by="a test")


NORMALS = surfaces(24, 48, 64)


def test_half_are_good_and_half_have_a_defect_and_they_take_turns() -> None:
    kept = choose_references(spread, NORMALS, thresholds_of(spread(NORMALS)))
    assert kept.record.kind is ReferenceKind.PARTS
    assert kept.record.shows_parts
    assert kept.record.n_images == 16
    assert kept.record.images == "8 good parts that set the threshold and 8 pictures with defects pasted on such parts"
    good = {image.tobytes() for image in NORMALS}
    images = list(kept.file.images())
    assert [image.tobytes() in good for image in images] == [True, False] * 8
    assert len({image.tobytes() for image in images}) == 16


def test_the_choice_follows_from_the_seed() -> None:
    thresholds = thresholds_of(spread(NORMALS))
    first, again, other = (choose_references(spread, NORMALS, thresholds, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.file.pictures != other.file.pictures


def test_none_is_close_to_the_threshold() -> None:
    scores = spread(NORMALS)
    # Half of the good parts are at the threshold, to the last digit that a score has.
    middle = float(np.sort(scores)[12])
    thresholds = thresholds_of(scores).model_copy(update={"image_threshold": middle})
    kept = choose_references(spread, NORMALS, thresholds)
    found = spread(np.stack(list(kept.file.images())))
    assert (np.abs(found - middle) / np.maximum(found, middle)).min() > 0.02


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_good_parts_are_enough(n: int) -> None:
    kept = choose_references(spread, NORMALS[:n], thresholds_of(spread(NORMALS)))
    assert kept.record.n_images == 16
    assert kept.record.images.startswith(f"{n} good parts that set the threshold and {16 - n} pictures")


def test_parts_of_the_training_are_called_that() -> None:
    thresholds = thresholds_of(spread(NORMALS)).model_copy(update={"method": ThresholdMethod.CROSS_CONFORMAL})
    assert "8 good parts of the training and" in choose_references(spread, NORMALS, thresholds).record.images


def test_large_pictures_are_fewer_and_still_half_good() -> None:
    random = np.random.default_rng(0)
    large = random.integers(0, 256, (6, 320, 360, 3), dtype=np.uint8)
    kept = choose_references(spread, large, thresholds_of(spread(NORMALS)))
    assert kept.record.n_images == 8
    assert kept.record.images.startswith("3 good parts")
