"""Videos with the anomaly and the verdict drawn into every frame that was judged."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.platform.atomic import replace_file, scratch_folder
from vae_edge.sinks.sink import FreeNames, Inspected, Sink, cannot_write
from vae_edge.sources.pictures import Picture
from vae_edge.sources.video import n_frames_announced, video_name
from vae_edge.wording import count

_CODECS = ((".mp4", "mp4v"), (".avi", "MJPG"))
"""Ending and codec, the one to try first."""
_USUAL_RATE = 25.0
"""Frames in a second, for a camera that does not say its own."""
_LOWEST_RATE = 0.1
"""OpenCV rounds what is much less to 0."""


class AnnotatedVideos(Sink):
    """Writes one video for each video, camera or stream; image files are not its business.

    The frame rate is that of the pictures taken: the source's own, divided by N where every N-th frame is taken, and
    25 where the source has none. Frames without a verdict are left out, as are those that a live source skipped. Where
    the frames change their size, a new file begins. Until it is finished a file has a name with a leading dot.

    Args:
        folder: made with the first frame.

    Raises:
        InputError: this OpenCV can write no video.
    """

    what = "annotated videos"
    is_by_product = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._suffix, self._codec = _usable_codec()
        self._names = FreeNames()
        self._writer: _Writer | None = None
        self._last: Picture | None = None
        self._finished: list[tuple[Path, int]] = []
        self._n_left_out = 0
        self._failed = False

    def write(self, inspected: Inspected) -> None:
        """Draw and write one frame; after a failure nothing more is tried.

        Raises:
            InputError: the video cannot be written.
        """
        picture, result = inspected.picture, inspected.result
        if picture.frame is None or self._failed:
            return
        if isinstance(result, VaeEdgeError) or isinstance(picture.image, InputError):
            self._n_left_out += 1
            return
        drawn = cv2.cvtColor(result.overlay(picture.image), cv2.COLOR_RGB2BGR)
        size = (drawn.shape[1], drawn.shape[0])
        if self._writer is None or self._writer.size != size or not self._goes_on(picture):
            self._failed = True
            self._finish()
            if not self._finished:
                self._names.spare(self.folder)
            path = self.folder / f"{self._names.take(video_name(picture.source))}{self._suffix}"
            self._writer = _Writer(path, self._codec, max(picture.frame_rate or _USUAL_RATE, _LOWEST_RATE), size)
            self._failed = False
        self._last = picture
        self._writer.write(np.asarray(drawn, dtype=np.uint8))

    def close(self) -> None:
        """Finish the video that is being written, so that it can be played.

        Raises:
            InputError: it is not all there.
        """
        self._finish()

    def summary(self) -> list[tuple[str, str]]:
        """Return what was written, and how many frames are missing for lack of a verdict."""
        rows = [("annotated video", f"{count(n, 'frame')} in {path}") for path, n in self._finished]
        if self._n_left_out:
            rows.append(("left out of it", f"{count(self._n_left_out, 'frame')} without a verdict"))
        return rows or [("annotated video", "none: no frame got a verdict")]

    def _goes_on(self, picture: Picture) -> bool:
        """Return whether this is a later frame of the same video; one that is named twice begins again."""
        assert picture.frame is not None
        last = self._last
        return (
            last is not None and last.frame is not None and picture.source == last.source and picture.frame > last.frame
        )

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.finish()
            self._finished.append((writer.path, writer.n_written))


class _Writer:
    """One file that is being written."""

    def __init__(self, path: Path, codec: str, rate: float, size: tuple[int, int]) -> None:
        self.path = path
        self.size = size
        self.n_written = 0
        self._temporary = path.with_name(f".{path.stem}.part{path.suffix}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(str(path), error) from error
        self._video = _open_writer(self._temporary, codec, rate, size)
        if not self._video.isOpened():
            width, height = size
            raise InputError(
                f"{path} could not be started with frames of {width}x{height} pixels; "
                "check that the folder is writable, or leave out --video"
            )

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add one frame, uint8 [H, W, 3] BGR."""
        self._video.write(frame)
        self.n_written += 1

    def finish(self) -> None:
        """Close the file, check that all of it is there, and give it its name."""
        self._video.release()
        # OpenCV's writer says nothing of a full disk.
        read = cv2.VideoCapture(str(self._temporary))
        n_there = n_frames_announced(read) or 0
        read.release()
        if n_there < self.n_written:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            raise InputError(f"{self.path} could not be written completely; make room or choose another place")
        try:
            replace_file(self._temporary, self.path)
        except OSError as error:
            raise cannot_write(str(self.path), error) from error


def _usable_codec() -> tuple[str, str]:
    """Find out by trying what this OpenCV can write."""
    with scratch_folder("video") as folder:
        for suffix, codec in _CODECS:
            writer = _open_writer(Path(folder, f"try{suffix}"), codec, _USUAL_RATE, (64, 64))
            usable = writer.isOpened()
            writer.release()
            if usable:
                return suffix, codec
    tried = " and ".join(f"{codec} in {suffix}" for suffix, codec in _CODECS)
    raise InputError(f"this OpenCV cannot write videos ({tried} failed); leave out --video, or install its FFmpeg")


def _open_writer(path: Path, codec: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    return cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), rate, size)
