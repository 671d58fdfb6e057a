"""Pictures in order, each decoded once: what every source of images gives."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import as_8_bit_rgb, read_pixels
from vae_edge.platform.work import result_of

_DECODERS = 2
_AHEAD = 3
"""Pictures decoded ahead of the one asked for: enough to overlap with the model, few enough for a small device."""


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
    skipped: int | None = None
    """Frames of a camera or a stream left out since the picture before because a newer one came; None elsewhere."""
    frame_rate: float | None = None
    """Pictures in a second of the video's own time; None for an image file, and where the video does not say."""
    largest_16_bit: int | None = None
    """Largest value in an image file of 16 bits; None elsewhere."""


class Source(ABC):
    """Pictures in order; each is decoded once, when it is about to be used.

    One thread at a time takes the pictures, which need not be the one that calls `stop`.
    """

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self.n_passed_over = 0
        """Files in the folders of the source that are not taken, for they are not called like images or are hidden."""

    @property
    @abstractmethod
    def n_pictures(self) -> int | None:
        """How many pictures there will be, where that is known; a video's is its own statement."""

    @property
    def has_frames(self) -> bool:
        """Whether there are frames of a video, a camera or a stream among the pictures."""
        return False

    @property
    def is_live(self) -> bool:
        """Whether pictures come at their own pace from a camera or a stream, so that the newest verdict counts most."""
        return False

    @property
    def n_reconnections(self) -> int:
        """How often a camera or a stream that had broken off was found again."""
        return 0

    @abstractmethod
    def __iter__(self) -> Iterator[Picture]:
        """Return the pictures; one that cannot be decoded comes as an error in its place."""

    def stop(self) -> None:
        """Let the iteration end: a `next` that waits for a picture ends within 0.2 s, one that decodes after that.

        Any thread may call this, before, during and after the iteration, and more than once. A source that was
        stopped gives no more pictures.
        """
        self._stopped.set()


class ImageFiles(Source):
    """Image files, decoded by two threads a few pictures ahead.

    Args:
        files: (path, short name) of each.
        white_level: the 16-bit value that means white, from the bundle's preparation.
        max_pixels: a larger picture is an error; None: see `vae_edge.image.read_image`.
    """

    def __init__(
        self, files: Sequence[tuple[Path, str]], *, white_level: int = 65535, max_pixels: int | None = None
    ) -> None:
        super().__init__()
        self.files = tuple(files)
        self._white_level = white_level
        self._max_pixels = max_pixels

    @property
    def n_pictures(self) -> int:
        """The number of files."""
        return len(self.files)

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures in the files' order."""
        with FileDecoder(self._white_level, self._max_pixels) as decoder, decoder.pictures(self.files) as pictures:
            for picture in pictures:
                if self._stopped.is_set():
                    return
                yield picture


class FileDecoder:
    """Two threads that decode image files, from entering to leaving the block."""

    def __init__(self, white_level: int, max_pixels: int | None = None) -> None:
        self._white_level = white_level
        self._max_pixels = max_pixels
        self._pool = ThreadPoolExecutor(_DECODERS, thread_name_prefix="vae-edge-read")

    @contextmanager
    def pictures(self, files: Iterable[tuple[Path, str]]) -> Iterator[Iterator[Picture]]:
        """Yield the pictures of some files, (path, short name) of each, in order and a few decoded ahead."""
        waiting: deque[Future[Picture]] = deque()

        def in_order() -> Iterator[Picture]:
            rest = iter(files)
            waiting.extend(self._pool.submit(self._read, *file) for file in islice(rest, _AHEAD))
            while waiting:
                picture = result_of(waiting.popleft())
                waiting.extend(self._pool.submit(self._read, *file) for file in islice(rest, 1))
                yield picture

        try:
            yield in_order()
        finally:
            for future in waiting:
                future.cancel()

    def _read(self, path: Path, name: str) -> Picture:
        try:
            pixels = read_pixels(path, max_pixels=self._max_pixels)
            image = as_8_bit_rgb(pixels, name=str(path), white_level=self._white_level)
        except InputError as error:
            return Picture(str(path), name, error)
        return Picture(str(path), name, image, largest_16_bit=int(pixels.max()) if pixels.dtype == np.uint16 else None)

    def __enter__(self) -> FileDecoder:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()


class OneError(Source):
    """Something that was named and cannot be opened: one error in its place, so that the others are judged."""

    def __init__(self, picture: Picture, *, has_frames: bool) -> None:
        super().__init__()
        self._picture = picture
        self._has_frames = has_frames

    @property
    def n_pictures(self) -> int:
        """1."""
        return 1

    @property
    def has_frames(self) -> bool:
        """Whether it was to be a video."""
        return self._has_frames

    def __iter__(self) -> Iterator[Picture]:
        """Yield the error."""
        if not self._stopped.is_set():
            yield self._picture


class Chain(Source):
    """Several sources, one after the other."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__()
        self.sources = tuple(sources)

    @property
    def n_pictures(self) -> int | None:
        """How many pictures all of them have; None as soon as one does not know."""
        counts = [source.n_pictures for source in self.sources]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    @property
    def has_frames(self) -> bool:
        """Whether one of them has frames."""
        return any(source.has_frames for source in self.sources)

    @property
    def is_live(self) -> bool:
        """Whether one of them is live."""
        return any(source.is_live for source in self.sources)

    @property
    def n_reconnections(self) -> int:
        """The sum over all of them."""
        return sum(source.n_reconnections for source in self.sources)

    def __iter__(self) -> Iterator[Picture]:
        """Yield every source's pictures."""
        for source in self.sources:
            if self._stopped.is_set():
                return
            yield from source

    def stop(self) -> None:
        """Stop every one of them."""
        super().stop()
        for source in self.sources:
            source.stop()


class AtMost(Source):
    """The first pictures of a source: when there were `limit` of them, it is over."""

    def __init__(self, source: Source, limit: int) -> None:
        super().__init__()
        self.source = source
        self._limit = limit
        self.n_passed_over = source.n_passed_over

    @property
    def n_pictures(self) -> int:
        """The limit, or what the source has if that is less."""
        known = self.source.n_pictures
        return self._limit if known is None else min(known, self._limit)

    @property
    def has_frames(self) -> bool:
        """Whether the source has frames."""
        return self.source.has_frames

    @property
    def is_live(self) -> bool:
        """Whether the source is live."""
        return self.source.is_live

    @property
    def n_reconnections(self) -> int:
        """That of the source."""
        return self.source.n_reconnections

    def __iter__(self) -> Iterator[Picture]:
        """Yield the source's pictures up to the limit, without waiting for one more."""
        yield from islice(self.source, self._limit)

    def stop(self) -> None:
        """Stop the source."""
        super().stop()
        self.source.stop()
