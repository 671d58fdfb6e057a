"""How well scores and maps separate anomalous from normal: numpy only, exact, ties counted as ties.

A metric that does not exist (only one class is present, no mask at all) is None, never 0 and never NaN.
An image is called anomalous when score > threshold, as in `vae_edge.decision`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from vae_edge.detectability import Detectability
from vae_edge.errors import InputError
from vae_edge.records import Record
from vae_edge.wording import count, verb

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


class DefectMetrics(Record):
    """How well one defect class is found."""

    n: int = Field(ge=1)
    """Images of this class."""
    image_auroc: float | None = None
    """Against all normal images."""
    recall: float | None = None
    """Share of its images above the threshold."""
    pixel_auroc: float | None = None
    """Over the pixels of its images that have masks and of all normal images."""


class Metrics(Record):
    """What `evaluate` measured; None where a metric does not exist, and then left out of the JSON."""

    n_normal: int = Field(ge=0)
    n_anomalous: int = Field(ge=0)
    n_with_mask: int | None = None
    """Anomalous images that have masks; the pixel metrics are over these and the normal images."""
    image_auroc: float | None = None
    image_aupr: float | None = None
    """Average precision, anomalous being the positive class."""
    image_f1_best: float | None = None
    """F1 at the threshold that is best for these very images: an upper bound, not a promise."""
    image_f1_best_threshold: float | None = None
    threshold: float | None = None
    """The threshold that the next three are at; it was not chosen on these images."""
    image_f1: float | None = None
    recall: float | None = None
    """Share of anomalous images above the threshold: the recall at the false-alarm rate in force."""
    recall_at_requested_rate: float | None = None
    """The same at the threshold that the rate asked for would need, estimated, where the normals are too few for it;
    see `vae_edge.train.run.detectability.threshold_asked_for`."""
    false_alarm_rate: float | None = None
    """Share of normal images above the threshold."""
    pixel_auroc: float | None = None
    aupro: float | None = None
    """Area under the per-region-overlap curve up to a false-positive rate of 0.3."""
    per_defect: dict[str, DefectMetrics] = Field(default_factory=dict)
    detectability: Detectability | None = None
    """Which sizes of pasted defects are found; None in runs from before it was measured, and of other outputs."""

    def to_json(self) -> str:
        """Return the metrics as JSON; those that do not exist are left out."""
        return self.model_dump_json(exclude_none=True, indent=2)


def image_auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Return the area under the ROC curve: P(anomalous score > normal score) + P(equal) / 2.

    Args:
        labels: bool or 0/1 [n], true for anomalous.
        scores: float [n].

    Returns:
        In [0, 1]; None where only one class is present.

    Raises:
        InputError: shapes differ, a label is neither 0 nor 1, or a score is not finite.

    Examples:
        Three of the four pairs of a normal and an anomalous image are in order:

        >>> image_auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    positives, negatives = _split(labels, scores)
    return auroc(np.sort(positives), np.sort(negatives))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """Return the area under the precision-recall curve as a sum of steps: sum of (R_k - R_(k-1)) P_k.

    The sum goes over the distinct scores from the largest to the smallest, without interpolation (which is optimistic:
    Davis and Goadrich, "The relationship between Precision-Recall and ROC curves", ICML 2006).

    Returns:
        In (0, 1]; None where only one class is present.

    Raises:
        InputError: see `image_auroc`.

    Examples:
        >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 4)
        0.8333
    """
    positives, negatives = _split(labels, scores)
    if positives.size == 0 or negatives.size == 0:
        return None
    _, hits, false_alarms = cumulative_counts(positives, negatives)
    precision = hits / (hits + false_alarms)
    recall = hits / positives.size
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def best_f1(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float] | None:
    """Return the largest F1 that any threshold reaches, and that threshold.

    The threshold is the largest score that is still called normal, so score > threshold gives that F1; of several
    equally good ones it is the largest.

    Returns:
        None where only one class is present.

    Raises:
        InputError: see `image_auroc`.

    Examples:
        >>> best_f1([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        (0.8, 0.1)
    """
    positives, negatives = _split(labels, scores)
    if positives.size == 0 or negatives.size == 0:
        return None
    values, hits, false_alarms = cumulative_counts(positives, negatives)
    f1 = 2.0 * hits / (hits + false_alarms + positives.size)
    best = int(np.argmax(f1))
    if best + 1 < values.size:
        threshold = float(values[best + 1])
    else:
        # Everything is called anomalous. The step below the smallest score must survive a cast to float32.
        threshold = float(values[-1]) - 1e-6 * max(1.0, abs(float(values[-1])))
    return float(f1[best]), threshold


def f1_at(labels: ArrayLike, scores: ArrayLike, threshold: float) -> float | None:
    """Return F1 = 2 TP / (2 TP + FP + FN) of score > threshold, None where only one class is present.

    Raises:
        InputError: see `image_auroc`.

    Examples:
        >>> f1_at([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], threshold=0.5)
        0.6666666666666666
    """
    positives, negatives = _split(labels, scores)
    if positives.size == 0 or negatives.size == 0:
        return None
    hits = _count_above(positives, threshold)
    false_alarms = _count_above(negatives, threshold)
    return 2.0 * hits / (hits + false_alarms + positives.size)


def pixel_auroc(masks: ArrayLike, maps: ArrayLike) -> float | None:
    """Return the area under the ROC curve over all pixels; exact, by sorting normal and defect pixels apart.

    Args:
        masks: bool [N, H, W], true at defects.
        maps: float32 or float64 [N, H, W].

    Returns:
        In [0, 1]; None where all pixels are of one kind.

    Raises:
        InputError: shapes differ or a value is not finite.

    Examples:
        >>> pixel_auroc([[[False, True], [False, True]]], [[[0.1, 0.9], [0.2, 0.8]]])
        1.0
    """
    positives, negatives = _split(masks, maps)
    return auroc(np.sort(positives), sort_in_place(negatives))


def roc_curve(labels: ArrayLike, scores: ArrayLike, max_points: int | None = None) -> Curve | None:
    """Return the ROC curve of images or pixels, None where only one class is present.

    Args:
        labels: bool or 0/1, of any shape.
        scores: float, of the same shape.
        max_points: thin the curve to at most this many points, for a drawing; None: every corner.

    Raises:
        InputError: see `image_auroc`.
    """
    positives, negatives = _split(labels, scores)
    if positives.size == 0 or negatives.size == 0:
        return None
    weights = np.full(positives.size, 1.0 / positives.size)
    return thin(weighted_curve(positives, weights, sort_in_place(negatives)), max_points)


def pro_curve(
    masks: ArrayLike, maps: ArrayLike, max_points: int | None = None, *, kept: NDArray[np.bool_] | None = None
) -> Curve | None:
    """Return the per-region-overlap curve over every threshold.

    At a threshold the overlap is the share of a region's pixels above it, averaged over all regions of all images; a
    region is a connected component of a mask, diagonal neighbours included. The false-positive rate is over all
    defect-free pixels (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2).

    Args:
        masks: bool [N, H, W], true at defects.
        maps: float32 or float64 [N, H, W].
        max_points: thin the curve to at most this many points, for a drawing; None: every corner.
        kept: bool [H, W], the defect-free pixels that count; None: all.

    Returns:
        None where all pixels are of one kind.

    Raises:
        InputError: shapes differ, there are not three axes, or a value is not finite.
    """
    positives, negatives = _split(masks, maps)
    mask_array = np.asarray(masks).astype(bool, copy=False)
    if mask_array.ndim != 3:
        raise InputError(f"the masks have shape {mask_array.shape}; expected images x height x width")
    if kept is not None:
        negatives = _as_scores(np.asarray(maps)[~mask_array & kept])
    if positives.size == 0 or negatives.size == 0:
        return None
    return thin(weighted_curve(positives, region_weights(mask_array), sort_in_place(negatives)), max_points)


def aupro(
    masks: ArrayLike, maps: ArrayLike, fpr_limit: float = 0.3, *, kept: NDArray[np.bool_] | None = None
) -> float | None:
    """Return the area under the PRO curve for false-positive rates from 0 to `fpr_limit`, divided by the limit.

    Exact: the curve has a corner at every score a defect pixel has, and is cut at the limit by linear interpolation.

    Args:
        masks: bool [N, H, W], true at defects.
        maps: float32 or float64 [N, H, W].
        fpr_limit: in (0, 1]; 0.3 is usual.
        kept: bool [H, W], the defect-free pixels that count; None: all.

    Returns:
        In [0, 1]; None where all pixels are of one kind.

    Raises:
        InputError: see `pro_curve`; or the limit is outside (0, 1].

    Examples:
        Two defects count equally, whatever their sizes. Here one is found without false positives, the other is not:

        >>> masks = np.array([[[1, 1, 1, 0, 0, 0, 0, 1]]], dtype=bool)
        >>> maps = np.array([[[0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.1]]])
        >>> aupro(masks, maps)
        0.5
    """
    if not 0 < fpr_limit <= 1:
        raise InputError(f"the limit of the false-positive rate is {fpr_limit}; expected above 0, at most 1, as 0.3")
    curve = pro_curve(masks, maps, kept=kept)
    return None if curve is None else area_up_to(curve, fpr_limit)


def evaluate(
    labels: ArrayLike,
    scores: ArrayLike,
    defects: Sequence[str | None],
    maps: ArrayLike | None = None,
    masks: ArrayLike | None = None,
    has_mask: ArrayLike | None = None,
    threshold: float | None = None,
    *,
    kept: NDArray[np.bool_] | None = None,
) -> Metrics:
    """Measure everything there is to measure on labelled test images.

    Args:
        labels: bool or 0/1 [n], true for anomalous.
        scores: float [n].
        defects: n defect classes, None for a normal image.
        maps: float32 [n, H, W], anomaly maps; None: no pixel metrics.
        masks: bool [n, H, W], true at defects; given along with the maps.
        has_mask: bool [n], false for an anomalous image whose mask is not known; None: all are known.
        threshold: the threshold in force, fitted on other images.
        kept: bool [H, W], the pixels that count in pixel metrics; None: all.

    Raises:
        InputError: lengths or shapes differ, a label is neither 0 nor 1, or a value is not finite.
    """
    truth = _as_labels(labels)
    values = _as_scores(scores)
    _check_lengths(len(truth), {"scores": values.shape[:1], "defects": (len(defects),)})
    positives, negatives = _split(truth, values)
    best = best_f1(truth, values)
    rates: dict[str, float | None] = {}
    if threshold is not None:
        if not np.isfinite(threshold):
            raise InputError(f"the threshold is {threshold}; expected a finite number")
        rates = {
            "threshold": float(threshold),
            "image_f1": f1_at(truth, values, threshold),
            "recall": _share_above(positives, threshold),
            "false_alarm_rate": _share_above(negatives, threshold),
        }
    pixels: _PixelScores | None = None
    if (maps is None) != (masks is None):
        raise InputError(f"{'maps' if maps is None else 'masks'} are missing; expected both maps and masks, or neither")
    if maps is not None and masks is not None:
        known = np.ones(len(truth), bool) if has_mask is None else np.asarray(has_mask, dtype=bool)
        pixels = _PixelScores(truth, np.asarray(maps), np.asarray(masks, dtype=bool), known, kept)
    classes = np.array([defect or "" for defect in defects], dtype=object)
    per_defect = {}
    for name in sorted({defect for defect in defects if defect}):
        of_class = (classes == name) & truth
        if not of_class.any():
            raise InputError(f"the images of class {name!r} are labelled normal; expected None for a normal image")
        per_defect[name] = DefectMetrics(
            n=int(of_class.sum()),
            image_auroc=auroc(np.sort(values[of_class]), np.sort(negatives)),
            recall=None if threshold is None else _share_above(values[of_class], threshold),
            pixel_auroc=None if pixels is None else pixels.auroc_of(of_class),
        )
    return Metrics(
        n_normal=negatives.size,
        n_anomalous=positives.size,
        n_with_mask=None if pixels is None else int(np.count_nonzero(pixels.used & truth)),
        image_auroc=auroc(np.sort(positives), np.sort(negatives)),
        image_aupr=average_precision(truth, values),
        image_f1_best=None if best is None else best[0],
        image_f1_best_threshold=None if best is None else best[1],
        pixel_auroc=None if pixels is None else pixels.auroc(),
        aupro=None if pixels is None else pixels.aupro(),
        per_defect=per_defect,
        threshold=rates.get("threshold"),
        image_f1=rates.get("image_f1"),
        recall=rates.get("recall"),
        false_alarm_rate=rates.get("false_alarm_rate"),
    )


class _PixelScores:
    """Maps and masks of the images whose masks are known; the normal images' pixels are sorted once for all classes."""

    def __init__(
        self,
        labels: NDArray[np.bool_],
        maps: NDArray[Any],
        masks: NDArray[np.bool_],
        known: NDArray[np.bool_],
        kept: NDArray[np.bool_] | None,
    ) -> None:
        _check_lengths(len(labels), {"maps": maps.shape[:1], "masks": masks.shape[:1], "has_mask": known.shape})
        if maps.shape != masks.shape or maps.ndim != 3:
            raise InputError(
                f"the maps have shape {maps.shape} and the masks {masks.shape}; expected [N, H, W] of both"
            )
        self.used = known | ~labels
        self._kept = np.ones(maps.shape[1:], dtype=np.bool_) if kept is None else kept
        self._maps, self._masks = maps, masks & self._kept
        # Of a normal image every pixel is normal, whatever a mask says.
        self._normals = sort_in_place(_as_scores(maps[~labels][:, self._kept]).reshape(-1))

    def auroc(self) -> float | None:
        return pixel_auroc(self._masks[self.used][:, self._kept], self._maps[self.used][:, self._kept])

    def aupro(self) -> float | None:
        return aupro(self._masks[self.used], self._maps[self.used], kept=self._kept)

    def auroc_of(self, images: NDArray[np.bool_]) -> float | None:
        """Return the AUROC over some anomalous images' pixels and all normal images'."""
        chosen = images & self.used
        positives, negatives = _split(self._masks[chosen][:, self._kept], self._maps[chosen][:, self._kept])
        return auroc(np.sort(positives), self._normals, sort_in_place(negatives))


def _split(labels: ArrayLike, scores: ArrayLike) -> tuple[Scores, Scores]:
    """Return copies of the scores of positives and of negatives, flat."""
    truth, values = _as_labels(labels), _as_scores(scores)
    if truth.shape != values.shape:
        raise InputError(f"the labels have shape {truth.shape} and the scores {values.shape}; expected the same shape")
    return values[truth], values[~truth]


def _as_labels(labels: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(labels)
    if array.dtype == np.bool_:
        return array
    if not np.isin(array, (0, 1)).all():
        raise InputError(f"the labels hold {np.unique(array)[:5].tolist()}; expected 0 (normal) and 1 (anomalous) only")
    return array.astype(np.bool_)


def _as_scores(scores: ArrayLike) -> Scores:
    array = np.asarray(scores)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    n_bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if n_bad:
        raise InputError(
            f"{n_bad} of {array.size} scores {verb(n_bad, 'is', 'are')} "
            "not finite numbers; the model is broken: train it again"
        )
    return array


def _share_above(values: Scores, threshold: float) -> float | None:
    return None if values.size == 0 else _count_above(values, threshold) / values.size


def _count_above(values: Scores, threshold: float) -> int:
    # In float64, as the device decides: a float32 array would round the threshold to float32.
    return int(np.count_nonzero(values.astype(np.float64) > threshold))


def _check_lengths(n: int, shapes: dict[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if shape != (n,):
            raise InputError(f"there are {count(n, 'label')} and {name} of shape {shape}; expected one per label")
