"""Images and masks of an inspection set as arrays, decoded by several threads, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import Preparation, load_prepared
from vae_edge.progress import Progress
from vae_edge.train.inspection_set import N_WORKERS, ImageFile

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})


class Masks(NamedTuple):
    """Where the defects are, and whether that is known."""

    masks: NDArray[np.bool_]
    """bool [N, H, W], true at a defect; all false where `has_mask` is false."""
    has_mask: NDArray[np.bool_]
    """bool [N]; false for an anomalous image without a mask, whose pixels count in no pixel metric. A normal image has
    a mask: it is false everywhere."""


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
    """Decode masks and bring them to the model's size; see `resize_mask` for how thin defects survive.

    Raises:
        InputError: a mask cannot be decoded.
    """
    size = (preparation.height, preparation.width)
    masks = np.zeros((len(files), *size), dtype=np.bool_)
    has_mask = np.array([file.mask is not None or not file.is_anomalous for file in files], dtype=np.bool_)
    chosen = [(i, file.mask) for i, file in enumerate(files) if file.is_anomalous and file.mask is not None]

    def load(path: Path) -> NDArray[np.bool_]:
        return resize_mask(read_mask(path), *size)

    for (i, _), mask in zip(chosen, map_in_threads(load, [path for _, path in chosen]), strict=True):
        masks[i] = mask
    return Masks(masks, has_mask)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decode a mask: a pixel is a defect where any colour channel is above 0, so labels 0/1 do as well as 0/255.

    In a JPEG or WebP file, whose compression leaves faint traces beside an edge, it is a defect from 128 on.

    Returns:
        bool [H, W], at the mask's own size.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except OSError as error:
        raise InputError(f"the mask {path} could not be read ({error.strerror}); check its permissions") from error
    except cv2.error as error:
        raise InputError(f"the mask {path} could not be decoded ({error.err}); draw it again or remove it") from error
    if image is None:
        raise InputError(
            f"the mask {path} could not be decoded; expected a whole image file: draw it again or remove it"
        )
    values: NDArray[Any] = np.asarray(image)
    if values.ndim == 3:
        # Of four channels the last is transparency, which says nothing about a defect.
        values = values[:, :, :3].max(axis=2)
    return np.asarray(values >= 128 if path.suffix.lower() in _LOSSY_SUFFIXES else values > 0)


def resize_mask(mask: NDArray[np.bool_], height: int, width: int) -> NDArray[np.bool_]:
    """Resize a mask, bool [h, w], to bool [height, width] without losing thin defects.

    Where it shrinks, a pixel of the result is a defect if any part of the area it stands for is one: a scratch one
    pixel wide stays, at the price of an outline up to one pixel wider. Where it grows, the nearest pixel is taken.
    """
    if mask.shape == (height, width):
        return mask
    area = (min(width, mask.shape[1]), min(height, mask.shape[0]))
    shrunk = cv2.resize(mask.astype(np.float32), area, interpolation=cv2.INTER_AREA) > 0
    grown = cv2.resize(shrunk.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(grown, dtype=np.uint8).astype(np.bool_)


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
