from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.detectability import CONTRASTS
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.train.run.detectability import (
    KINDS,
    MOST_NORMALS,
    SIZES,
    Score,
    measure_detectability,
    threshold_asked_for,
)


def surfaces(n: int, side: int = 64) -> NDArray[np.uint8]:
    """Equal pictures of dark marks on a grey ground, uint8 [n, side, side, 3], with a number in a corner pixel."""
    picture = np.full((side, side, 3), 140, dtype=np.uint8)
    picture[8::12, 4:-4] = 60
    made = np.repeat(picture[None], n, axis=0)
    made[:, 0, 0, 0] = np.arange(n)
    return made


def thresholds(
    scores: tuple[float, ...],
    threshold: float,
    *,
    asked: float = 0.01,
    method: ThresholdMethod = ThresholdMethod.SPLIT_CONFORMAL,
) -> Thresholds:
    return Thresholds(
        method=method,
        false_alarm_rate_requested=asked,
        false_alarm_rate=max(asked, 1 / (len(scores) + 1)),
        image_threshold=threshold,
        pixel_threshold=1.0,
        pixel_false_positive_rate=0.001,
        n_normals=len(scores),
        calibration_scores=tuple(sorted(scores)),
        scored_by="a test",
    )


def changed_pixels(clean: NDArray[np.uint8]) -> Score:
    """A perfect judge: the score is the number of pixels that are unlike a good part's."""

    def score(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        different = (images != clean[:1]).any(axis=-1)
        different[:, 0, 0] = False
        return np.asarray(different.sum(axis=(1, 2)), dtype=np.float32)

    return score


def test_every_size_and_contrast_is_tried_equally_often_on_a_bounded_number_of_pictures() -> None:
    normals, seen = surfaces(60), []

    def score(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(len(images))
        return np.zeros(len(images), dtype=np.float32)

    found = measure_detectability(score, normals, thresholds((0.5,) * 20, 0.5, asked=0.1))
    assert sum(seen) == 240
    assert max(seen) <= 16
    assert (found.n, found.n_found, found.n_false_alarms, found.n_normals) == (216, 0, 0, MOST_NORMALS)
    assert {(cell.size, cell.contrast) for cell in found.by_size} == {(s, c) for s in SIZES for c in CONTRASTS}
    assert {cell.n for cell in found.by_size} == {12}
    assert set(found.kinds) <= set(KINDS)
    assert sum(cell.n for cell in found.by_kind) == 216
    assert found.is_blind
    assert found.n_found_at_requested_rate is None


def test_a_judge_that_sees_every_pixel_finds_all_and_one_that_needs_many_finds_the_large_ones() -> None:
    normals = surfaces(6)
    judge = changed_pixels(normals)
    sharp = measure_detectability(judge, normals, thresholds((0.0,) * 20, 0.0, asked=0.1))
    assert sharp.n_found == sharp.n
    assert sharp.blindness() is None
    coarse = measure_detectability(judge, normals, thresholds((60.0,) * 20, 60.0, asked=0.1))
    shares = [sum(c.n_found for c in coarse.by_size if c.size == size) / 36 for size in SIZES]
    assert shares[:4] == sorted(shares[:4])
    assert shares[0] == 0
    assert shares[-1] > 0.8
    assert coarse.is_blind


def test_what_is_anomalous_without_a_defect_is_counted_beside_them() -> None:
    normals = surfaces(4)
    found = measure_detectability(
        lambda images: images[:, 0, 0, 0].astype(np.float32), normals, thresholds((2.0,) * 20, 2.0, asked=0.1)
    )
    assert (found.n_false_alarms, found.n_normals) == (1, 4)


def test_where_one_normal_is_the_threshold_a_larger_rate_is_tried_as_well() -> None:
    normals = surfaces(6)
    judge = changed_pixels(normals)
    outlier = (*np.linspace(0.0, 20.0, 40).tolist(), 1e6)
    found = measure_detectability(judge, normals, thresholds(outlier, 1e6))
    assert found.n_found == 0
    larger = found.at_larger_rate
    assert larger is not None
    assert (larger.false_alarm_rate, larger.threshold) == (0.05, 20.0)  # 2 of 42 may be above.
    assert larger.n_found == measure_detectability(judge, normals, thresholds((20.0,) * 20, 20.0, asked=0.1)).n_found
    assert larger.n_found > 0.5 * found.n


@pytest.mark.parametrize(
    "made",
    [
        thresholds(tuple(range(199)), 197.0),  # One of them is above: the rate does not hang on a single score.
        thresholds(tuple(range(10)), 9.0),  # 10 support no rate of 0.05.
        thresholds(tuple(range(40)), 39.0, method=ThresholdMethod.F1_OPTIMAL),
    ],
)
def test_elsewhere_no_larger_rate_is_tried(made: Thresholds) -> None:
    normals = surfaces(3)
    assert measure_detectability(changed_pixels(normals), normals, made).at_larger_rate is None


def test_the_same_seed_finds_the_same() -> None:
    normals = surfaces(5)

    def score(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(images.astype(np.float32).std(axis=(1, 2, 3)), dtype=np.float32)

    level = thresholds((30.0,) * 20, float(score(normals).max()) + 0.2, asked=0.1)
    first, again = (measure_detectability(score, normals, level, seed=3) for _ in range(2))
    assert first == again
    assert 0 < first.n_found < first.n


def test_folds_are_said_to_have_trained_the_network() -> None:
    cross = thresholds((0.5,) * 20, 0.5, asked=0.1, method=ThresholdMethod.CROSS_CONFORMAL)
    found = measure_detectability(lambda images: np.zeros(len(images), dtype=np.float32), surfaces(2), cross)
    assert "trained the network" in found.normals


def test_the_threshold_of_a_smaller_rate_is_that_of_an_exponential_tail() -> None:
    n = 40
    scores = tuple(-math.log(1 - (i + 0.5) / n) for i in range(n))  # Quantiles of the exponential distribution.
    estimate = threshold_asked_for(thresholds(scores, max(scores), asked=0.001))
    assert estimate is not None
    assert estimate == pytest.approx(-math.log(0.001), rel=0.15)


@pytest.mark.parametrize(
    "given",
    [
        thresholds((1.0,) * 200, 1.0),
        thresholds(tuple(map(float, range(7))), 6.0),
        thresholds(tuple(map(float, range(20))), 3.0, method=ThresholdMethod.F1_OPTIMAL),
    ],
    ids=["enough normals", "hardly any", "F1-optimal"],
)
def test_no_threshold_is_estimated_where_none_is_asked_for_or_nothing_is_known(given: Thresholds) -> None:
    assert threshold_asked_for(given) is None


def test_the_cost_of_a_smaller_rate_is_counted_on_the_pasted_defects() -> None:
    normals = surfaces(6)
    few = thresholds(tuple(map(float, range(20))), 19.0, asked=0.001)
    found = measure_detectability(changed_pixels(normals), normals, few)
    assert found.n_found_at_requested_rate is not None
    assert 0 < found.n_found_at_requested_rate < found.n_found
