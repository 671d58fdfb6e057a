"""Choosing the image's and the tiles' size by the data's resolution and aspect. Loads no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vae_edge.train.presets import SMALLEST_SIDE, nearest_image_sizes
from vae_edge.train.tiling import DEFAULT_OVERLAP, Tiling

if TYPE_CHECKING:
    from vae_edge.train.run_records import SizeRequest

MOST_PIXELS = 400 * 400
"""An image larger than this is shrunk to it; one that is smaller is not enlarged. A defect that covers a thousandth of
the picture then still has 160 pixels."""

_STEP = 16
"""Sides are rounded to a multiple of this."""

_TILE_SIDES = (64, 128, 256)

_TILES_ACROSS = 4
"""Tiles are to be about so much shorter than the image's shorter side."""


def choose_image_size(typical: tuple[int, int]) -> tuple[int, int]:
    """Return the model's height and width for images of a typical height and width.

    The aspect is kept, so that a long part is not squeezed; what has more than `MOST_PIXELS` is shrunk.

    Args:
        typical: height and width in pixels, as `DataReport.typical_size`.
    """
    height, width = typical
    scale = min(1.0, math.sqrt(MOST_PIXELS / (height * width)))
    return _rounded(height * scale), _rounded(width * scale)


def resolve_size(request: SizeRequest, typical: tuple[int, int]) -> Tiling:
    """Return the sizes that a request and the data come to.

    Args:
        request: what was asked for.
        typical: height and width of a typical image in pixels; used where no image size was asked for.

    Raises:
        UsageError: what was asked for does not fit together.
    """
    image_size = request.image or choose_image_size(typical)
    if request.tiles == "none":
        # What was asked for has to fit into the network as it is; what is chosen is made to fit.
        return Tiling.whole(*(request.image or nearest_image_sizes(*image_size)[0]))
    side = None if request.tiles == "auto" else int(request.tiles)
    return choose_tiling(image_size, side, request.overlap)


def choose_tiling(
    image_size: tuple[int, int], tile_side: int | None = None, overlap: float = DEFAULT_OVERLAP
) -> Tiling:
    """Return the tiles for an image size: square ones of about a quarter of the shorter side, 64 pixels at least.

    An image whose shorter side is below 96 is not cut: there would be nothing left in a tile.

    Args:
        image_size: height and width.
        tile_side: to use instead; None: chosen.
        overlap: least share of a tile that its neighbour sees as well.

    Raises:
        UsageError: the tile does not fit into the image, or into the network.
    """
    height, width = image_size
    shorter = min(height, width)
    if tile_side is None:
        if shorter < 1.5 * _TILE_SIDES[0]:
            return Tiling.whole(height, width)
        ideal = shorter / _TILES_ACROSS
        tile_side = min(_TILE_SIDES, key=lambda side: abs(math.log(side / ideal)))
    return Tiling(image_height=height, image_width=width, tile_height=tile_side, tile_width=tile_side, overlap=overlap)


def _rounded(side: float) -> int:
    return min(max(round(side / _STEP) * _STEP, SMALLEST_SIDE), 4096)
