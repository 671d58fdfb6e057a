"""Batches of images in memory, in an order that follows from the seed and the epoch alone, and their augmentation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.train.model.input_layers import PhotometricNormalization
from vae_edge.train.model.input_settings import InputSettings, Photometric, Tiling
from vae_edge.train.model.presets import Augmentation

CONSTANT_STEPS = 2000
"""Steps of a training at a constant learning rate, unless epochs are given."""

ONE_CYCLE_STEPS = 1500
"""The same with a one-cycle schedule, which gets there sooner."""

WHOLE_ONE_CYCLE_STEPS = 700
"""The same for full images, a step of which is expensive."""

_FEWEST_EPOCHS, _MOST_EPOCHS = 20, 300

_MOST_CROPS = 4
"""Windows of an image in an epoch, at most: few enough that one image does not fill a batch."""


@dataclass(frozen=True)
class Plan:
    """How many epochs there are and how the images are cut into steps."""

    epochs: int
    batch_size: int
    drop_last: bool
    """Whether the last, smaller batch of an epoch is left out; the order changes, so every image gets its turn."""
    steps_per_epoch: int
    images_per_epoch: int
    """Images, or windows of images, that an epoch trains on."""


def make_plan(
    n_images: int, largest_batch: int, epochs: int | None, per_image: int = 1, *, steps: int = CONSTANT_STEPS
) -> Plan:
    """Cut the windows of n images into nearly equal batches of at most `largest_batch`.

    Args:
        n_images: to train on.
        largest_batch: most windows in a batch.
        epochs: None: `default_epochs`.
        per_image: windows of each image in an epoch.
        steps: that `default_epochs` makes.
    """
    n = n_images * per_image
    batch_size = even_batch_size(n, largest_batch)
    # A last batch of less than half the size would have the same weight as a full one.
    rest = n % batch_size
    drop_last = n > batch_size and 0 < rest < batch_size / 2
    used = n - rest if drop_last else n
    return Plan(
        epochs=epochs or default_epochs(n, batch_size, per_image, steps),
        batch_size=batch_size,
        drop_last=drop_last,
        steps_per_epoch=math.ceil(used / batch_size),
        images_per_epoch=used,
    )


def default_epochs(n_windows: int, batch_size: int, per_image: int = 1, steps: int = CONSTANT_STEPS) -> int:
    """Return how many epochs make about this many steps, at most 300, and at least 20 windows of each image."""
    per_epoch = math.ceil(n_windows / batch_size)
    fewest = math.ceil(_FEWEST_EPOCHS / per_image)
    return min(max(math.ceil(steps / per_epoch), fewest), _MOST_EPOCHS)


def even_batch_size(n_images: int, largest: int) -> int:
    """Return a batch size of at most `largest` that divides n images into nearly equal batches.

    47 images in batches of up to 32 become 24 and 23: with 32 and 15 a third of them would weigh twice as much.
    """
    return math.ceil(n_images / math.ceil(n_images / largest))


class Crop(NamedTuple):
    """A window of one image, of the network's size."""

    image: int
    top: int
    left: int


class ImageCrops(Dataset[Tensor]):
    """Windows of prepared images, uint8 [n, H, W, 3], read in batches; the images stay in memory as bytes.

    Args:
        images: uint8 [n, H, W, 3].
        size: height and width of a window.
    """

    def __init__(self, images: NDArray[np.uint8], size: tuple[int, int]) -> None:
        self.images = torch.from_numpy(images)
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, crop: Crop) -> Tensor:
        height, width = self.size
        return self.images[crop.image, crop.top : crop.top + height, crop.left : crop.left + width]

    def __getitems__(self, crops: Sequence[Crop]) -> Tensor:
        """Return a batch at once, which spares stacking single images where they are full ones."""
        if tuple(self.images.shape[1:3]) == self.size or not crops:
            # None of them: a process's share of the last few images where there are more processes.
            chosen = self.images[torch.tensor([crop.image for crop in crops], dtype=torch.int64)]
            return chosen[:, : self.size[0], : self.size[1]]
        return torch.stack([self[crop] for crop in crops])


class EpochSampler(Sampler[Crop]):
    """Random windows of every image, in an order that follows from the seed and the epoch; Lightning calls `set_epoch`.

    Args:
        n: images.
        seed: of the run.
        per_image: windows of each image in an epoch.
        room: how far a window may be moved down and to the right: the image's size less the window's.
    """

    def __init__(self, n: int, seed: int, per_image: int = 1, room: tuple[int, int] = (0, 0)) -> None:
        self.n = n
        self.seed = seed
        self.per_image = per_image
        self.room = room
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n * self.per_image

    def __iter__(self) -> Iterator[Crop]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        order = torch.randperm(len(self), generator=generator)
        down, across = (places(room, len(order), generator) for room in self.room)
        for position, top, left in zip(order.tolist(), down.tolist(), across.tolist(), strict=True):
            yield Crop(position // self.per_image, top, left)


def places(room: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw where n windows begin along one axis, int64 [n], 0 to `room`.

    Evenly, a window reaches the image's border once in `room` times, and the corner almost never. So places up to an
    eighth of the room beyond it are drawn too and count as the border: a fifth of the windows touches one.
    """
    beyond = room // 8
    return (torch.randint(room + 1 + 2 * beyond, (n,), generator=generator) - beyond).clamp(0, room)


class FixedCrops(Sampler[Crop]):
    """The same windows of every image each time, spread over its tiles: for the held-out loss.

    Args:
        n: images.
        tiling: the tiles that there are.
        per_image: windows of each image, at most its tiles.
    """

    def __init__(self, n: int, tiling: Tiling, per_image: int) -> None:
        places = [(top, left) for top in tiling.rows for left in tiling.columns]
        self.crops = [
            # Other tiles of each image, so that a few images show all places.
            Crop(image, *places[(image + k * len(places) // per_image) % len(places)])
            for image in range(n)
            for k in range(per_image)
        ]

    def __len__(self) -> int:
        return len(self.crops)

    def __iter__(self) -> Iterator[Crop]:
        return iter(self.crops)


def crops_per_image(tiling: Tiling) -> int:
    """Return how many windows of an image an epoch has: one of a full image, up to four of one that is cut."""
    return min(tiling.n_tiles, _MOST_CROPS)


def seed_of(*numbers: int) -> int:
    """Return a seed, 0 to 2 ** 63 - 1, that no other few numbers are likely to give."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def make_loader(
    images: NDArray[np.uint8],
    size: tuple[int, int],
    batch_size: int,
    sampler: Sampler[Crop],
    *,
    drop_last: bool = False,
    shares: Sampler[list[Crop]] | None = None,
) -> DataLoader[Tensor]:
    """Return batches of windows, uint8 [n, height, width, 3], in the sampler's order, or `shares` of them."""
    # Without workers: the images are in memory, and copying them to another process costs more than picking them.
    crops = ImageCrops(images, size)
    if shares is not None:
        return DataLoader(crops, batch_sampler=shares, collate_fn=_as_it_is)
    return DataLoader(crops, batch_size, sampler=sampler, shuffle=False, drop_last=drop_last, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


def as_pixels(images: Tensor) -> Tensor:
    """Turn uint8 [N, H, W, 3] into float32 [N, 3, H, W], -1 to 1: the same arithmetic as in the anomaly graph.

    The values stay where they are in memory: the result is in torch's `channels_last` format.
    """
    return (images.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)


_LIGHT = 0.1
"""Standard deviation of the change of brightness (of -1 to 1) and of the logarithm of contrast."""

_AT_A_TIME = 16


class StepPart(NamedTuple):
    """Which images of a step a process has. What is drawn for them is a part of what is drawn for all."""

    n: int
    """Images of the step, in all processes."""
    part: slice = slice(None)

    def noise_like(self, values: Tensor) -> Tensor:
        """Draw normal numbers for values float [images of this process, ...]."""
        if self.part == slice(None):
            return torch.randn_like(values)
        drawn = torch.randn(self.n, *values.shape[1:], dtype=values.dtype, device=values.device)
        return drawn[self.part]


def flipped(pixels: Tensor, kinds: Collection[Augmentation], of_step: StepPart | None = None) -> Tensor:
    """Mirror each picture of a batch at random, by torch's own random numbers, if that is one of the kinds.

    Args:
        pixels: float32 [N, C, H, W], -1 to 1.
        kinds: what to change.
        of_step: which images of a step these are; None: all of them.
    """
    n, part = of_step or StepPart(len(pixels))
    if Augmentation.FLIPS in kinds:
        for dim in (2, 3):
            flip = torch.rand(n, 1, 1, 1, device=pixels.device)[part] < 0.5
            pixels = torch.where(flip, pixels.flip(dim), pixels)
    return pixels


def relit(pixels: Tensor, kinds: Collection[Augmentation], of_step: StepPart | None = None) -> Tensor:
    """Change brightness and contrast of each picture at random, if that is one of the kinds; see `flipped`."""
    n, part = of_step or StepPart(len(pixels))
    if Augmentation.LIGHT in kinds:
        gain, offset = torch.randn(2, n, 1, 1, 1, device=pixels.device)[:, part] * _LIGHT
        pixels = (pixels * gain.exp() + offset).clamp(-1.0, 1.0)
    return pixels


def with_mask(images: NDArray[np.uint8], ignored: IgnoredRegion | None) -> NDArray[np.uint8]:
    """Append what is ignored to full images as one more channel, which goes with their windows and mirror images.

    Args:
        images: uint8 [n, H, W, C].
        ignored: at their size; None: nothing is, and the images are returned as they are.

    Returns:
        uint8 [n, H, W, C + 1]; the last channel is 255 where the picture counts and 0 where it is ignored.
    """
    if ignored is None:
        return images
    result = np.empty((*images.shape[:3], images.shape[3] + 1), dtype=np.uint8)
    result[..., :-1] = images
    result[..., -1] = ignored.kept * np.uint8(255)
    return result


def apart(pixels: Tensor, n_channels: int) -> tuple[Tensor, Tensor | None]:
    """Take a batch apart that was made of the images of `with_mask`.

    Args:
        pixels: float32 [N, C or C + 1, H, W], -1 to 1.
        n_channels: C.

    Returns:
        The pixels, float32 [N, C, H, W], and bool [N, 1, H, W], true where they count; None: everywhere.
    """
    if pixels.shape[1] == n_channels:
        return pixels, None
    colours = pixels[:, :n_channels].contiguous(memory_format=torch.channels_last)
    return colours, pixels[:, n_channels:] > 0


def even_light(images: NDArray[np.uint8], input_settings: InputSettings) -> NDArray[np.uint8]:
    """Even out the light of full images, and paint over what they ignore, once, before windows are cut from them.

    The result is rounded to 8 bits, so that it takes no more memory than the images; in the graph it is not rounded.

    Args:
        images: uint8 [n, H, W, 3].
        input_settings: how images become what the network sees.
    """
    if input_settings.photometric is Photometric.NONE and input_settings.ignored is None:
        return images
    normalize = PhotometricNormalization(input_settings.photometric, *input_settings.image_size, input_settings.ignored)
    result = np.empty_like(images)
    for start in range(0, len(images), _AT_A_TIME):
        pixels = normalize(as_pixels(torch.from_numpy(images[start : start + _AT_A_TIME])))
        values = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        result[start : start + _AT_A_TIME] = values.permute(0, 2, 3, 1).numpy()
    return result
