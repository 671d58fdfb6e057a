"""Pictures in order, each decoded once: what every source of images gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import read_image

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
