"""A canvas in unit coordinates: everything drawn on it scales with the image.

Positions and lengths are fractions of the canvas' side: (0, 0) is its upper left corner, (1, 1) its lower right.
Angles are degrees, clockwise on the screen. Colours are RGB, 0 to 255.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.sample.lettering import text_strokes

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
        # Pixel centres lie at half steps in unit coordinates and at whole numbers in OpenCV's.
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
