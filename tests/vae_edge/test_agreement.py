from __future__ import annotations

import numpy as np
import pytest

from vae_edge.agreement import Outputs, compare_outputs, compare_scores

MAPS = np.random.default_rng(0).random((100, 8, 8), dtype=np.float32) * 10
SCORES = np.linspace(-3, 3, 100, dtype=np.float32)


def test_equal_outputs_agree_in_everything() -> None:
    found = compare_outputs(
        Outputs(MAPS, SCORES), Outputs(MAPS, SCORES), reference_verdicts=SCORES > 1, verdicts=SCORES > 1
    )
    assert found.flipped == ()
    assert found.maps is not None
    assert (found.scores.largest, found.scores.mean, found.maps.largest, found.maps.mean) == (0, 0, 0, 0)
    assert (found.scores.scale, found.maps.scale) == (3.0, float(np.max(MAPS)))


def test_differences_are_those_of_numpy_over_all_blocks_of_maps() -> None:
    other = MAPS.copy()
    other[99, 0, 0] -= 4
    scores = SCORES + np.float32(0.5)
    found = compare_outputs(
        Outputs(MAPS, SCORES), Outputs(other, scores), reference_verdicts=SCORES > 0, verdicts=scores > 0
    )
    assert found.maps is not None
    assert found.maps.largest == pytest.approx(4)
    assert found.maps.mean == pytest.approx(4 / MAPS.size)
    assert [found.scores.largest, found.scores.mean] == pytest.approx([0.5, 0.5])
    assert found.flipped == tuple(np.flatnonzero((SCORES <= 0) & (scores > 0)))
    assert found.names([f"{i}.png" for i in range(100)]) == tuple(f"{i}.png" for i in found.flipped)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["reference", "outputs"])
@pytest.mark.parametrize("what", ["maps", "scores"])
def test_a_value_that_is_not_finite_is_never_agreement(broken: float, whose: str, what: str) -> None:
    sides = {"reference": Outputs(MAPS.copy(), SCORES.copy()), "outputs": Outputs(MAPS.copy(), SCORES.copy())}
    getattr(sides[whose], what).reshape(100, -1)[70, 0] = broken
    with np.errstate(invalid="ignore"):
        found = compare_outputs(**sides, reference_verdicts=SCORES > 0, verdicts=SCORES > 0)
    assert found.maps is not None
    assert not (found.scores.is_finite and found.maps.is_finite)


def test_maps_of_another_size_are_not_compared() -> None:
    found = compare_outputs(
        Outputs(MAPS, SCORES), Outputs(MAPS[:, :4], SCORES), reference_verdicts=SCORES > 0, verdicts=SCORES > 0
    )
    assert found.maps is None


def test_a_verdict_is_by_the_threshold_in_float64() -> None:
    # In float32 the score would be equal to the threshold, and so normal.
    score = np.float32(0.1)
    assert Outputs(MAPS[:1], np.array([score])).verdicts(float(score) - 1e-12).tolist() == [True]


@pytest.mark.parametrize("n", [0, 99])
def test_outputs_for_other_images_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="expected one number, 1 or more"):
        compare_scores(SCORES[:n], SCORES[: min(n, 98)], reference_verdicts=SCORES[:n], verdicts=SCORES[:n])
