from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.conftest import MakeBundle
from vae_edge.benchmarks.measure.measurer import Outputs
from vae_edge.benchmarks.measure.statistics import binomial_interval
from vae_edge.benchmarks.report.accuracy import area_under_roc, image_intervals, judge, pixel_intervals
from vae_edge.benchmarks.report.examples import LONGEST_SIDE, Seen, draw_examples
from vae_edge.bundle import Bundle
from vae_edge.image import decode_image
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.train.data.inspection_set import open_inspection_set
from vae_edge.train.run.metrics import aupro, image_auroc, pixel_auroc


def drawn_scores(seed: int, n: int = 60, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) < n // 2
    return labels, np.random.default_rng(seed).normal(size=n) + shift * labels


def test_the_interval_of_an_auroc_covers_the_truth_as_often_as_promised() -> None:
    # P(x + 1 > y) of two standard normal values is Phi(1 / sqrt(2)).
    truth = 0.7602
    covered = 0
    for seed in range(60):
        labels, scores = drawn_scores(seed)
        covered += image_intervals(labels, scores, 0.5)["image_auroc"].contains(truth)
    assert covered / 60 >= 0.88


def test_intervals_surround_their_metrics_and_the_exact_ones_are_binomial() -> None:
    labels, scores = drawn_scores(1)
    found = image_intervals(labels, scores, 0.5)
    auroc = image_auroc(labels, scores)
    assert auroc is not None
    assert found["image_auroc"].contains(auroc)
    assert found["recall"] == binomial_interval(int((scores[labels] > 0.5).sum()), 30)
    assert found["false_alarm_rate"] == binomial_interval(int((scores[~labels] > 0.5).sum()), 30)


def test_a_perfect_separation_is_not_certain_to_be_perfect() -> None:
    labels, scores = drawn_scores(2, shift=100.0)
    found = image_intervals(labels, scores, 50.0)
    assert found["image_auroc"].high == 1.0
    # 30 pairs in order by chance: the AUROC that allows that once in 40 times.
    assert found["image_auroc"].low == pytest.approx(0.025 ** (1 / 30))
    assert "image_f1" not in found
    assert "image_aupr" not in found


def test_one_class_has_only_the_rates_that_exist() -> None:
    found = image_intervals(np.zeros(5, bool), np.arange(5.0), 3.5)
    assert set(found) == {"false_alarm_rate"}


def test_areas_of_counts_are_those_of_the_scores() -> None:
    labels, scores = drawn_scores(3)
    scores = np.round(scores, 1)
    values, places = np.unique(scores, return_inverse=True)
    counts = [np.bincount(places[chosen], minlength=values.size)[None].astype(float) for chosen in (labels, ~labels)]
    assert area_under_roc(*counts)[0] == pytest.approx(image_auroc(labels, scores))


def test_pixel_intervals_surround_the_exact_metrics() -> None:
    rng = np.random.default_rng(4)
    masks = np.zeros((20, 32, 32), bool)
    masks[:10, 4:12, 4:12] = True
    masks[:5, 20:23, 20:23] = True
    strength = rng.uniform(0.5, 2.5, (20, 1, 1))
    maps = (rng.gamma(1, 1, masks.shape) + strength * masks).astype(np.float32)
    found = pixel_intervals(np.arange(20) < 10, masks, maps)
    pixel, overlap = pixel_auroc(masks, maps), aupro(masks, maps)
    assert pixel is not None
    assert overlap is not None
    assert found["pixel_auroc"].contains(pixel)
    assert found["aupro"].contains(overlap)
    assert found["aupro"].high - found["aupro"].low > 0.01
    assert pixel_intervals(np.zeros(20, bool), np.zeros_like(masks), maps) == {}


def outputs_of(folder: Path, scores: list[float], threshold: float, thresholds: Thresholds) -> Outputs:
    values = np.asarray(scores, dtype=np.float64)
    maps = np.broadcast_to(values[:, None, None], (len(scores), 32, 32)).astype(np.float32)
    return Outputs(values, maps, thresholds.model_copy(update={"image_threshold": threshold}))


def test_a_broken_promise_is_told_from_bad_luck(make_bundle: MakeBundle, inspection_folder: Path) -> None:
    files = open_inspection_set(inspection_folder).test
    manifest = Bundle.open(make_bundle("promise")).manifest
    kept = [1.0 if file.is_anomalous else 0.0 for file in files]
    for scores, n_false_alarms, is_kept in ((kept, 0, True), ([1.0] * len(files), 4, False)):
        outputs = outputs_of(inspection_folder, scores, 0.5, manifest.thresholds)
        promise = judge(files, manifest.preparation, outputs).promise
        assert promise is not None
        assert promise.promised_rate == 0.01
        assert (promise.n_false_alarms, promise.n_normal, promise.is_kept) == (n_false_alarms, 4, is_kept)


def test_an_f1_optimal_threshold_has_no_promise_to_break(make_bundle: MakeBundle, inspection_folder: Path) -> None:
    files = open_inspection_set(inspection_folder).test
    manifest = Bundle.open(make_bundle("by-f1")).manifest
    by_f1 = manifest.thresholds.model_copy(update={"method": ThresholdMethod.F1_OPTIMAL})
    record = judge(files, manifest.preparation, outputs_of(inspection_folder, [1.0] * len(files), 0.5, by_f1))
    assert record.promise is None
    assert record.threshold_method is ThresholdMethod.F1_OPTIMAL
    assert record.metrics.false_alarm_rate == 1.0


def test_examples_are_small_pictures_of_each_kind_and_of_the_flips(
    make_bundle: MakeBundle, inspection_folder: Path
) -> None:
    files = open_inspection_set(inspection_folder).test
    manifest = Bundle.open(make_bundle("examples")).manifest
    scores = [0.2 if file.is_anomalous and file.name.endswith("0.png") else float(file.is_anomalous) for file in files]
    scores[0] = 0.9
    reference = outputs_of(inspection_folder, scores, 0.5, manifest.thresholds)
    moved = outputs_of(inspection_folder, scores, 0.1, manifest.thresholds)
    examples, pictures = draw_examples(
        files,
        [Seen("a", manifest.preparation, reference), Seen("b", manifest.preparation, moved, reference)],
        n_each=2,
    )
    kinds = [(example.bundle, example.kind) for example in examples]
    assert kinds == [
        ("a", "hit"),
        ("a", "hit"),
        ("a", "miss"),
        ("a", "false_alarm"),
        *[("a", "pass")] * 2,
        ("b", "flip"),
    ]
    flip = examples[-1]
    assert flip.is_anomalous
    assert flip.defect == "spot"
    for example in examples:
        names = [example.input_file, example.map_file, example.mask_file]
        names += [example.truth_file] if example.truth_file else []
        for name in names:
            picture = decode_image(np.frombuffer(pictures[name], np.uint8), name=name)
            assert max(picture.shape) <= LONGEST_SIDE
            assert picture.shape[:2] == (40, 48)
        assert (example.truth_file is not None) == (example.defect is not None)
