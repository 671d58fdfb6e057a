from __future__ import annotations

import numpy as np
import pytest

from vae_edge.agreement import Outputs
from vae_edge.errors import ParityError
from vae_edge.export.parity import check_parity, measure_parity
from vae_edge.manifest import FP32_TOLERANCE, ParityRecord

MAPS = np.random.default_rng(0).random((4, 8, 8), dtype=np.float32) * 10
SCORES = np.array([1.0, 2.0, 3.0, 10.0], dtype=np.float32)
NAMES = ("a.png", "b.png", "c.png", "d.png")


def compare(outputs: Outputs, threshold: float = 2.5) -> ParityRecord:
    record = measure_parity(
        Outputs(MAPS, SCORES), 2.5, outputs, threshold, names=NAMES, images="four", tolerance=FP32_TOLERANCE
    )
    check_parity(record)
    return record


def test_small_differences_are_measured_and_pass() -> None:
    record = compare(Outputs(MAPS + np.float32(0.001), SCORES - np.float32(0.002)))
    assert record.max_map_difference == pytest.approx(0.001, rel=1e-2)
    assert record.max_score_difference == pytest.approx(0.002, rel=1e-2)
    assert record.reference_score_scale == 10.0
    assert (record.n_images, record.label_flips, record.flipped_images) == (4, 0, ())


def test_a_score_that_drifts_too_far_is_refused() -> None:
    with pytest.raises(ParityError, match=r"the score differs .* by up to 0\.2, which is 2\.00%.*at most 0\.10%"):
        compare(Outputs(MAPS, SCORES + np.array([0, 0, 0, 0.2], dtype=np.float32)))


def test_a_map_that_drifts_too_far_is_refused() -> None:
    maps = MAPS.copy()
    maps[3, 7, 7] += 1
    with pytest.raises(ParityError, match="the anomaly map differs"):
        compare(Outputs(maps, SCORES))


def test_a_flipped_label_is_refused_and_named() -> None:
    with pytest.raises(ParityError, match=r"1 of 4 images gets a different verdict .*\(c\.png\)"):
        compare(Outputs(MAPS, SCORES), threshold=3.0)


@pytest.mark.parametrize(("moved", "flips"), [(5e-5, 0), (5e-4, 1)])
def test_the_normal_that_a_threshold_was_taken_from_flips_by_more_than_rounding_only(moved: float, flips: int) -> None:
    scores = np.array([1.0, 2.0, 3.0 + moved, 10.0], dtype=np.float32)
    record = measure_parity(
        Outputs(MAPS, SCORES), 3.0, Outputs(MAPS, scores), 3.0, names=NAMES, images="four", tolerance=FP32_TOLERANCE
    )
    assert record.label_flips == flips


def test_an_output_that_is_not_finite_is_refused() -> None:
    scores = SCORES.copy()
    scores[1] = np.nan
    with pytest.raises(ParityError, match="not a finite number"):
        compare(Outputs(MAPS, scores))


def test_the_gate_ends_a_command_with_3() -> None:
    assert ParityError("no").exit_code == 3
