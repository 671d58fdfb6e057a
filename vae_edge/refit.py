"""Re-fitting a bundle's thresholds on the device that will use it.

Another runtime, device or precision moves the scores a little, and the parts of another line a lot. Thresholds from
this device's own scores of its own normal parts keep the false-alarm rate that they state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice

from vae_edge.atomic import check_place
from vae_edge.bundle import Bundle
from vae_edge.decision import (
    DEFAULT_FALSE_ALARM_RATE,
    PixelTail,
    check_rate,
    fit_thresholds_with_tail,
    normals_needed,
    too_few_normals,
)
from vae_edge.detector import MAX_REFIT_IMAGES, Detector, Source
from vae_edge.errors import DeviceError, InputError, UsageError, VaeEdgeError
from vae_edge.manifest import Thresholds
from vae_edge.progress import Progress


@dataclass(frozen=True)
class Refit:
    """What a re-fit did."""

    bundle: Bundle
    """With the new manifest, which is written."""
    old: Thresholds
    n_images: int
    """Images that were looked at."""
    unreadable: tuple[VaeEdgeError, ...]
    """The images that were left out, and why."""

    @property
    def n_needed(self) -> int:
        """Normal images that the rate asked for needs: 99 for 0.01."""
        return normals_needed(self.bundle.manifest.thresholds.false_alarm_rate_requested)

    @property
    def warning(self) -> str | None:
        """A sentence where the normals were too few for the rate asked for, else None."""
        return too_few_normals(self.bundle.manifest.thresholds)


def refit_thresholds(
    detector: Detector,
    images: Iterable[Source],
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    *,
    max_images: int = MAX_REFIT_IMAGES,
    progress: Progress | None = None,
) -> Refit:
    """Do the work of `Detector.refit_thresholds`, but for giving the detector its new thresholds.

    The bundle counts as verified from then on. Memory grows by a thousandth of the maps' pixels, not by the maps.
    """
    check_rate(false_alarm_rate, "false-alarm rate")
    if max_images < 1:
        raise UsageError(f"max_images is {max_images}; expected 1 or more")
    bundle = detector.bundle
    check_place(bundle.folder)  # Not after all images have been run.
    old, size = bundle.manifest.thresholds, bundle.manifest.preparation
    n_most = min(len(images), max_images) if isinstance(images, Sized) else max_images
    tail = PixelTail(n_most * size.height * size.width, old.pixel_false_positive_rate)
    scores: list[float] = []
    unreadable: list[VaeEdgeError] = []
    n_images = 0
    for result in detector.stream(_FirstOf(images, n_most), errors="return"):
        n_images += 1
        if isinstance(result, DeviceError):
            # A model that gives a good part no finite score is broken, and must not count as verified.
            raise result
        if isinstance(result, VaeEdgeError):
            unreadable.append(result)
        else:
            scores.append(result.score)
            tail.add(result.anomaly_map)
        if progress is not None:
            progress(n_images, n_most)
    if not scores:
        first = f": {unreadable[0]}" if unreadable else ""
        raise InputError(f"none of {n_images} images could be read{first}; the bundle was left as it is")
    backend = detector.stream_backend()
    thresholds = fit_thresholds_with_tail(
        scores,
        tail,
        false_alarm_rate=false_alarm_rate,
        scored_by=f"{backend.version} on {backend.device.name}",
    )
    changed = bundle.manifest.model_copy(
        update={"thresholds": thresholds, "verified": True, "not_verified_because": None},
    )
    return Refit(bundle.with_manifest(changed), old, n_images, tuple(unreadable))


class _FirstOf:
    """The first images of a source, which is stopped when they have been taken or are no longer wanted."""

    def __init__(self, images: Iterable[Source], n_images: int) -> None:
        self._images = images
        self._n_images = n_images

    def __iter__(self) -> Iterator[Source]:
        return islice(self._images, self._n_images)

    def stop(self) -> None:
        stop = getattr(self._images, "stop", None)
        if callable(stop):
            stop()
