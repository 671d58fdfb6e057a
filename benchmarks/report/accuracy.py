"""How accurate a bundle is on labelled images, how uncertain that is, and how a method without a network performs.

The test images are a sample of all images, so they are resampled, good and defective ones separately, because their
numbers were chosen (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 8.3); all pixels of an
image stay together, since they resemble each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.benchmarks.measure.measurer import Outputs
from vae_edge.benchmarks.measure.statistics import (
    Floats,
    Interval,
    binomial_interval,
    percentile_interval,
    resample_weights,
)
from vae_edge.benchmarks.report.records.accuracy import (
    AccuracyRecord,
    CurveRecord,
    PromiseRecord,
    ScoreHistogram,
    SimpleMethodRecord,
)
from vae_edge.decision import promised_rate
from vae_edge.image import Preparation
from vae_edge.train.data.inspection_set import ImageFile, load_images, load_masks
from vae_edge.train.data.masks import Masks
from vae_edge.train.run.baseline import TemplateBaseline
from vae_edge.train.run.metrics import Curve, Metrics, evaluate, pro_curve, region_weights, roc_curve

_PIXEL_BINS = 1024
"""Bins of the pixels' scores from which intervals of pixel metrics are computed; the metrics themselves are exact."""

_PIXEL_RESAMPLES = 500

_BLOCK_VALUES = 4_000_000

_PRO_LIMIT = 0.3


def image_intervals(labels: NDArray[np.bool_], scores: Floats, threshold: float) -> dict[str, Interval]:
    """Return intervals of image_auroc, image_aupr and image_f1 (bootstrap), recall and false_alarm_rate (exact).

    If all resamples agree, as with classes that do not overlap, they say nothing about the uncertainty. Then
    image_auroc has the exact bound that follows from pairing m = min(good, defective) images: m independent pairs are
    all in order with probability AUROC^m. The other metrics are left out.

    Args:
        labels: bool [n], true for anomalous.
        scores: float64 [n].
        threshold: a score above it is called anomalous.
    """
    positives, negatives = scores[labels], scores[~labels]
    found: dict[str, Interval] = {}
    if positives.size:
        found["recall"] = binomial_interval(int((positives > threshold).sum()), positives.size)
    if negatives.size:
        found["false_alarm_rate"] = binomial_interval(int((negatives > threshold).sum()), negatives.size)
    fewer = min(positives.size, negatives.size)
    if fewer < 2:
        return found
    values, places = np.unique(scores, return_inverse=True)
    above = values > threshold
    # One row for each image, true in the column of its score.
    columns = np.zeros((scores.size, values.size), dtype=np.float32)
    columns[np.arange(scores.size), places] = 1.0
    estimates: dict[str, list[Floats]] = {"image_auroc": [], "image_aupr": [], "image_f1": []}
    hit_weights, miss_weights = resample_weights(positives.size, seed=1), resample_weights(negatives.size, seed=2)
    block = max(_BLOCK_VALUES // values.size, 1)
    for start in range(0, len(hit_weights), block):
        part = slice(start, start + block)
        hits, others = (hit_weights[part] @ columns[labels], miss_weights[part] @ columns[~labels])
        estimates["image_auroc"].append(area_under_roc(hits, others))
        estimates["image_aupr"].append(_average_precision(hits, others))
        true, false = hits[:, above].sum(axis=1), others[:, above].sum(axis=1)
        estimates["image_f1"].append(2 * true / (true + false + positives.size))
    for name, parts in estimates.items():
        drawn = np.concatenate(parts)
        if drawn.min() < drawn.max():
            found[name] = percentile_interval(drawn, fewer)
        elif name == "image_auroc":
            found[name] = binomial_interval(fewer if drawn[0] > 0.5 else 0, fewer)
    return found


def pixel_intervals(
    labels: NDArray[np.bool_], masks: NDArray[np.bool_], maps: NDArray[np.float32]
) -> dict[str, Interval]:
    """Return intervals of pixel_auroc and aupro, from histograms of each image's pixels.

    Args:
        labels: bool [n], true for anomalous.
        masks: bool [n, H, W], true at defects.
        maps: float32 [n, H, W].
    """
    n_defective = int(masks.any(axis=(1, 2)).sum())
    if min(n_defective, int((~labels).sum())) < 2:
        return {}
    hits, others, regions = _pixel_counts(masks, maps)
    n_regions = np.array([round(float(row)) for row in regions.sum(axis=1)], dtype=np.float64)
    weights = np.zeros((_PIXEL_RESAMPLES, len(labels)))
    for seed, chosen in ((3, labels), (4, ~labels)):
        weights[:, chosen] = resample_weights(int(chosen.sum()), _PIXEL_RESAMPLES, seed=seed)
    # A resample of images whose masks are all empty, after resizing, has no figure.
    weights = weights[(weights @ n_regions) > 0]
    drawn_hits, drawn_others = weights @ hits, weights @ others
    overlap = (weights @ regions) / (weights @ n_regions)[:, None]
    estimates = {
        "pixel_auroc": area_under_roc(drawn_hits, drawn_others),
        "aupro": np.array([_area_up_to(*pair) for pair in zip(overlap, drawn_others, strict=True)]),
    }
    return {
        name: percentile_interval(drawn, n_defective) for name, drawn in estimates.items() if drawn.min() < drawn.max()
    }


def area_under_roc(positives: Floats, negatives: Floats) -> Floats:
    """Return the AUROC of each row of counts; columns are scores in ascending order, and each column is a tie.

    Args:
        positives: float64 [n, columns], how many anomalous ones have each score.
        negatives: the same for normal ones.

    Returns:
        float64 [n], in [0, 1].
    """
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return np.asarray(pairs / (positives.sum(axis=1) * negatives.sum(axis=1)), dtype=np.float64)


def _average_precision(positives: Floats, negatives: Floats) -> Floats:
    """Return sum of (R_k - R_(k-1)) P_k over the scores from the largest; see `vae_edge.train.run.metrics`."""
    hits = np.cumsum(positives[:, ::-1], axis=1)
    called = hits + np.cumsum(negatives[:, ::-1], axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    return np.asarray((positives[:, ::-1] * precision).sum(axis=1) / hits[:, -1], dtype=np.float64)


def _pixel_counts(masks: NDArray[np.bool_], maps: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    """Return, by image and bin of score: defect pixels, normal pixels, and defect pixels as shares of their region."""
    low, high = float(maps.min()), float(maps.max())
    # Bins of equal numbers of pixels would be better for few defects, and slower; a root spreads the low scores.
    scale = (_PIXEL_BINS - 1) / (np.sqrt(high - low) or 1.0)
    hits, others, regions = np.zeros((3, len(maps), _PIXEL_BINS))
    for i, (mask, map_) in enumerate(zip(masks, maps, strict=True)):
        bins: NDArray[Any] = (np.sqrt(map_ - low) * scale).astype(np.intp)
        others[i] = np.bincount(bins[~mask], minlength=_PIXEL_BINS)
        if mask.any():
            hits[i] = np.bincount(bins[mask], minlength=_PIXEL_BINS)
            n_regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1
            regions[i] = np.bincount(bins[mask], region_weights(mask[None]) * n_regions, minlength=_PIXEL_BINS)
    return hits, others, regions


def _area_up_to(overlap: Floats, negatives: Floats) -> float:
    """Return the area under the PRO curve up to the limit, as a share of it; columns in ascending order of score."""
    rate = np.append(0.0, np.cumsum(negatives[::-1]) / negatives.sum())
    mean_overlap = np.append(0.0, np.cumsum(overlap[::-1]))
    inside = rate < _PRO_LIMIT
    x = np.append(rate[inside], _PRO_LIMIT)
    y = np.append(mean_overlap[inside], np.interp(_PRO_LIMIT, rate, mean_overlap))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / (2 * _PRO_LIMIT))


_CURVE_POINTS = 200

_SCORE_BINS = 40


def judge(files: Sequence[ImageFile], preparation: Preparation, outputs: Outputs) -> AccuracyRecord:
    """Measure a bundle's outputs against the labels and masks of their images.

    Raises:
        InputError: a mask cannot be decoded, or an output is not finite.
    """
    labels = np.array([file.is_anomalous for file in files])
    masks = load_masks(files, preparation)
    maps = np.asarray(outputs.maps)
    threshold = outputs.thresholds.image_threshold
    metrics = _evaluate(files, masks, outputs.scores, maps, threshold)
    used = masks.has_mask
    pixel = metrics.pixel_auroc is not None
    intervals = image_intervals(labels, outputs.scores, threshold)
    if pixel:
        intervals |= pixel_intervals(labels[used], masks.masks[used], maps[used])
    return AccuracyRecord(
        metrics=metrics,
        intervals=intervals,
        promise=_promise(outputs, labels),
        threshold_method=outputs.thresholds.method,
        roc=_curve(roc_curve(labels, outputs.scores, _CURVE_POINTS)),
        pixel_roc=_curve(roc_curve(masks.masks[used], maps[used], _CURVE_POINTS)) if pixel else None,
        pro=_curve(pro_curve(masks.masks[used], maps[used], _CURVE_POINTS)) if pixel else None,
        scores=_histogram(labels, outputs.scores, threshold),
    )


def template_method(
    train: Sequence[ImageFile], test: Sequence[ImageFile], preparation: Preparation
) -> SimpleMethodRecord | None:
    """Fit the template baseline on the train images and measure it on the test images; None with fewer than two.

    It has no threshold, so the metrics at a threshold are missing.

    Raises:
        InputError: an image or a mask cannot be decoded.
    """
    if len(train) < 2 or not test:
        return None
    baseline = TemplateBaseline.fit(load_images(train, preparation))
    images = load_images(test, preparation)
    scores = np.asarray(baseline.scores(images), dtype=np.float64)
    return SimpleMethodRecord(
        name="template",
        description="distance of each pixel from the mean of the good parts, in standard deviations; no network",
        n_train=len(train),
        height=preparation.height,
        width=preparation.width,
        metrics=_evaluate(test, load_masks(test, preparation), scores, baseline.anomaly_maps(images), None),
    )


def _promise(outputs: Outputs, labels: NDArray[np.bool_]) -> PromiseRecord | None:
    n_normal = int((~labels).sum())
    promised = promised_rate(outputs.thresholds)
    if n_normal == 0 or promised is None:
        return None
    n_false_alarms = int(outputs.verdicts[~labels].sum())
    interval = binomial_interval(n_false_alarms, n_normal)
    return PromiseRecord(
        promised_rate=promised,
        n_normal=n_normal,
        n_false_alarms=n_false_alarms,
        interval=interval,
        is_kept=interval.low <= promised,
    )


def _curve(curve: Curve | None) -> CurveRecord | None:
    if curve is None:
        return None
    return CurveRecord(
        false_positive_rate=tuple(map(float, curve.false_positive_rate)), hit_rate=tuple(map(float, curve.hit_rate))
    )


def _histogram(labels: NDArray[np.bool_], scores: NDArray[np.float64], threshold: float) -> ScoreHistogram:
    # The threshold is within the range, so that it can be drawn.
    low, high = min(float(scores.min()), threshold), max(float(scores.max()), threshold)
    edges = np.linspace(low, high if high > low else low + 1.0, _SCORE_BINS + 1)
    normal, anomalous = (np.histogram(scores[chosen], edges)[0] for chosen in (~labels, labels))
    return ScoreHistogram(
        edges=tuple(map(float, edges)), normal=tuple(map(int, normal)), anomalous=tuple(map(int, anomalous))
    )


def _evaluate(
    files: Sequence[ImageFile],
    masks: Masks,
    scores: NDArray[np.float64],
    maps: NDArray[np.float32],
    threshold: float | None,
) -> Metrics:
    return evaluate(
        [file.is_anomalous for file in files],
        scores,
        [file.defect for file in files],
        maps,
        masks.masks,
        masks.has_mask,
        threshold,
    )
