"""Where a pasted defect is and how strong: shapes as float32 [H, W] from 0 to 1, drawn at a random place."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Shape = NDArray[np.float32]

_SMALLEST_RADIUS = 0.8
"""Pixels: a defect is two pixels wide or more."""


def place(height: int, width: int, random: np.random.Generator) -> tuple[float, float]:
    """Return x and y of a point that keeps a tenth of each side from the border."""
    return width * (0.1 + 0.8 * random.random()), height * (0.1 + 0.8 * random.random())


def softened(shape: Shape, sigma: float) -> Shape:
    """Return the shape after a Gaussian blur of so many pixels."""
    return np.asarray(cv2.GaussianBlur(shape, (0, 0), sigma), dtype=np.float32)


def blob(height: int, width: int, size: float, random: np.random.Generator) -> Shape:
    """Fill a star-shaped outline whose radius varies smoothly, with an edge about a pixel wide."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angle)
    for order in (1, 2, 3, 5):
        radius += (0.5 / order) * random.random() * np.cos(order * angle + 2 * np.pi * random.random())
    radius = np.maximum(radius, 0.3) * max(size / 2, _SMALLEST_RADIUS)
    flat = 0.4 + 0.6 * random.random()
    x, y = place(height, width, random)
    points = np.stack([x + radius * np.cos(angle), y + radius * flat * np.sin(angle)], axis=1)
    shape = np.zeros((height, width), dtype=np.float32)
    cv2.fillPoly(shape, [np.rint(points).astype(np.int32)], 1.0)
    return softened(shape, 0.6)


def scratch(height: int, width: int, size: float, random: np.random.Generator) -> Shape:
    """Draw a quadratic Bezier curve, one or a few pixels wide and about three sizes long."""
    direction, bend = 2 * np.pi * random.random(), 0.6 * (random.random() - 0.5)
    along = np.array([np.cos(direction), np.sin(direction)]) * max(3 * size, 8.0)
    start = np.array(place(height, width, random)) - along / 2
    middle = start + along / 2 + bend * np.array([-along[1], along[0]])
    t = np.linspace(0, 1, 24)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * (start + along)
    # A long one is no wider than a short one.
    thickness = 1 + int(random.random() * max(min(size, 0.1 * min(height, width)) / 8, 1))
    shape = np.zeros((height, width), dtype=np.float32)
    cv2.polylines(shape, [np.rint(points).astype(np.int32)], False, 1.0, thickness)
    return softened(shape, 0.5)


def stain(height: int, width: int, size: float, random: np.random.Generator) -> Shape:
    """Weaken smooth noise towards the rim of a soft disc about one and a half times the size."""
    noise = smooth_noise(height, width, max(size / 2, 2.0), random)
    x, y = place(height, width, random)
    rows, columns = np.mgrid[:height, :width]
    disc = np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / max(size / 3, 1.5) ** 2)
    return np.asarray(np.clip(disc * (0.6 + 0.8 * noise), 0, 1), dtype=np.float32)


def cloud(side: int, size: float, random: np.random.Generator) -> Shape:
    """Cut a patch of about a size out of smooth noise in two octaves, with a ragged, soft edge.

    Args:
        side: of the square that it lies in the middle of, in pixels.
        size: its extent in pixels.
        random: of its outline.
    """
    noise = 0.7 * smooth_noise(side, side, max(size / 2.5, 2.0), random)
    noise += 0.3 * smooth_noise(side, side, max(size / 7, 2.0), random)
    offset = np.arange(side) - (side - 1) / 2
    flat = 0.55 + 0.45 * random.random()
    angle = np.pi * random.random()
    x, y = offset[None, :], offset[:, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), (y * np.cos(angle) - x * np.sin(angle)) / flat
    inside = 1 - np.hypot(along, across) / max(size / 2, 1.0) + 1.2 * (noise - 0.5)
    # From nothing to all over about a tenth of the size.
    return np.asarray(np.clip(inside * max(size, 4.0) / 2 + 0.5, 0, 1), dtype=np.float32)


def smooth_noise(height: int, width: int, cell: float, random: np.random.Generator) -> Shape:
    """Interpolate random values, mostly 0 to 1, between points a cell apart."""
    coarse = random.random((max(round(height / cell), 2), max(round(width / cell), 2))).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
