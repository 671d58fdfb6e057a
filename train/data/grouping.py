"""Which pictures of good parts show the same part, by a rule on their names or found by their content alone.

Several pictures of one part, such as a series of exposures, must be used for one thing: a held-out picture whose sister
trained the network is not as new as a picture of the next part on the line, and a threshold fitted on such pictures
gives more false alarms in use than it promises.

A picture becomes a thumbnail in which every pixel is measured by its surroundings (mean 0, deviation 1), so that
brightness, contrast, gain and slow changes of the light drop out. The correlation r of two thumbnails is the largest
over small shifts, for a part is not cut out twice at the same pixel; their distance is (1 - r) / r, what is different
in units of what is common, which is the square of a length.

How near is "the same part"? No fixed number can say: all pictures of a rigid product are near, and textures never are.
So the pictures are joined from the smallest distance on (single linkage, that is the minimum spanning tree: Gower and
Ross, "Minimum spanning trees and single linkage cluster analysis", Applied Statistics 1969), and among the distances
of the joins a gap is looked for. Parts that differ from each other in one way, such as the angle on a turntable, lie as
points on a line, whose gaps follow an exponential law; parts that differ in more ways are spread more evenly still.
The joins up to a distance t, those between t and c t, and those above are compared with the exponential law that fits
these three counts best. The joins up to t are pictures of the same part where

- the law makes the counts less likely than they could be by a factor of 1000 or more (likelihood ratio), and
- at most a quarter of the joins that it expects lie between t and c t, and
- the middle of the gap, sqrt(c) t, is at most 1, that is a correlation of at least 0.5.

Of several gaps the least likely one counts, and what is nearer than a quarter of the way through it (c**(1/4) t) is
joined; where there is none nothing is joined. What this cannot tell apart: the
same part, and parts of a product that comes in many variants with nothing of their own within a variant. Pictures of
the same part that differ by more than parts do, as with shifted pictures of a rigid product, are not found.

Repeatable on every machine: thumbnails are made of integer sums, products of their small integers are exact in float32
in whatever order a library adds them, and the rest are single operations that IEEE 754 rounds in one way; only the
likelihood takes logarithms and powers, whose last bit decides nothing but a tie. What remains is the image decoder:
PNG, BMP and TIFF have one right result, JPEG has not quite. So a run that continues takes its groups from its
`split.json`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import read_image
from vae_edge.platform.work import StepProgress
from vae_edge.train.data.inspection_set import ImageFile, map_in_threads
from vae_edge.train.data.split import GROUP_AUTOMATICALLY, GROUP_NOTHING, SplitSettings, key_function, split_normals

SIDE = 80
"""Length in pixels of a thumbnail's longer side, for the median picture; all pictures are reduced by one factor."""
_SHIFT = 5  # Pixels of the thumbnail: a part may be cut out 6 % to any side.
_WINDOW = 4  # A pixel is measured by the 9 x 9 around it.
_STEPS, _MOST = 10, 40  # Tenths of a deviation, up to four.
_LARGEST = 100  # Side in pixels of what is compared at most: 100 * 100 * 40 * 40 < 2**24 is exact in float32.
_COARSE = 16  # Side of the small square thumbnails among which the candidates are sought.
_CANDIDATES = 16
_REFERENCES = 25  # Pictures whose size decides by how much all are reduced.
_BLOCK = 512  # Rows of the matrix of small thumbnails that are compared at a time.

MAX_DISTANCE = 1.0
"""Pictures of the same part are nearer than this."""
_GAPS = (1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 30.0, 100.0, 1000.0)
_LIKELIHOOD_RATIO = 1e-3
_MOST_IN_GAP = 0.25
_NOISE = 1e-3  # Smaller distances are noise and rounding of the thumbnails, and count as this.

MIN_PARTS = 8
"""Fewer different parts than this are not split by part."""
MAX_GROUP_SHARE, MAX_GROUP = 0.1, 12
"""A group holds at most this share of the pictures, or so many where that is more. What is larger is a product that
comes in few variants, or a film in which each picture resembles the next: no way to split it."""


@dataclass(frozen=True)
class LookAlikes:
    """Which of some pictures show the same part."""

    n_images: int
    groups: Mapping[str, str]
    """For each picture that is not alone, from its SHA-256 to its group: the smallest SHA-256 in it."""
    n_parts: int
    """Different parts: groups, and pictures that are alone."""
    too_large: int = 0
    """Pictures in the largest group, where the groups were too large, or too few, to be used; else 0."""

    def without_groups(self) -> LookAlikes:
        """Return the same finding where its groups cannot be used."""
        largest = max(Counter(self.groups.values()).values(), default=0)
        return replace(self, groups={}, too_large=max(largest, self.too_large))

    def sentence(self) -> str | None:
        """Return what was found, for people; None where all pictures show different parts."""
        alike = f"{self.n_images} good parts look like {self.n_parts} different ones"
        if self.too_large:
            return (
                f"{alike}, and {self.too_large} pictures like the same one: too few to keep them together. If these "
                "are pictures of the same parts, the false-alarm rate holds for further pictures of them, not for new "
                "parts: take pictures of more parts, or specify with --group-by REGEX which belong together"
            )
        if not self.groups:
            return None
        return f"{alike}: pictures of the same part are kept together; --group-by none turns this off"


def find_look_alikes(
    images: Sequence[ImageFile], progress: StepProgress | None = None, *, white_level: int = 65535
) -> LookAlikes:
    """Find the pictures that show the same part.

    Each is decoded once (the first 25 twice). 10,000 take some 200 MB, and about a minute of one core beside the
    decoding.

    Args:
        images: good parts, all of one product, in any order; of those with the same bytes one is examined.
        progress: called with what is being done, how much of it and how much there is.
        white_level: 16-bit value that means white.

    Raises:
        InputError: a picture cannot be decoded.
    """
    # The order is that of the contents, so that ties fall the same way wherever the files lie.
    unique = sorted({image.sha256: image for image in images}.values(), key=lambda image: image.sha256)
    if len(unique) < 3:
        return LookAlikes(len(images), {}, len(unique))
    thumbnails, small = _thumbnails([image.path for image in unique], white_level, progress)
    joins = _single_linkage(_distances(thumbnails, small, progress), len(unique))
    level = find_gap([distance for distance, _, _ in joins], len(unique) - 1)
    labels = list(range(len(unique)))
    if level is not None:
        for distance, i, j in joins:
            if distance <= level:
                labels[_root(labels, max(i, j))] = _root(labels, min(i, j))
    members: dict[int, list[str]] = defaultdict(list)
    for i, image in enumerate(unique):
        members[_root(labels, i)].append(image.sha256)
    largest = max(map(len, members.values()))
    groups = {sha256: min(group) for group in members.values() if len(group) > 1 for sha256 in group}
    found = LookAlikes(len(images), groups, len(members))
    if len(members) < MIN_PARTS or largest > max(MAX_GROUP, MAX_GROUP_SHARE * len(unique)):
        return found.without_groups()
    return found


def find_gap(joins: Sequence[float], n_joins: int) -> float | None:
    """Return the distance up to which joins are of the same part, or None where there is no gap.

    Args:
        joins: the distances at which single linkage joins, ascending, each above 0; the module's docstring says what
            is looked for.
        n_joins: how many joins there would be, were all compared with all: pictures - 1. Those that are missing count
            as far.
    """
    ordered = np.maximum(np.asarray(joins, dtype=np.float64), _NOISE)
    below = np.searchsorted(ordered, ordered, side="right")
    best, level = math.log(_LIKELIHOOD_RATIO), None
    for gap in _GAPS:
        between = np.searchsorted(ordered, ordered * gap, side="right") - below
        for t, n, m in zip(ordered.tolist(), below.tolist(), between.tolist(), strict=True):
            if t * math.sqrt(gap) > MAX_DISTANCE:
                break
            evidence = _log_likelihood_ratio(n, m, n_joins - n - m, math.sqrt(gap))
            if evidence < best:
                best, level = evidence, t * gap**0.25
    return level


def _log_likelihood_ratio(below: int, between: int, above: int, ratio: float) -> float:
    """Return how much less likely the counts are where lengths are exponential than where they are anything; 0 or less.

    Args:
        below: lengths up to some length.
        between: longer ones, up to `ratio` times that length.
        above: even longer ones.
        ratio: above 1.

    Returns:
        0 also where more than a quarter of those that an exponential law expects lie between.
    """
    if below == 0 or above == 0:
        return 0.0
    total = below + between + above

    # An exponential law has a share x above the length and x**ratio above the other. The likelihood has one maximum,
    # where its derivative, which falls, is 0.
    def slope(x: float) -> float:
        power: float = x ** (ratio - 1)
        return -below / (1 - x) + between * (1 - ratio * power) / (x - x * power) + above * ratio / x

    low, high = 0.0, 1.0
    for _ in range(40):
        x = (low + high) / 2
        low, high = (x, high) if slope(x) > 0 else (low, x)
    shares = (1 - x, x - x**ratio, x**ratio)
    if between > _MOST_IN_GAP * shares[1] * total:
        return 0.0
    return sum(n * math.log(share * total / n) for n, share in zip((below, between, above), shares, strict=True) if n)


def _thumbnails(
    paths: Sequence[Path], white_level: int, progress: StepProgress | None
) -> tuple[list[NDArray[np.int8]], NDArray[np.float32]]:
    """Return a thumbnail of each picture, int8 [h, w] in tenths of a deviation, and small ones, float32 [n, 256]."""
    sizes = sorted(max(read_image(path, white_level=white_level).shape[:2]) for path in paths[:_REFERENCES])
    reference = sizes[len(sizes) // 2]
    thumbnails = []
    small = np.empty((len(paths), _COARSE * _COARSE), dtype=np.float32)
    report = None if progress is None else partial(progress, "looking for pictures of the same part")
    for i, (thumbnail, coarse) in enumerate(map_in_threads(partial(_look_at, reference, white_level), paths, report)):
        thumbnails.append(thumbnail)
        small[i] = coarse.ravel()
    return thumbnails, small


def _look_at(reference: int, white_level: int, path: Path) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    colours = read_image(path, white_level=white_level).astype(np.int64)
    grey = colours[:, :, 0] + 2 * colours[:, :, 1] + colours[:, :, 2]
    height, width = (
        min(length, max(4 * _SHIFT, min(2 * SIDE, (length * SIDE + reference // 2) // reference)))
        for length in grey.shape
    )
    coarse = (min(_COARSE, grey.shape[0]), min(_COARSE, grey.shape[1]))
    small = np.zeros((_COARSE, _COARSE), dtype=np.int8)
    small[: coarse[0], : coarse[1]] = _measured(_reduced(grey, *coarse), 2)
    return _measured(_reduced(grey, height, width), _WINDOW), small


def _reduced(grey: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    """Return means over boxes of whole pixels, and over the 3 x 3 of these; 64 is a grey level.

    Without the second mean a shift by part of a pixel would change fine textures beyond recognition.
    """
    rows = np.arange(height + 1) * grey.shape[0] // height
    columns = np.arange(width + 1) * grey.shape[1] // width
    sums = np.add.reduceat(np.add.reduceat(grey, rows[:-1], axis=0), columns[:-1], axis=1)
    counts = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    means = 16 * sums // counts
    return _box_sums(means, 1) // _box_sums(np.ones_like(means), 1)


def _measured(values: NDArray[np.int64], reach: int) -> NDArray[np.int8]:
    """Return each value less the mean of its surroundings, in tenths of their deviation, -40 to 40.

    A deviation of less than a grey level (64 here) is the camera's rounding and tells nothing.
    """
    n = _box_sums(np.ones_like(values), reach)
    total, squares = _box_sums(values, reach), _box_sums(values * values, reach)
    variance = (n * squares - total * total) / (n * n) + 64.0 * 64.0
    steps = np.rint(_STEPS * (n * values - total) / (n * np.sqrt(variance)))
    return np.asarray(np.clip(steps, -_MOST, _MOST), dtype=np.int8)


def _box_sums(values: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Return the sum over the box around each value, as far as it lies inside."""
    for axis in (0, 1):
        length = values.shape[axis]
        sums = np.concatenate([np.zeros_like(values.take([0], axis)), values.cumsum(axis)], axis)
        places = np.arange(length)
        values = sums.take(np.minimum(places + reach + 1, length), axis) - sums.take(
            np.maximum(places - reach, 0), axis
        )
    return values


def _distances(
    thumbnails: Sequence[NDArray[np.int8]], small: NDArray[np.float32], progress: StepProgress | None
) -> Iterator[tuple[float, int, int]]:
    """Yield the distance of each picture to those that the small thumbnails say are nearest: distance, i, j, i < j."""
    seen: set[tuple[int, int]] = set()
    for i, nearest in enumerate(_nearest(small)):
        for j in nearest:
            pair = (min(i, j), max(i, j))
            if pair not in seen:
                seen.add(pair)
                yield _distance(similarity(thumbnails[pair[0]], thumbnails[pair[1]])), *pair
        if progress is not None:
            progress("comparing pictures", i + 1, len(small))


def _distance(correlation: float) -> float:
    return max((1.0 - correlation) / max(correlation, 1e-3), _NOISE)


def _nearest(small: NDArray[np.float32]) -> Iterator[list[int]]:
    """Yield the nearest other pictures of each, at most 16, by the cosine of the small thumbnails."""
    norms = np.sqrt(np.maximum((small.astype(np.float64) ** 2).sum(axis=1), 1.0)).astype(np.float32)
    n_nearest = min(_CANDIDATES, len(small) - 1)
    for start in range(0, len(small), _BLOCK):
        cosines = (small[start : start + _BLOCK] @ small.T) / norms[start : start + _BLOCK, None] / norms[None, :]
        for i, row in enumerate(cosines, start):
            row[i] = -2.0
            least = np.partition(row, len(row) - n_nearest)[len(row) - n_nearest]
            chosen = np.flatnonzero(row >= least)
            order = np.argsort(-row[chosen], kind="stable")[:n_nearest]
            yield chosen[order].tolist()


def similarity(one: NDArray[np.int8], other: NDArray[np.int8]) -> float:
    """Return the largest correlation of two thumbnails, -1 to 1, over shifts up to 5 pixels; 0 if sizes differ much.

    Args:
        one: int8 [h, w] from -40 to 40; its middle is looked for in `other`.
        other: int8 [h', w'].
    """
    height, width = (
        min(*lengths, _LARGEST + 2 * _SHIFT) - 2 * _SHIFT for lengths in zip(one.shape, other.shape, strict=True)
    )
    if min(height, width) < 1:
        return 0.0
    if any(5 * min(lengths) < 4 * max(lengths) for lengths in zip(one.shape, other.shape, strict=True)):
        return 0.0
    middle = _middle(one, height, width).astype(np.float32)
    around = _middle(other, height + 2 * _SHIFT, width + 2 * _SHIFT).astype(np.float32)
    windows = sliding_window_view(around, (height, width)).reshape(-1, height * width)
    products = (windows @ middle.ravel()).astype(np.float64)
    energies = sliding_window_view(_integral(around), (height + 1, width + 1))[:, :, [0, -1]][:, :, :, [0, -1]]
    energy = (energies[:, :, 1, 1] - energies[:, :, 0, 1] - energies[:, :, 1, 0] + energies[:, :, 0, 0]).ravel()
    own = float(np.square(middle, dtype=np.float64).sum())
    correlations = (products / np.sqrt(np.maximum(energy * own, 1.0))).reshape(2 * _SHIFT + 1, 2 * _SHIFT + 1)
    row, column = divmod(int(correlations.argmax()), 2 * _SHIFT + 1)
    peak = float(correlations[row, column])
    return min(peak + _rise(correlations[:, column], row) + _rise(correlations[row], column), 1.0)


def _rise(values: NDArray[np.float64], place: int) -> float:
    """Return how far the parabola through the largest value and its neighbours rises above it."""
    if not 0 < place < len(values) - 1:
        return 0.0
    before, peak, after = values[place - 1 : place + 2].tolist()
    bend = 2 * peak - before - after
    return float((after - before) ** 2 / (8 * bend)) if bend > 0 else 0.0


def _middle(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[y : y + height, x : x + width]


def _integral(values: NDArray[np.float32]) -> NDArray[np.float64]:
    sums = np.zeros((values.shape[0] + 1, values.shape[1] + 1), dtype=np.float64)
    sums[1:, 1:] = np.square(values, dtype=np.float64).cumsum(axis=0).cumsum(axis=1)
    return sums


def _single_linkage(distances: Iterator[tuple[float, int, int]], n: int) -> list[tuple[float, int, int]]:
    """Return the pairs at which single linkage joins two groups, ascending by distance (Kruskal 1956)."""
    labels = list(range(n))
    joins = []
    for distance, i, j in sorted(distances):
        one, other = _root(labels, i), _root(labels, j)
        if one != other:
            labels[max(one, other)] = min(one, other)
            joins.append((distance, i, j))
    return joins


def _root(labels: list[int], i: int) -> int:
    while labels[i] != i:
        labels[i] = labels[labels[i]]
        i = labels[i]
    return i


_FEWER = 0.8  # Parts for each picture below which it is worth a sentence.


@dataclass(frozen=True)
class Grouping:
    """Which pictures show the same part."""

    groups: Mapping[str, str] = field(default_factory=dict)
    """From a picture's SHA-256 to its group; one that is not in it stands alone."""
    sentence: str | None = None
    """What was found, for people."""

    def part(self, image: ImageFile) -> str:
        """Return what is equal for two pictures of the same part."""
        return self.groups.get(image.sha256, image.sha256)

    def n_parts(self, images: Sequence[ImageFile]) -> int:
        """Return how many different parts the pictures show."""
        return len({self.part(image) for image in images})


def group_normals(
    images: Sequence[ImageFile],
    settings: SplitSettings,
    progress: StepProgress | None = None,
    *,
    white_level: int = 65535,
) -> Grouping:
    """Group good parts as the settings say.

    Args:
        images: good parts, in any order.
        settings: how they will be split.
        progress: called while pictures are compared.
        white_level: 16-bit value that means white.

    Returns:
        The groups. Groups found by content that leave no way to split the images are not used; the sentence reports
        this.

    Raises:
        InputError: `group_by` cannot be used, or an image cannot be decoded.
    """
    if settings.group_by == GROUP_NOTHING:
        return Grouping()
    if settings.group_by != GROUP_AUTOMATICALLY:
        key_of = key_function(images, settings.group_by)
        return Grouping({image.sha256: key_of(image) for image in images})
    found = find_look_alikes(images, progress, white_level=white_level)
    grouping = Grouping(found.groups, found.sentence())
    if found.groups:
        try:
            split_normals(images, settings, grouping.part)
        except InputError:
            return Grouping({}, found.without_groups().sentence())
    return grouping


def group_test_normals(
    images: Sequence[ImageFile],
    settings: SplitSettings,
    progress: StepProgress | None = None,
    *,
    white_level: int = 65535,
) -> Grouping:
    """Group the good parts among the test images, among themselves, for studies of the false-alarm rate.

    Names that the expression does not match stand alone: nobody promised that test images are named like the others.

    Raises:
        InputError: an image cannot be decoded.
    """
    normals = [image for image in images if not image.is_anomalous]
    if settings.group_by == GROUP_AUTOMATICALLY:
        return Grouping(find_look_alikes(normals, progress, white_level=white_level).groups)
    if settings.group_by == GROUP_NOTHING:
        return Grouping()
    keys = {}
    for image in normals:
        try:
            keys[image.sha256] = key_function([image], settings.group_by)(image)
        except InputError:
            continue
    return Grouping(keys)


def few_parts(n_images: int, n_parts: int, false_alarm_rate: float) -> str | None:
    """Return a sentence where the threshold rests on much fewer parts than pictures, and than the rate needs."""
    needed = math.ceil(1 / false_alarm_rate - 1e-9)
    if n_parts >= min(_FEWER * n_images, needed):
        return None
    return (
        f"the {n_images} normal images that set the threshold show {n_parts} different parts, and one picture of "
        "each counts, because further pictures of a part add no evidence: a false-alarm rate of "
        f"{false_alarm_rate:.3g} needs about {needed} parts. Take pictures of more parts, or choose a higher rate"
    )
