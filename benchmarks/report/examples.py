"""A few test images as the bundles see them, as small pictures: hits, misses, false alarms, and differing verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.benchmarks.measure.measurer import Outputs
from vae_edge.benchmarks.report.records.accuracy import ExampleKind, ImageExample
from vae_edge.decision import conformal_p_value
from vae_edge.image import Preparation, load_prepared, prepare, read_image
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.masks import read_masks, resize_mask

LONGEST_SIDE = 192
"""Of a picture, in pixels."""

_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Seen:
    """One bundle with its outputs for the judged images."""

    bundle: str
    preparation: Preparation
    outputs: Outputs
    reference: Outputs | None = None
    """Outputs of its reference; None for the reference itself, and if there is none."""


def draw_examples(
    files: Sequence[ImageFile], bundles: Sequence[Seen], n_each: int
) -> tuple[tuple[ImageExample, ...], dict[str, bytes]]:
    """Choose images and draw them.

    Hits, misses, false alarms and passes come from the bundles that are references; the others give nearly the same.
    For the others, only the images that they judge differently are shown. The most informative come first: the clearest
    hits, the misses and false alarms furthest from the threshold, and the passes nearest to it.

    Args:
        files: the judged images.
        bundles: those that ran.
        n_each: images of each kind, at most.

    Returns:
        The examples, and the pictures by their file names: JPEG or PNG, at most `LONGEST_SIDE` pixels a side.

    Raises:
        InputError: an image or a mask cannot be read.
    """
    examples: list[ImageExample] = []
    pictures: dict[str, bytes] = {}
    for number, seen in enumerate(bundles):
        for kind, place in _choose(files, seen, n_each):
            file = files[place]
            stem = f"{number:02}-{place:05}"
            shared = f"{seen.preparation.height}x{seen.preparation.width}-{place:05}"
            score = float(seen.outputs.scores[place])
            thresholds = seen.outputs.thresholds
            truth = None if file.mask is None else f"truth-{shared}.png"
            examples.append(
                ImageExample(
                    bundle=seen.bundle,
                    image=file.name,
                    kind=kind,
                    defect=file.defect,
                    score=score,
                    threshold=thresholds.image_threshold,
                    p_value=conformal_p_value(score, np.asarray(thresholds.calibration_scores, dtype=np.float64)),
                    is_anomalous=bool(seen.outputs.verdicts[place]),
                    input_file=f"input-{shared}.jpg",
                    map_file=f"map-{stem}.jpg",
                    mask_file=f"mask-{stem}.png",
                    truth_file=truth,
                )
            )
            height, width = read_image(file.path, white_level=seen.preparation.white_level).shape[:2]
            size = _shrunk(height, width)
            anomaly_map = np.asarray(seen.outputs.maps[place])
            pictures[f"input-{shared}.jpg"] = _jpeg(load_prepared(file.path, _sized(seen.preparation, size)))
            pictures[f"map-{stem}.jpg"] = _jpeg(_resized(heat(anomaly_map, thresholds.pixel_threshold), size))
            pictures[f"mask-{stem}.png"] = _png(_resized(anomaly_map > thresholds.pixel_threshold, size))
            if truth is not None and file.masks:
                pictures[truth] = _png(resize_mask(read_masks(file.masks), *size))
    return tuple(examples), pictures


def heat(anomaly_map: NDArray[np.float32], pixel_threshold: float) -> NDArray[np.uint8]:
    """Return a map in colours, uint8 [H, W, 3] RGB: black up to half the threshold, brightest from twice of it."""
    low, high = 0.5 * pixel_threshold, 2.0 * pixel_threshold
    level = np.clip((anomaly_map - low) / max(high - low, 1e-30), 0.0, 1.0)
    coloured = cv2.applyColorMap((level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(coloured, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _choose(files: Sequence[ImageFile], seen: Seen, n_each: int) -> Iterator[tuple[ExampleKind, int]]:
    labels = np.array([file.is_anomalous for file in files])
    verdicts, margins = seen.outputs.verdicts, seen.outputs.margins
    if seen.reference is not None:
        flipped = np.flatnonzero(verdicts != seen.reference.verdicts)
        moved = np.abs(margins - seen.reference.margins)
        yield from (("flip", int(place)) for place in flipped[np.argsort(-moved[flipped])][:n_each])
        return
    kinds: tuple[tuple[ExampleKind, NDArray[np.bool_], int], ...] = (
        ("hit", labels & verdicts, -1),
        ("miss", labels & ~verdicts, 1),
        ("false_alarm", ~labels & verdicts, -1),
        ("pass", ~labels & ~verdicts, -1),
    )
    for kind, chosen, sign in kinds:
        places = np.flatnonzero(chosen)
        yield from ((kind, int(place)) for place in places[np.argsort(sign * margins[places], kind="stable")][:n_each])


def _shrunk(height: int, width: int) -> tuple[int, int]:
    scale = min(LONGEST_SIDE / max(height, width), 1.0)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _sized(preparation: Preparation, size: tuple[int, int]) -> Preparation:
    # Only the size differs from what the model sees; the picture keeps its own proportions.
    return preparation.model_copy(update={"height": size[0], "width": size[1]})


def _resized(picture: NDArray[np.uint8] | NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    if picture.dtype == np.bool_:
        nearest = cv2.resize(picture.astype(np.uint8), (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
        return np.asarray(nearest, dtype=np.uint8)
    return prepare(np.asarray(picture, dtype=np.uint8), Preparation.model_construct(height=size[0], width=size[1]))


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes())


def _png(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    return bytes(cv2.imencode(".png", (mask > 0).astype(np.uint8) * 255)[1].tobytes())
