"""The pictures of one part, decoded by the project's own decoder, a few ahead of the one that is judged."""

from __future__ import annotations

import tarfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.archive.listing import Kind, Part, Source
from vae_edge.archive.places import GoneError, LocalPlace, Place
from vae_edge.errors import InputError, said_by
from vae_edge.image import decode_image, most_bytes
from vae_edge.platform.work import result_of
from vae_edge.sources.pictures import FileDecoder, Picture

_READERS = 4
"""Threads that read from a store, which answers late, and decode."""
_AHEAD = 6

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, LZMAError, ValueError)
"""What Python and pyarrow raise for a container that is not whole."""

_PATIENCE_S = 1.0
"""Before a file in a store that could not be read is read again."""

Found = tuple[str, Picture]
"""A picture's id within the source, and the picture or the error in its place."""

_Content = tuple[str, str, Callable[[], "bytes | InputError"]]
"""A picture's id, its path for messages and rows, and what gives its bytes, which is called in another thread."""


def pictures_of(source: Source, part: Part, *, white_level: int, max_pixels: int) -> Iterator[Found]:
    """Yield the pictures of a part in order.

    A picture that cannot be read or decoded is an error in its place, and so is the rest of a damaged container.

    Args:
        source: where they are.
        part: of the source.
        white_level: the 16-bit value that means white.
        max_pixels: a larger picture is an error.

    Raises:
        GoneError: the source itself is not there any more.
    """
    values = part.values
    names: list[str] = values["names"]
    if source.kind is Kind.PICTURES and isinstance(source.place, LocalPlace):
        files = [(Path(source.place.path_of(name)), name) for name in names]
        with FileDecoder(white_level, max_pixels) as decoder, decoder.pictures(files) as pictures:
            for name, picture in zip(names, pictures, strict=True):
                if isinstance(picture.image, InputError) and isinstance(picture.image.__cause__, OSError):
                    source.place.check_readable()
                yield name, picture
        return

    def decoded(name: str, path: str, content: Callable[[], bytes | InputError]) -> Found:
        try:
            data = content()
            if isinstance(data, InputError):
                return name, Picture(path, name, data)
            image = decode_image(
                np.frombuffer(data, dtype=np.uint8), name=path, white_level=white_level, max_pixels=max_pixels
            )
        except GoneError:
            raise
        except InputError as error:
            return name, Picture(path, name, error)
        return name, Picture(path, name, image)

    with ThreadPoolExecutor(_READERS, thread_name_prefix="vae-edge-read") as pool:
        waiting: deque[Future[Found]] = deque()
        rest = (pool.submit(decoded, *each) for each in _contents(source, values, max_pixels))
        try:
            waiting.extend(islice(rest, _AHEAD))
            while waiting:
                yield result_of(waiting.popleft())
                waiting.extend(islice(rest, 1))
        finally:
            for future in waiting:
                future.cancel()


def _contents(source: Source, values: dict[str, Any], max_pixels: int) -> Iterator[_Content]:
    place = source.place
    if source.kind is Kind.PICTURES:
        for name in values["names"]:
            yield name, place.path_of(name), partial(_read, place, name, max_pixels)
        return
    (name,) = values["names"]
    path = place.path_of(name)
    n_given, failed_at = 0, -1
    while True:
        try:
            for content in islice(_of_container(source, values, max_pixels), n_given, None):
                n_given += 1
                yield content
            return
        except _DAMAGED as error:
            broken = InputError(f"{path} is damaged from here on ({said_by(error)}); copy it again")
            yield name, path, partial(_same, broken)
            return
        except OSError as error:
            place.check_readable()
            if failed_at == n_given or isinstance(error, FileNotFoundError):
                yield name, path, partial(_same, place.cannot_read(name, error))
                return
            # Once more, from there: a network fails now and then.
            failed_at = n_given
            time.sleep(_PATIENCE_S)


def _of_container(source: Source, values: dict[str, Any], max_pixels: int) -> Iterator[_Content]:
    place = source.place
    (container,) = values["names"]
    path = place.path_of(container)
    if source.kind is Kind.WEBDATASET:
        from vae_edge.archive.tar_files import members_of

        for name, content in members_of(place, container, max_pixels):
            yield f"{container}/{name}", f"{path}/{name}", partial(_same, content)
        return
    from vae_edge.archive.parquet_files import rows_of

    if "groups" not in values:
        raise ValueError("it is not a whole Parquet file")
    column, first_row = source.picture_column, values["first_row"]
    assert column is not None
    begin, end = values["groups"]
    rows = rows_of(place, container, column, source.id_column, (begin, end), first_row)
    for row, (name, picture) in enumerate(rows, first_row):
        where = f"{path}#{row}"
        missing = InputError(f"{where} has no picture: the column {column!r} is null there")
        yield name, where, partial(_same, missing if picture is None else picture)


def _same(content: bytes | InputError) -> bytes | InputError:
    return content


def _read(place: Place, name: str, max_pixels: int) -> bytes | InputError:
    """Return the bytes of a file in a store, or why there are none.

    Raises:
        GoneError: the store does not answer any more.
    """
    most = most_bytes(max_pixels)
    for is_last in (False, True):
        try:
            with place.open(name) as file:
                content: bytes = file.read(most + 1)
            break
        except OSError as error:
            place.check_readable()
            if is_last or isinstance(error, FileNotFoundError):
                return place.cannot_read(name, error)
            time.sleep(_PATIENCE_S)
    if len(content) > most:
        return InputError(f"{place.path_of(name)} has more than {most / 1e6:.0f} MB; expected one image")
    return content
