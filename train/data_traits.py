"""What a few good parts show about the set: whether parts lie at the same place, and whether their light differs.

Two numbers that no training is needed for. They decide what would cost a training each to try.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.image import Preparation
from vae_edge.progress import Progress
from vae_edge.records import Record
from vae_edge.train.inspection_set import ImageFile, spread
from vae_edge.train.loading import load_images

SIDE = 96
"""Side of the thumbnails."""

MOST_IMAGES = 200

ALIGNED = 0.4
"""Alignment from which parts count as lying at the same place. Of the image sets at hand, rigid parts under a fixed
camera had 0.7 and 0.9, surfaces 0.0 and 0.1."""

_SURROUNDINGS = 5.0
"""Standard deviation, in pixels of the thumbnail, of the Gaussian that a pixel is measured by: the lamp's slow fall of
light, which all pictures of a surface share, must not count as structure."""

UNEQUAL_LIGHT = 0.1
"""Spread of light below which evening it out is not tried: the sets with a steady lamp had 0.05 to 0.08."""


VERY_UNEQUAL_LIGHT = 0.3
"""Spread of light from which it is evened out unless leaving it is clearly better. The magnetic tiles, exposed six
times, have 1.1; the drawn surface under a lamp that flickers a little has 0.12."""


class DataTraits(Record):
    """What was measured on thumbnails of normals."""

    alignment: float
    """Share of the variance within the images, each pixel measured by its surroundings, that the mean image explains: 0
    (or a little less) to 1. 1: all images are equal but for their light."""
    light_spread: float
    """Standard deviation of the images' mean brightness, or of their contrast, whichever is larger; in units of the
    mean contrast (standard deviation of the brightness within an image)."""

    @property
    def is_aligned(self) -> bool:
        """Whether the same thing lies at the same place in all images."""
        return self.alignment >= ALIGNED

    @property
    def has_steady_light(self) -> bool:
        """Whether all images have practically the same light."""
        return self.light_spread < UNEQUAL_LIGHT


def measure_traits(images: NDArray[np.uint8]) -> DataTraits:
    """Measure the traits on thumbnails.

    Args:
        images: uint8 [n, h, w, 3], n of 2 or more.
    """
    grey = images.astype(np.float64).mean(axis=3)
    means = grey.mean(axis=(1, 2))
    contrasts = grey.std(axis=(1, 2))
    unit = max(float(contrasts.mean()), 1e-6)
    even = np.stack([_measured_by_surroundings(image) for image in grey])
    n = len(images)
    total = float(np.square(even).mean())
    # The mean image explains a share by chance, as it holds a share 1 / n of each image: hence n / (n - 1).
    rest = float(np.square(even - even.mean(axis=0)).mean()) * n / (n - 1)
    alignment = 1 - rest / total if total > 0 else 1.0
    return DataTraits(alignment=alignment, light_spread=float(max(means.std(), contrasts.std())) / unit)


def _measured_by_surroundings(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each pixel less the mean around it, in units of the deviation around it: float64 [h, w]."""

    def around(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(values, (0, 0), _SURROUNDINGS), dtype=np.float64)

    off = grey - around(grey)
    return np.asarray(off / np.sqrt(around(off * off) + 1.0), dtype=np.float64)


def look_at(files: tuple[ImageFile, ...], *, white_level: int, progress: Progress | None = None) -> DataTraits:
    """Load thumbnails of some of the normals and measure their traits.

    Args:
        files: normals, 2 or more.
        white_level: of 16-bit images.
        progress: called with thumbnails made and in all.

    Raises:
        InputError: a file cannot be decoded.
    """
    thumbnail = Preparation(height=SIDE, width=SIDE, white_level=white_level)
    return measure_traits(load_images(spread(files, MOST_IMAGES), thumbnail, progress))
