"""Images and masks of an inspection set as arrays, decoded by several threads, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vae_edge.image import Preparation, load_prepared
from vae_edge.progress import Progress
from vae_edge.train.inspection_set import N_WORKERS, ImageFile
from vae_edge.train.masks import Masks, read_masks, resize_mask

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def load_images(
    files: Sequence[ImageFile], preparation: Preparation, progress: Progress | None = None
) -> NDArray[np.uint8]:
    """Decode and resize images, the way the device does.

    Returns:
        uint8 [N, H, W, 3] RGB, in the order of `files`.

    Raises:
        InputError: a file cannot be decoded; `check_inspection_set` finds those beforehand.
    """
    images = np.empty((len(files), preparation.height, preparation.width, 3), dtype=np.uint8)

    def load(path: Path) -> NDArray[np.uint8]:
        return load_prepared(path, preparation)

    for i, image in enumerate(map_in_threads(load, [file.path for file in files], progress)):
        images[i] = image
    return images


def load_masks(files: Sequence[ImageFile], preparation: Preparation) -> Masks:
    """Decode masks, unite those of one image, and bring them to the model's size without losing thin defects.

    Raises:
        InputError: a mask cannot be decoded.
    """
    size = (preparation.height, preparation.width)
    masks = np.zeros((len(files), *size), dtype=np.bool_)
    has_mask = np.array([file.mask is not None or not file.is_anomalous for file in files], dtype=np.bool_)
    chosen = [(i, file.masks) for i, file in enumerate(files) if file.is_anomalous and file.masks]

    def load(paths: Sequence[Path]) -> NDArray[np.bool_]:
        return resize_mask(read_masks(paths), *size)

    for (i, _), mask in zip(chosen, map_in_threads(load, [paths for _, paths in chosen]), strict=True):
        masks[i] = mask
    return Masks(masks, has_mask)


def map_in_threads(
    step: Callable[[_In], _Out], items: Sequence[_In], progress: Progress | None = None
) -> Iterator[_Out]:
    """Yield `step(item)` for each item in order; several run at once, and few results wait to be taken."""
    with ThreadPoolExecutor(N_WORKERS) as pool:
        # In blocks: all at once would hold every decoded image in memory while a slow consumer takes one by one.
        block = 8 * N_WORKERS
        done = 0
        for start in range(0, len(items), block):
            for result in pool.map(step, items[start : start + block]):
                done += 1
                yield result
                if progress is not None:
                    progress(done, len(items))
