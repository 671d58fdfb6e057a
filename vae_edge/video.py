"""Frames of video files, cameras and streams."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vae_edge.errors import InputError
from vae_edge.pictures import Picture, Source

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm"})
"""Endings of the files that are taken for videos, in lower case."""

_FRAMES_LOST = 0.02
"""Share of the frames a video announces that may be missing: containers round their counts."""


def is_video_file(path: Path) -> bool:
    """Tell whether the name ends like a video file."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class Video(Source):
    """A video file, a camera (its index) or a stream (its URL): every frame, or every N-th.

    Args:
        address: path, index or URL.
        every: take frame 0, N, 2N and so on.
        max_frames: stop after so many pictures; None: at the end, which a camera does not have.

    Raises:
        InputError: it cannot be opened.
    """

    def __init__(self, address: str, *, every: int = 1, max_frames: int | None = None) -> None:
        self.address = address
        self._name = Path(address).stem or address
        self.is_live = address.isdecimal() or "://" in address
        self._every = every
        self._max_frames = max_frames
        video = self._open()
        announced = video.get(cv2.CAP_PROP_FRAME_COUNT)
        video.release()
        # A container without an index announces nothing, or nonsense.
        self._n_frames = int(announced) if not self.is_live and 0 < announced < 1e9 else None

    @property
    def n_pictures(self) -> int | None:
        """How many pictures the file announces; None for a live source without `max_frames`."""
        if self._n_frames is None:
            return self._max_frames
        pictures = -(-self._n_frames // self._every)
        return pictures if self._max_frames is None else min(pictures, self._max_frames)

    def __iter__(self) -> Iterator[Picture]:
        """Give the frames; a file that breaks off early gives an error after its last one."""
        video = self._open()
        try:
            rate = video.get(cv2.CAP_PROP_FPS)
            begin_s = time.monotonic()
            frame, given = 0, 0
            while self._max_frames is None or given < self._max_frames:
                # Grabbing is cheap; only the frames that are wanted are converted to pictures.
                if not video.grab():
                    yield from self._end(frame)
                    return
                if frame % self._every == 0:
                    time_s = time.monotonic() - begin_s if self.is_live else (frame / rate if rate > 0 else None)
                    yield self._picture(video.retrieve(), frame, time_s)
                    given += 1
                frame += 1
        finally:
            video.release()

    def _picture(self, retrieved: tuple[bool, Any], frame: int, time_s: float | None) -> Picture:
        name = f"{self._name}-frame{frame:06d}"
        ok, pixels = retrieved
        if not ok or pixels is None:
            reason = InputError(f"frame {frame} of {self.address} could not be decoded; record or copy the video again")
            return Picture(self.address, name, reason, frame, time_s)
        code = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
        return Picture(self.address, name, np.asarray(cv2.cvtColor(pixels, code), dtype=np.uint8), frame, time_s)

    def _end(self, n_read: int) -> Iterator[Picture]:
        if self.is_live:
            reason = f"{self.address} gives no more frames after {n_read}; check the camera or the network"
        elif n_read == 0:
            reason = f"{self.address} holds no frame that can be decoded; record it again, as H.264 in MP4 for example"
        elif self._n_frames is not None and n_read < self._n_frames * (1 - _FRAMES_LOST) - 1:
            reason = f"{self.address} breaks off after {n_read} of {self._n_frames} frames; copy or record it again"
        else:
            return
        yield Picture(self.address, f"{self._name}-frame{n_read:06d}", InputError(reason), n_read)

    def _open(self) -> cv2.VideoCapture:
        video = cv2.VideoCapture(int(self.address) if self.address.isdecimal() else self.address)
        if video.isOpened():
            return video
        video.release()
        kind = "camera" if self.address.isdecimal() else "video"
        advice = (
            "check that it answers and that nothing else uses it"
            if self.is_live
            else "expected MP4, AVI, MKV or MOV with a codec that OpenCV knows, such as H.264"
        )
        raise InputError(f"{kind} {self.address} could not be opened; {advice}")
