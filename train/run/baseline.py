"""Anomaly detection without a network: how far is each pixel from the mean of the normals?

A report prints its figures beside a model's. A model that does no better has learned nothing that a mean image lacks.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError

_SMALLEST_DEVIATION = 2.0  # Of 255, about a sensor's noise: a few normals may agree on a pixel by chance.
_SMOOTHING = 3.0 / 256  # Standard deviation of the Gaussian over the shorter side.
_TOP = 0.005  # Share of the map whose mean is the score.


class TemplateBaseline:
    """The mean and the standard deviation of each pixel over normal images, and the distance from them.

    Args:
        mean: float32 [H, W, 3], values 0 to 255.
        deviation: float32 [H, W, 3], values above 0.
    """

    def __init__(self, mean: NDArray[np.float32], deviation: NDArray[np.float32]) -> None:
        """Keep the statistics; ``fit`` finds them from images."""
        self.mean = mean
        self.deviation = deviation

    @classmethod
    def fit(cls, images: NDArray[np.uint8]) -> TemplateBaseline:
        """Take mean and standard deviation over normal images.

        Args:
            images: uint8 [N, H, W, 3] RGB, N of 2 or more.

        Returns:
            The fitted baseline. Deviations below 2 of 255 are raised to 2.

        Raises:
            InputError: The images have another shape or dtype, or there are fewer than two.
        """
        _check(images)
        if len(images) < 2:
            raise InputError(f"The baseline got {len(images)} normal images, expected 2 or more; pass more.")
        total = np.zeros(images.shape[1:], dtype=np.float64)
        squares = np.zeros(images.shape[1:], dtype=np.float64)
        # One image at a time: all of them as floats would take four to eight times the set's memory.
        for image in images:
            values = image.astype(np.float64)
            total += values
            squares += values * values
        mean = total / len(images)
        deviation = np.sqrt(np.maximum(squares / len(images) - mean * mean, 0.0))
        return cls(mean.astype(np.float32), np.maximum(deviation, _SMALLEST_DEVIATION).astype(np.float32))

    def anomaly_maps(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the smoothed distance from the normals, in standard deviations.

        Args:
            images: uint8 [N, H, W, 3] RGB of the size it was fitted on.

        Returns:
            float32 [N, H, W], values from 0: the absolute z-score, averaged over the channels, under a Gaussian.

        Raises:
            InputError: The images have another shape or dtype.
        """
        _check(images)
        if images.shape[1:] != self.mean.shape:
            raise InputError(
                f"The baseline got images of shape {images.shape[1:]}, expected {self.mean.shape} as it was fitted on; "
                "resize them to that."
            )
        sigma = _SMOOTHING * min(images.shape[1:3])
        maps = np.empty(images.shape[:3], dtype=np.float32)
        for place, image in enumerate(images):
            distance = (np.abs(image.astype(np.float32) - self.mean) / self.deviation).mean(axis=2)
            maps[place] = cv2.GaussianBlur(distance, (0, 0), sigma)
        return maps

    def scores(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return each image's mean over the top 0.5 % of its map.

        Args:
            images: uint8 [N, H, W, 3] RGB of the size it was fitted on.

        Returns:
            float32 [N], values from 0; the higher, the less normal.

        Raises:
            InputError: The images have another shape or dtype.
        """
        maps = self.anomaly_maps(images)
        flat = maps.reshape(len(maps), maps.shape[1] * maps.shape[2])
        n = max(1, round(_TOP * flat.shape[1]))
        scores: NDArray[np.float32] = np.partition(flat, -n, axis=1)[:, -n:].mean(axis=1, dtype=np.float32)
        return scores


def _check(images: NDArray[np.uint8]) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise InputError(
            f"The baseline got {images.dtype} of shape {images.shape}, expected uint8 of shape [N, H, W, 3]; "
            "stack RGB images of one size."
        )
