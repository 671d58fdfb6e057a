"""The features of many pictures, computed once and kept in memory or, where they are many, on disk.

Everything that trains and measures networks on features reads them from here, so that the backbone, which takes most of
the work, sees each picture once however many networks there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.platform.work import Progress
from vae_edge.train.features.graph import N_CHANNELS, FeatureMaps

MOST_BYTES_IN_MEMORY = 1 << 30
"""A table that is larger than this is a file, of which the system keeps in memory what it has room for."""

_BATCH_PIXELS = 8 * 256 * 256


class FeatureTable:
    """Features of pictures, float16, in the pictures' order.

    Args:
        values: float16 [n, h, w, C].
    """

    def __init__(self, values: NDArray[np.float16]) -> None:
        self.values = values
        self._sums = np.empty((2, len(values), values.shape[3]))
        for i, picture in enumerate(values):
            positions = picture.reshape(-1, picture.shape[-1]).astype(np.float64)
            self._sums[0, i], self._sums[1, i] = positions.sum(axis=0), np.square(positions).sum(axis=0)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the grid."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def n_channels(self) -> int:
        """Features of a position."""
        return int(self.values.shape[3])

    def channel_statistics(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each channel over some pictures, float32 [1, C, 1, 1]; the latter above 0."""
        total, squares = self._sums[:, list(rows)].sum(axis=1)
        n = len(rows) * math.prod(self.size)
        mean = total / n
        with np.errstate(invalid="ignore"):  # The loss tells what is not finite.
            deviation = np.sqrt(np.maximum(squares / n - mean * mean, 0))
        # A channel that hardly moves is not blown up to the size of the others.
        deviation = np.maximum(deviation, 1e-2 * max(float(np.median(deviation)), 1e-6))
        return _as_channels(mean), _as_channels(deviation)

    def draw(
        self, rows: Sequence[int], n: int, random: torch.Generator, mean: Tensor, deviation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return features of so many positions of some pictures, in units, and what is to be reconstructed: the same.

        Both are float32 [n, C]; mean and deviation are from `channel_statistics`.
        """
        height, width = self.size
        pictures = np.asarray(rows)[torch.randint(len(rows), (n,), generator=random).numpy()]
        places = torch.randint(height * width, (n,), generator=random).numpy()
        found = torch.from_numpy(self.values[pictures, places // width, places % width].astype(np.float32))
        x = (found - mean.flatten()) / deviation.flatten()
        return x, x

    def batches(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """Give float32 [N, C, h, w] of some pictures, in their order, a few at a time."""
        step = _batch_size(self.size[0] * 8, self.size[1] * 8)
        for start in range(0, len(rows), step):
            chosen = self.values[list(rows[start : start + step])].astype(np.float32)
            yield torch.from_numpy(chosen).permute(0, 3, 1, 2)


def make_table(
    maps: FeatureMaps, images: NDArray[np.uint8], folder: Path | None = None, progress: Progress | None = None
) -> FeatureTable:
    """Run the backbone over pictures.

    Args:
        maps: the backbone and what follows it.
        images: uint8 [n, H, W, 3].
        folder: where a file goes if the table is large; it is to be deleted with the folder. None: always in memory.
        progress: receives the pictures done and in all.
    """
    shape = (len(images), *maps.size, N_CHANNELS)
    if folder is not None and 2 * math.prod(shape) > MOST_BYTES_IN_MEMORY:
        folder.mkdir(parents=True, exist_ok=True)
        values: NDArray[np.float16] = np.memmap(folder / TABLE_FILE, np.float16, "w+", shape=shape)
    else:
        values = np.empty(shape, np.float16)
    step = _batch_size(*images.shape[1:3])
    with torch.inference_mode():
        for start in range(0, len(images), step):
            found = maps(torch.from_numpy(images[start : start + step]))
            values[start : start + step] = found.permute(0, 2, 3, 1).numpy()
            if progress is not None:
                progress(min(start + step, len(images)), len(images))
    return FeatureTable(values)


TABLE_FILE = "features.f16"


def _batch_size(height: int, width: int) -> int:
    return max(1, min(16, _BATCH_PIXELS // (height * width)))


def _as_channels(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[None, :, None, None]
