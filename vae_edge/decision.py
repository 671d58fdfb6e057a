"""From scores to verdicts: conformal p-values, and thresholds from held-out normals or, on request, from labels.

With n scores of normals that the model was not fitted on, the p-value of a new score s is
(1 + number of those scores >= s) / (n + 1). For a new normal, P(p-value <= rate) <= rate (Vovk, Gammerman and Shafer,
"Algorithmic Learning in a Random World", 2005; used for outliers by Bates et al., "Testing for outliers with
conformal p-values", Annals of Statistics 2023). So calling an image anomalous when its p-value is at most the
false-alarm rate keeps that rate, whatever the distribution of the scores, while new normals are like the held-out ones.
The rate is an average over draws of the held-out normals: one draw's own rate scatters around it, by about the square
root of rate / n.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, UsageError
from vae_edge.manifest import MAX_CALIBRATION_SCORES, MAX_RATE, MIN_RATE, ThresholdMethod, Thresholds
from vae_edge.wording import count

DEFAULT_FALSE_ALARM_RATE = 0.01
DEFAULT_PIXEL_FALSE_POSITIVE_RATE = 0.001


def smallest_false_alarm_rate(n_normals: int) -> float:
    """Return the smallest rate that n held-out normals can support: 1 / (n + 1).

    Examples:
        >>> smallest_false_alarm_rate(99)
        0.01
    """
    return 1.0 / (n_normals + 1)


def normals_needed(false_alarm_rate: float) -> int:
    """Return how many held-out normals a false-alarm rate needs: 99 for 0.01.

    Raises:
        InputError: a rate outside (0, 1).

    Examples:
        >>> normals_needed(0.01), normals_needed(0.05)
        (99, 19)
    """
    check_rate(false_alarm_rate, "false-alarm rate")
    # A smaller rate is useless, and 1 / rate may be infinite.
    n = max(math.floor(1.0 / max(false_alarm_rate, 1e-12)) - 1, 1)
    return n if smallest_false_alarm_rate(n) <= false_alarm_rate else n + 1


def conformal_p_value(score: float, calibration_scores: Sequence[float] | NDArray[np.float64]) -> float:
    """Return the conformal p-value of a score, in [1 / (n + 1), 1].

    Args:
        score: the anomaly score of one image.
        calibration_scores: float64 [n], the held-out normals' scores, ascending; fastest as a list or tuple of floats.

    Raises:
        InputError: the score is not a number; no verdict follows from it.

    Examples:
        Of four held-out normals one scores at least as high as the image, so p = (1 + 1) / (4 + 1):

        >>> conformal_p_value(0.35, np.array([0.1, 0.2, 0.3, 0.4]))
        0.4
        >>> conformal_p_value(0.9, np.array([0.1, 0.2, 0.3, 0.4]))
        0.2
    """
    if math.isnan(score):
        raise InputError(
            "the anomaly score is not a number (NaN); the model or its precision is broken: export it again"
        )
    n = len(calibration_scores)
    at_least = n - bisect_left(calibration_scores, score)
    return (1 + at_least) / (n + 1)


def fit_image_threshold(scores: NDArray[Any], false_alarm_rate: float) -> tuple[float, float]:
    """Return the threshold that keeps a false-alarm rate, and the rate it keeps.

    Args:
        scores: float [n], scores of held-out normals in any order.
        false_alarm_rate: share of normals that may be called anomalous, in (0, 1).

    Returns:
        The threshold t, such that score > t exactly when the conformal p-value is at most the rate; and that rate: the
        one asked for, or 1 / (n + 1) if n normals cannot support it.

    Raises:
        InputError: no scores, a score that is not finite, or a rate outside (0, 1).

    Examples:
        Four normals support a rate of 1 / 5; a smaller one is raised to it:

        >>> fit_image_threshold(np.array([0.3, 0.1, 0.4, 0.2]), 0.4)
        (0.3, 0.4)
        >>> fit_image_threshold(np.array([0.3, 0.1, 0.4, 0.2]), 0.01)
        (0.4, 0.2)
    """
    check_rate(false_alarm_rate, "false-alarm rate")
    values = np.sort(np.asarray(scores, dtype=np.float64))[::-1]
    if values.size == 0:
        raise InputError(
            "there are no held-out normals to fit a threshold on; expected at least 1, preferably 99 or more"
        )
    if not np.isfinite(values).all():
        raise InputError("a held-out normal has a score that is not a finite number; train the model again")
    rate = max(false_alarm_rate, smallest_false_alarm_rate(values.size))
    # p <= rate  <=>  1 + #{c >= s} <= k  <=>  s > the k-th largest c, where k is the largest with k / (n + 1) <= rate,
    # compared in the arithmetic of `conformal_p_value`: the two must agree to the last bit.
    k = min(math.floor(rate * (values.size + 1)) + 1, values.size)
    while k / (values.size + 1) > rate:
        k -= 1
    return float(values[k - 1]), rate


def fit_f1_threshold(normal_scores: NDArray[Any], anomalous_scores: NDArray[Any]) -> tuple[float, float]:
    """Return the image threshold with the largest F1 on labelled images, and the rate that results.

    F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen, "Information Retrieval", 1979), anomalous being the positive class.
    It is measured on the images that choose the threshold, so new images will mostly do worse, and it depends on their
    share of anomalous images, which is different in production. No false-alarm rate is guaranteed.

    The threshold is one of the normals' own scores, and only those are tried. So it cuts between two calibration scores
    and, exactly, score > threshold when the conformal p-value is at most the rate that is returned. This excludes
    a threshold above all normals, where every p-value is 1 / (n + 1), and one below all of them.

    Args:
        normal_scores: float [n], scores of the normals, which are the calibration scores, in any order.
        anomalous_scores: float [m], scores of the anomalous images, in any order.

    Returns:
        The threshold t, of several with the same F1 the largest, which has the fewest false alarms; and the rate
        (1 + number of normals > t) / (n + 1), the smallest that gives the same verdicts.

    Raises:
        InputError: no scores of either kind, one that is not finite, or no anomalous image scores above any normal.

    Examples:
        >>> fit_f1_threshold(np.array([0.1, 0.2, 0.3, 0.8]), np.array([0.5, 0.6, 0.9]))
        (0.3, 0.4)
    """
    normals, anomalous = (np.sort(np.asarray(s, dtype=np.float64)) for s in (normal_scores, anomalous_scores))
    for values, what in ((normals, "normal image"), (anomalous, "anomalous image")):
        if values.size == 0:
            raise InputError(
                f"there is no {what} to fit an F1-optimal threshold on; expected at least 1, preferably 30"
            )
        if not np.isfinite(values).all():
            raise InputError(f"a score of the {what}s is not a finite number; export or train the model again")
    candidates = np.unique(normals)
    false_alarms = normals.size - np.searchsorted(normals, candidates, side="right")
    hits = anomalous.size - np.searchsorted(anomalous, candidates, side="right")
    # With FN = m - TP the denominator is TP + FP + m.
    f1 = 2 * hits / (hits + false_alarms + anomalous.size)
    if not hits.any():
        raise InputError(
            f"none of {count(anomalous.size, 'anomalous image')} scores "
            f"above any of {count(normals.size, 'normal')}, so no threshold "
            "separates them; expected defects that the model detects: check that the two are not swapped"
        )
    best = int(np.flatnonzero(f1 == f1.max())[-1])
    return float(candidates[best]), (1 + int(false_alarms[best])) / (normals.size + 1)


def fit_thresholds(
    scores: Sequence[float] | NDArray[Any],
    maps: NDArray[np.float32],
    *,
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    pixel_false_positive_rate: float = DEFAULT_PIXEL_FALSE_POSITIVE_RATE,
    scored_by: str,
    kept: NDArray[np.bool_] | None = None,
) -> Thresholds:
    """Fit both thresholds on held-out normals.

    Args:
        scores: float [n], the held-out normals' scores.
        maps: float32 [n, H, W], their anomaly maps.
        false_alarm_rate: share of normal images that may be called anomalous.
        pixel_false_positive_rate: share of normal pixels that may be marked.
        scored_by: what computed the scores, for the record.
        kept: bool [H, W], the pixels that count; None: all.

    Raises:
        InputError: see `fit_image_threshold`; or there is not one non-empty map per score.
    """
    check_rate(pixel_false_positive_rate, "pixel false-positive rate")
    if len(maps) != len(scores) or (len(maps) > 0 and maps[0].size == 0):
        raise InputError(
            f"there are {count(len(scores), 'score')} and maps of shape {maps.shape}; expected one map for each score"
        )
    tail = PixelTail(maps.size, pixel_false_positive_rate, kept)
    tail.add(maps)
    return fit_thresholds_with_tail(scores, tail, false_alarm_rate=false_alarm_rate, scored_by=scored_by)


class PixelTail:
    """The largest pixels of the anomaly maps of held-out normals, which suffice for the pixel threshold.

    Maps need not be kept: with a rate of 0.001 a thousandth of their pixels is kept.

    Args:
        most_pixels: of all the maps that will be added, at most.
        pixel_false_positive_rate: share of normal pixels that may be marked.
        kept: bool [H, W], the pixels of a map that count; None: all, and maps may have any shape.

    Raises:
        InputError: a rate outside (0, 1).

    Examples:
        >>> tail = PixelTail(most_pixels=8, pixel_false_positive_rate=0.25)
        >>> tail.add(np.array([[1, 5, 2, 3], [4, 8, 7, 6]], dtype=np.float32))
        >>> tail.threshold()  # 2 of 8 pixels are larger
        6.0
    """

    def __init__(
        self,
        most_pixels: int,
        pixel_false_positive_rate: float = DEFAULT_PIXEL_FALSE_POSITIVE_RATE,
        kept: NDArray[np.bool_] | None = None,
    ) -> None:
        check_rate(pixel_false_positive_rate, "pixel false-positive rate")
        self.pixel_false_positive_rate = pixel_false_positive_rate
        self._n_kept = math.floor(pixel_false_positive_rate * most_pixels) + 1
        self._most_pixels = most_pixels
        self._counted = kept
        self._n_pixels = 0
        self._kept: NDArray[np.float32] = np.empty(0, dtype=np.float32)

    def add(self, maps: NDArray[np.float32]) -> None:
        """Take in one or more maps, float32 of any shape.

        Raises:
            InputError: a value is not finite, or there are more pixels than were expected.
        """
        pixels = maps.reshape(-1) if self._counted is None else maps[..., self._counted].reshape(-1)
        if not np.isfinite(pixels).all():
            raise InputError(
                "the anomaly map of a held-out normal holds a value that is not finite; train the model again"
            )
        self._take(pixels, pixels.size)

    def empty(self) -> PixelTail:
        """Return one of the same settings to which nothing was added, such as for a part of the maps."""
        return PixelTail(self._most_pixels, self.pixel_false_positive_rate, self._counted)

    def take_in(self, part: PixelTail) -> None:
        """Take in what was added to another one of the same settings.

        Raises:
            InputError: there are more pixels than were expected.
        """
        self._take(part._kept, part._n_pixels)

    def _take(self, pixels: NDArray[np.float32], n: int) -> None:
        """Take in n pixels, of which these may be among the largest."""
        self._n_pixels += n
        if self._n_pixels > self._most_pixels:
            raise InputError(f"there are {self._n_pixels} pixels; at most {self._most_pixels} were expected")
        if self._kept.size == self._n_kept:
            # Once the tail is full, few pixels of a further map are larger than its smallest value.
            pixels = pixels[pixels > self._kept.min()]
        kept = np.concatenate([self._kept, pixels])
        if kept.size > self._n_kept:
            kept = np.partition(kept, kept.size - self._n_kept)[kept.size - self._n_kept :]
        self._kept = kept

    def threshold(self) -> float:
        """Return the smallest value above which at most the allowed share of the pixels lies.

        Raises:
            InputError: no map was added.
        """
        if self._n_pixels == 0:
            raise InputError("there are no anomaly maps to fit a pixel threshold on; expected at least 1")
        allowed = math.floor(self.pixel_false_positive_rate * self._n_pixels)
        position = max(self._kept.size - 1 - allowed, 0)
        return float(np.partition(self._kept, position)[position])


def fit_thresholds_with_tail(
    scores: Sequence[float] | NDArray[Any],
    tail: PixelTail,
    *,
    false_alarm_rate: float,
    scored_by: str,
    method: ThresholdMethod = ThresholdMethod.SPLIT_CONFORMAL,
) -> Thresholds:
    """Fit both thresholds like `fit_thresholds`, if there were too many maps to keep.

    Args:
        scores: float [n], the held-out normals' scores.
        tail: has taken in the n anomaly maps.
        false_alarm_rate: share of normal images that may be called anomalous.
        scored_by: what computed the scores, for the record.
        method: how the normals were held out, for the record: one of the two conformal ones, which differ in that.

    Raises:
        InputError: see `fit_image_threshold`.
    """
    check_askable_rate(false_alarm_rate, "false-alarm rate")
    check_askable_rate(tail.pixel_false_positive_rate, "pixel false-positive rate")
    check_n_normals(len(scores))
    image_threshold, rate = fit_image_threshold(np.asarray(scores), false_alarm_rate)
    return _thresholds(method, false_alarm_rate, rate, image_threshold, scores, tail, scored_by)


def fit_f1_thresholds_with_tail(
    scores: Sequence[float] | NDArray[Any],
    tail: PixelTail,
    anomalous_scores: Sequence[float] | NDArray[Any],
    *,
    scored_by: str,
) -> Thresholds:
    """Choose the image threshold by F1 on labelled images; the pixel threshold is that of the normals, as usual.

    Args:
        scores: float [n], the normals' scores; the p-values of predictions are among these.
        tail: has taken in the n anomaly maps of the normals.
        anomalous_scores: float [m], scores of anomalous images.
        scored_by: what computed the scores, for the record.

    Raises:
        InputError: see `fit_f1_threshold`.
    """
    check_n_normals(len(scores))
    image_threshold, rate = fit_f1_threshold(np.asarray(scores), np.asarray(anomalous_scores))
    return _thresholds(ThresholdMethod.F1_OPTIMAL, rate, rate, image_threshold, scores, tail, scored_by)


def _thresholds(
    method: ThresholdMethod,
    asked: float,
    rate: float,
    image_threshold: float,
    scores: Sequence[float] | NDArray[Any],
    tail: PixelTail,
    scored_by: str,
) -> Thresholds:
    return Thresholds(
        method=method,
        false_alarm_rate_requested=asked,
        false_alarm_rate=rate,
        image_threshold=image_threshold,
        pixel_threshold=tail.threshold(),
        pixel_false_positive_rate=tail.pixel_false_positive_rate,
        n_normals=len(scores),
        calibration_scores=_ascending(scores),
        scored_by=scored_by,
    )


def smallest_settable_rate(thresholds: Thresholds) -> float | None:
    """Return the smallest false-alarm rate that `thresholds_at` takes; None: it takes none (F1-optimal)."""
    if thresholds.method is ThresholdMethod.F1_OPTIMAL:
        return None
    return max(MIN_RATE, smallest_false_alarm_rate(len(thresholds.calibration_scores)))


def thresholds_at(thresholds: Thresholds, false_alarm_rate: float) -> Thresholds:
    """Return the thresholds with another false-alarm rate, from the same calibration scores.

    Only the image threshold and the rates change. Choose the rate before looking at verdicts: a rate that is picked
    because of them is promised no more.

    Args:
        thresholds: with a conformal method.
        false_alarm_rate: share of normal images that may be called anomalous.

    Raises:
        UsageError: the rate is not from `MIN_RATE` to `MAX_RATE` or smaller than the normals support; or the thresholds
            are F1-optimal.
    """
    if thresholds.method is ThresholdMethod.F1_OPTIMAL:
        raise UsageError(
            f"a false-alarm rate of {false_alarm_rate:.3g} was requested, but this bundle's threshold has the largest "
            "F1 on labelled images and keeps no rate; leave the rate out, or fit a threshold that keeps one: vae-edge "
            f"verify BUNDLE --data NORMALS --false-alarm-rate {false_alarm_rate:.3g}"
        )
    check_askable_rate(false_alarm_rate, "false-alarm rate")
    scores = thresholds.calibration_scores
    smallest = smallest_false_alarm_rate(len(scores))
    if false_alarm_rate < smallest:
        raise UsageError(
            f"the false-alarm rate is {false_alarm_rate:.6g}; the smallest that this bundle's "
            f"{count(len(scores), 'normal')} can support is {smallest:.6g}: choose that or more, or fit thresholds on "
            f"{normals_needed(false_alarm_rate)} normals: vae-edge verify BUNDLE --data NORMALS"
        )
    image_threshold, rate = fit_image_threshold(np.asarray(scores), false_alarm_rate)
    return thresholds.model_copy(
        update={
            "false_alarm_rate_requested": false_alarm_rate,
            "false_alarm_rate": rate,
            "image_threshold": image_threshold,
        }
    )


def check_thresholds(thresholds: Thresholds) -> None:
    """Refuse thresholds that do not follow from their own calibration scores, method and rate.

    With a conformal method, the image threshold and the actual rate are those of `fit_image_threshold`. An F1-optimal
    threshold is one of the normals' scores, and its rate the resulting rate among them; the anomalous images that chose
    it are not recorded. Nor are maps, so of the pixel threshold only the range is known.

    Raises:
        ValueError: a value differs; the message has both.
    """
    scores = np.asarray(thresholds.calibration_scores, dtype=np.float64)
    largest = float(np.finfo(np.float32).max)
    if max(abs(thresholds.pixel_threshold), float(np.abs(scores).max())) > largest:
        raise ValueError("a score or the pixel threshold is not a value that a model can give: it exceeds float32")
    asked, threshold = thresholds.false_alarm_rate_requested, thresholds.image_threshold
    check_askable_rate(thresholds.pixel_false_positive_rate, "pixel false-positive rate")
    if thresholds.method is ThresholdMethod.F1_OPTIMAL:
        above = scores.size - int(np.searchsorted(scores, threshold, side="right"))
        rate = asked_then = (1 + above) / (scores.size + 1)
        if threshold not in scores:
            raise ValueError(f"the image threshold is {threshold!r}, which is not one of its own normals' scores")
    else:
        check_askable_rate(asked, "false-alarm rate asked for")
        expected, rate = fit_image_threshold(scores, asked)
        asked_then = asked
        if threshold != expected:
            raise ValueError(f"the image threshold is {threshold!r}; its own scores and rate give {expected!r}")
    if (thresholds.false_alarm_rate, asked) != (rate, asked_then):
        raise ValueError(
            f"the false-alarm rate is {thresholds.false_alarm_rate!r}; its own scores and threshold give {rate!r}"
        )


def promised_rate(thresholds: Thresholds) -> float | None:
    """Return the share of normal images that a bundle promises to call anomalous at most; F1-optimal: None."""
    return None if thresholds.method is ThresholdMethod.F1_OPTIMAL else thresholds.false_alarm_rate


def describe_promise(thresholds: Thresholds) -> str:
    """Describe the guarantee of the image threshold about false alarms, and its basis."""
    rate = thresholds.false_alarm_rate
    if thresholds.method is ThresholdMethod.F1_OPTIMAL:
        return f"no rate is guaranteed (F1-optimal on labelled images); among its own normals it is {rate:.3g}"
    promise = f"at most {rate:.3g} of normal parts"
    if thresholds.method is ThresholdMethod.CROSS_CONFORMAL:
        return f"{promise} in practice (cross-conformal calibration), without a proof"
    return promise


def describe_support(thresholds: Thresholds) -> str:
    """Return in words the smallest false-alarm rate that the normals can support."""
    n = thresholds.n_normals
    return f"{smallest_false_alarm_rate(n):.3g} with {count(n, 'normal')}, 1 / ({n} + 1)"


def too_few_normals(thresholds: Thresholds) -> str | None:
    """Return a sentence where the normals could not support the rate that was requested, else None."""
    if thresholds.false_alarm_rate <= thresholds.false_alarm_rate_requested:
        return None
    return (
        f"a false-alarm rate of {thresholds.false_alarm_rate_requested:.3g} needs at least "
        f"{normals_needed(thresholds.false_alarm_rate_requested)} held-out normals, there are {thresholds.n_normals}: "
        f"the rate that applies is {thresholds.false_alarm_rate:.3g}; add normal images or choose a higher rate"
    )


def _ascending(scores: Sequence[float] | NDArray[Any]) -> tuple[float, ...]:
    return tuple(sorted(float(score) for score in scores))


def check_rate(rate: float, name: str) -> None:
    """Refuse a rate outside (0, 1).

    Raises:
        InputError: with the value and an example.
    """
    if not 0 < rate < 1:
        raise UsageError(f"the {name} is {rate}; expected a number between 0 and 1, such as 0.01 for one in a hundred")


def check_askable_rate(rate: float, name: str) -> None:
    """Refuse a rate that no bundle may have.

    Raises:
        UsageError: it is not from `MIN_RATE` to `MAX_RATE`; with the value.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(f"the {name} is {rate}; expected {MIN_RATE} to {MAX_RATE}, such as 0.01 for one in a hundred")


def check_n_normals(n_normals: int) -> None:
    """Refuse more held-out normals than a bundle may hold scores of.

    Raises:
        InputError: with the number.
    """
    if n_normals > MAX_CALIBRATION_SCORES:
        raise InputError(
            f"there are {n_normals} normals to fit a threshold on; expected at most {MAX_CALIBRATION_SCORES}: leave "
            "some out"
        )
