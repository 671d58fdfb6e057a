"""Random fields: the grain of a mat, the speckle of paint, the grooves of brushed metal.

Each function takes a generator and the canvas' side and returns float32 [size, size] with mean about 0 and standard
deviation about 1, the same for the same generator state.
"""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.sample.canvas import FloatImage, unit_grid


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
