"""Where images come from: files, folders, globs, videos, cameras and streams, one picture at a time."""

from __future__ import annotations

import glob
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import IMAGE_SUFFIXES, is_image_file, read_image

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm"})
"""Endings of the files that are taken for videos, in lower case."""

_DECODERS = 2
_AHEAD = 3
"""Pictures decoded ahead of the one asked for: enough to overlap with the model, few enough for a small device."""

_FRAMES_LOST = 0.02
"""Share of the frames a video announces that may be missing: containers round their counts."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture of a source, or the reason why there is none."""

    source: str
    """Path of the file, or name of the camera or stream."""
    name: str
    """Short name for a file made from it, without an ending; two pictures may have the same."""
    image: NDArray[np.uint8] | InputError
    """uint8 [H, W, 3] RGB."""
    frame: int | None = None
    """Position in the video, from 0; None for an image file."""
    time_s: float | None = None
    """Time of the frame: since the video's start, or since the camera was opened."""


class Source(ABC):
    """Pictures in order; each is decoded once, when it is about to be used."""

    @property
    @abstractmethod
    def n_pictures(self) -> int | None:
        """How many pictures there will be, where that is known; a video's is its own statement."""

    @abstractmethod
    def __iter__(self) -> Iterator[Picture]:
        """Give the pictures; one that cannot be decoded comes as an error in its place."""


class ImageFiles(Source):
    """Image files, decoded by two threads a few pictures ahead.

    Args:
        files: (path, short name) of each.
        white_level: the 16-bit value that means white, from the bundle's preparation.
    """

    def __init__(self, files: Sequence[tuple[Path, str]], *, white_level: int = 65535) -> None:
        self.files = tuple(files)
        self._white_level = white_level

    @property
    def n_pictures(self) -> int:
        """How many files."""
        return len(self.files)

    def __iter__(self) -> Iterator[Picture]:
        """Give the pictures in the files' order."""
        files = iter(self.files)
        with ThreadPoolExecutor(_DECODERS, thread_name_prefix="vae-edge-read") as pool:
            waiting: deque[Future[Picture]] = deque()
            try:
                waiting.extend(pool.submit(self._read, *file) for file in islice(files, _AHEAD))
                while waiting:
                    picture = waiting.popleft().result()
                    waiting.extend(pool.submit(self._read, *file) for file in islice(files, 1))
                    yield picture
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, path: Path, name: str) -> Picture:
        try:
            return Picture(str(path), name, read_image(path, white_level=self._white_level))
        except InputError as error:
            return Picture(str(path), name, error)


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
        name = f"{_short_name(self.address)}-frame{frame:06d}"
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
        yield Picture(self.address, f"{_short_name(self.address)}-frame{n_read:06d}", InputError(reason), n_read)

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


class Chain(Source):
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)

    @property
    def n_pictures(self) -> int | None:
        """How many pictures all of them have; None as soon as one does not know."""
        counts = [source.n_pictures for source in self.sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def __iter__(self) -> Iterator[Picture]:
        """Give every source's pictures."""
        for source in self.sources:
            yield from source


def open_sources(
    texts: Sequence[str],
    *,
    recursive: bool = False,
    every: int = 1,
    max_frames: int | None = None,
    white_level: int = 65535,
    except_in: Path | None = None,
) -> Source:
    """Find out what the words of a command line mean; nothing is decoded yet.

    Args:
        texts: paths of images and videos, folders (their image files), globs, camera indices, URLs.
        recursive: take the folders' sub-folders too.
        every: of a video, every N-th frame.
        max_frames: of each video or camera, at most so many frames.
        white_level: the 16-bit value that means white.
        except_in: leave out what lies in this folder, such as the pictures of an earlier run.

    Raises:
        InputError: something does not exist, matches nothing, holds no image or cannot be opened; or a bad number.
    """
    for name, value in (("every", every), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected 1 or more")
    if not texts:
        raise InputError("no source was given; expected images, folders, globs, videos, a camera's index or a URL")
    sources: list[Source] = []
    images: list[tuple[Path, str]] = []

    def end_images() -> None:
        if images:
            sources.append(ImageFiles(images, white_level=white_level))
            images.clear()

    for text in texts:
        live = _is_live(text)
        found = [(Path(text), "")] if live else _files_of(text, recursive=recursive, except_in=except_in)
        for path, name in found:
            if live or _is_video_file(path):
                end_images()
                sources.append(Video(text if live else str(path), every=every, max_frames=max_frames))
            else:
                images.append((path, name))
    end_images()
    return sources[0] if len(sources) == 1 else Chain(sources)


def image_files(texts: Sequence[str], *, recursive: bool = False) -> list[Path]:
    """Return the image files that files, folders and globs stand for, in order.

    Raises:
        InputError: something does not exist, matches nothing, holds no image, or is no image file.
    """
    if not texts:
        raise InputError("no images were given; expected files, folders or globs")
    files = [path for text in texts for path, _ in _files_of(text, recursive=recursive, except_in=None)]
    for path in files:
        if _is_video_file(path):
            raise InputError(f"{path} is a video; expected image files here")
    return files


def _files_of(text: str, *, recursive: bool, except_in: Path | None) -> list[tuple[Path, str]]:
    """Return the files that one word stands for, each with its short name.

    A file that is named itself is taken whatever its ending; a folder or a glob gives what ends like an image, a glob
    videos too.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        return _files_in(path, recursive=recursive, except_in=except_in)
    if path.exists():
        return [(path, path.stem)]
    if not glob.has_magic(text):
        raise InputError(f"{text} does not exist; expected an image, a folder, a glob in quotes or a video")
    found: list[tuple[Path, str]] = []
    # Path.glob takes no absolute pattern.
    for match in sorted(map(Path, glob.glob(str(path), recursive=True))):  # noqa: PTH207
        if match.is_dir():
            found += [] if "**" in text else _files_in(match, recursive=recursive, except_in=except_in, or_raise=False)
        elif (is_image_file(match) or _is_video_file(match)) and not _lies_in(match, except_in):
            found.append((match, f"{match.parent.name}-{match.stem}".lstrip("-")))
    if not found:
        raise InputError(f"the glob {text!r} matches no image and no video; check it, and keep it in quotes")
    return found


def _files_in(
    folder: Path, *, recursive: bool, except_in: Path | None, or_raise: bool = True
) -> list[tuple[Path, str]]:
    found = sorted(
        path
        for path in folder.glob("**/*" if recursive else "*")
        # A name with a leading dot is a leftover: macOS writes ._picture.png beside picture.png.
        if is_image_file(path) and not path.name.startswith(".") and path.is_file() and not _lies_in(path, except_in)
    )
    if not found and or_raise:
        advice = "name a folder of images" if recursive else "add --recursive to look into its sub-folders"
        raise InputError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); {advice}")
    root = folder.resolve().name
    return [(path, "-".join((root, *path.relative_to(folder).with_suffix("").parts))) for path in found]


def _lies_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.resolve().is_relative_to(folder.resolve())


def _is_live(text: str) -> bool:
    """Tell a camera's index or a stream's URL from a file; a file called `0` is a file."""
    return "://" in text or (text.isdecimal() and not Path(text).exists())


def _is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _short_name(address: str) -> str:
    return Path(address).stem or address
