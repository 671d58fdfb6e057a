"""Drawing surfaces, strokes of letters, and textures: what the products are drawn with.

Shapes are drawn several times as large as the picture and reduced by averaging areas, which smooths their edges. A
texture is made in steps of a pixel of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Stroke: TypeAlias = tuple[tuple[float, float], ...]

_WIDTH, _HEIGHT, _GAP = 4, 6, 2

# Strokes are parted by blanks; each pair of digits is a column from 0 to 4 and a row from 0 to 6, downwards.
_GLYPHS = {
    "0": "103041453616050110",
    "1": "012026 0646",
    "2": "01103041420646",
    "3": "01103041423313 3344453616 1605",
    "4": "36300444",
    "5": "400003334445361605",
    "6": "413010010516364544331304",
    "7": "00402316",
    "8": "103041423313020110 13040516364544 4433",
    "9": "051636454130100102133342",
    "A": "062046 1434",
    "B": "0030414233 03334445360600",
    "C": "4130100105163645",
    "D": "002041452606 0006",
    "E": "40000646 0333",
    "F": "400006 0333",
    "G": "41301001051636454323",
    "I": "2026 1030 1636",
    "J": "4045361605",
    "K": "0006 4003 1246",
    "L": "000646",
    "M": "0600234046",
    "N": "06004640",
    "O": "103041453616050110",
    "P": "060030414233 3303",
    "R": "06003041423303 2346",
    "S": "4130100102133344453616 1605",
    "T": "0040 2026",
    "U": "000516364540",
    "V": "002640",
    "X": "0046 4006",
    "-": "1333",
    ".": "2526",
    "/": "0640",
    "+": "0343 2125",
    " ": "",
}


@lru_cache(maxsize=128)
def text_strokes(text: str) -> tuple[Stroke, ...]:
    """Return the strokes of a text, centred on (0, 0), in units of its height.

    Args:
        text: Of the characters 0-9, most capitals, blank and ``- . / +``.

    Raises:
        KeyError: A character has no glyph.
    """
    advance = _WIDTH + _GAP
    left = (advance * len(text) - _GAP) / 2
    strokes: list[Stroke] = []
    for place, character in enumerate(text):
        for pairs in _GLYPHS[character].split():
            columns, rows = pairs[0::2], pairs[1::2]
            strokes.append(
                tuple(
                    ((int(column) + place * advance - left) / _HEIGHT, (int(row) - _HEIGHT / 2) / _HEIGHT)
                    for column, row in zip(columns, rows, strict=True)
                )
            )
    return tuple(strokes)


Colour: TypeAlias = tuple[float, float, float]
Point: TypeAlias = tuple[float, float]
FloatImage: TypeAlias = NDArray[np.float32]
"""float32, either [C, C, 3] with values 0 to 255 (a picture) or [C, C] (a field or a coverage from 0 to 1)."""

SMALLEST_CANVAS = 512
_SHIFT = 4  # Fraction bits of the coordinates that OpenCV draws at.


def canvas_size(image_size: int) -> int:
    """Return the side, in pixels, of the canvas an image of this side is drawn on.

    It is a multiple of the image's side, at least twice it (the later reduction smooths the edges) and never so small
    that line widths, which OpenCV rounds to whole pixels, would lose their proportions.
    """
    return image_size * max(2, math.ceil(SMALLEST_CANVAS / image_size))


@lru_cache(maxsize=8)
def unit_grid(size: int) -> tuple[FloatImage, FloatImage]:
    """Return the x and y coordinates of the pixel centres, each float32 [size, size] from 0 to 1 and read-only."""
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x: FloatImage = np.tile(axis, (size, 1))
    y: FloatImage = np.ascontiguousarray(x.T)
    x.setflags(write=False)
    y.setflags(write=False)
    return x, y


def blend(picture: FloatImage, coverage: FloatImage, colour: Colour | FloatImage) -> FloatImage:
    """Return the picture with a colour, or another picture, laid over it where the coverage says so."""
    alpha = coverage[:, :, None]
    over = np.asarray(colour, dtype=np.float32)
    return picture + alpha * (over - picture)


def blur(field: FloatImage, sigma: float) -> FloatImage:
    """Return the field or picture under a Gaussian whose sigma is a fraction of the canvas' side."""
    return np.asarray(cv2.GaussianBlur(field, (0, 0), max(0.3, sigma * field.shape[0])), dtype=np.float32)


class Canvas:
    """A square picture that shapes are drawn on with smooth edges.

    Args:
        size: Side in pixels.
        colour: What it is filled with at first; one number makes a coverage of one channel.
    """

    def __init__(self, size: int, colour: Colour | float) -> None:
        """Make the canvas and fill it."""
        self.size = size
        shape = (size, size) if isinstance(colour, int | float) else (size, size, 3)
        self.pixels: NDArray[np.uint8] = np.full(shape, colour, dtype=np.uint8)

    def picture(self) -> FloatImage:
        """Return a float32 copy with values from 0 to 255."""
        return self.pixels.astype(np.float32)

    def coverage(self) -> FloatImage:
        """Return a float32 copy scaled to values from 0 to 1."""
        return self.pixels.astype(np.float32) * np.float32(1 / 255)

    def disc(self, centre: Point, radius: float, colour: Colour | float) -> None:
        """Fill a disc."""
        cv2.circle(self.pixels, self._fixed(centre), self._length(radius), _scalar(colour), -1, cv2.LINE_AA, _SHIFT)

    def ring(self, centre: Point, radius: float, width: float, colour: Colour | float) -> None:
        """Draw a circle line."""
        line = self._width(width)
        cv2.circle(self.pixels, self._fixed(centre), self._length(radius), _scalar(colour), line, cv2.LINE_AA, _SHIFT)

    def arc(self, centre: Point, radius: float, angles: Point, width: float, colour: Colour | float) -> None:
        """Draw a part of a circle from the first angle to the second."""
        n = max(8, int(abs(angles[1] - angles[0]) / 2))
        turns = [math.radians(angles[0] + (angles[1] - angles[0]) * i / n) for i in range(n + 1)]
        inner, outer = radius - width / 2, radius + width / 2
        outline = [(centre[0] + outer * math.cos(t), centre[1] + outer * math.sin(t)) for t in turns]
        outline += [(centre[0] + inner * math.cos(t), centre[1] + inner * math.sin(t)) for t in reversed(turns)]
        self.polygon(outline, colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour | float) -> None:
        """Draw an open line through the points."""
        fixed = np.asarray([self._fixed(point) for point in points], dtype=np.int32)
        cv2.polylines(self.pixels, [fixed], False, _scalar(colour), self._width(width), cv2.LINE_AA, _SHIFT)

    def polygon(self, points: Sequence[Point], colour: Colour | float) -> None:
        """Fill a polygon."""
        fixed = np.asarray([self._fixed(point) for point in points], dtype=np.int32)
        cv2.fillPoly(self.pixels, [fixed], _scalar(colour), cv2.LINE_AA, _SHIFT)

    def box(self, centre: Point, extent: Point, colour: Colour | float, angle: float = 0.0) -> None:
        """Fill a rectangle of this width and height, turned about its centre."""
        half_w, half_h = extent[0] / 2, extent[1] / 2
        corners = ((-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h))
        self.polygon([turned(centre, corner, angle) for corner in corners], colour)

    def text(
        self, text: str, centre: Point, height: float, colour: Colour | float, angle: float = 0.0, weight: float = 0.13
    ) -> None:
        """Write digits and capitals, centred; the weight is the stroke's width over the height."""
        for stroke in text_strokes(text):
            points = [turned(centre, (x * height, y * height), angle) for x, y in stroke]
            self.line(points, weight * height, colour)

    def _fixed(self, point: Point) -> tuple[int, int]:
        # Pixel centres lie at half steps in unit coordinates and at integers in OpenCV's.
        x, y = point[0] * self.size - 0.5, point[1] * self.size - 0.5
        return round(x * (1 << _SHIFT)), round(y * (1 << _SHIFT))

    def _length(self, length: float) -> int:
        return max(1, round(length * self.size * (1 << _SHIFT)))

    def _width(self, width: float) -> int:
        return max(1, round(width * self.size))


def shaded(colour: Colour, factor: float, lift: float = 0.0) -> Colour:
    """Return the colour made darker by a factor or lighter by a lift, at most 255."""
    red, green, blue = (min(255.0, factor * channel + lift) for channel in colour)
    return red, green, blue


def turned(centre: Point, offset: Point, angle: float) -> Point:
    """Return the point at this offset from the centre after a turn about the centre by so many degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return centre[0] + offset[0] * cos - offset[1] * sin, centre[1] + offset[0] * sin + offset[1] * cos


def _scalar(colour: Colour | float) -> Sequence[float]:
    return (float(colour),) if isinstance(colour, int | float) else tuple(float(c) for c in colour)


def cloud(rng: np.random.Generator, size: int, cells: int) -> FloatImage:
    """Return a smooth field with about this many blobs along a side, whatever the canvas' resolution."""
    coarse = rng.standard_normal((cells + 3, cells + 3), dtype=np.float32)
    field = np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    return field * np.float32(1.35)  # Interpolation between the cells takes some of the spread away.


def grain(rng: np.random.Generator, size: int, cells: int = 256) -> FloatImage:
    """Return a fine speckle of this many cells along a side."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def brushed(rng: np.random.Generator, size: int, grooves: int = 256) -> FloatImage:
    """Return horizontal grooves that fade in and out along their length."""
    coarse = rng.standard_normal((grooves, 6), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def turned_metal(rng: np.random.Generator, size: int, grooves: int = 240) -> FloatImage:
    """Return concentric grooves about the canvas' centre, as a lathe leaves them."""
    profile: FloatImage = rng.standard_normal(grooves, dtype=np.float32)
    return np.take(profile, _groove_numbers(size, grooves))


@lru_cache(maxsize=4)
def _groove_numbers(size: int, grooves: int) -> NDArray[np.int64]:
    x, y = unit_grid(size)
    radius = np.hypot(x - np.float32(0.5), y - np.float32(0.5))
    numbers: NDArray[np.int64] = np.minimum((radius * (grooves / 0.72)).astype(np.int64), grooves - 1)
    numbers.setflags(write=False)
    return numbers
