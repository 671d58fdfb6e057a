"""Masks of defects: reading a mask's pixels, uniting several masks, resizing without losing thin defects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import check_regular_file, read_pixels

_LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})
_OPAQUE_SUFFIXES = frozenset({".jpg", ".jpeg"})


class Masks(NamedTuple):
    """Where the defects are, and whether that is known."""

    masks: NDArray[np.bool_]
    """bool [N, H, W], true at a defect; all false where `has_mask` is false."""
    has_mask: NDArray[np.bool_]
    """bool [N]; false for an anomalous image without a mask, whose pixels count in no pixel metric. A normal image has
    a mask: it is false everywhere."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Decode a mask: a pixel is a defect where any colour channel is above 0, so labels 0/1 do as well as 0/255.

    In a JPEG or WebP file, whose compression leaves faint traces beside an edge, it is a defect from 128 on. The EXIF
    orientation is applied, as it is to the picture. Of a mask with transparency a pixel that is fully transparent is
    no defect; where every pixel has the same colour, so that only the transparency tells pixels apart, it is the mask.

    Returns:
        bool [H, W], at the mask's own size.

    Raises:
        InputError: the file is missing or cannot be decoded.
    """
    try:
        values = read_pixels(path)
    except InputError as error:
        full = _with_all_channels(path)
        if full is None or full.dtype.kind != "f":  # Some tools write 0.0 and 1.0, which is no picture.
            raise InputError(f"the mask {error}") from error
        values = full
    least = 128 if path.suffix.lower() in _LOSSY_SUFFIXES else 1e-9
    colour = np.asarray((values if values.ndim == 2 else values[:, :, :3].max(axis=2)) >= least)
    full = None if path.suffix.lower() in _OPAQUE_SUFFIXES else _with_all_channels(path)
    if full is None or full.ndim == 2 or full.shape[2] < 4 or full[:, :, 3].min() == full[:, :, 3].max():
        return colour
    alpha = full[:, :, 3]
    if (full[:, :, :3] == full[0, 0, :3]).all():
        return np.asarray(alpha >= least)
    # OpenCV turns an image only where it drops the transparency: what was turned has its colours alone.
    unturned = np.asarray(full[:, :, :3].max(axis=2) >= least)
    return np.asarray(colour & (alpha > 0)) if np.array_equal(unturned, colour) else colour


def _with_all_channels(path: Path) -> NDArray[Any] | None:
    """Decode a file as it is, with transparency and not turned; None where that cannot be done."""
    try:
        check_regular_file(path)
        data = np.fromfile(path, dtype=np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except (InputError, OSError, cv2.error):
        return None
    return None if image is None else np.asarray(image)


def read_masks(paths: Sequence[Path]) -> NDArray[np.bool_]:
    """Decode the masks of one image and unite them: a pixel is a defect where any of them says so.

    Args:
        paths: one or more masks.

    Returns:
        bool [H, W].

    Raises:
        InputError: one cannot be decoded, or they differ in size.
    """
    united = read_mask(paths[0])
    for path in paths[1:]:
        mask = read_mask(path)
        if mask.shape != united.shape:
            raise InputError(
                f"the mask {path} is {mask.shape[0]}x{mask.shape[1]} and {paths[0].name}, of the same image, "
                f"{united.shape[0]}x{united.shape[1]}; expected masks of one size"
            )
        united = united | mask
    return united


def looks_like_mask(path: Path) -> bool:
    """Tell whether a file is a grey image of one or two values that is black somewhere, as a mask is."""
    try:
        values = read_pixels(path)
    except InputError:
        return False
    if values.ndim == 3:
        if not (values == values[:, :, :1]).all():
            return False
        values = values[:, :, 0]
    found = np.unique(values)
    return len(found) <= 2 and int(found[0]) == 0


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
