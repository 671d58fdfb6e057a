"""How right a bundle is on labelled images, and how a method without a network would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.benchmarks.accuracy_intervals import image_intervals, pixel_intervals
from vae_edge.benchmarks.accuracy_records import AccuracyRecord, PromiseRecord, ScoreHistogram, SimpleMethodRecord
from vae_edge.benchmarks.estimates import CurveRecord
from vae_edge.benchmarks.statistics import binomial_interval
from vae_edge.decision import promised_rate
from vae_edge.image import Preparation
from vae_edge.manifest import Thresholds
from vae_edge.train.inspection_set import ImageFile
from vae_edge.train.loading import load_images, load_masks
from vae_edge.train.masks import Masks
from vae_edge.train.metrics import Metrics, evaluate, pro_curve, roc_curve
from vae_edge.train.ranking import Curve
from vae_edge.train.template_baseline import TemplateBaseline

_CURVE_POINTS = 200
_SCORE_BINS = 40


@dataclass(frozen=True)
class Outputs:
    """A bundle's outputs for the judged images, in their order."""

    scores: NDArray[np.float64]
    """float64 [n]"""
    maps: NDArray[np.float32]
    """float32 [n, H, W]; may lie on disk."""
    thresholds: Thresholds
    """The bundle's own."""

    @property
    def verdicts(self) -> NDArray[np.bool_]:
        """Which images it calls anomalous, bool [n]."""
        return np.asarray(self.scores > self.thresholds.image_threshold)

    @property
    def margins(self) -> NDArray[np.float64]:
        """How far each score is above the threshold, in standard deviations of the held-out good parts' scores."""
        spread = float(np.std(self.thresholds.calibration_scores))
        return np.asarray((self.scores - self.thresholds.image_threshold) / (spread or 1.0), dtype=np.float64)


def judge(files: Sequence[ImageFile], preparation: Preparation, outputs: Outputs) -> AccuracyRecord:
    """Measure a bundle's outputs against the labels and masks of the images they are for.

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

    It has no threshold, so the metrics at a threshold are absent.

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
