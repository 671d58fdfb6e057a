"""How uncertain the accuracy is, the test images being a sample of all images.

Images are resampled, good and defective ones apart, as their numbers were chosen (Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993, section 8.3); all pixels of an image stay together, since they resemble each
other.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.benchmarks.estimates import Interval
from vae_edge.benchmarks.statistics import Floats, binomial_interval, percentile_interval, resample_weights
from vae_edge.train.ranking import region_weights

_PIXEL_BINS = 1024
"""Bins of the pixels' scores that intervals of pixel metrics are taken from; the metrics themselves are exact."""

_PIXEL_RESAMPLES = 500
_BLOCK_VALUES = 4_000_000
_PRO_LIMIT = 0.3


def image_intervals(labels: NDArray[np.bool_], scores: Floats, threshold: float) -> dict[str, Interval]:
    """Return intervals of image_auroc, image_aupr and image_f1 (bootstrap), recall and false_alarm_rate (exact).

    Where all resamples agree, as with classes that do not overlap, they tell nothing. Then image_auroc has the exact
    bound that follows from pairing off m = min(good, defective) images: m independent pairs all in order happen with
    probability AUROC^m; the others are left out.

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
    """Return the AUROC of each row of counts; columns are scores in ascending order, one column a tie.

    Args:
        positives: float64 [n, columns], how many anomalous ones have each score.
        negatives: the same of normal ones.

    Returns:
        float64 [n], in [0, 1].
    """
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return np.asarray(pairs / (positives.sum(axis=1) * negatives.sum(axis=1)), dtype=np.float64)


def _average_precision(positives: Floats, negatives: Floats) -> Floats:
    """Return sum of (R_k - R_(k-1)) P_k over the scores from the largest; see `vae_edge.train.metrics`."""
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
