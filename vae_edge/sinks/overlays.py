"""Pictures with the anomaly drawn in, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.platform.atomic import new_file
from vae_edge.prediction import Prediction
from vae_edge.sinks.sink import FreeNames, Inspected, Sink
from vae_edge.sources.pictures import Picture

LONGEST_SIDE = 4096
"""Pixels of the longer side of an overlay."""

OverlayFormat = Literal["jpg", "png"]


class OverlayFolder(Sink):
    """Writes pictures with the anomaly map drawn in, each under its own name, which is noted as `overlay`.

    A large picture is drawn smaller, with `LONGEST_SIDE` pixels.

    Args:
        folder: made with the first picture.
        file_format: `jpg` is small, `png` exact.
        only_anomalous: leave out the pictures that are normal; those that are not inspectable are drawn.
    """

    what = "overlays"
    is_by_product = True

    def __init__(self, folder: Path, *, file_format: OverlayFormat = "jpg", only_anomalous: bool = False) -> None:
        self.folder = folder
        self._format = file_format
        self._only_anomalous = only_anomalous
        self._names = FreeNames()
        self._n_written = 0

    def write(self, inspected: Inspected) -> None:
        """Draw and write one overlay, where the picture got a verdict and one is wanted.

        Raises:
            InputError: it cannot be written.
        """
        picture, result = inspected.picture, inspected.result
        if isinstance(result, VaeEdgeError) or isinstance(picture.image, InputError):
            return
        if result.verdict != "normal" or not self._only_anomalous:
            path = self.draw(picture, picture.image, result)
            inspected.record["overlay"] = f"{self.folder.name}/{path.name}"

    def draw(self, picture: Picture, image: NDArray[np.uint8], prediction: Prediction) -> Path:
        """Draw and write one overlay.

        Args:
            picture: gives the name.
            image: uint8 [H, W, 3] RGB, the original picture.
            prediction: gives the map and the verdict.

        Raises:
            InputError: it cannot be written.
        """
        if not self._n_written:
            self._names.spare(self.folder)
        path = self.folder / f"{self._names.take(picture.name)}.{self._format}"
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if self._format == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 1]
        try:
            drawn = cv2.cvtColor(prediction.overlay(image, longest_side=LONGEST_SIDE), cv2.COLOR_RGB2BGR)
            done, data = cv2.imencode(f".{self._format}", drawn, quality)
        except cv2.error as error:
            raise InputError(f"the overlay of {picture.source} could not be encoded ({error.err}); try png") from error
        if not done:
            raise InputError(f"the overlay of {picture.source} could not be encoded as {self._format}; try png")
        # Encoding and writing apart: imwrite fails silently on a full disk.
        with new_file(path, is_flushed=False) as temporary:
            temporary.write_bytes(data.tobytes())
        self._n_written += 1
        return path

    def summary(self) -> list[tuple[str, str]]:
        """Return how many were written."""
        return [("overlays", f"{self._n_written} in {self.folder}")]
