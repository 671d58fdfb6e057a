"""Whether an inspection set can be used: every file is decoded once, what cannot be used is left out and named.

What is left out, and why:

- `undecodable`: an image that is not a full image.
- `contradictory`: the same bytes stand for a good and for a defective part. Nobody can tell which is right: all go.
- `test_in_train`: a good test image that is also in train. It leaves the test set, where it would flatter the metrics;
  training on it is fine.
- `duplicate_in_train`, `duplicate_in_test`: the same bytes again. One is kept: a copy among the held-out
  images would not be held out.
- `undecodable_mask`, `mask_of_other_size`, `empty_mask`: the image stays, its masks are not used.
- `link_to_nowhere`: a link whose file or folder is missing.

Three kinds leave nothing out: `mask_without_image`, `mask_of_most` (a mask that marks more than half of its image may
be inverted) and `anomalous_without_mask`. The last two are allowed; pixel metrics are over the images that have masks.
With `strict=True` every other kind is an error.

`DataTraits` is what a few good parts show about the set: whether parts lie at the same place, and whether their light
differs. No training is needed for these two numbers; they decide what would otherwise cost a training each to try.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import Preparation, read_pixels, white_level_remark
from vae_edge.platform.work import Progress
from vae_edge.records import Record
from vae_edge.train.data.inspection_set import (
    ImageFile,
    InspectionSet,
    fingerprint,
    load_images,
    map_in_threads,
    spread,
)
from vae_edge.train.data.layout import Layout
from vae_edge.train.data.masks import read_masks
from vae_edge.wording import count

ProblemKind = Literal[
    "undecodable",
    "contradictory",
    "test_in_train",
    "duplicate_in_train",
    "duplicate_in_test",
    "undecodable_mask",
    "mask_of_other_size",
    "empty_mask",
    "link_to_nowhere",
    "mask_without_image",
    "mask_of_most",
    "anomalous_without_mask",
]

_HEADINGS: dict[ProblemKind, str] = {
    "undecodable": "images that could not be decoded, left out",
    "contradictory": "images that are in the set both as good and as defective parts, all copies left out",
    "test_in_train": "test images that are also in train, left out of the test set",
    "duplicate_in_train": "train images that are copies of another one, left out",
    "duplicate_in_test": "test images that are copies of another one, left out",
    "undecodable_mask": "masks that could not be decoded, not used",
    "mask_of_other_size": "masks of another size than their images, not used",
    "empty_mask": "masks that mark nothing, not used",
    "link_to_nowhere": "broken links, skipped",
    "mask_without_image": "masks without an image",
    "mask_of_most": "masks that mark most of their images; are they inverted? Used as they are",
    "anomalous_without_mask": "anomalous images without a mask, used for the image metrics only",
}


_ALLOWED = ("anomalous_without_mask", "mask_of_most")

_MOST = 0.5
"""Share of an image from which on it is asked whether its mask is inverted."""


class Problem(Record):
    """One thing that is wrong with one file."""

    kind: ProblemKind
    path: str
    sentence: str


class DataReport(Record):
    """What an inspection set holds once it is checked, and what was wrong with it. Serialises to JSON."""

    root: str
    layout: Layout
    n_train: int
    n_test_normal: int
    n_test_anomalous: int
    n_with_mask: int
    """Anomalous test images that have a mask that can be used."""
    n_ignored: int
    """Files passed over because their names do not end like an image's."""
    defects: dict[str, int]
    """Test images of each defect class."""
    smallest_size: tuple[int, int]
    """Height and width in pixels of the image with the fewest pixels."""
    largest_size: tuple[int, int]
    typical_size: tuple[int, int]
    """Height and width of an image to train on with the median area and the median aspect."""
    aspect_spread: float
    """Aspect (width by height) that nine of ten images to train on stay below, divided by the one nine stay above: 1
    where all have the same."""
    train_fingerprint: str
    """`vae_edge.train.data.inspection_set.fingerprint` of the train images that are used."""
    problems: tuple[Problem, ...] = ()
    largest_16_bit: int | None = None
    """Largest value in all images of 16 bits; None where there is none."""

    @property
    def counts(self) -> dict[ProblemKind, int]:
        """Number of problems of each kind, in the order of the module's docstring."""
        found = Counter(problem.kind for problem in self.problems)
        return {kind: found[kind] for kind in _HEADINGS if found[kind]}

    def sentences(self, max_names: int = 3, *, white_level: int = 65535) -> list[str]:
        """Return the report for people, a sentence for each kind of problem, with the first files' names.

        Args:
            max_names: of the files of one kind.
            white_level: the 16-bit value that will be taken for white: it is asked about where no value comes near it.
        """
        lines = [
            f"{count(self.n_train, 'image')} to train on; {self.n_test_normal} "
            f"normal and {self.n_test_anomalous} anomalous "
            f"images to test on, {self.n_with_mask} with masks"
        ]
        if self.n_ignored:
            lines.append(f"files skipped because their names are not those of images: {self.n_ignored}")
        for kind, n in self.counts.items():
            own = [problem.sentence for problem in self.problems if problem.kind == kind]
            more = f"; and {n - max_names} more" if n > max_names else ""
            lines.append(f"{_HEADINGS[kind]}: {n} ({'; '.join(own[:max_names])}{more})")
        remark = white_level_remark(self.largest_16_bit, white_level)
        return [*lines, *([remark] if remark is not None else [])]


@dataclass(frozen=True)
class _Look:
    """What decoding a file and its mask showed."""

    size: tuple[int, int] | None
    problem: Problem | None = None
    mask_problem: Problem | None = None
    largest_16_bit: int | None = None


def check_inspection_set(
    inspection_set: InspectionSet, progress: Progress | None = None, *, strict: bool = False
) -> tuple[InspectionSet, DataReport]:
    """Decode every image and mask and leave out what cannot be used.

    Args:
        inspection_set: from `open_inspection_set`.
        progress: called with images decoded so far and their total.
        strict: refuse a set with any problem but a missing mask.

    Returns:
        The set of what can be used, and the report on what was found.

    Raises:
        InputError: no image is left to train on; or `strict` and something is wrong.
    """
    files = [*inspection_set.train, *inspection_set.test]
    looks = dict(zip(files, map_in_threads(_look_at, files, progress), strict=True))
    problems = [look.problem for look in looks.values() if look.problem is not None]
    train = [file for file in inspection_set.train if looks[file].problem is None]
    test = [file for file in inspection_set.test if looks[file].problem is None]

    contradictory = {file.sha256 for file in (*train, *test) if not file.is_anomalous} & {
        file.sha256 for file in test if file.is_anomalous
    }
    names: dict[str, list[str]] = defaultdict(list)
    for file in (*train, *test):
        names[file.sha256].append(file.name)
    for file in (*train, *test):
        if file.sha256 in contradictory:
            others = ", ".join(name for name in names[file.sha256] if name != file.name)
            problems.append(_problem("contradictory", file, f"{file.name} has the same bytes as {others}"))
    train = [file for file in train if file.sha256 not in contradictory]
    test = [file for file in test if file.sha256 not in contradictory]

    train = _drop_copies(train, {}, "duplicate_in_train", problems)
    test = _drop_copies(test, {file.sha256: file for file in train}, "test_in_train", problems)
    test = _drop_copies(test, {}, "duplicate_in_test", problems)
    for i, file in enumerate(test):
        mask_problem = looks[file].mask_problem
        if mask_problem is not None:
            problems.append(mask_problem)
            if mask_problem.kind != "mask_of_most":
                test[i] = replace(file, mask=None, further_masks=())
        elif file.is_anomalous and file.mask is None:
            problems.append(_problem("anomalous_without_mask", file, file.name))
    problems += [
        Problem(kind="mask_without_image", path=str(path), sentence=str(path))
        for path in inspection_set.unmatched_masks
    ]
    problems += [
        Problem(kind="link_to_nowhere", path=str(path), sentence=str(path)) for path in inspection_set.dangling
    ]
    _refuse(inspection_set, train, problems, strict)
    cleaned = replace(inspection_set, train=tuple(train), test=tuple(test))
    sizes = {file: size for file, look in looks.items() if (size := look.size)}
    largest = max((look.largest_16_bit for look in looks.values() if look.largest_16_bit is not None), default=None)
    return cleaned, _report(cleaned, sizes, problems, largest)


def _look_at(file: ImageFile) -> _Look:
    """Decode an image and its masks."""
    try:
        pixels = read_pixels(file.path)
    except InputError as error:
        return _Look(None, _problem("undecodable", file, str(error)))
    size = (pixels.shape[0], pixels.shape[1])
    largest = int(pixels.max()) if pixels.dtype == np.uint16 else None
    return _Look(size, None, _look_at_masks(file, size), largest)


def _look_at_masks(file: ImageFile, size: tuple[int, int]) -> Problem | None:
    if file.mask is None or not file.is_anomalous:
        return None
    try:
        mask = read_masks(file.masks)
    except InputError as error:
        return _problem("undecodable_mask", file, str(error))
    if mask.shape != size:
        text = f"{file.name} is {size[0]}x{size[1]} and its mask {file.mask.name} {mask.shape[0]}x{mask.shape[1]}"
        return _problem("mask_of_other_size", file, text)
    if not np.any(mask):
        return _problem("empty_mask", file, f"{file.name} (mask {file.mask.name})")
    share = float(mask.mean())
    if share > _MOST:
        text = f"{file.name} (mask {file.mask.name} marks {share:.0%})"
        return _problem("mask_of_most", file, text)
    return None


def _drop_copies(
    files: Sequence[ImageFile], known: dict[str, ImageFile], kind: ProblemKind, problems: list[Problem]
) -> list[ImageFile]:
    """Return the files whose bytes are not known yet, and add a problem for each of the others."""
    kept = []
    seen = dict(known)
    for file in files:
        first = seen.get(file.sha256)
        if first is not None:
            problems.append(_problem(kind, file, f"{file.name} has the same bytes as {first.name}"))
            continue
        kept.append(file)
        if kind != "test_in_train":
            seen[file.sha256] = file
    return kept


def _refuse(
    inspection_set: InspectionSet, train: Sequence[ImageFile], problems: Sequence[Problem], strict: bool
) -> None:
    if not train:
        raise InputError(
            f"none of the {count(len(inspection_set.train), 'image')} "
            f"to train on in {inspection_set.root} can be used; "
            f"expected undamaged images of good parts. The first: {problems[0].sentence}"
        )
    serious = [problem for problem in problems if problem.kind not in _ALLOWED]
    if strict and serious:
        raise InputError(
            f"{count(len(serious), 'problem')} in {inspection_set.root}; a strict check allows none: fix them or check "
            f"without strict. The first: {serious[0].sentence} ({serious[0].kind})"
        )


def _typical_size(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], float]:
    """Return the size with the median area and aspect, and the ratio of the aspect's 0.9- and 0.1-quantile."""
    heights, widths = np.array(sizes, dtype=np.float64).T
    area = float(np.median(heights * widths))
    low, aspect, high = (float(value) for value in np.exp(np.quantile(np.log(widths / heights), (0.1, 0.5, 0.9))))
    return (round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)), high / low


def _report(
    cleaned: InspectionSet,
    sizes: Mapping[ImageFile, tuple[int, int]],
    problems: Sequence[Problem],
    largest_16_bit: int | None,
) -> DataReport:
    order = list(_HEADINGS)
    typical_size, aspect_spread = _typical_size([sizes[file] for file in cleaned.train])
    anomalous = [file for file in cleaned.test if file.is_anomalous]
    by_pixels = sorted(sizes.values(), key=lambda size: (size[0] * size[1], size))
    return DataReport(
        root=str(cleaned.root),
        layout=cleaned.layout,
        n_train=len(cleaned.train),
        n_test_normal=len(cleaned.test) - len(anomalous),
        n_test_anomalous=len(anomalous),
        n_with_mask=sum(file.mask is not None for file in anomalous),
        n_ignored=cleaned.n_ignored,
        defects=dict(sorted(Counter(file.defect for file in anomalous if file.defect is not None).items())),
        smallest_size=by_pixels[0],
        largest_size=by_pixels[-1],
        typical_size=typical_size,
        aspect_spread=aspect_spread,
        train_fingerprint=fingerprint(cleaned.train),
        largest_16_bit=largest_16_bit,
        problems=tuple(sorted(problems, key=lambda problem: (order.index(problem.kind), problem.path))),
    )


def _problem(kind: ProblemKind, file: ImageFile, sentence: str) -> Problem:
    return Problem(kind=kind, path=str(file.path), sentence=sentence)


SIDE = 96
"""Side of the thumbnails."""

MOST_IMAGES = 200

ALIGNED = 0.4
"""Alignment from which parts count as lying at the same place. Of the image sets available, rigid parts under a fixed
camera had 0.7 and 0.9, surfaces 0.0 and 0.1."""

_SURROUNDINGS = 5.0
"""Standard deviation, in pixels of the thumbnail, of the Gaussian that a pixel is measured by: the lamp's slow fall of
light, which all pictures of a surface share, must not count as structure."""

UNEQUAL_LIGHT = 0.1
"""Spread of light below which evening it out is not tried: the sets with a steady lamp had 0.05 to 0.08."""


VERY_UNEQUAL_LIGHT = 0.3
"""Spread of light from which it is evened out unless leaving it is clearly better. The magnetic tiles, exposed six
times, have 1.1; the drawn surface under a lamp that flickers a little has 0.12."""


class DataTraits(Record):
    """What was measured on thumbnails of normals."""

    alignment: float
    """Share of the variance within the images, each pixel measured by its surroundings, that the mean image explains: 0
    (or a little less) to 1. 1: all images are equal but for their light."""
    light_spread: float
    """Standard deviation of the images' mean brightness, or of their contrast, whichever is larger; in units of the
    mean contrast (standard deviation of the brightness within an image)."""

    @property
    def is_aligned(self) -> bool:
        """Whether the same thing lies at the same place in all images."""
        return self.alignment >= ALIGNED

    @property
    def has_steady_light(self) -> bool:
        """Whether all images have practically the same light."""
        return self.light_spread < UNEQUAL_LIGHT


def measure_traits(images: NDArray[np.uint8]) -> DataTraits:
    """Measure the traits on thumbnails.

    Args:
        images: uint8 [n, h, w, 3], n of 2 or more.
    """
    grey = images.astype(np.float64).mean(axis=3)
    means = grey.mean(axis=(1, 2))
    contrasts = grey.std(axis=(1, 2))
    unit = max(float(contrasts.mean()), 1e-6)
    even = np.stack([_measured_by_surroundings(image) for image in grey])
    n = len(images)
    total = float(np.square(even).mean())
    # The mean image explains a share by chance, as it holds a share 1 / n of each image: hence n / (n - 1).
    rest = float(np.square(even - even.mean(axis=0)).mean()) * n / (n - 1)
    alignment = 1 - rest / total if total > 0 else 1.0
    return DataTraits(alignment=alignment, light_spread=float(max(means.std(), contrasts.std())) / unit)


def _measured_by_surroundings(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each pixel less the mean around it, in units of the deviation around it: float64 [h, w]."""

    def around(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(values, (0, 0), _SURROUNDINGS), dtype=np.float64)

    off = grey - around(grey)
    return np.asarray(off / np.sqrt(around(off * off) + 1.0), dtype=np.float64)


def look_at(files: tuple[ImageFile, ...], *, white_level: int, progress: Progress | None = None) -> DataTraits:
    """Load thumbnails of some of the normals and measure their traits.

    Args:
        files: normals, 2 or more.
        white_level: of 16-bit images.
        progress: called with thumbnails made and in all.

    Raises:
        InputError: a file cannot be decoded.
    """
    thumbnail = Preparation(height=SIDE, width=SIDE, white_level=white_level)
    return measure_traits(load_images(spread(files, MOST_IMAGES), thumbnail, progress))
