"""Which good parts train the network, which set the scale of its residual and which set the threshold.

Where the good parts are few, none is kept for the threshold alone: `split_into_folds` cuts them into folds, and each
fold is scored by a network that was trained on the others.

The roles are disjoint and go by content, never by name or order: an image's rank is a hash of its bytes and the seed.
The same images give the same split on every machine, and an image added later moves few of the others.

Pictures of the same part stay in one role. The promise of a conformal threshold is then one about parts: not the
pictures but the groups are exchangeable, so the effective number of held-out normals is nearer to that of their groups
than to their own, and a false-alarm rate of r needs about 1 / r groups before it can be trusted as much.
`vae_edge.train.data.grouping` finds the groups.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, field_validator

from vae_edge.errors import InputError, UsageError
from vae_edge.records import Record
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.wording import count, verb

MIN_NORMALS = 8
"""Fewer good parts than this are refused."""

GROUP_AUTOMATICALLY, GROUP_NOTHING = "auto", "none"
"""What `SplitSettings.group_by` can be besides an expression."""

MIN_FIT_SHARE = 0.3
"""Of the good parts at least this share trains the network; only images that must stay together lead below it."""


class SplitSettings(Record):
    """How the good parts are split."""

    threshold_share: float | None = Field(default=None, gt=0, lt=0.6)
    """Share of the good parts held out for the thresholds. None: 20 %, but at least 100 (a false-alarm rate of 1 %
    needs 99), as long as that is no more than 30 %."""
    statistics_share: float | None = Field(default=None, gt=0, lt=0.3)
    """Share that sets the scale of the residual, pixel by pixel. None: 10 %, but at least 40, as long as that is no
    more than 15 %; always 2 at least."""
    seed: int = 0
    group_by: str = GROUP_AUTOMATICALLY
    """Which images are pictures of the same part, and stay in one role. "auto": those that
    `vae_edge.train.data.grouping` finds; "none": no two; else a regular expression searched in an image's name, whose
    first group is the part: r"part(\\d+)_"."""

    @field_validator("group_by", mode="before")
    @classmethod
    def _as_before(cls, value: Any) -> Any:
        # Runs from before there was anything but an expression.
        return GROUP_NOTHING if value is None else value


@dataclass(frozen=True)
class Split:
    """The good parts in three disjoint roles, each sorted by rank."""

    fit: tuple[ImageFile, ...]
    """Train the network."""
    statistics: tuple[ImageFile, ...]
    """Held out from fitting; set the scale of the residual."""
    threshold: tuple[ImageFile, ...]
    """Held out from both; set the thresholds, so that the false-alarm rate holds for new images."""


@dataclass(frozen=True)
class Fold:
    """Good parts that a network scores which was trained on the others, and what the others are for."""

    fit: tuple[ImageFile, ...]
    """Train the fold's network."""
    statistics: tuple[ImageFile, ...]
    """Set the scale of its residual."""
    held_out: tuple[ImageFile, ...]
    """Neither: scored by it."""


def split_normals(
    images: Sequence[ImageFile], settings: SplitSettings | None = None, group: Callable[[ImageFile], str] | None = None
) -> Split:
    """Split good parts into three roles.

    Args:
        images: good parts, in any order.
        settings: shares, seed and grouping; None: the defaults.
        group: gives a key for each image, and equal keys stay together; instead of `settings.group_by`, whose "auto"
            this function leaves to its caller: without `group` no two images then belong together.

    Raises:
        InputError: an anomalous image is among them; there are fewer than 8 images or 3 groups; the groups are too
            large to be split; or `group_by` is not a regular expression with a group, or does not match a name.
    """
    settings = settings or SplitSettings()
    ranked = _ranked_groups(images, settings, group)
    n = len(images)
    threshold, rest = _take(ranked, n_threshold(n, settings))
    fit, statistics = _fit_and_statistics(rest, n, settings, n_groups=len(ranked), n_all=n)
    return Split(fit, statistics, tuple(threshold))


def split_into_folds(
    images: Sequence[ImageFile],
    n_folds: int,
    settings: SplitSettings | None = None,
    group: Callable[[ImageFile], str] | None = None,
) -> tuple[Split, tuple[Fold, ...]]:
    """Split good parts for cross-conformal calibration.

    The folds are runs of the same ranks that `split_normals` goes by, of nearly equal numbers of images; a group is
    never cut. An image added later moves few of the others to another fold.

    Args:
        images: good parts, in any order.
        n_folds: folds, 2 or more; there are fewer where there are fewer groups.
        settings: share of the statistics, seed and grouping; nothing is kept for the threshold. None: the defaults.
        group: as in `split_normals`.

    Returns:
        The split for the network that is deployed, with nothing in `threshold`; and the folds, whose `held_out` are
        disjoint and together all images.

    Raises:
        InputError: as `split_normals`; or fewer than 2 folds were requested or can be made.
    """
    settings = settings or SplitSettings()
    if n_folds < 2:
        raise UsageError(f"the number of folds is {n_folds}; expected 2 or more, such as 5")
    ranked, n = _ranked_groups(images, settings, group), len(images)
    whole = Split(*_fit_and_statistics(ranked, n, settings, n_groups=len(ranked), n_all=n), threshold=())
    parts: list[list[list[ImageFile]]] = [[] for _ in range(min(n_folds, len(ranked)))]
    n_before = 0
    for members in ranked:
        # By the middle of the group, so that a large one goes where most of it belongs.
        parts[int((n_before + len(members) / 2) * len(parts) / n)].append(members)
        n_before += len(members)
    folds = []
    for k, part in enumerate(parts):
        if not part:
            continue  # A large group beside it left nothing for this one.
        rest = [members for other in (*parts[:k], *parts[k + 1 :]) for members in other]
        fit, statistics = _fit_and_statistics(
            rest, sum(map(len, rest)), settings, n_groups=len(ranked), n_all=n, of_folds=True
        )
        folds.append(Fold(fit, statistics, tuple(image for members in part for image in members)))
    return whole, tuple(folds)


def _ranked_groups(
    images: Sequence[ImageFile], settings: SplitSettings, group: Callable[[ImageFile], str] | None
) -> list[list[ImageFile]]:
    """Check the images and return their groups in the order of their ranks."""
    defective = [image.name for image in images if image.is_anomalous]
    if defective:
        raise InputError(
            f"{len(defective)} of the images to split {verb(len(defective), 'is', 'are')} "
            f"anomalous ({defective[0]}); expected good parts"
        )
    n = len(images)
    if n < MIN_NORMALS:
        raise InputError(
            f"there {verb(n, 'is', 'are')} {count(n, 'image')} of good parts; "
            f"expected at least {MIN_NORMALS} (preferably 500 or more): take more"
        )
    key_of = group or key_function(images, settings.group_by)
    members: dict[str, list[ImageFile]] = defaultdict(list)
    for image in images:
        members[key_of(image)].append(image)
    if len(members) < 3:
        raise InputError(
            f"the {n} good parts form {count(len(members), 'group')}; "
            "expected at least 3, preferably many: use a finer grouping"
        )
    ordered = sorted(members, key=lambda key: rank_of(key, settings.seed))
    return [
        sorted(members[key], key=lambda image: (rank_of(image.sha256, settings.seed), image.name)) for key in ordered
    ]


def _fit_and_statistics(
    groups: Sequence[list[ImageFile]],
    n: int,
    settings: SplitSettings,
    *,
    n_groups: int,
    n_all: int,
    of_folds: bool = False,
) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]:
    """Split groups into those that fit and those that set the statistics, the share of which is of n images."""
    statistics, rest = _take(groups, n_statistics(n, settings))
    fit = [image for part in rest for image in part]
    if len(fit) < MIN_FIT_SHARE * n_all:
        purpose, advice = (" a fold's network", "more folds, ") if of_folds else ("", "")
        raise InputError(
            f"of {n_all} good parts in {n_groups} groups {len(fit)} would be left to train{purpose} on; expected at "
            f"least {MIN_FIT_SHARE:.0%}: choose {advice}a finer group or smaller shares"
        )
    return tuple(fit), tuple(statistics)


def one_of_each_part(images: Sequence[ImageFile], part: Callable[[ImageFile], str]) -> tuple[int, ...]:
    """Return the positions of one picture of each part: the first, which in a role's order is a random one.

    Pictures of one part are not independent draws, and a threshold fitted on all of them promises a rate that it does
    not keep. One of each part are exchangeable with a picture of a new part, so the conformal guarantee holds, for as
    many scores as there are parts (Dunn, Wasserman and Ramdas, "Distribution-free prediction sets for two-layer
    hierarchical models", JASA 2022: subsampling once).

    Args:
        images: in the order of their ranks, as in a `Split`.
        part: gives equal keys to pictures of the same part.
    """
    first: dict[str, int] = {}
    for position, image in enumerate(images):
        first.setdefault(part(image), position)
    return tuple(first.values())


def split_labelled(
    images: Sequence[ImageFile], seed: int = 0, group: Callable[[ImageFile], str] | None = None
) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...]]:
    """Halve labelled images, each class by itself: one half to choose by, the other to test on.

    Args:
        images: good and defective parts.
        seed: another one gives other halves.
        group: gives equal keys to images that stay together; None: each stands alone.

    Raises:
        InputError: one half would have no good or no defective part.
    """
    classes: dict[str | None, dict[str, list[ImageFile]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        classes[image.defect][image.sha256 if group is None else group(image)].append(image)
    chosen: set[ImageFile] = set()
    for groups in classes.values():
        ordered = [groups[key] for key in sorted(groups, key=lambda key: rank_of(key, seed))]
        # Whole groups up to the half; what is left over is for the test.
        room = sum(map(len, ordered)) // 2
        for members in ordered:
            if len(members) <= room:
                chosen.update(members)
                room -= len(members)
    n_good = sum(not image.is_anomalous for image in chosen)
    if n_good == 0 or n_good == len(chosen):
        n_all_good = sum(not image.is_anomalous for image in images)
        raise InputError(
            f"there are {n_all_good} good and {len(images) - n_all_good} defective labelled images to choose by and to "
            "test on; expected at least 2 good ones and 2 of a class of defects: add some, or choose without labels"
        )
    return tuple(i for i in images if i in chosen), tuple(i for i in images if i not in chosen)


def n_threshold(n_normals: int, settings: SplitSettings) -> int:
    """Return how many of n good parts are held out for the thresholds, at least 1."""
    if settings.threshold_share is not None:
        return max(1, round(settings.threshold_share * n_normals))
    return max(math.ceil(0.2 * n_normals), min(100, math.floor(0.3 * n_normals)))


def n_statistics(n_normals: int, settings: SplitSettings) -> int:
    """Return how many of n good parts set the scale of the residual, at least 2."""
    if settings.statistics_share is not None:
        return max(2, round(settings.statistics_share * n_normals))
    return max(2, math.ceil(0.1 * n_normals), min(40, math.floor(0.15 * n_normals)))


def rank_of(key: str, seed: int) -> bytes:
    """Return what orders keys at random, the same way on every machine."""
    return hashlib.sha256(f"{seed}:{key}".encode()).digest()


def _take(groups: Sequence[list[ImageFile]], wanted: int) -> tuple[list[ImageFile], Sequence[list[ImageFile]]]:
    """Take whole groups from the front until there are as many images as wanted; return them and the other groups."""
    taken: list[ImageFile] = []
    for i, members in enumerate(groups):
        if len(taken) >= wanted:
            return taken, groups[i:]
        taken += members
    return taken, []


def key_function(images: Sequence[ImageFile], pattern: str) -> Callable[[ImageFile], str]:
    """Return what gives each image the first group of an expression, or its hash where that is "auto" or "none".

    Raises:
        InputError: it is not a regular expression with a group, or does not match a name.
    """
    if pattern in (GROUP_AUTOMATICALLY, GROUP_NOTHING):
        return lambda image: image.sha256
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"the group {pattern!r} is not a regular expression ({error}); expected one such as "
            "'part(\\d+)_', auto or none"
        ) from error
    if expression.groups < 1:
        raise UsageError(
            f"the group {pattern!r} has no parentheses; expected one group, such as 'part(\\d+)_', auto or none"
        )
    keys = {}
    for image in images:
        match = expression.search(image.name)
        if match is None or match.group(1) is None:
            raise UsageError(
                f"the group {pattern!r} does not match the name {image.name}; expected a match in every name: "
                "change the expression"
            )
        keys[image.name] = match.group(1)
    return lambda image: keys[image.name]
