"""Batches of images in memory, in an order that follows from the seed and the epoch alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

_DEFAULT_STEPS = 2000
_FEWEST_EPOCHS, _MOST_EPOCHS = 20, 300


@dataclass(frozen=True)
class Plan:
    """How many epochs there are and how the images are cut into steps."""

    epochs: int
    batch_size: int
    drop_last: bool
    """Whether the last, smaller batch of an epoch is left out; the order changes, so every image gets its turn."""
    steps_per_epoch: int
    images_per_epoch: int


def make_plan(n_images: int, largest_batch: int, epochs: int | None) -> Plan:
    """Cut n images into nearly equal batches of at most `largest_batch`; None epochs: `default_epochs`."""
    batch_size = even_batch_size(n_images, largest_batch)
    # A last batch of less than half the size would pull as hard as a whole one.
    rest = n_images % batch_size
    drop_last = n_images > batch_size and 0 < rest < batch_size / 2
    images = n_images - rest if drop_last else n_images
    return Plan(
        epochs=epochs or default_epochs(n_images, batch_size),
        batch_size=batch_size,
        drop_last=drop_last,
        steps_per_epoch=math.ceil(images / batch_size),
        images_per_epoch=images,
    )


def default_epochs(n_images: int, batch_size: int) -> int:
    """Return how many epochs make about 2000 steps, at least 20 and at most 300."""
    steps = math.ceil(n_images / batch_size)
    return min(max(math.ceil(_DEFAULT_STEPS / steps), _FEWEST_EPOCHS), _MOST_EPOCHS)


def even_batch_size(n_images: int, largest: int) -> int:
    """Return a batch size of at most `largest` that divides n images into nearly equal batches.

    47 images in batches of up to 32 become 24 and 23: with 32 and 15 a third of them would weigh twice as much.
    """
    return math.ceil(n_images / math.ceil(n_images / largest))


class ImageBatches(Dataset[Tensor]):
    """Prepared images, uint8 [n, H, W, 3], read in batches; they stay in memory as bytes, a quarter of float32."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return a batch at once, which spares stacking single images."""
        return self.images[torch.as_tensor(indices)]


class EpochSampler(Sampler[int]):
    """An order of the images that follows from the seed and the epoch; Lightning calls `set_epoch`."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        return iter(torch.randperm(self.n, generator=generator).tolist())


def seed_of(*numbers: int) -> int:
    """Return a seed, 0 to 2 ** 63 - 1, that no other few numbers are likely to give."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def make_loader(
    images: NDArray[np.uint8], batch_size: int, *, sampler: EpochSampler | None = None, drop_last: bool = False
) -> DataLoader[Tensor]:
    """Return batches, uint8 [n, H, W, 3], in the sampler's order or else in their own."""
    # Without workers: the images are in memory, and copying them to another process costs more than picking them.
    return DataLoader(
        ImageBatches(images), batch_size, sampler=sampler, shuffle=False, drop_last=drop_last, collate_fn=_as_it_is
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def as_pixels(images: Tensor) -> Tensor:
    """Turn uint8 [N, H, W, 3] into float32 [N, 3, H, W], -1 to 1: the same arithmetic as in the anomaly graph.

    The values stay where they are in memory: the result is in torch's `channels_last` format.
    """
    return (images.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2)
