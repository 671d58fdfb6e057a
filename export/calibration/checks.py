"""Check that images can calibrate a quantized model: that they are pictures, of this product, of good parts.

A quantizer measures the ranges of its numbers on these images. Wrong images give a model that clips or blurs what it
should tell apart, and no error shows it before the model is in production. Each rule compares with the run's own
held-out normals, so it does not depend on what the product looks like. Measured on the sample set and on photographs of
magnetic tiles: see the constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.wording import count

MIN_IMAGES = 32
"""Fewer are refused: a range measured on so few depends on chance."""

ENOUGH_IMAGES = 100
"""Fewer cause a warning."""

BAD_SHARE = 0.1
"""Share of images without contrast, or of noise, from which the set is refused. Below it they are named in a warning:
one black frame does not move a range."""

_LEAST_CONTRAST = 0.1
"""Of the held-out normals' median contrast."""

_LEAST_CORRELATION = 0.5
"""Of the held-out normals' median correlation of neighbouring pixels. White noise has 0; the good parts measured
kept at least 0.8 of their median."""

_TELLING_CORRELATION = 0.2
"""Where the normals themselves have less, as a fine texture may, this rule cannot tell them from noise."""

_LEAST_SPREAD = 0.1
"""Of the held-out normals' mean distance from their mean image."""

_TAIL = 0.05
"""A score counts as beyond the held-out normals' scores if its conformal p-value among them is at most this."""

_MOST_BEYOND = 0.2
"""Share of scores beyond the held-out normals' from which the set is refused, unless it may be chance. See
`check_scores`."""

_ACCIDENT = 1e-4
"""Largest probability at which a share of scores beyond the held-out normals' does not count as chance."""


def check_number(n_images: int, source: str) -> list[str]:
    """Refuse too few images.

    Args:
        n_images: different images that can be used.
        source: where they come from, in words.

    Returns:
        A sentence if they are few, else nothing.

    Raises:
        InputError: fewer than 32.
    """
    if n_images < MIN_IMAGES:
        raise InputError(
            f"{n_images} different images can be used for calibration, from {source}; expected at least {MIN_IMAGES}, "
            f"better 300: add pictures of good parts there, or give a folder with more of them (--calibration-data)"
        )
    if n_images < ENOUGH_IMAGES:
        return [
            "the quantized model is calibrated on only "
            f"{count(n_images, 'image')}, from {source}; {ENOUGH_IMAGES} or more "
            "give steadier ranges"
        ]
    return []


def check_pictures(
    images: NDArray[np.uint8], names: Sequence[str], normals: NDArray[np.uint8], source: str
) -> list[str]:
    """Refuse what is not a set of pictures: images without contrast, noise, or one image repeated.

    Args:
        images: uint8 [n, H, W, 3], prepared, n of 1 or more.
        names: what they are called.
        normals: uint8 [m, H, W, 3], held-out normals of the run, m of 1 or more.
        source: where the images come from, in words.

    Returns:
        A sentence for each kind of bad image that occurs a few times.

    Raises:
        InputError: too many images are bad in one of these ways.
    """
    contrast, usual_contrast = contrasts(images), float(np.median(contrasts(normals)))
    flat = contrast < _LEAST_CONTRAST * usual_contrast
    warnings = _judge_share(
        flat,
        names,
        source,
        f"are constant: the standard deviation of their grey values is below {_LEAST_CONTRAST * usual_contrast:.2g} "
        f"of 255, a tenth of that of the run's held-out normals",
    )
    usual = float(np.median(neighbour_correlations(normals)))
    if usual >= _TELLING_CORRELATION:
        noisy = ~flat & (neighbour_correlations(images) < _LEAST_CORRELATION * usual)
        warnings += _judge_share(
            noisy,
            names,
            source,
            "look like random numbers: their neighbouring pixels correlate by less than "
            f"{_LEAST_CORRELATION * usual:.2g}, the run's held-out normals' by {usual:.2g}",
        )
    spread, usual_spread = _spread(images), _spread(normals)
    if spread < _LEAST_SPREAD * usual_spread:
        raise InputError(
            f"the {len(images)} calibration images from {source} are the same picture repeated: they differ from "
            f"their mean by {spread:.2g} of 255, the run's held-out normals by {usual_spread:.2g}; expected pictures "
            "of different good parts: choose other images"
        )
    return warnings


def check_scores(scores: NDArray[np.float32], normal_scores: NDArray[np.float32], source: str) -> list[str]:
    """Refuse images that the trained model itself does not recognize as good parts.

    It counts the scores beyond the m-th largest of the n0 held-out normals', with the largest m such that
    m / (n0 + 1) <= 0.05, and at least 1: the images whose conformal p-value is that small. For good parts that is about
    one in twenty. Two conditions must both hold for a refusal. First, the share of such images is above 0.2: on the
    sample dial and the magnetic tiles good parts of every role stayed below 0.1; of the dial's defects, of noise and of
    the dial 15 grey values brighter, at least 0.9 are beyond. Second, the number is not chance: if images and normals
    were drawn from the same distribution, every order of their scores would be equally likely, and the probability of
    this many must be at most 1e-4. This keeps runs with a handful of held-out normals from refusing a good set. Unlike
    the share beyond the largest score, the rule still works with one odd image among the held-out normals. It sees only
    what the model sees: a model that can hardly tell defects from good parts cannot tell that a set is full of defects.

    Args:
        scores: float32 [n], FP32 scores of the calibration images.
        normal_scores: float32 [n0], FP32 scores of the run's held-out normals, n0 of 1 or more.
        source: where the images come from, in words.

    Returns:
        A sentence if more images than chance explains are beyond the normals', but at most a share of 0.2.

    Raises:
        InputError: the two conditions hold.
    """
    n_normals = len(normal_scores)
    rank = max(1, math.floor(_TAIL * (n_normals + 1)))
    limit = np.sort(normal_scores)[-rank]
    n_beyond = int(np.count_nonzero(scores > limit))
    if probability_beyond(n_beyond, len(scores), rank, n_normals) > _ACCIDENT:
        return []
    what = (
        f"{n_beyond} of the {len(scores)} calibration images from {source} score above {limit:.4g} in the trained "
        f"model, which only {rank - 1} of its {n_normals} held-out normals do (median {np.median(scores):.4g} against "
        f"{np.median(normal_scores):.4g})"
    )
    if n_beyond <= _MOST_BEYOND * len(scores):
        return [f"{what}; check them for defects, other products or different light"]
    raise InputError(
        f"{what}: they are not like the images that it was trained on; expected good parts of the same product under "
        "the same camera and light: choose other images, or leave out --calibration-data"
    )


def probability_beyond(n_beyond: int, n: int, rank: int, n_normals: int) -> float:
    """Return the probability that at least this many of n scores lie above the rank-th largest of the normals'.

    All n + n_normals scores are assumed to be exchangeable and different. At least `n_beyond` lie above exactly when
    fewer than `rank` normals are among the `n_beyond + rank - 1` largest scores, which is a hypergeometric tail.
    """
    if n_beyond == 0:
        return 1.0
    n_largest = n_beyond + rank - 1
    ways = sum(math.comb(n_normals, j) * math.comb(n, n_largest - j) for j in range(rank) if n_largest - j <= n)
    return ways / math.comb(n + n_normals, n_largest)


def contrasts(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the standard deviation of each image's grey values, 0 to 127.5, float64 [n]."""
    return np.array([_grey(image).std() for image in images])


def neighbour_correlations(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the Pearson correlation of horizontally and vertically adjacent grey values, averaged.

    Returns:
        float64 [n], in [-1, 1]; 1 for an image without contrast, which is not noise.
    """
    return np.array(
        [
            (_correlation(grey[:, 1:], grey[:, :-1]) + _correlation(grey[1:], grey[:-1])) / 2
            for grey in map(_grey, images)
        ]
    )


def _grey(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(image.mean(axis=2, dtype=np.float32))


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = math.sqrt(float(np.square(first).sum()) * float(np.square(second).sum()))
    return float((first * second).sum()) / scale if scale > 0 else 1.0


def _spread(images: NDArray[np.uint8]) -> float:
    """Return how far the images are from their mean image, 0 to 127.5, averaged over pixels and images."""
    mean = images.mean(axis=0, dtype=np.float64)
    return float(np.mean([np.abs(image - mean).mean() for image in images]))


def _judge_share(bad: NDArray[np.bool_], names: Sequence[str], source: str, what: str) -> list[str]:
    n_bad = int(np.count_nonzero(bad))
    if n_bad == 0:
        return []
    examples = [name for name, is_bad in zip(names, bad, strict=True) if is_bad][:3]
    sentence = (
        f"{n_bad} of the {len(bad)} calibration images from {source} {what} ({', '.join(examples)}"
        f"{', ...' if n_bad > len(examples) else ''})"
    )
    if n_bad <= BAD_SHARE * len(bad):
        return [f"{sentence}; remove them"]
    raise InputError(
        f"{sentence}; expected pictures of good parts: choose other images, or leave out --calibration-data"
    )
