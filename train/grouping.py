"""Which good parts belong together when they are split: the groups, and what is said about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vae_edge.errors import InputError
from vae_edge.progress import StepProgress
from vae_edge.train.inspection_set import ImageFile
from vae_edge.train.look_alikes import find_look_alikes
from vae_edge.train.split import GROUP_AUTOMATICALLY, GROUP_NOTHING, SplitSettings, key_function, split_normals

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
        The groups. Those that were found by content and leave no way to split the images are not used: the sentence
        says so.

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
        f"the {n_images} normal images that set the threshold show {n_parts} different parts, and one picture of each "
        "counts, for pictures of one part are no new evidence: a false-alarm rate of "
        f"{false_alarm_rate:.3g} needs about {needed} parts. Take pictures of more parts, or ask for a higher rate"
    )
