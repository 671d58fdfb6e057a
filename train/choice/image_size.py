"""The image's and the tiles' size: reading what was requested, choosing by resolution and aspect. Loads no torch."""

from __future__ import annotations

import math
import re

from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.loop.settings import SizeRequest
from vae_edge.train.model.input_settings import DEFAULT_OVERLAP, Tiling
from vae_edge.train.model.presets import SMALLEST_SIDE, check_image_size, nearest_image_sizes
from vae_edge.train.model.scoring import AUTO

MOST_PIXELS = 400 * 400
"""An image that is cut and is larger than this is shrunk to it; one that is smaller is not enlarged. A defect that
covers a thousandth of the picture then still has 160 pixels."""

MOST_PIXELS_WHOLE = 128 * 128
"""The same for an image that is not cut."""

_MOST_SHRUNK = 4
"""A picture of more than so many times `MOST_PIXELS_WHOLE` is cut even where parts are aligned: shrunk to one window,
it would lose its small defects."""

_STEP = 16
"""Sides are rounded to a multiple of this."""

_TILE_SIDES = (64, 128, 256)

_TILES_ACROSS = 4
"""Tiles are to be about so much shorter than the image's shorter side."""


def parse_size(image_size: str, tile_size: str, overlap: float) -> SizeRequest:
    """Read what was asked of the sizes of image and tiles: `auto` or a size, and `auto`, `none` or a side.

    Raises:
        UsageError: a word is neither a size nor one of the others, or see `check_request`.
    """
    image = None if image_size.strip().lower() == AUTO else parse_image_size(image_size)
    word = tile_size.strip().lower()
    if word not in (AUTO, "none") and not word.isdigit():
        raise UsageError(f"the tile size is {tile_size!r}; expected auto, none or a side in pixels such as 64")
    tiles = int(word) if word.isdigit() else word
    size = make_record(SizeRequest, {"image": image, "tiles": tiles, "overlap": overlap})
    check_request(size)
    return size


def parse_image_size(text: str) -> tuple[int, int]:
    """Read `256` or `256x320` as height and width.

    Raises:
        InputError: it is neither.

    Examples:
        >>> parse_image_size("256"), parse_image_size("256x320")
        ((256, 256), (256, 320))
    """
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text.strip().lower())
    if match is None:
        raise UsageError(
            f"the image size is {text!r}; expected auto, a side such as 256, or height x width such as 256x320"
        )
    height = int(match.group(1))
    return height, int(match.group(2) or height)


def choose_image_size(typical: tuple[int, int], most_pixels: int = MOST_PIXELS) -> tuple[int, int]:
    """Return the model's height and width for images of a typical height and width.

    The aspect is kept, so that a long part is not squeezed; what has more pixels is shrunk.

    Args:
        typical: height and width in pixels, as `DataReport.typical_size`.
        most_pixels: of the result, but for rounding.

    Examples:
        >>> choose_image_size((200, 320)), choose_image_size((2000, 3200))
        ((192, 320), (320, 512))
    """
    height, width = typical
    scale = min(1.0, math.sqrt(most_pixels / (height * width)))
    return _rounded(height * scale), _rounded(width * scale)


def resolve_size(request: SizeRequest, typical: tuple[int, int], *, is_aligned: bool) -> Tiling:
    """Return the sizes that a request and the data come to.

    Where parts lie at the same place in all pictures, the full picture says what belongs where, and a network that
    sees all of it finds what is missing or wrong, as long as the picture need not be shrunk much for it. Elsewhere
    tiles do better (`benchmarks/DETECTION.md`).

    Args:
        request: what was requested.
        typical: height and width of a typical image in pixels; used where no image size was requested.
        is_aligned: see `DataTraits`; used where tiles are to be chosen.

    Raises:
        UsageError: what was requested does not fit together.
    """
    height, width = request.image or typical
    is_small = height * width <= _MOST_SHRUNK * MOST_PIXELS_WHOLE
    if request.tiles == "none" or (request.tiles == "auto" and is_aligned and is_small):
        # What was requested has to fit into the network as it is; what is chosen is made to fit.
        size = request.image or nearest_image_sizes(*choose_image_size(typical, MOST_PIXELS_WHOLE))[0]
        if request.tiles == "none" or nearest_image_sizes(*size)[0] == size:
            return Tiling.whole(*size)
    side = None if request.tiles == "auto" else int(request.tiles)
    return choose_tiling(request.image or choose_image_size(typical), side, request.overlap)


def check_request(request: SizeRequest) -> None:
    """Refuse, before any image is read, sizes that do not fit together whatever the images are.

    Raises:
        UsageError: see `resolve_size`.
    """
    if request.image is not None:
        resolve_size(request, request.image, is_aligned=False)


def is_never_cut(request: SizeRequest) -> bool:
    """Return whether the model takes full images, whatever the images are."""
    if request.image is None:
        return request.tiles == "none"
    return resolve_size(request, request.image, is_aligned=False).n_tiles == 1


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
    check_image_size(tile_side, tile_side)
    return make_record(
        Tiling,
        {
            "image_height": height,
            "image_width": width,
            "tile_height": tile_side,
            "tile_width": tile_side,
            "overlap": overlap,
        },
    )


def _rounded(side: float) -> int:
    return min(max(round(side / _STEP) * _STEP, SMALLEST_SIDE), 4096)
