"""Reading the part of the pictures that a training ignores: a mask, polygons, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, UsageError
from vae_edge.ignored_region import IgnoredRegion, Polygon, draw_region, kept_places
from vae_edge.train.data.masks import read_mask

_ASPECTS_DIFFER = 1.02
"""Ratio of aspects from which a mask is not of these pictures; rounding makes less."""

_BLOCK = 8
"""Pixels: the coarsest grid that positions are judged on. A picture has to keep one of them."""


def read_ignore_mask(path: str | Path) -> NDArray[np.bool_]:
    """Read a mask of what is ignored, bool [H, W], true where any channel is above 0.

    Raises:
        UsageError: the file is no picture, or it ignores everything or nothing.
    """
    try:
        mask = read_mask(Path(path))
    except InputError as error:
        raise UsageError(f"{error}; expected a picture for what is ignored, not 0 where it is") from error
    if not mask.any():
        raise UsageError(f"the mask {path} is 0 everywhere, so it ignores nothing; expected other values where it does")
    if mask.all():
        raise UsageError(f"the mask {path} is 0 nowhere, so it ignores everything; expected 0 where the part is")
    return mask


def find_ignored(
    mask: str | Path | None,
    polygons: Sequence[Polygon],
    size: tuple[int, int],
    typical: tuple[int, int],
) -> IgnoredRegion | None:
    """Return what is ignored at the model's size; None: nothing was given.

    Args:
        mask: a file, or None.
        polygons: none or some.
        size: height and width of the model's picture.
        typical: height and width of the pictures.

    Raises:
        UsageError: see `read_ignore_mask`; the mask is of another aspect than the pictures, or nothing is left.
    """
    if mask is None and not polygons:
        return None
    pixels = None
    if mask is not None:
        pixels = read_ignore_mask(mask)
        height, width = pixels.shape
        ratio = (width / height) / (typical[1] / typical[0])
        if max(ratio, 1 / ratio) > _ASPECTS_DIFFER:
            raise UsageError(
                f"the mask {mask} has {width}x{height} pixels (width x height), the pictures typically "
                f"{typical[1]}x{typical[0]}; expected a mask of their size, or of their aspect"
            )
    region = IgnoredRegion.of_mask(draw_region(*size, polygons, pixels))
    if not kept_places(region, size[0] // _BLOCK, size[1] // _BLOCK).any():
        raise UsageError(
            f"the ignored region leaves no place of {_BLOCK}x{_BLOCK} pixels of the model's {size[1]}x{size[0]}; "
            "expected a region that leaves something to inspect"
        )
    return region
