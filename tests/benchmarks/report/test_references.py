from __future__ import annotations

import numpy as np
import pytest

from vae_edge.benchmarks.measure.measurer import Outputs
from vae_edge.benchmarks.report.references import Candidate, choose_references, compare
from vae_edge.errors import InputError
from vae_edge.manifest import Thresholds
from vae_edge.targets import Precision, Target


def outputs(scores: list[float], threshold: float = 0.5, size: int = 2, spread: float = 1.0) -> Outputs:
    values = np.asarray(scores, dtype=np.float64)
    maps = np.broadcast_to(values[:, None, None], (len(scores), size, size)).astype(np.float32)
    thresholds = Thresholds(
        false_alarm_rate_requested=0.1,
        false_alarm_rate=0.1,
        image_threshold=threshold,
        pixel_threshold=threshold,
        pixel_false_positive_rate=0.001,
        n_normals=2,
        calibration_scores=(0.0, 2 * spread),
        scored_by="a test",
    )
    return Outputs(values, maps, thresholds)


def test_a_flip_is_judged_by_each_bundles_own_threshold() -> None:
    # Scores twice as large with a threshold twice as large give the same verdicts.
    same = compare(["a", "b", "c"], "ref", outputs([0.1, 0.4, 0.6]), outputs([0.2, 0.8, 1.2], 1.0), same_run=True)
    assert same.label_flips == 0
    assert same.max_score_difference == pytest.approx(0.6)
    assert same.mean_score_difference == pytest.approx(1.1 / 3)
    assert same.max_map_difference == pytest.approx(0.6)
    assert same.mean_map_difference == pytest.approx(1.1 / 3)
    assert same.reference_map_scale == pytest.approx(0.6)
    assert same.score_rank_correlation == pytest.approx(1.0)
    moved = compare(["a", "b", "c"], "ref", outputs([0.1, 0.4, 0.6]), outputs([0.1, 0.4, 0.6], 0.3), same_run=True)
    assert moved.flipped_images == ("b",)


def test_a_flip_is_explained_where_the_score_hardly_moved_for_what_good_parts_differ_by() -> None:
    reference = outputs([0.49, 0.3], spread=1.0)
    found = compare(["near", "far"], "ref", reference, outputs([0.52, 0.7]), same_run=True, defects=[None, "dent"])
    near, far = found.flips
    assert (near.is_explained, far.is_explained) == (True, False)
    assert (far.defect, far.is_anomalous) == ("dent", True)
    assert (far.reference_margin, far.margin) == pytest.approx((-0.2, 0.2))
    assert found.unexplained_flips == 1
    # The same move is a large one where good parts are all alike.
    tight = compare(["near"], "ref", outputs([0.49], spread=0.05), outputs([0.52], spread=0.05), same_run=True)
    assert tight.unexplained_flips == 1


def test_a_score_on_the_threshold_is_normal_as_in_the_detector() -> None:
    assert outputs([0.5, 0.5000001]).verdicts.tolist() == [False, True]


def test_maps_of_another_size_are_not_compared() -> None:
    found = compare(["a"], "ref", outputs([0.1], size=2), outputs([0.1], size=3), same_run=False)
    assert found.max_map_difference is None
    assert found.label_flips == 0


def test_outputs_for_other_images_or_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="expected the same number"):
        compare(["a"], "ref", outputs([0.1]), outputs([0.1, 0.2]), same_run=True)
    with pytest.raises(InputError, match="not a finite number"):
        compare(["a"], "ref", outputs([0.1]), outputs([float("nan")]), same_run=True)


def candidate(name: str, target: Target, run: str = "a", *, may_be_reference: bool = True) -> Candidate:
    return Candidate(name, target, Precision.FP32, run, may_be_reference)


def test_a_bundle_that_does_not_give_its_reference_outputs_is_no_reference() -> None:
    torch = candidate("t", Target.TORCH, may_be_reference=False)
    references, notes = choose_references([torch, candidate("o", Target.ONNX)])
    assert references == {"t": "o", "o": "o"}
    assert notes[0].startswith("o is the reference")
    references, notes = choose_references([torch])
    assert (references, notes) == (
        {},
        ("no sound bundle of the training run a in FP32 could run: nothing to compare t with",),
    )


def test_the_reference_is_torch_wherever_it_stands_and_every_run_has_its_own() -> None:
    references, notes = choose_references(
        [
            candidate("o", Target.ONNX),
            candidate("t", Target.TORCH),
            candidate("x", Target.OPENVINO, "b"),
            candidate("y", Target.ONNX, "b"),
        ]
    )
    assert references == {"o": "t", "t": "t", "x": "x", "y": "x"}
    assert "FP32 bundle of torch" in notes[0]
    assert "first FP32 bundle" in notes[1]


def test_the_reference_asked_for_is_everyones_or_nobodys() -> None:
    both = [candidate("o", Target.ONNX), candidate("x", Target.OPENVINO, "b")]
    assert choose_references(both, "x")[0] == {"o": "x", "x": "x"}
    references, notes = choose_references(both, "gone")
    assert references == {}
    assert "could not run" in notes[0]
