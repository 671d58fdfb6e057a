from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vae_edge.agreement import Outputs
from vae_edge.decision import fit_thresholds
from vae_edge.errors import InputError, ParityError
from vae_edge.export.calibration.judging import (
    JudgingSet,
    content_hashes,
    draw_judging_set,
    judge,
    with_synthetic_defects,
)
from vae_edge.manifest import AccuracyRecord, Thresholds
from vae_edge.train.data.sources import DataSource
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder

RANDOM = np.random.default_rng(5)


def textured(n: int, size: int = 64) -> np.ndarray:
    """Smooth pictures that differ, uint8 [n, size, size, 3]."""
    rows, columns = np.mgrid[:size, :size] / size
    return np.stack(
        [
            np.stack([120 + 60 * np.sin(5 * rows + i) * np.cos(4 * columns + c) for c in range(3)], axis=-1)
            for i in range(n)
        ]
    ).astype(np.uint8)


def small_set(n: int = 40) -> JudgingSet:
    labels = np.arange(n) % 2 == 1
    masks = np.zeros((n, 8, 8), dtype=np.bool_)
    masks[labels, 2:4, 3:6] = True
    has_mask = np.ones(n, dtype=np.bool_)
    has_mask[1] = False
    return JudgingSet(
        RANDOM.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8),
        labels,
        tuple(f"{i}.png" for i in range(n)),
        masks,
        has_mask,
        "forty",
    )


def outputs_of(judging: JudgingSet, seed: int = 0) -> Outputs:
    random = np.random.default_rng(seed)
    assert judging.masks is not None
    maps = random.normal(size=judging.masks.shape) + judging.masks
    return Outputs(
        maps.astype(np.float32), (random.normal(size=len(judging.labels)) + judging.labels).astype(np.float32)
    )


def thresholds_at(value: float) -> Thresholds:
    return fit_thresholds(np.array([value]), np.zeros((1, 2, 2), np.float32), false_alarm_rate=0.5, scored_by="a test")


def judged(reference: Outputs, outputs: Outputs, judging: JudgingSet, own: float = 0.5) -> AccuracyRecord:
    return judge(reference, outputs, judging, thresholds_at(0.5), thresholds_at(own))


def test_both_aurocs_are_those_of_scikit_learn_over_images_whose_masks_are_known() -> None:
    judging = small_set()
    reference, outputs = outputs_of(judging, 0), outputs_of(judging, 1)
    accuracy = judged(reference, outputs, judging)
    assert accuracy.reference_image_auroc == pytest.approx(roc_auc_score(judging.labels, reference.scores))
    assert accuracy.image_auroc == pytest.approx(roc_auc_score(judging.labels, outputs.scores))
    assert judging.masks is not None
    known = judging.has_mask
    assert accuracy.pixel_auroc == pytest.approx(
        roc_auc_score(judging.masks[known].ravel(), outputs.maps[known].ravel())
    )
    assert accuracy.image_auroc_drop == accuracy.reference_image_auroc - accuracy.image_auroc


def test_judging_twice_and_in_between_another_model_says_the_same() -> None:
    judging = small_set()
    reference, outputs = outputs_of(judging, 0), outputs_of(judging, 1)
    first = judged(reference, outputs, judging)
    assert judged(reference, outputs_of(judging, 2), judging) != first
    assert judged(reference, outputs, judging) == first


def test_a_model_is_no_worse_than_itself() -> None:
    judging = small_set()
    reference = outputs_of(judging)
    accuracy = judged(reference, reference, judging)
    assert (accuracy.image_auroc_drop, accuracy.pixel_auroc_drop, accuracy.flip_rate) == (0, 0, 0)
    assert (accuracy.max_score_difference, accuracy.max_map_difference) == (0, 0)


def test_a_shift_that_the_own_threshold_follows_flips_labels_at_the_reference_threshold_only() -> None:
    judging = small_set()
    reference = outputs_of(judging)
    accuracy = judged(reference, Outputs(reference.maps, reference.scores + 2), judging, own=2.5)
    expected = [name for name, s in zip(judging.names, reference.scores, strict=True) if s <= 0.5 < s + 2]
    assert accuracy.label_flips == 0
    assert list(accuracy.flipped_images_at_reference_threshold) == expected
    assert accuracy.label_flips_at_reference_threshold == len(expected) > 0
    assert accuracy.max_score_difference == pytest.approx(2)


def test_without_masks_there_is_no_pixel_auroc_and_no_drop() -> None:
    judging = small_set()
    reference = outputs_of(judging)
    accuracy = judged(reference, reference, replace(judging, masks=None))
    assert accuracy.pixel_auroc is None
    assert accuracy.pixel_auroc_drop is None
    assert AccuracyRecord.model_validate_json(accuracy.model_dump_json()) == accuracy


@pytest.mark.parametrize("kind", ["scores", "maps"])
def test_an_output_that_is_not_finite_gets_no_judgement(kind: str) -> None:
    judging = small_set()
    outputs = outputs_of(judging)
    getattr(outputs, kind).reshape(-1)[3] = np.inf
    with pytest.raises(ParityError, match="not finite numbers"):
        judged(outputs_of(judging), outputs, judging)


def test_images_of_one_kind_judge_nothing() -> None:
    judging = small_set()
    with pytest.raises(InputError, match="the 40 images to judge accuracy on are all normal; expected both kinds"):
        replace(judging, labels=np.zeros(40, dtype=np.bool_))


def test_a_labelled_test_set_is_taken_as_it_is(trained_run: RunFolder) -> None:
    judging = draw_judging_set(trained_run)
    tests = trained_run.split.of("test")
    assert set(judging.names) == {image.name for image in tests}
    assert judging.labels.sum() == sum(image.defect is not None for image in tests)
    assert judging.masks is not None
    assert (judging.masks.any(axis=(1, 2)) == judging.labels).all()
    assert "test images" in judging.description


def test_a_large_test_set_is_thinned_and_keeps_both_kinds(trained_run: RunFolder) -> None:
    judging = draw_judging_set(trained_run, max_images=4)
    assert len(judging.images) == 4
    assert 0 < judging.labels.sum() < 4
    with pytest.raises(InputError, match="max_images is 3; expected 4 or more"):
        draw_judging_set(trained_run, max_images=3)


def test_without_labels_defects_are_made_on_normals_that_fit_no_threshold(
    trained_run: RunFolder, sample_data: Path, tmp_path: Path
) -> None:
    good = shutil.copytree(sample_data / "train" / "good", tmp_path / "good")
    settings = trained_run.record.settings.model_copy(update={"source": DataSource(root=str(good)), "epochs": 1})
    run = fit_run(settings, out=tmp_path / "run")
    judging = draw_judging_set(run)
    normals = [image.name for image in run.split.of("statistics")]
    assert list(judging.names[: len(normals)]) == normals
    assert {name.split("+")[0] for name in judging.names[len(normals) :]} == set(normals)
    assert judging.labels.sum() >= 32
    assert "synthetic defects" in judging.description
    again = draw_judging_set(run)
    assert content_hashes(again.images) == content_hashes(judging.images)
    assert content_hashes(draw_judging_set(run, seed=1).images) != content_hashes(judging.images)


def test_synthetic_sets_stay_within_the_number_asked_for() -> None:
    judging = with_synthetic_defects(textured(20), [str(i) for i in range(20)], max_images=60)
    assert len(judging.images) == 60
    assert len(with_synthetic_defects(textured(1), ["a"]).images) == 33
    with pytest.raises(InputError, match="there is no held-out normal"):
        with_synthetic_defects(textured(1)[:0], [])
