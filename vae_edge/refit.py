"""Re-fitting a bundle's thresholds on the device that will use it.

Another runtime, device or precision moves the scores a little, and the parts of another line a lot. Thresholds from
this device's own scores of its own normal parts keep the false-alarm rate that they state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_edge.atomic import check_place
from vae_edge.bundle import Bundle
from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, PixelTail, check_rate, fit_thresholds_with_tail
from vae_edge.detector import Detector
from vae_edge.errors import DeviceError, InputError, VaeEdgeError
from vae_edge.manifest import Thresholds
from vae_edge.progress import Progress


@dataclass(frozen=True)
class Refit:
    """What a re-fit did."""

    bundle: Bundle
    """With the new manifest, which is written."""
    old: Thresholds
    n_files: int
    unreadable: tuple[VaeEdgeError, ...]
    """The images that were left out, and why."""


def refit_thresholds(
    bundle: Bundle,
    detector: Detector,
    files: Sequence[Path],
    false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
    *,
    progress: Progress | None = None,
) -> Refit:
    """Run a bundle over normal images, fit both thresholds on its outputs and write them into its manifest.

    The bundle counts as verified from then on. Memory grows by a thousandth of the maps' pixels, not by the maps.

    Args:
        bundle: the bundle to change.
        detector: that bundle, opened on this device.
        files: images of good parts that the model was not trained on; one that cannot be read is left out.
        false_alarm_rate: share of normal images that may be called anomalous.
        progress: called after each image with the number done and the number of all.

    Raises:
        InputError: no image can be read, the rate is outside (0, 1), or the manifest cannot be written.
        DeviceError: the runtime failed, or a score is not a finite number. The bundle is as it was.
    """
    check_rate(false_alarm_rate, "false-alarm rate")
    check_place(bundle.folder)  # Not after all images have been run.
    manifest = bundle.manifest
    old = manifest.thresholds
    size = manifest.preparation
    tail = PixelTail(len(files) * size.height * size.width, old.pixel_false_positive_rate)
    scores: list[float] = []
    unreadable: list[VaeEdgeError] = []
    for done, result in enumerate(detector.stream(files, errors="return"), start=1):
        if isinstance(result, DeviceError):
            # A model that gives a good part no finite score is broken, and must not count as verified.
            raise result
        if isinstance(result, VaeEdgeError):
            unreadable.append(result)
        else:
            scores.append(result.score)
            tail.add(result.anomaly_map)
        if progress is not None:
            progress(done, len(files))
    if not scores:
        first = f": {unreadable[0]}" if unreadable else ""
        raise InputError(f"none of {len(files)} images could be read{first}; the bundle was left as it is")
    backend = detector.backend
    thresholds = fit_thresholds_with_tail(
        scores,
        tail,
        false_alarm_rate=false_alarm_rate,
        scored_by=f"{backend.version} on {backend.device.name}",
    )
    changed = manifest.model_copy(
        update={"thresholds": thresholds, "verified": True, "not_verified_because": None},
    )
    return Refit(bundle.with_manifest(changed), old, len(files), tuple(unreadable))
