"""Which pictures a run keeps so that every device can prove itself by them: good parts and defects pasted on these.

About half are good parts that the thresholds were fitted on (in a run with cross-conformal calibration, good parts of
the training), the others are made from them. Pictures whose score is close to the threshold are left out: rounding
could change their verdict, which would say nothing about a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.platform.atomic import new_file
from vae_edge.platform.work import Progress
from vae_edge.reference_file import (
    N_PICTURES,
    REFERENCES_FILE,
    PicturesRecord,
    ReferenceFile,
    ReferenceKind,
    Size,
    encode_pictures,
)
from vae_edge.train.choice.synthetic_defects import paste_defect, turn
from vae_edge.train.data.inspection_set import map_in_threads
from vae_edge.wording import count

MOST_NORMALS = 24
"""Good parts that are looked at."""

_CLEAR = 0.1
"""By which a score has to differ from the threshold, as a share of the larger of the two: a hundred times the tolerance
of FP32, and about the drift of INT8."""

_AT_ONCE = 8


@dataclass(frozen=True)
class RunPictures:
    """The pictures that a run keeps."""

    record: PicturesRecord
    file: ReferenceFile

    def write(self, folder: Path) -> None:
        """Write their file into a run folder, completely or not at all.

        Raises:
            InputError: the folder cannot be written.
        """
        with new_file(folder / REFERENCES_FILE) as temporary:
            self.file.write(temporary)


def choose_references(
    score: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
    normals: NDArray[np.uint8],
    thresholds: Thresholds,
    *,
    seed: int = 0,
    ignored: IgnoredRegion | None = None,
    progress: Progress | None = None,
) -> RunPictures:
    """Choose pictures, the same for the same arguments.

    Args:
        score: the whole model, from uint8 [n, H, W, 3] to scores, float32 [n].
        normals: uint8 [n, H, W, 3], good parts, n of 1 or more; the first 24 are looked at.
        thresholds: in force.
        seed: of the choice and of the defects.
        ignored: where no defect is pasted.
        progress: called with pictures scored and in all.
    """
    normals = normals[:MOST_NORMALS]
    order = np.random.default_rng(seed).permutation(len(normals))
    normals = normals[order]
    n_good = min(N_PICTURES // 2, len(normals))
    n_pasted = N_PICTURES - n_good
    # More than needed, so that those close to the threshold can be left out.
    numbers = range(n_pasted + N_PICTURES // 2)
    pasted = np.stack(list(map_in_threads(lambda number: _pasted(normals, number, seed, ignored), numbers)))
    total = len(normals) + len(pasted)

    def scores(images: NDArray[np.uint8], done: int) -> NDArray[np.float64]:
        found = np.empty(len(images), dtype=np.float64)
        for start in range(0, len(images), _AT_ONCE):
            found[start : start + _AT_ONCE] = score(images[start : start + _AT_ONCE])
            if progress is not None:
                progress(done + min(start + _AT_ONCE, len(images)), total)
        return found

    scored = scores(normals, 0), scores(pasted, len(normals))
    good, bad = (
        images[_clearest(values, thresholds.image_threshold, n)]
        for images, values, n in ((normals, scored[0], n_good), (pasted, scored[1], n_pasted))
    )
    mixed = _mixed(good, bad)
    size = Size(*normals.shape[1:3])
    encoded = encode_pictures([image for image, _ in mixed])
    kept_good = sum(is_good for _, is_good in mixed[: len(encoded)])
    where = (
        "good parts of the training"
        if thresholds.method is ThresholdMethod.CROSS_CONFORMAL
        else "good parts that set the threshold"
    )
    record = PicturesRecord(
        kind=ReferenceKind.PARTS,
        images=f"{kept_good} {where} and {count(len(encoded) - kept_good, 'picture')} "
        "with defects pasted on such parts",
        n_images=len(encoded),
        n_picture_bytes=sum(map(len, encoded)),
    )
    return RunPictures(record, ReferenceFile(size, tuple(encoded)))


def _pasted(normals: NDArray[np.uint8], number: int, seed: int, ignored: IgnoredRegion | None) -> NDArray[np.uint8]:
    kind, share, contrast = turn(number)
    source = number % len(normals)
    return paste_defect(normals, source, kind, share, contrast, seed=seed, variant=number, ignored=ignored).image


def _clearest(scores: NDArray[np.float64], threshold: float, n: int) -> NDArray[np.int64]:
    """Return the first n positions that are clear of the threshold; where they are too few, the farthest others too."""
    larger = np.maximum(np.maximum(np.abs(scores), abs(threshold)), 1e-30)
    distances = np.abs(scores - threshold) / larger
    order = np.lexsort((np.arange(len(scores)), np.where(distances > _CLEAR, -np.inf, -distances)))
    return np.asarray(order[:n])


def _mixed(good: NDArray[np.uint8], bad: NDArray[np.uint8]) -> list[tuple[NDArray[np.uint8], bool]]:
    """Take turns, so that of any first few about half are good."""
    keyed = [
        ((i + 0.5) / len(images), is_good, image)
        for images, is_good in ((good, True), (bad, False))
        for i, image in enumerate(images)
    ]
    return [(image, is_good) for _, is_good, image in sorted(keyed, key=lambda each: (each[0], not each[1]))]
