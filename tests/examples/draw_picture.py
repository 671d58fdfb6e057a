"""Draw the picture at the top of the README: python draw_picture.py BUNDLE OUT.jpg PICTURE...

Each picture stands above the same one with its verdict and its anomaly map.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge import Detector
from vae_edge.image import read_image

SIDE, MARGIN = 190, 10


def column(detector: Detector, path: str) -> NDArray[np.uint8]:
    """Return a picture and its overlay, one above the other, uint8 [2 * SIDE + MARGIN, SIDE, 3] RGB."""
    image = read_image(path)
    gap = np.full((MARGIN, SIDE, 3), 255, np.uint8)
    above, below = (
        np.asarray(cv2.resize(shown, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
        for shown in (image, detector.predict(image).overlay(image))
    )
    return np.vstack([above, gap, below])


def draw(bundle: str, out: str, pictures: list[str]) -> None:
    """Write the columns side by side as a JPEG."""
    with Detector.open(bundle) as detector:
        columns = [column(detector, path) for path in pictures]
    gap = np.full((columns[0].shape[0], MARGIN, 3), 255, np.uint8)
    strip = np.hstack([part for each in columns for part in (gap, each)][1:])
    _, data = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    Path(out).write_bytes(data.tobytes())


if __name__ == "__main__":
    draw(sys.argv[1], sys.argv[2], sys.argv[3:])
