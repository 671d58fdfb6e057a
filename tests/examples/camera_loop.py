"""Judge the frames of a camera until Ctrl-C: python camera_loop.py BUNDLE [CAMERA_INDEX|VIDEO|URL]."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge import Detector


def frames(source: int | str) -> Iterator[NDArray[np.uint8]]:
    """Give RGB frames, uint8 [H, W, 3], until the camera or the file ends."""
    camera = cv2.VideoCapture(source)
    if not camera.isOpened():
        raise SystemExit(f"{source} cannot be opened; expected a camera's index, a video file or a URL")
    try:
        while True:
            is_there, frame = camera.read()
            if not is_there:
                return
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)  # OpenCV gives blue first
    finally:
        camera.release()


def watch(bundle: str, source: int | str) -> int:
    """Print a line for every anomalous frame and return how many there were."""
    n_anomalous = 0
    with Detector.open(bundle) as detector:
        for number, prediction in enumerate(detector.stream(frames(source))):
            if prediction.is_anomalous:
                n_anomalous += 1
                print(f"frame {number}: anomalous, score {prediction.score:.3f}, p-value {prediction.p_value:.4f}")
    print(f"{n_anomalous} anomalous frames")
    return n_anomalous


if __name__ == "__main__":
    which = sys.argv[2] if len(sys.argv) > 2 else "0"
    try:
        watch(sys.argv[1], int(which) if which.isdecimal() else which)
    except KeyboardInterrupt:
        sys.exit(130)
