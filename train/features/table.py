"""What networks on features and on patches see of many pictures, kept in memory or, where it is much, on disk.

Everything that trains and measures them reads it from here, so that the backbone, which takes most of the work, sees
each picture once however many networks there are, and light is evened out once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vae_edge.errors import InputError, said_by
from vae_edge.ignored_region import kept_places
from vae_edge.platform.file_system import allocate
from vae_edge.platform.work import Progress
from vae_edge.train.features.graph import GRID, N_CHANNELS, FeatureMaps, pictures_at_a_time, to_pixels
from vae_edge.train.features.patches import MARGIN, PATCH, PATCH_SIDE, PATCH_STEP
from vae_edge.train.model.cores import on_each_core
from vae_edge.train.model.input_layers import PhotometricNormalization

MOST_BYTES_IN_MEMORY = 1 << 30
"""A table that is larger than this is a file, of which the system keeps in memory what it has room for."""


FEATURES_FILE, PIXELS_FILE = "features.f16", "pixels.f16"
TABLE_FILES = (FEATURES_FILE, PIXELS_FILE)
"""Names of the tables' files, where they are large."""

_SMALLEST_DEVIATION = 1e-3
"""Of pixels, on a scale from -1 to 1: pictures of one colour have no deviation to divide by."""


class FeatureTable:
    """Features of pictures, float16, in the pictures' order.

    Args:
        values: float16 [n, h, w, C].
        kept: bool [h, w], the positions that are drawn and count in the statistics; None: all.
    """

    def __init__(self, values: NDArray[np.float16], kept: NDArray[np.bool_] | None = None) -> None:
        self.values = values
        self.kept = kept
        self._places = None if kept is None else torch.from_numpy(np.flatnonzero(kept))
        self._sums = np.empty((2, len(values), values.shape[3]))
        for i, picture in enumerate(values):
            counted = picture.reshape(-1, picture.shape[-1]) if kept is None else picture[kept]
            positions = counted.astype(np.float64)
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
        n = len(rows) * (math.prod(self.size) if self._places is None else len(self._places))
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
        n_places = math.prod(self.size)
        pictures = torch.as_tensor(rows)[torch.randint(len(rows), (n,), generator=random)]
        places = _drawn(self._places, n_places, n, random)
        positions = torch.from_numpy(self.values).view(-1, self.n_channels)
        found = positions.index_select(0, pictures * n_places + places).float()
        x = found.sub_(mean.flatten()).div_(deviation.flatten())
        return x, x

    def batches(self, rows: Sequence[int], n: int | None = None) -> Iterator[Tensor]:
        """Give float32 [N, C, h, w] of some pictures, in their order, n or as many as suit a network at a time."""
        step = n or pictures_at_a_time(self.size[0] * GRID, self.size[1] * GRID)
        for start in range(0, len(rows), step):
            chosen = self.values[list(rows[start : start + step])].astype(np.float32)
            yield torch.from_numpy(chosen).permute(0, 3, 1, 2)


class PatchTable:
    """Pixels of pictures whose light is evened out, float16, in the pictures' order: what `patch_vae` is trained on.

    Args:
        values: float16 [n, H + 8, W + 8, 3], H and W multiples of 8; NaN in a margin of 4 pixels around each picture.
        kept: bool [H, W], the pixels that count; patches are drawn whose middle has none or few others. None: all.
    """

    def __init__(self, values: NDArray[np.float16], kept: NDArray[np.bool_] | None = None) -> None:
        self.values = values
        self._corners = None if kept is None else _corners_of(kept)
        self._n_pixels = math.prod(self._inner(0).shape[:2]) if kept is None else int(np.count_nonzero(kept))
        self._sums = np.empty((2, len(values), values.shape[3]))
        for i in range(len(values)):
            pixels = self._inner(i).astype(np.float64)
            pixels = pixels.reshape(-1, pixels.shape[-1]) if kept is None else pixels[kept]
            self._sums[0, i], self._sums[1, i] = pixels.sum(axis=0), np.square(pixels).sum(axis=0)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def n_colours(self) -> int:
        """Channels of a picture."""
        return int(self.values.shape[3])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the residual."""
        height, width = (side - 2 * MARGIN for side in self.values.shape[1:3])
        return height // PATCH_STEP, width // PATCH_STEP

    def channel_statistics(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the mean of each colour and one deviation for all, float32 [1, 3, 1, 1]; the latter above 0."""
        total, squares = self._sums[:, list(rows)].sum(axis=1)
        n = len(rows) * self._n_pixels
        mean = total / n
        deviation = float(np.sqrt(np.maximum(squares / n - mean * mean, 0).mean()))
        return _as_channels(mean), _as_channels(np.full_like(mean, max(deviation, _SMALLEST_DEVIATION)))

    def draw(
        self, rows: Sequence[int], n: int, random: torch.Generator, mean: Tensor, deviation: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return so many patches of some pictures, in units, and what is to be reconstructed of them: the middle.

        They are float32 [n, 3 * 16 * 16] and [n, 3 * 8 * 8]; mean and deviation are from `channel_statistics`. Beyond a
        picture's edges there is the mean, as in the graph.
        """
        _, height, width, n_colours = self.values.shape
        pictures = torch.as_tensor(rows)[torch.randint(len(rows), (n,), generator=random)]
        if self._corners is None:
            down, across = (torch.randint(side - PATCH_SIDE + 1, (n,), generator=random) for side in (height, width))
            corners = (pictures * height + down) * width + across
        else:
            corners = pictures * height * width + _drawn(self._corners, 0, n, random)
        # Lines of a patch are next to each other in memory, its pixels and their colours, and are copied as a whole.
        pixels = torch.from_numpy(self.values).view(-1)
        n_lines = len(pixels) // n_colours - PATCH_SIDE + 1
        lines = pixels.as_strided((n_lines, PATCH_SIDE * n_colours), (n_colours, 1))
        found = lines.index_select(0, (corners[:, None] + width * torch.arange(PATCH_SIDE)).flatten())
        patches = found.view(n, PATCH_SIDE, PATCH_SIDE, n_colours).permute(0, 3, 1, 2).contiguous().float()
        x = patches.sub_(mean).div_(deviation).nan_to_num_(0.0)
        middle = slice(MARGIN, MARGIN + PATCH)
        return x.flatten(1), x[:, :, middle, middle].flatten(1)

    def batches(self, rows: Sequence[int]) -> Iterator[Tensor]:
        """Give float32 [N, 3, H, W] of some pictures, in their order, a few at a time."""
        step = pictures_at_a_time(*self._inner(0).shape[:2])
        for start in range(0, len(rows), step):
            chosen = self._inner(list(rows[start : start + step])).astype(np.float32)
            yield torch.from_numpy(chosen).permute(0, 3, 1, 2)

    def _inner(self, rows: int | list[int]) -> NDArray[np.float16]:
        found: NDArray[np.float16] = self.values[rows][..., MARGIN:-MARGIN, MARGIN:-MARGIN, :]
        return found


def make_table(
    maps: FeatureMaps, images: NDArray[np.uint8], folder: Path | None = None, progress: Progress | None = None
) -> FeatureTable:
    """Run the backbone over pictures.

    Args:
        maps: the backbone and what follows it.
        images: uint8 [n, H, W, 3].
        folder: where a file goes if the table is large; it is to be deleted with the folder. None: always in memory.
        progress: receives the pictures done and in all.

    Raises:
        InputError: the disk has no room for that file.
    """

    def compute(batches: list[NDArray[np.uint8]], take: Callable[[int, NDArray[np.float16]], None]) -> None:
        for number, features in enumerate(on_each_core(partial(features_of, maps), batches)):
            take(number, features)

    return fill_table(maps, images, compute, folder, progress)


def fill_table(
    maps: FeatureMaps,
    images: NDArray[np.uint8],
    compute: Callable[[list[NDArray[np.uint8]], Callable[[int, NDArray[np.float16]], None]], None],
    folder: Path | None = None,
    progress: Progress | None = None,
) -> FeatureTable:
    """Make a table of what someone computes.

    Args:
        maps: as for `make_table`.
        images: likewise.
        compute: gets all pictures in batches, and a function that takes the features of a batch by its number.
        folder: as for `make_table`.
        progress: likewise.
    """
    values = _new_values((len(images), *maps.size, N_CHANNELS), folder, FEATURES_FILE)
    step = pictures_at_a_time(*images.shape[1:3])
    n_done = 0

    def take(number: int, features: NDArray[np.float16]) -> None:
        nonlocal n_done
        values[number * step : (number + 1) * step] = features
        n_done += len(features)
        if progress is not None:
            progress(n_done, len(images))

    compute([images[start : start + step] for start in range(0, len(images), step)], take)
    return FeatureTable(values, None if maps.ignored is None else kept_places(maps.ignored, *maps.size))


def features_of(maps: FeatureMaps, images: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Return the features of a few pictures, float16 [n, h, w, C]."""
    with torch.inference_mode():
        found: NDArray[np.float16] = maps(torch.from_numpy(images)).permute(0, 2, 3, 1).numpy().astype(np.float16)
    return found


def make_patch_table(
    light: PhotometricNormalization, images: NDArray[np.uint8], folder: Path | None = None
) -> PatchTable:
    """Even out the light of pictures; arguments as for `make_table`."""
    n, height, width, n_colours = images.shape
    values = _new_values((n, height + 2 * MARGIN, width + 2 * MARGIN, n_colours), folder, PIXELS_FILE)
    step = pictures_at_a_time(height, width)
    with torch.inference_mode():
        for start in range(0, n, step):
            lit = light(to_pixels(torch.from_numpy(images[start : start + step])))
            padded = functional.pad(lit, (MARGIN,) * 4, value=math.nan)
            values[start : start + step] = padded.permute(0, 2, 3, 1).numpy()
    return PatchTable(values, None if light.ignored is None else light.ignored.kept)


def _drawn(places: Tensor | None, n_places: int, n: int, random: torch.Generator) -> Tensor:
    """Draw n of some places, or of the first `n_places`, int64 [n]."""
    if places is None:
        return torch.randint(n_places, (n,), generator=random)
    return places[torch.randint(len(places), (n,), generator=random)]


def _corners_of(kept: NDArray[np.bool_]) -> Tensor:
    """Return where patches begin whose middle is kept by half or more, as positions in a padded picture, int64 [k]."""
    width = kept.shape[1]
    # Of each middle the share that is kept, at its upper left pixel, which is as far from the corner as the margin.
    counts = functional.avg_pool2d(torch.from_numpy(kept).float()[None], PATCH, 1)[0]
    down, across = torch.nonzero(counts >= 0.5, as_tuple=True)
    corners: Tensor = down * (width + 2 * MARGIN) + across
    return corners


def _new_values(shape: tuple[int, ...], folder: Path | None, name: str) -> NDArray[np.float16]:
    n_bytes = 2 * math.prod(shape)
    if folder is None or n_bytes <= MOST_BYTES_IN_MEMORY:
        return np.empty(shape, np.float16)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        allocate(folder / name, n_bytes)
    except OSError as error:
        reason = error.strerror or said_by(error)
        raise InputError(
            f"{folder / name} could not be written ({reason}): the features of {shape[0]} pictures need "
            f"{n_bytes / 2**30:.3g} GiB there during the training; make room, pass another --out, or train on fewer "
            "or smaller pictures (--image-size)"
        ) from error
    return np.memmap(folder / name, np.float16, "r+", shape=shape)


def _as_channels(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))[None, :, None, None]
