"""Re-fitting a bundle's thresholds on the device that will use it.

Another runtime, device or precision moves the scores a little, and the parts of another line a lot. Thresholds from
this device's own scores of its own normal parts keep the false-alarm rate that they state. Where there are defective
parts too, the image threshold can be the one with the largest F1 on both, which states no rate. The gate, which says
when a picture is not inspectable, is learnt from the normal parts again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from vae_edge.bundle import Bundle
from vae_edge.decision import (
    DEFAULT_FALSE_ALARM_RATE,
    PixelTail,
    check_askable_rate,
    fit_f1_thresholds_with_tail,
    fit_thresholds_with_tail,
    too_few_normals,
)
from vae_edge.errors import DeviceError, InputError, UsageError, VaeEdgeError
from vae_edge.gate import GateRecord
from vae_edge.gate_fitting import DEFAULT_REJECTION_RATE, MAX_NORMALS, fit_gate
from vae_edge.gate_measures import Look
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.platform.work import Progress
from vae_edge.prediction import Prediction

_Image = TypeVar("_Image")


@dataclass(frozen=True)
class LabelledCounts:
    """What the new image threshold does on the labelled images that it was fitted on: an upper bound, not a promise.

    Examples:
        >>> LabelledCounts(n_normal=10, n_anomalous=4, n_false_alarms=1, n_hits=3).f1
        0.75
    """

    n_normal: int
    n_anomalous: int
    n_false_alarms: int
    """Normal images that it calls anomalous."""
    n_hits: int
    """Anomalous images that it calls anomalous."""

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN), 0 to 1."""
        return 2 * self.n_hits / (self.n_hits + self.n_false_alarms + self.n_anomalous)


@dataclass(frozen=True)
class Refit:
    """What a re-fit did."""

    bundle: Bundle
    """With the new manifest, which `Detector.refit_thresholds` has written when it returns."""
    old: Thresholds
    n_images: int
    """Images that were examined, normal and anomalous."""
    unreadable: tuple[VaeEdgeError, ...]
    """The images that were left out, and why."""
    labelled: LabelledCounts | None = None
    """Where anomalous images were given."""

    @property
    def warning(self) -> str | None:
        """A sentence where the normals were too few for the requested rate, else None."""
        return too_few_normals(self.bundle.manifest.thresholds)


def refit_thresholds(
    bundle: Bundle,
    stream: Callable[[Iterable[_Image]], Iterable[Prediction | VaeEdgeError]],
    scored_by: Callable[[], str],
    images: Iterable[_Image],
    false_alarm_rate: float | None,
    *,
    anomalous: Iterable[_Image] | None,
    method: ThresholdMethod | str,
    max_images: int,
    progress: Progress | None = None,
) -> Refit:
    """Fit thresholds for a bundle and return the bundle with them; nothing is written.

    It counts as verified then, if it has references, which the caller has run. Memory grows by a thousandth of the
    maps' pixels, not by the maps.

    Args:
        bundle: the one whose model scores the images.
        stream: returns a prediction or an error for each image, in order.
        scored_by: returns what computed them, for the record; called after the last image.
        images: normal ones. This and what follows is as for `Detector.refit_thresholds`, which lists the errors too.
        false_alarm_rate: share of normal images that may be called anomalous; None: 0.01.
        anomalous: defective ones.
        method: how the image threshold is chosen.
        max_images: stop after this many of each kind.
        progress: called after each image with the number done and the number of all.
    """
    by_f1 = _checked_method(method, false_alarm_rate, anomalous is not None) is ThresholdMethod.F1_OPTIMAL
    rate = DEFAULT_FALSE_ALARM_RATE if false_alarm_rate is None else false_alarm_rate
    check_askable_rate(rate, "false-alarm rate")
    if max_images < 1:
        raise UsageError(f"max_images is {max_images}; expected 1 or more")
    old, size = bundle.manifest.thresholds, bundle.manifest.preparation
    n_most = _most(images, max_images)
    n_all = n_most + (0 if anomalous is None else _most(anomalous, max_images))
    ignored = bundle.manifest.ignored
    kept = None if ignored is None else ignored.kept
    tail = PixelTail(n_most * size.height * size.width, old.pixel_false_positive_rate, kept)
    unreadable: list[VaeEdgeError] = []
    n_images = 0

    def scores_of(source: Iterable[_Image], what: str, take: Callable[[Prediction], None] | None) -> list[float]:
        nonlocal n_images
        before, n_unreadable = n_images, len(unreadable)
        scores: list[float] = []
        for result in stream(_FirstOf(source, _most(source, max_images))):
            n_images += 1
            if isinstance(result, DeviceError):
                # A model that gives an image no finite score is broken, and must not count as verified.
                raise result
            if isinstance(result, VaeEdgeError):
                unreadable.append(result)
            else:
                scores.append(result.score)
                if take is not None:
                    take(result)
            if progress is not None:
                progress(n_images, n_all)
        if not scores:
            first = f": {unreadable[n_unreadable]}" if len(unreadable) > n_unreadable else ""
            raise InputError(f"none of {n_images - before} {what} could be read{first}; the bundle was not changed")
        return scores

    looks: list[Look] = []

    def take_normal(prediction: Prediction) -> None:
        tail.add(prediction.anomaly_map)
        if prediction.look is not None and len(looks) < MAX_NORMALS:
            looks.append(prediction.look)

    scores = scores_of(images, "images", take_normal)
    defects = None if anomalous is None else scores_of(anomalous, "anomalous images", None)
    if by_f1 and defects is not None:
        thresholds = fit_f1_thresholds_with_tail(scores, tail, defects, scored_by=scored_by())
    else:
        thresholds = fit_thresholds_with_tail(scores, tail, false_alarm_rate=rate, scored_by=scored_by())
    changed = bundle.manifest.model_copy(update={"thresholds": thresholds})
    if changed.references is not None:  # Manifests of the schemas before have no gate either.
        verified = {"verified": True, "verified_by": thresholds.scored_by, "not_verified_because": None}
        changed = changed.model_copy(update={**verified, "gate": _gate_of(looks, changed.gate)})
    labelled = None if defects is None else _count(thresholds.image_threshold, scores, defects)
    return Refit(replace(bundle, manifest=changed), old, n_images, tuple(unreadable), labelled)


def _gate_of(looks: list[Look], old: GateRecord | None) -> GateRecord | None:
    """Learn the gate again; the old one, if there are too few normals. Parts lie at the same place if they did."""
    rate = DEFAULT_REJECTION_RATE if old is None else old.rejection_rate_requested
    is_aligned = old is not None and old.mean_picture is not None
    return fit_gate(looks, is_aligned=is_aligned, rejection_rate=rate) or old


def _checked_method(method: ThresholdMethod | str, rate: float | None, has_anomalous: bool) -> ThresholdMethod:
    """Return the method.

    Raises:
        UsageError: it is not one, it cannot be done on a device, or what was given does not suit it.
    """
    can = (ThresholdMethod.SPLIT_CONFORMAL, ThresholdMethod.F1_OPTIMAL)
    if method not in [str(each) for each in can]:
        raise UsageError(
            f"the method is {str(method)!r}; expected {' or '.join(map(str, can))}: cross-conformal thresholds need "
            "several trainings (vae-train --calibration cross)"
        )
    if method == ThresholdMethod.SPLIT_CONFORMAL:
        return ThresholdMethod.SPLIT_CONFORMAL
    if not has_anomalous:
        raise UsageError("an F1-optimal threshold needs anomalous images as well as normal ones; none were given")
    if rate is not None:
        raise UsageError(
            f"a false-alarm rate of {rate} and an F1-optimal threshold were requested, but one threshold cannot be "
            "both: leave out one of them"
        )
    return ThresholdMethod.F1_OPTIMAL


def _count(threshold: float, normals: list[float], defects: list[float]) -> LabelledCounts:
    return LabelledCounts(
        n_normal=len(normals),
        n_anomalous=len(defects),
        n_false_alarms=sum(score > threshold for score in normals),
        n_hits=sum(score > threshold for score in defects),
    )


def _most(images: Iterable[object], max_images: int) -> int:
    return min(len(images), max_images) if isinstance(images, Sized) else max_images


class _FirstOf(Iterable[_Image]):
    """The first images of a source, which is stopped when they have been taken or are no longer wanted."""

    def __init__(self, images: Iterable[_Image], n_images: int) -> None:
        self._images = images
        self._n_images = n_images

    def __iter__(self) -> Iterator[_Image]:
        return islice(self._images, self._n_images)

    def stop(self) -> None:
        stop = getattr(self._images, "stop", None)
        if callable(stop):
            stop()
