"""Standard input as a source: paths of pictures, each judged as soon as its line has come."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vae_edge.errors import InputError
from vae_edge.platform.windows import decoded_path, has_input
from vae_edge.sources.pictures import FileDecoder, Picture, Source

_CHUNK_BYTES = 1 << 16
_LONGEST_PATH = 1 << 16
"""Bytes; no system allows so many. More without an end of line is not a list of paths."""
_PATIENCE_S = 0.1


class _HasDescriptor(Protocol):
    def fileno(self) -> int:
        """Return the file descriptor."""


class PathLines(Source):
    """Pictures whose paths come as lines, each given without waiting for the next line.

    Lines are UTF-8; on Windows those that are not are in the code page of the system or of the console.

    Lines may end like those of Windows; empty ones mean nothing. A path that does not exist is an error in its place.
    Where input cannot be waited for with a time limit (the console of Windows), `stop` takes effect with the next line.

    Args:
        file: what to read, such as `sys.stdin`, which is None where it is closed; its descriptor is read directly.
        null_separated: a NUL ends each path and nothing else does, as `find -print0` writes them.
        white_level: the 16-bit value that means white.
        max_pixels: a larger picture is an error; None: see `vae_edge.image.read_image`.

    Raises:
        InputError: standard input is closed.
    """

    def __init__(
        self,
        file: _HasDescriptor | None,
        *,
        null_separated: bool = False,
        white_level: int = 65535,
        max_pixels: int | None = None,
    ) -> None:
        super().__init__()
        if file is None:
            raise InputError(
                "standard input is closed; expected paths from a file or a pipe: connect one, or leave out -"
            )
        self._file = file
        self._null_separated = null_separated
        self._white_level = white_level
        self._max_pixels = max_pixels

    @property
    def n_pictures(self) -> None:
        """Unknown."""
        return

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures until the input ends.

        Raises:
            InputError: the input is not a list of paths.
        """
        with FileDecoder(self._white_level, self._max_pixels) as decoder:
            for paths in self._paths():
                with decoder.pictures((path, path.stem) for path in paths) as pictures:
                    for picture in pictures:
                        if self._stopped.is_set():
                            return
                        yield picture

    def _paths(self) -> Iterator[list[Path]]:
        """Yield the paths in the portions in which they come."""
        separator = b"\0" if self._null_separated else b"\n"
        rest, begun = b"", False
        for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(separator)
            if not begun and lines:
                # PowerShell marks the beginning of its UTF-8.
                lines[0], begun = lines[0].removeprefix(b"\xef\xbb\xbf"), True
            if len(rest) > _LONGEST_PATH:
                raise InputError("standard input is not a list of paths; expected one path per line")
            yield self._decoded(lines)
        yield self._decoded([rest])

    def _decoded(self, lines: list[bytes]) -> list[Path]:
        if not self._null_separated:
            lines = [line.removesuffix(b"\r") for line in lines]
        # A name that is not UTF-8 stays what it is: the system calls undo the escape.
        return [decoded_path(line) for line in lines if line.strip()]

    def _chunks(self) -> Iterator[bytes]:
        descriptor = self._file.fileno()
        while not self._stopped.is_set():
            if sys.platform == "win32":
                if not has_input(descriptor):
                    self._stopped.wait(_PATIENCE_S)
                    continue
            elif not select.select([descriptor], [], [], _PATIENCE_S)[0]:
                continue
            try:
                chunk = os.read(descriptor, _CHUNK_BYTES)
            except OSError as error:
                raise InputError(
                    f"standard input could not be read ({error.strerror}); expected paths from a file or a pipe"
                ) from error
            if not chunk:
                return
            yield chunk
