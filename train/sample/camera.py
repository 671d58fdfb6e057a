"""From a canvas to a photograph: where the part lies, and how light and sensor see it.

The two steps are apart on purpose. ``take`` moves and reduces, so neighbouring pixels mix; ``expose`` works on each
pixel alone, so a pixel that a defect does not reach before it stays the same to the last bit after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.train.sample.canvas import FloatImage, unit_grid


@dataclass(frozen=True)
class Spread:
    """How much photographs of one product differ from one another.

    Attributes:
        shift: Largest shift in x and y, as a fraction of the image's side.
        turn: Largest rotation in degrees.
        zoom: Largest relative change of scale.
        base_zoom: Scale around which that change happens; above 1 the canvas' borders stay out of sight.
        exposure: Largest relative change of brightness.
        gradient: Largest relative brightness change from the image's centre to its border.
        warmth: Largest relative gain of red, and loss of blue.
        vignette: Largest relative loss of light in the corners.
        noise: Standard deviation of the sensor's noise at mid grey, of 255.
    """

    shift: float
    turn: float
    zoom: float
    base_zoom: float = 1.0
    exposure: float = 0.06
    gradient: float = 0.07
    warmth: float = 0.025
    vignette: float = 0.10
    noise: float = 2.2


@dataclass(frozen=True)
class Pose:
    """Where a part lies: shift as a fraction of the side, rotation in degrees, scale."""

    shift_x: float
    shift_y: float
    turn: float
    zoom: float

    @classmethod
    def draw(cls, rng: np.random.Generator, spread: Spread) -> Pose:
        """Draw a pose within the spread."""
        shift_x, shift_y, turn, zoom = rng.uniform(-1, 1, 4)
        return cls(
            shift_x=float(shift_x) * spread.shift,
            shift_y=float(shift_y) * spread.shift,
            turn=float(turn) * spread.turn,
            zoom=spread.base_zoom * (1 + float(zoom) * spread.zoom),
        )


def take(picture: FloatImage, pose: Pose, image_size: int) -> FloatImage:
    """Return the picture moved to the pose, reduced to the image's size, under a lens that is not perfectly sharp.

    Args:
        picture: float32 [C, C, 3], 0 to 255.
        pose: Where the part lies.
        image_size: Side S of the result in pixels.

    Returns:
        float32 [S, S, 3], 0 to 255.
    """
    size = picture.shape[0]
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), pose.turn, pose.zoom)
    matrix[:, 2] += (pose.shift_x * size, pose.shift_y * size)
    moved = cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    reduced = cv2.resize(moved, (image_size, image_size), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(reduced, (0, 0), max(0.35, 0.45 * image_size / 256))
    return np.asarray(soft, dtype=np.float32)


def expose(
    picture: FloatImage, light: np.random.Generator, sensor: np.random.Generator, spread: Spread
) -> NDArray[np.uint8]:
    """Return the picture as a sensor records it under one draw of the light.

    Args:
        picture: float32 [S, S, 3], 0 to 255, under even white light.
        light: Draws exposure, gradient, vignette and colour temperature.
        sensor: Draws the noise.
        spread: How far each may go.

    Returns:
        uint8 [S, S, 3].
    """
    size = picture.shape[0]
    x, y = unit_grid(size)
    exposure, warmth = light.uniform(-1, 1, 2)
    slope, vignette = light.uniform(0, 1, 2)
    direction = light.uniform(0, 2 * np.pi)
    x, y = x - np.float32(0.5), y - np.float32(0.5)
    gain = np.float32(1 + exposure * spread.exposure) * (
        1
        + x * np.float32(2 * slope * spread.gradient * np.cos(direction))
        + y * np.float32(2 * slope * spread.gradient * np.sin(direction))
    )
    gain *= 1 - (x * x + y * y) * np.float32(2 * vignette * spread.vignette)
    tint = (1 + warmth * spread.warmth, 1.0, 1 - warmth * spread.warmth)
    lit = picture * np.asarray(cv2.merge([gain * np.float32(share) for share in tint]), dtype=np.float32)
    # Photon noise grows with the square root of the light; the floor under it is the read-out's.
    deviation = np.sqrt(np.maximum(lit, 0) * np.float32(0.7 / 128) + np.float32(0.3)) * np.float32(spread.noise)
    lit += deviation * sensor.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)
