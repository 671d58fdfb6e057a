"""Frames of recorded videos, and what recordings share with cameras and streams: opening one, and a frame's picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import read_head, set_opencv_log_level
from vae_edge.picture_files.header import HEAD_BYTES, format_of
from vae_edge.platform.opencv import reports_gstreamer
from vae_edge.sources.addresses import ffmpeg_redirects_off, final_address, without_password
from vae_edge.sources.cameras import NAME, cameras_here, index_of, is_camera, is_device, is_pipeline
from vae_edge.sources.gstreamer import GStreamerCapture, check_pipeline
from vae_edge.sources.pictures import Picture, Source

VIDEO_SUFFIXES = (
    frozenset({".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".wmv", ".asf", ".flv", ".3gp", ".ogv"})
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".mxf"}  # MPEG's
)
"""Endings of the files that a glob takes for videos, in lower case; what a file is, its content says."""

DEFAULT_TIMEOUT_S = 5.0
"""How long a stream may take to answer, and to send its next frame; OpenCV's own patience is 30 s."""

_HEAD_BYTES = 600
_PACKETS = ((0, 188), (4, 192))
_CONTAINERS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",  # MPEG video
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"FLV\x01",
    b"OggS",
    b"\x06\x0e\x2b\x34",  # MXF
    b"YUV4MPEG2",
)

_FRAMES_LOST = 0.02
"""Share of the frames a video announces that may be missing: containers round their counts."""

_HIGHEST_RATE = 1000.0
"""Frames in a second; streams that do not know theirs announce the 90,000 ticks of their clock."""


def is_video_file(path: Path) -> bool:
    """Return whether a file is a video: by its first bytes, or where they say nothing by its name."""
    try:
        head = read_head(path, _HEAD_BYTES)
    except InputError:
        return False  # Whoever decodes it as a picture says why.
    if format_of(head[:HEAD_BYTES]) is not None:
        return False
    return is_video_content(head) or path.suffix.lower() in VIDEO_SUFFIXES


def is_video_content(head: bytes) -> bool:
    """Return whether a file that begins with these bytes, 600 or more, is in a container of videos."""
    if head[4:8] == b"ftyp":
        return head[8:12] not in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")
    # MPEG transport streams: a packet begins at each 188 bytes, or at 192 with a time before it.
    packets = any(len(head) > at + 2 * n and head[at] == head[at + n] == head[at + 2 * n] == 0x47 for at, n in _PACKETS)
    return (
        packets
        or head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip")
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or head.startswith(_CONTAINERS)
    )


Capture = cv2.VideoCapture | GStreamerCapture


def open_capture(address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S, other_hosts: bool = False) -> Capture:
    """Open a video file, a camera (its index, device, name or GStreamer pipeline) or a stream (its URL).

    Args:
        address: path, index, `/dev/videoN`, `v4l:NAME`, `gst:PIPELINE` or URL.
        timeout_s: how long a stream may take to answer, and to send its next frame.
        other_hosts: follow a redirect to another host.

    Raises:
        InputError: it cannot be opened, did not answer in time, or leads to another host.
    """
    if is_pipeline(address):
        if not reports_gstreamer(cv2.getBuildInformation()):
            return GStreamerCapture(address, timeout_s=timeout_s)
        video = cv2.VideoCapture(check_pipeline(address), cv2.CAP_GSTREAMER)
    elif address.isdecimal():
        video = cv2.VideoCapture(int(address))
    elif is_device(address):
        video = cv2.VideoCapture(index_of(address), cv2.CAP_V4L2)
    elif "://" in address:
        limit_ms = max(1, round(timeout_s * 1000))
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, limit_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, limit_ms]
        final = final_address(address, timeout_s=timeout_s, other_hosts=other_hosts)
        # OpenCV logs the address with its password where one of its readers fails.
        with _opencv_silenced(), nullcontext() if other_hosts else ffmpeg_redirects_off():
            video = cv2.VideoCapture(final, cv2.CAP_ANY, limits)
    else:
        video = cv2.VideoCapture(address)
    if video.isOpened():
        return video
    video.release()
    kind = "camera" if is_camera(address) else "video"
    if is_pipeline(address):
        advice = "try the pipeline with gst-launch-1.0"
    elif is_camera(address):
        advice = f"check that no other program uses it; {cameras_here()}"
    else:
        advice = (
            "check that it responds and that no other program uses it"
            if "://" in address
            else "expected MP4, AVI, MKV or MOV with a codec that OpenCV supports, such as H.264"
        )
    raise InputError(f"{kind} {without_password(address)} could not be opened; {advice}")


def n_frames_announced(video: Capture) -> int | None:
    """Return how many frames an open video says it has; None for a live one, and where there is no index."""
    announced = video.get(cv2.CAP_PROP_FRAME_COUNT)
    # What announces nothing gives 0, less than that, or nonsense.
    return int(announced) if 0 < announced < 1e9 else None


def frame_rate(video: Capture) -> float | None:
    """Return the frames in a second that an open video announces; None if it does not."""
    rate = video.get(cv2.CAP_PROP_FPS)
    return float(rate) if 0 < rate <= _HIGHEST_RATE else None


def frame_name(address: str, frame: int) -> str:
    """Return the short name of a frame's picture."""
    return f"{video_name(address)}-frame{frame:06d}"


def video_name(address: str) -> str:
    """Return the short name of a video: its file's without the ending, or a camera's index or name."""
    if is_pipeline(address):
        return "gstreamer"  # A pipeline is no name for a file.
    if address.startswith(NAME):
        return re.sub(r"\W+", "-", address.removeprefix(NAME)).strip("-")
    return Path(address).stem or address


def frame_image(address: str, frame: int, retrieved: tuple[bool, Any]) -> NDArray[np.uint8] | InputError:
    """Turn what OpenCV retrieved into uint8 [H, W, 3] RGB, or into the error that a frame it could not decode gets."""
    ok, pixels = retrieved
    if not ok or pixels is None:
        return InputError(f"frame {frame} of {address} could not be decoded; record or copy the video again")
    code = cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(pixels, code), dtype=np.uint8)


class Video(Source):
    """A recording: every frame of it, or every N-th. None is skipped, however long the verdicts take.

    Args:
        address: path, or the URL of a recording.
        every: take frame 0, N, 2N and so on.
        max_frames: stop after this many pictures; None: at the end.
        other_hosts: follow a redirect of a URL to another host.

    Raises:
        InputError: it cannot be opened.
    """

    def __init__(
        self, address: str, *, every: int = 1, max_frames: int | None = None, other_hosts: bool = False
    ) -> None:
        super().__init__()
        self._address = address
        self.address = without_password(address)
        self._every = every
        self._max_frames = max_frames
        self._other_hosts = other_hosts
        video = open_capture(address, other_hosts=other_hosts)
        self._n_frames = n_frames_announced(video)
        video.release()

    @property
    def n_pictures(self) -> int | None:
        """How many pictures the file announces."""
        if self._n_frames is None:
            return self._max_frames
        pictures = -(-self._n_frames // self._every)
        return pictures if self._max_frames is None else min(pictures, self._max_frames)

    @property
    def has_frames(self) -> bool:
        """Whether there are frames: yes."""
        return True

    def __iter__(self) -> Iterator[Picture]:
        """Yield the frames; a file that breaks off early gives an error after its last one."""
        video = open_capture(self._address, other_hosts=self._other_hosts)
        try:
            rate = frame_rate(video)
            frame, given = 0, 0
            while (self._max_frames is None or given < self._max_frames) and not self._stopped.is_set():
                # Grabbing is cheap; only the frames that are wanted are converted to pictures.
                if not video.grab():
                    yield from self._end(frame)
                    return
                if frame % self._every == 0:
                    yield Picture(
                        self.address,
                        frame_name(self.address, frame),
                        frame_image(self.address, frame, video.retrieve()),
                        frame,
                        time_s=None if rate is None else frame / rate,
                        frame_rate=None if rate is None else rate / self._every,
                    )
                    given += 1
                frame += 1
        finally:
            video.release()

    def _end(self, n_read: int) -> Iterator[Picture]:
        if n_read == 0:
            reason = f"{self.address} has no frame that can be decoded; record it again, for example as H.264 in MP4"
        elif self._n_frames is not None and n_read < self._n_frames * (1 - _FRAMES_LOST) - 1:
            reason = f"{self.address} ends after {n_read} of {self._n_frames} frames; copy or record it again"
        else:
            return
        yield Picture(self.address, frame_name(self.address, n_read), InputError(reason), n_read)


@contextmanager
def _opencv_silenced() -> Iterator[None]:
    level = set_opencv_log_level(0)
    try:
        yield
    finally:
        set_opencv_log_level(level)
