"""What the metrics are computed from: ranks, curves and regions. Exact, numpy only; a tie counts as a tie."""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]


class Curve(NamedTuple):
    """The corners of a curve from (0, 0) to (1, 1), straight between them; float64 [k] each, both ascending."""

    false_positive_rate: NDArray[np.float64]
    hit_rate: NDArray[np.float64]
    """True-positive rate of a ROC curve, mean overlap with the defects' regions of a PRO curve."""


def auroc(positives: Scores, *negatives: Scores) -> float | None:
    """Return the AUROC of ascending scores; the negatives may come in several ascending parts."""
    n_negatives = sum(part.size for part in negatives)
    if positives.size == 0 or n_negatives == 0:
        return None
    # Whole numbers until the last division: twice the Mann-Whitney U statistic, with a tie counted once.
    twice_u = 0
    for part in negatives:
        for side in ("left", "right"):
            twice_u += int(np.searchsorted(part, positives, side=side).sum(dtype=np.int64))
    return twice_u / (2 * positives.size * n_negatives)


def cumulative_counts(positives: Scores, negatives: Scores) -> tuple[Scores, NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct scores, descending, and how many positives and negatives are at least as large as each."""
    values = np.unique(np.concatenate([positives, negatives]))[::-1]
    hits = positives.size - np.searchsorted(np.sort(positives), values, side="left")
    false_alarms = negatives.size - np.searchsorted(np.sort(negatives), values, side="left")
    return values, hits, false_alarms


def weighted_curve(positives: Scores, weights: NDArray[np.float64], negatives: Scores) -> Curve:
    """Return the corners of the curve whose hit rate is the weight of the positives at or above a threshold.

    Between two scores of positives only negatives pass the threshold and the curve runs level, so the scores of
    positives give every corner: two each, before and after. Negatives come ascending; the weights sum to 1.
    """
    order = np.argsort(positives)[::-1]
    ordered = positives[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    values = ordered[last]
    hit = np.cumsum(weights[order])[last]
    hit /= hit[-1]
    above = negatives.size - np.searchsorted(negatives, values, side="right")
    at_least = negatives.size - np.searchsorted(negatives, values, side="left")
    rate = np.stack([above, at_least], axis=1).reshape(-1) / negatives.size
    hit_rate = np.stack([np.append(0.0, hit[:-1]), hit], axis=1).reshape(-1)
    return Curve(np.concatenate([[0.0], rate, [1.0]]), np.concatenate([[0.0], hit_rate, [1.0]]))


def area_up_to(curve: Curve, limit: float) -> float:
    """Return the area under a curve for false-positive rates from 0 to the limit, as a share of the limit."""
    x, y = curve
    inside = int(np.searchsorted(x, limit, side="right"))
    if inside < x.size:
        share = (limit - x[inside - 1]) / (x[inside] - x[inside - 1])
        y_limit = y[inside - 1] + share * (y[inside] - y[inside - 1])
        x, y = np.append(x[:inside], limit), np.append(y[:inside], y_limit)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / (2.0 * limit))


def thin(curve: Curve, max_points: int | None) -> Curve:
    """Keep so many corners, spread evenly along the curve's length, the ends among them."""
    if max_points is None or curve.false_positive_rate.size <= max_points:
        return curve
    length = curve.false_positive_rate + curve.hit_rate
    chosen = np.searchsorted(length, np.linspace(0.0, 2.0, max(max_points, 2)))
    chosen[-1] = length.size - 1
    chosen = np.unique(np.minimum(chosen, length.size - 1))
    return Curve(curve.false_positive_rate[chosen], curve.hit_rate[chosen])


def region_weights(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return 1 / (size of its region x number of regions) of every defect pixel, in the order of `maps[masks]`."""
    parts = []
    n_regions = 0
    for mask in masks:
        if not mask.any():
            continue
        _, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        region_of_pixel = regions[mask]
        sizes = np.bincount(region_of_pixel)
        n_regions += sizes.size - 1
        parts.append(1.0 / sizes[region_of_pixel])
    return np.concatenate(parts) / n_regions


def sort_in_place(values: Scores) -> Scores:
    """Sort an array that nobody else uses; a copy of all normal pixels would double the memory."""
    values.sort()
    return values
