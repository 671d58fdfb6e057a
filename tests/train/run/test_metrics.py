import json
import time
from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from vae_edge.errors import InputError
from vae_edge.train.run.metrics import (
    Metrics,
    aupro,
    average_precision,
    best_f1,
    evaluate,
    f1_at,
    image_auroc,
    pixel_auroc,
    pro_curve,
    roc_curve,
)

Labels = NDArray[np.bool_]
Floats = NDArray[np.floating]


def labelled_scores(seed: int, n: int = 60, *, ties: bool = False, dtype: type = np.float64) -> tuple[Labels, Floats]:
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.4
    labels[:2] = (True, False)
    scores = rng.normal(size=n) + labels
    return labels, (np.round(scores) if ties else scores).astype(dtype)


def masks_and_maps(seed: int, *, ties: bool = False, n: int = 4, side: int = 17) -> tuple[Labels, Floats]:
    rng = np.random.default_rng(seed)
    masks = scipy.ndimage.gaussian_filter(rng.normal(size=(n, side, side)), (0, 1, 1)) > 0.35
    masks[0] = False
    maps = (rng.normal(size=masks.shape) + 0.8 * masks).astype(np.float32)
    return masks, np.round(2 * maps) if ties else maps


def brute_force_pro(masks: Labels, maps: Floats, limit: float) -> float:
    """Bergmann et al. 2021 taken literally: every threshold, every region, a new count each time."""
    regions = []
    for i, mask in enumerate(masks):
        labels, n = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [(i, labels == k) for k in range(1, n + 1)]
    points = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
        marked = maps >= threshold
        rate = float((marked & ~masks).sum() / (~masks).sum())
        points.append((rate, float(np.mean([marked[i][region].mean() for i, region in regions]))))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_image_metrics_equal_scikit_learns(seed: int, ties: bool, dtype: type) -> None:
    labels, scores = labelled_scores(seed, ties=ties, dtype=dtype)
    assert image_auroc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
    expected = sklearn_metrics.average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)
    for threshold in np.quantile(scores, [0.1, 0.5, 0.9]):
        expected = sklearn_metrics.f1_score(labels, scores > threshold)
        assert f1_at(labels, scores, threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_f1_is_the_best_of_all_thresholds_and_its_threshold_gives_it(
    seed: int, ties: bool, dtype: type
) -> None:
    labels, scores = labelled_scores(seed, ties=ties, dtype=dtype)
    best = best_f1(labels, scores)
    assert best is not None
    every = [sklearn_metrics.f1_score(labels, scores >= value) for value in np.unique(scores)]
    assert best[0] == pytest.approx(max(every), abs=1e-12)
    assert f1_at(labels, scores, best[1]) == best[0]


@pytest.mark.parametrize("value", [0.0, 3.5e7, -3.5e7, 1e-9])
def test_the_best_f1_of_equal_scores_calls_everything_anomalous(value: float) -> None:
    labels, scores = [True, True, False], np.full(3, value, np.float32)
    best = best_f1(labels, scores)
    assert best is not None
    assert best[0] == pytest.approx(0.8)
    assert f1_at(labels, scores, best[1]) == best[0]


@pytest.mark.parametrize("max_points", [None, 20])
def test_the_roc_curve_equals_scikit_learns(max_points: int | None) -> None:
    labels, scores = labelled_scores(0, n=300, ties=False)
    curve = roc_curve(labels, scores, max_points)
    assert curve is not None
    fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores, drop_intermediate=True)
    if max_points is None:
        known = set(zip(curve.false_positive_rate.tolist(), curve.hit_rate.round(12).tolist(), strict=True))
        assert set(zip(fpr.tolist(), tpr.round(12).tolist(), strict=True)) <= known
    else:
        assert curve.false_positive_rate.size <= 20
    assert (np.diff(curve.false_positive_rate) >= 0).all()
    assert (np.diff(curve.hit_rate) >= 0).all()
    assert curve.false_positive_rate[[0, -1]].tolist() == [0, 1]
    assert curve.hit_rate[[0, -1]].tolist() == [0, 1]


def test_the_area_under_the_roc_curve_is_the_auroc() -> None:
    labels, scores = labelled_scores(3, ties=True)
    curve = roc_curve(labels, scores)
    assert curve is not None
    area = sklearn_metrics.auc(curve.false_positive_rate, curve.hit_rate)
    assert area == pytest.approx(image_auroc(labels, scores), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_pixel_auroc_equals_scikit_learns(seed: int, ties: bool) -> None:
    masks, maps = masks_and_maps(seed, ties=ties)
    expected = sklearn_metrics.roc_auc_score(masks.ravel(), maps.ravel())
    assert pixel_auroc(masks, maps) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_aupro_equals_a_brute_force_over_all_thresholds(seed: int, ties: bool, limit: float) -> None:
    masks, maps = masks_and_maps(seed, ties=ties)
    assert aupro(masks, maps, limit) == pytest.approx(brute_force_pro(masks, maps, limit), abs=1e-12)


def test_the_aupro_of_perfect_maps_is_1_of_inverted_ones_0_and_of_constant_ones_half_the_limit() -> None:
    masks, _ = masks_and_maps(0)
    assert aupro(masks, masks.astype(np.float32)) == 1.0
    assert aupro(masks, -masks.astype(np.float32)) == 0.0
    assert aupro(masks, np.zeros(masks.shape, np.float32)) == pytest.approx(0.15)


def test_a_small_region_counts_as_much_as_a_large_one_and_diagonal_neighbours_are_one_region() -> None:
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = masks[0, 16, 16] = True
    maps = np.zeros(masks.shape, np.float32)
    maps[0, :10, :10] = 1.0
    curve = pro_curve(masks, maps)
    assert curve is not None
    # The large region alone is above 0, without a false positive: half of the two regions.
    assert curve.hit_rate[np.flatnonzero(curve.false_positive_rate == 0)[-1]] == pytest.approx(0.5)


def test_a_curve_may_be_thinned_for_a_drawing_and_keeps_its_shape() -> None:
    masks, maps = masks_and_maps(0, n=10, side=40)
    full, thin = pro_curve(masks, maps), pro_curve(masks, maps, max_points=100)
    assert full is not None
    assert thin is not None
    assert thin.hit_rate.size <= 100 < full.hit_rate.size
    area = sklearn_metrics.auc(thin.false_positive_rate, thin.hit_rate)
    assert area == pytest.approx(sklearn_metrics.auc(full.false_positive_rate, full.hit_rate), abs=2e-3)


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_there_is_no_metric(label: int) -> None:
    labels, scores = np.full(5, label), np.arange(5.0)
    assert image_auroc(labels, scores) is None
    assert average_precision(labels, scores) is None
    assert best_f1(labels, scores) is None
    assert f1_at(labels, scores, 2.0) is None
    assert roc_curve(labels, scores) is None
    masks = np.full((2, 3, 3), bool(label))
    assert pixel_auroc(masks, np.zeros(masks.shape)) is None
    assert pro_curve(masks, np.zeros(masks.shape)) is None
    assert aupro(masks, np.zeros(masks.shape)) is None


def test_with_no_image_at_all_there_is_no_metric() -> None:
    assert image_auroc([], []) is None
    assert pixel_auroc(np.zeros((0, 4, 4), bool), np.zeros((0, 4, 4))) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad: float) -> None:
    scores = np.array([0.0, bad, 1.0])
    for metric in (image_auroc, average_precision, best_f1, roc_curve):
        with pytest.raises(InputError, match="1 of 3 scores"):
            metric([0, 1, 1], scores)
    maps = np.zeros((1, 3, 3))
    maps[0, 0, 0] = bad
    for pixel_metric in (pixel_auroc, aupro, pro_curve):
        with pytest.raises(InputError, match="1 of 9 scores"):
            pixel_metric(np.eye(3, dtype=bool)[None], maps)


def test_labels_and_shapes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="expected 0"):
        image_auroc([0, 1, 2], [0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="same shape"):
        image_auroc([0, 1], [0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="images x height x width"):
        aupro(np.eye(3, dtype=bool), np.zeros((3, 3)))
    for limit in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match=str(limit)):
            aupro(np.eye(3, dtype=bool)[None], np.zeros((1, 3, 3)), limit)


def test_a_float32_score_is_compared_with_the_threshold_as_the_device_does() -> None:
    score = np.float32(0.1)  # as a double: 0.10000000149
    assert f1_at([True, False], np.array([score, 0.0], np.float32), 0.1) == 1.0
    assert evaluate([1, 0], np.array([score, 0.0], np.float32), ["dent", None], threshold=0.1).recall == 1.0


def test_evaluate_measures_each_class_against_all_normals() -> None:
    masks, maps = masks_and_maps(0, n=9)
    labels = np.asarray(masks.any(axis=(1, 2)))
    defects = [("scratch" if i % 2 else "hole") if label else None for i, label in enumerate(labels)]
    labels[1:3], masks[1:3], defects[1:3] = False, False, [None, None]
    scores = maps.max(axis=(1, 2))
    threshold = float(np.median(scores))
    measured = evaluate(labels, scores, defects, maps, masks, threshold=threshold)
    assert (measured.n_normal, measured.n_anomalous, measured.n_with_mask) == (3, 6, 6)
    assert measured.image_auroc == image_auroc(labels, scores)
    assert measured.image_aupr == average_precision(labels, scores)
    assert (measured.image_f1_best, measured.image_f1_best_threshold) == best_f1(labels, scores)
    assert measured.pixel_auroc == pixel_auroc(masks, maps)
    assert measured.aupro == aupro(masks, maps)
    assert measured.false_alarm_rate == np.mean(scores[~labels] > threshold)
    assert measured.recall == np.mean(scores[labels] > threshold)
    assert list(measured.per_defect) == ["hole", "scratch"]
    for name, of_class in measured.per_defect.items():
        own = np.array([defect == name for defect in defects])
        chosen = own | ~labels
        assert of_class.n == own.sum()
        assert of_class.image_auroc == image_auroc(labels[chosen], scores[chosen])
        assert of_class.pixel_auroc == pytest.approx(pixel_auroc(masks[chosen], maps[chosen]), abs=1e-12)
        assert of_class.recall == np.mean(scores[own] > threshold)


def test_evaluate_leaves_images_without_masks_out_of_the_pixel_metrics_alone() -> None:
    masks, maps = masks_and_maps(1, n=5)
    labels = np.array([False, False, True, True, True])
    masks[1] = masks[4] = False
    maps[4] += 100
    defects = [None, None, "dent", "dent", "stain"]
    scores = maps.max(axis=(1, 2))
    measured = evaluate(labels, scores, defects, maps, masks, has_mask=[True, True, True, True, False])
    assert measured.n_with_mask == 2
    assert measured.pixel_auroc == pixel_auroc(masks[:4], maps[:4])
    assert measured.aupro == aupro(masks[:4], maps[:4])
    assert measured.per_defect["stain"].pixel_auroc is None
    assert measured.per_defect["stain"].image_auroc == 1.0


def test_metrics_that_do_not_exist_are_left_out_of_the_json_and_it_reads_back() -> None:
    measured = evaluate([0, 0, 0], [1.0, 2.0, 3.0], [None] * 3, threshold=2.5)
    assert json.loads(measured.to_json()) == {
        "n_normal": 3,
        "n_anomalous": 0,
        "threshold": 2.5,
        "false_alarm_rate": pytest.approx(1 / 3),
        "per_defect": {},
    }
    assert Metrics.model_validate_json(measured.to_json()) == measured


def test_evaluate_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(InputError, match="scores"):
        evaluate([0, 1], [1.0], [None, "a"])
    with pytest.raises(InputError, match="defects"):
        evaluate([0, 1], [1.0, 2.0], ["a"])
    with pytest.raises(InputError, match="labelled normal"):
        evaluate([0, 1], [1.0, 2.0], ["a", None])
    with pytest.raises(InputError, match="threshold is nan"):
        evaluate([0, 1], [1.0, 2.0], [None, "a"], threshold=float("nan"))
    with pytest.raises(InputError, match="masks"):
        evaluate([0, 1], [1.0, 2.0], [None, "a"], np.zeros((2, 4, 4)), np.zeros((2, 4, 5), bool))
    with pytest.raises(InputError, match="has_mask"):
        evaluate([0, 1], [1.0, 2.0], [None, "a"], np.zeros((2, 4, 4)), np.zeros((2, 4, 4), bool), [True])
    with pytest.raises(InputError, match="masks are missing"):
        evaluate([0, 1], [1.0, 2.0], [None, "a"], np.zeros((2, 4, 4)))


@pytest.mark.slow
def test_twenty_million_pixels_take_seconds() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((300, 256, 256), bool)
    masks[:200, 40:90, 60:130] = True
    maps = rng.random(masks.shape, dtype=np.float32)
    start = time.perf_counter()
    assert pixel_auroc(masks, maps) == pytest.approx(0.5, abs=0.01)
    assert aupro(masks, maps) == pytest.approx(0.15, abs=0.01)
    assert time.perf_counter() - start < 60
