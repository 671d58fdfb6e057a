"""Defects of structure, pasted on pictures of good parts: what is there is another material, broken, bent, gone or new.

They change a window around a place and work on nothing larger, so that one takes a few milliseconds whatever the
picture's size. All but `texture` lie where the picture shows something: a hole in a plain surface would be invisible.

`texture` follows Zavrtanik et al., "DRAEM", ICCV 2021, with the picture's own set in the place of foreign pictures; to
fill in what is missing from its surroundings: Zavrtanik et al., "Reconstruction by inpainting", Pattern Recognition
112, 2021, and Telea, "An image inpainting technique based on the fast marching method", Journal of Graphics Tools 2004.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.train.choice.defect_shapes import Shape, cloud, place, smooth_noise, softened

Picture = NDArray[np.uint8]
Draw = Callable[[Picture, Picture, float, float, np.random.Generator], tuple[NDArray[np.float32], Shape]]
"""From a window of the picture, an equal window of another place, the size in pixels, the contrast and random numbers
to the window as it would look, float32 [h, w, 3], and how strong it is where, float32 [h, w]."""

_PLACES = 6
"""Places that are compared; the one that shows most is taken."""

_FULL = 0.5
"""Contrast from which a change is complete: half of it is half as far, or half transparent."""

_INPAINTED = 48
"""Side of the window that is filled in; larger ones are made smaller for it."""


def draw_structural(
    kind: str, image: Picture, other: Picture, size: float, contrast: float, random: np.random.Generator
) -> tuple[Picture, Shape]:
    """Put one defect into a picture.

    Args:
        kind: of `STRUCTURAL`.
        image: uint8 [H, W, 3].
        other: uint8 [H, W, 3], another picture of the set, or the same one where there is no other.
        size: extent in pixels.
        contrast: in (0, 1]; from 0.5 on the change is complete.
        random: gives the place and everything else.

    Returns:
        The picture, uint8 [H, W, 3], and how strong the defect is where, float32 [H, W] from 0 to 1.
    """
    height, width = image.shape[:2]
    side = min(2 * (int(size) // 2 + int(size) // 4 + 6), height, width)
    row, column = _window(image, side, random) if kind != "texture" else _anywhere(height, width, side, random)
    from_row, from_column = _window(other, side, random)
    window = image[row : row + side, column : column + side]
    # Another exposure would give a piece away, whatever it shows.
    gain = max(float(image.mean()), 1.0) / max(float(other.mean()), 1.0)
    lent = other[from_row : from_row + side, from_column : from_column + side]
    piece = np.clip(np.rint(lent * gain), 0, 255).astype(np.uint8)
    changed, strength = STRUCTURAL[kind](window, piece, size, contrast, random)
    result, shape = image.copy(), np.zeros((height, width), dtype=np.float32)
    mixed = window + strength[:, :, None] * (changed - window)
    result[row : row + side, column : column + side] = np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
    shape[row : row + side, column : column + side] = strength
    return result, shape


def _anywhere(height: int, width: int, side: int, random: np.random.Generator) -> tuple[int, int]:
    x, y = place(height, width, random)
    return min(max(round(y - side / 2), 0), height - side), min(max(round(x - side / 2), 0), width - side)


def _window(image: Picture, side: int, random: np.random.Generator) -> tuple[int, int]:
    """Return the upper left corner of a window that shows more than most: the busiest of a few."""
    height, width = image.shape[:2]
    corners = [_anywhere(height, width, side, random) for _ in range(_PLACES)]
    middle = slice(side // 4, max(side - side // 4, side // 4 + 1))

    def shows(corner: tuple[int, int]) -> float:
        seen = image[corner[0] : corner[0] + side, corner[1] : corner[1] + side][middle, middle].mean(axis=2)
        return float(seen.std())

    return max(corners, key=shows)


def _texture(
    window: Picture, piece: Picture, size: float, contrast: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], Shape]:
    """Blend in what another place shows, turned, coarser or finer, and in another colour."""
    side = len(window)
    turned = np.ascontiguousarray(np.rot90(piece, int(random.integers(4))))
    if random.random() < 0.5:
        turned = np.ascontiguousarray(turned[:, ::-1])
    zoom = 2.0 ** (1.2 * random.random())
    cut = max(round(side / zoom), 4)
    foreign = np.asarray(cv2.resize(turned[:cut, :cut], (side, side), interpolation=cv2.INTER_LINEAR), dtype=np.float32)
    level = max(float(window.mean()), 32.0)
    lighter = random.random() < 0.5
    lighter = (lighter or level < contrast * level) and level <= 255 * (1 - contrast)
    shift = contrast * level * (0.6 + 0.6 * random.random(3)) * (1 if lighter else -1)
    if np.ptp(window, axis=2).max() == 0:
        shift[:] = shift.mean()
    foreign += (float(window.mean()) - float(foreign.mean())) + shift.astype(np.float32)
    return foreign, min(0.5 + contrast, 1.0) * cloud(side, size, random)


def _bent(window: Picture, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the window with each pixel taken from as far away as `x` and `y` say, float32 [h, w] in pixels."""
    rows, columns = np.mgrid[: len(window), : window.shape[1]].astype(np.float32)
    moved = cv2.remap(window, columns + x, rows + y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, dtype=np.float32)


def _break(
    window: Picture, piece: Picture, size: float, contrast: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], Shape]:
    """Move what lies on one side of an irregular line along it, less and less away from it, with a shadow at it."""
    side = len(window)
    offset = np.arange(side, dtype=np.float32) - (side - 1) / 2
    angle = 2 * np.pi * random.random()
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = offset[None, :] * cos + offset[:, None] * sin, offset[:, None] * cos - offset[None, :] * sin
    ragged = smooth_noise(side, 1, max(size / 6, 2.0), random)[:, 0] - 0.5
    place_of = np.clip(np.rint(along + (side - 1) / 2), 0, side - 1).astype(np.int64)
    across = across + (0.25 * size * ragged)[place_of]
    reach = np.clip(1.5 - 3 * np.abs(along) / max(size, 3.0), 0, 1)
    depth = np.clip(1 - across / max(0.45 * size, 2.0), 0, 1) * (across >= 0)
    by = max(0.6 * size * contrast, 1.0) * reach * depth
    moved = _bent(window, np.asarray(by * cos, dtype=np.float32), np.asarray(by * sin, dtype=np.float32))
    line = np.exp(-0.5 * (across / max(size / 40, 0.6)) ** 2) * reach
    level = max(float(window.mean()), 32.0)
    sign = 1 if float(window.mean()) < 0.8 * contrast * level + 8 else -1
    moved += np.float32(sign * 0.8 * contrast * level) * line[:, :, None].astype(np.float32)
    strength = np.maximum(np.minimum(by, 1.0), np.minimum(2 * line, 1.0))
    return moved, np.asarray(strength, dtype=np.float32)


def _warp(
    window: Picture, piece: Picture, size: float, contrast: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], Shape]:
    """Bend the picture smoothly: it bulges, is pinched or is pushed aside."""
    side = len(window)
    offset = np.arange(side, dtype=np.float32) - (side - 1) / 2
    x, y = np.broadcast_to(offset[None, :], (side, side)), np.broadcast_to(offset[:, None], (side, side))
    distance = np.hypot(x, y) / max(size / 2, 2.0)
    bell = np.clip(1 - distance**2, 0, 1) ** 2
    # Steeper, and the picture would fold over itself.
    style = int(random.integers(3))
    if style == 0:
        angle, far = 2 * np.pi * random.random(), max(0.6 * size * contrast, 1.0)
        by_x, by_y = far * bell * np.cos(angle), far * bell * np.sin(angle)
    else:
        by = (1 if style == 1 else -1) * 1.4 * contrast * bell
        by_x, by_y = by * x, by * y
    strength = np.minimum(np.hypot(by_x, by_y), 1.0)
    moved = _bent(window, np.asarray(by_x, dtype=np.float32), np.asarray(by_y, dtype=np.float32))
    return moved, np.asarray(strength, dtype=np.float32)


def _missing(
    window: Picture, piece: Picture, size: float, contrast: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], Shape]:
    """Take away what the place shows and fill it in from around it."""
    side = len(window)
    shape = cloud(side, size, random)
    scale = min(_INPAINTED / side, 1.0)
    n = max(round(side * scale), 4)
    small = cv2.resize(window, (n, n), interpolation=cv2.INTER_AREA) if n < side else window
    hole = np.asarray(cv2.resize(shape, (n, n), interpolation=cv2.INTER_LINEAR) > 0.02, dtype=np.uint8)
    hole = np.asarray(cv2.dilate(hole, np.ones((3, 3), np.uint8)), dtype=np.uint8)
    filled = cv2.inpaint(np.ascontiguousarray(small), hole, 3, cv2.INPAINT_TELEA)
    if n < side:
        filled = cv2.resize(filled, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(filled, dtype=np.float32), min(contrast / _FULL, 1.0) * shape


def _extra(
    window: Picture, piece: Picture, size: float, contrast: float, random: np.random.Generator
) -> tuple[NDArray[np.float32], Shape]:
    """Put a piece of another place there, cut along its own edge where it has one, turned at random."""
    side = len(window)
    middle = ((side - 1) / 2, (side - 1) / 2)
    turn = cv2.getRotationMatrix2D(middle, 360 * random.random(), 1.0)
    turned = cv2.warpAffine(piece, turn, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    shape = cloud(side, size, random)
    inside = shape > 0.5
    grey = np.rint(turned.mean(axis=2)).astype(np.uint8)
    if np.count_nonzero(inside) >= 12:
        # Otsu's threshold tells the thing from its ground; the ground is what there is more of.
        cut, _ = cv2.threshold(grey[inside].reshape(-1, 1), 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        thing = (grey > cut) & inside
        if 2 * np.count_nonzero(thing) > np.count_nonzero(inside):
            thing = ~(grey > cut) & inside
        whole = cv2.morphologyEx(thing.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        if np.count_nonzero(whole) >= 0.1 * np.count_nonzero(inside):
            shape = np.minimum(softened(whole.astype(np.float32), 0.7) * 1.3, 1.0) * np.minimum(2 * shape, 1.0)
    return turned.astype(np.float32), np.asarray(min(contrast / _FULL, 1.0) * shape, dtype=np.float32)


STRUCTURAL: dict[str, Draw] = {
    "texture": _texture,
    "break": _break,
    "warp": _warp,
    "missing": _missing,
    "extra": _extra,
}
