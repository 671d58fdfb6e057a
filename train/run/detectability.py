"""When a model is blind: defects pasted on normals, by size, contrast and kind, scored at the threshold in force.

The normals are those that the thresholds were fitted on, which the network has not seen. In a run with cross-conformal
calibration there are none: the defects are pasted on the training images, and the network that is deployed has seen
these without the defect. Their scores without a defect are then lower than a new part's, if anything, and so are the
shares found; the threshold in force is that of the folds' networks.

A defect counts as found where the picture's score is above the threshold, whichever place of it made it so. The number
of the same pictures that are above it without a defect is reported with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.decision import fit_image_threshold
from vae_edge.detectability import (
    CONTRASTS,
    LARGER_RATE,
    Contrast,
    Detectability,
    FoundAtRate,
    FoundByKind,
    FoundBySize,
)
from vae_edge.ignored_region import IgnoredRegion
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.platform.work import Progress
from vae_edge.train.choice.synthetic_defects import CONTRASTS as CHANGES
from vae_edge.train.choice.synthetic_defects import PastedDefect, paste_defect
from vae_edge.train.data.inspection_set import map_in_threads, spread_places

Score = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""From images, uint8 [n, H, W, 3], to their scores, float32 [n]."""

SIZES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""Shares of the shorter side."""

KINDS = ("blob", "scratch", "stain", "texture", "break", "warp", "missing", "extra")
"""Those whose size and contrast say how plain they are. `patch` shows what it happens to hit, and `smear` and `grain`
nothing on a plain surface."""

_EACH = 12
"""Defects of each size and contrast."""

MOST_NORMALS = 24
"""Pictures that they are pasted on. With these 240 pictures are scored."""

_AT_ONCE = 16

_FEWEST_FOR_TAIL = 8


def measure_detectability(
    score: Score,
    normals: NDArray[np.uint8],
    thresholds: Thresholds,
    *,
    seed: int = 0,
    ignored: IgnoredRegion | None = None,
    progress: Progress | None = None,
) -> Detectability:
    """Paste defects of every size and contrast on normals and count which are found.

    Args:
        score: the whole model.
        normals: uint8 [n, H, W, 3], n of 1 or more; at most 24, spread evenly, are used; which they are, the module
            says.
        thresholds: in force.
        seed: of the defects.
        ignored: where none is pasted.
        progress: called with pictures scored and in all.
    """
    normals = normals[spread_places(len(normals), MOST_NORMALS)]
    plan = [
        (KINDS[(row + column) % len(KINDS)], size, change, contrast)
        for row in range(_EACH)
        for column, (size, change, contrast) in enumerate(
            (size, change, contrast) for size in SIZES for change, contrast in zip(CHANGES, CONTRASTS, strict=True)
        )
    ]
    total = len(normals) + len(plan)
    alone, shown = np.empty(len(normals), dtype=np.float64), np.empty(len(plan), dtype=np.float64)
    for start in range(0, len(normals), _AT_ONCE):
        alone[start : start + _AT_ONCE] = score(normals[start : start + _AT_ONCE])
        if progress is not None:
            progress(min(start + _AT_ONCE, len(normals)), total)
    kinds = []

    def paste(number: int) -> PastedDefect:
        kind, size, change, _ = plan[number]
        return paste_defect(
            normals, number % len(normals), kind, size, change, seed=seed, variant=number, ignored=ignored
        )

    for start in range(0, len(plan), _AT_ONCE):
        # A few at a time: at the largest sizes all of them would take gigabytes.
        made = list(map_in_threads(paste, range(start, min(start + _AT_ONCE, len(plan)))))
        kinds += [each.kind for each in made]
        shown[start : start + _AT_ONCE] = score(np.stack([each.image for each in made]))
        if progress is not None:
            progress(len(normals) + min(start + _AT_ONCE, len(plan)), total)
    found = shown > thresholds.image_threshold
    other = threshold_asked_for(thresholds)
    is_cross = thresholds.method is ThresholdMethod.CROSS_CONFORMAL
    return Detectability(
        height=normals.shape[1],
        width=normals.shape[2],
        threshold=thresholds.image_threshold,
        normals="good parts that also trained the network" if is_cross else "good parts that set the threshold",
        n_normals=len(normals),
        n_false_alarms=int(np.count_nonzero(alone > thresholds.image_threshold)),
        by_size=_by_size([(size, contrast) for _, size, _, contrast in plan], found),
        by_kind=_by_kind([(kind, size) for kind, (_, size, _, _) in zip(kinds, plan, strict=True)], found),
        n_found_at_requested_rate=None if other is None else int(np.count_nonzero(shown > other)),
        at_larger_rate=_at_larger_rate(thresholds, shown),
    )


def _at_larger_rate(thresholds: Thresholds, shown: NDArray[np.float64]) -> FoundAtRate | None:
    hangs_on_one = thresholds.image_threshold >= thresholds.calibration_scores[-1]
    if (
        thresholds.method is ThresholdMethod.F1_OPTIMAL
        or not hangs_on_one
        or thresholds.false_alarm_rate >= LARGER_RATE
    ):
        return None
    threshold, rate = fit_image_threshold(np.asarray(thresholds.calibration_scores), LARGER_RATE)
    return FoundAtRate(false_alarm_rate=rate, threshold=threshold, n_found=int(np.count_nonzero(shown > threshold)))


def _by_size(cells: Sequence[tuple[float, Contrast]], found: NDArray[np.bool_]) -> tuple[FoundBySize, ...]:
    return tuple(
        FoundBySize(size=size, contrast=contrast, n=n, n_found=n_found)
        for (size, contrast), (n, n_found) in _counts(cells, found).items()
    )


def _by_kind(cells: Sequence[tuple[str, float]], found: NDArray[np.bool_]) -> tuple[FoundByKind, ...]:
    counts = sorted(_counts(cells, found).items(), key=lambda item: (KINDS.index(item[0][0]), item[0][1]))
    return tuple(FoundByKind(kind=kind, size=size, n=n, n_found=n_found) for (kind, size), (n, n_found) in counts)


def _counts(cells: Sequence[Any], found: NDArray[np.bool_]) -> dict[Any, tuple[int, int]]:
    """Return for each cell how many there are and how many of them are found."""
    counts: dict[Any, tuple[int, int]] = {}
    for cell, is_found in zip(cells, found, strict=True):
        n, n_found = counts.get(cell, (0, 0))
        counts[cell] = (n + 1, n_found + int(is_found))
    return counts


def threshold_asked_for(thresholds: Thresholds) -> float | None:
    """Estimate the image threshold that the false-alarm rate asked for would need, where the normals are too few.

    The tail of the normals' scores is continued as an exponential distribution, whose excesses over a high value have
    the same mean everywhere (Balkema and de Haan, "Residual life time at great age", Annals of Probability 2, 1974).
    With the top quarter, k of n, above u by m on average, the share r of scores lies above u + m ln(k / (n r)). It sets
    no verdict: it only tells what the smaller rate would cost.

    Args:
        thresholds: in force.

    Returns:
        At least the threshold in force; None where that is the one asked for, promises nothing, or is from fewer than
        8 normals.
    """
    asked = thresholds.false_alarm_rate_requested
    scores = np.asarray(thresholds.calibration_scores, dtype=np.float64)
    if thresholds.method is ThresholdMethod.F1_OPTIMAL or thresholds.false_alarm_rate <= asked:
        return None
    n = len(scores)
    if n < _FEWEST_FOR_TAIL:
        return None
    k = max(n // 4, 4)
    base = float(scores[-k - 1])
    excess = float((scores[-k:] - base).mean())
    return max(base + excess * math.log(k / (n * asked)), thresholds.image_threshold)
