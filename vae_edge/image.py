"""From a file or an array to the model's input: the one path that training, calibration and the device share."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from vae_edge.errors import InputError, UsageError
from vae_edge.picture_files.header import (
    FORMATS,
    HEAD_BYTES,
    check_jpeg_is_whole,
    check_tiff_is_whole,
    format_of,
    read_header,
    with_more_in_each_scan,
)

MAX_PIXELS = 100_000_000
"""Largest picture that is decoded by default: 300 MB as RGB, and no more than three times that on
the way there. A file of 1 MB can claim a thousand times as much."""


class Preparation(BaseModel):
    """How an image becomes the model's input; written into the run and the bundle.

    An image of any size is resized to `height` x `width` without keeping its aspect: by pixel area where it shrinks,
    bilinearly where it grows. 16-bit values are divided so that `white_level` becomes 255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    height: int = Field(ge=32, le=4096)
    width: int = Field(ge=32, le=4096)
    white_level: int = Field(default=65535, ge=255, le=65535)
    """16-bit value that means white: 65535, or 4095 for a 12-bit camera."""


def read_image(path: str | Path, *, white_level: int = 65535, max_pixels: int | None = None) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, BMP, TIFF or WebP file, 8- or 16-bit, grey, RGB or RGBA.

    The EXIF orientation is applied; transparency is dropped, and no colour is multiplied by it. What the file is called
    does not matter. A file of several pages or frames is refused, and so is a damaged one if that can be detected:

    - PNG: any changed byte (it holds checksums). WebP, TIFF, BMP: a file that breaks off; not a changed byte. TIFF:
      also what does not decompress to its end (LZW, Deflate, PackBits), and ways of compression that are not read.
    - JPEG: a file that breaks off; restart markers missing; and compressed data that ends before the picture does, as
      where a piece was cut out of the middle. Changed bytes without missing data are not detected. To tell it, a
      progressive JPEG is decoded twice, whereupon libjpeg may remark on the bytes added to it on stderr; any other is
      only where a corner has exactly the grey that decoders fill with.

    Args:
        path: a regular file; a named pipe, a device or a socket is refused without waiting for it.
        white_level: the 16-bit value that becomes 255; larger ones are clipped.
        max_pixels: refuse larger pictures before anything is decoded, and files larger than they could need; None:
            the environment variable VAE_EDGE_MAX_PIXELS, or else `MAX_PIXELS`.

    Returns:
        uint8 [H, W, 3], RGB, 0 to 255.

    Raises:
        InputError: the file is missing, empty, too large, damaged or of another kind, or there is not enough memory.
    """
    return as_8_bit_rgb(read_pixels(path, max_pixels=max_pixels), name=str(path), white_level=white_level)


def decode_image(
    data: NDArray[np.uint8], *, name: str, white_level: int = 65535, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Decode the bytes of an image file, uint8 [n], to uint8 [H, W, 3] RGB; see `read_image`.

    Raises:
        InputError: the bytes are not a complete image; the message has `name`.
    """
    with _enough_memory(name):
        pixels = _decode(data, name, max_pixels_in_force(max_pixels))
    return as_8_bit_rgb(pixels, name=name, white_level=white_level)


def read_pixels(path: str | Path, *, max_pixels: int | None = None) -> NDArray[Any]:
    """Decode a file as `read_image` does, but leave values and channels as they are.

    Returns:
        uint8 or uint16, [H, W] grey or [H, W, 3] BGR.

    Raises:
        InputError: see `read_image`.
    """
    most = max_pixels_in_force(max_pixels)
    with _enough_memory(path):
        return _decode(_read_bytes(path, most), str(path), most)


def as_8_bit_rgb(pixels: NDArray[Any], *, name: str, white_level: int = 65535) -> NDArray[np.uint8]:
    """Turn what `read_pixels` gives into uint8 [H, W, 3] RGB.

    Raises:
        InputError: there is not enough memory for the picture, which is called `name`.
    """
    with _enough_memory(name):
        return _as_rgb_from_decoder(_to_8_bit(pixels, white_level))


def most_bytes(max_pixels: int) -> int:
    """Return the size of the largest file that is read for a picture of this many pixels."""
    return max_pixels * _MOST_BYTES_PER_PIXEL + _MOST_OTHER_BYTES


def max_pixels_in_force(asked: int | None) -> int:
    """Return how many pixels a picture may have: as requested, by VAE_EDGE_MAX_PIXELS, or `MAX_PIXELS`.

    Raises:
        UsageError: it is not a positive number.
    """
    if asked is None:
        text = os.environ.get(_MAX_PIXELS_VARIABLE)
        if not text:
            return MAX_PIXELS
        if not text.isdecimal() or int(text) < 1:
            raise UsageError(f"{_MAX_PIXELS_VARIABLE} is {text!r}; expected a number of pixels such as {MAX_PIXELS}")
        return int(text)
    if asked < 1:
        raise UsageError(f"max_pixels is {asked}; expected 1 or more")
    return asked


def check_regular_file(path: str | Path) -> None:
    """Refuse what is not a regular file, without opening it: some devices do something when they are opened.

    Raises:
        InputError: it is a named pipe, a device, a socket or a folder, or cannot be examined.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 - `path` may be text
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from error
    if stat.S_ISDIR(mode):
        raise _cannot_read(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    if not stat.S_ISREG(mode):
        kind = next((kind for test, kind in _SPECIAL_FILES if test(mode)), "a special file")
        raise InputError(f"{path} is {kind}; expected an image file")


def read_head(path: str | Path, n_bytes: int) -> bytes:
    """Return the first bytes of a regular file, fewer where it is shorter, without waiting for another process.

    Raises:
        InputError: it is not one, or cannot be read.
    """
    with _opened(path) as descriptor:
        return os.read(descriptor, n_bytes)


@contextmanager
def _opened(path: str | Path) -> Iterator[int]:
    """Yield the descriptor of a regular file.

    Raises:
        InputError: it is not one, or cannot be opened or read.
    """
    check_regular_file(path)
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))
    try:
        descriptor = os.open(path, flags)
        try:
            # Between that look and this one the name may have become another file's.
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{path} is not a regular file; expected {FORMATS}")
            yield descriptor
        finally:
            os.close(descriptor)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _cannot_read(path, error) from error


def _read_bytes(path: str | Path, max_pixels: int) -> NDArray[np.uint8]:
    """Read a file whose beginning is that of an image; uint8 [n]."""
    most = most_bytes(max_pixels)
    with _opened(path) as descriptor:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > most:
            raise InputError(
                f"{path} is a file of {size_bytes / 1e6:.0f} MB; expected at most {most / 1e6:.0f} MB, for an image "
                f"of {max_pixels / 1e6:.4g} million pixels: {_HOW_TO_ALLOW}"
            )
        head = os.read(descriptor, HEAD_BYTES)
        if format_of(head) is None:
            return np.frombuffer(head, dtype=np.uint8)  # Enough to refuse it.
        data = np.empty(max(size_bytes, len(head)), dtype=np.uint8)
        data[: len(head)] = np.frombuffer(head, dtype=np.uint8)
        n_read = len(head)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            while n_read < data.size and (n_more := file.readinto(data[n_read:].data)):
                n_read += n_more
        return data[:n_read]


def _cannot_read(path: str | Path, error: OSError | ValueError) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return InputError(f"{path} could not be read ({reason}); check the name and the permissions")


def _decode(data: NDArray[np.uint8], name: str, max_pixels: int) -> NDArray[Any]:
    """Decode to what the decoder gives without further work: uint8 or uint16, [H, W] grey or [H, W, 3] BGR."""
    if data.size == 0:
        raise InputError(f"{name} is empty (0 bytes); expected an image file: remove it or capture the image again")
    header = read_header(data, name)
    if header.n_pixels > max_pixels:
        raise InputError(
            f"{name} has {header.width}x{header.height} pixels, {header.n_pixels / 1e6:.4g} million; expected at most "
            f"{max_pixels / 1e6:.4g} million: {_HOW_TO_ALLOW}"
        )
    if header.n_pages > 1:
        pages = "pages" if header.kind == "TIFF" else "frames (an animation)"
        raise InputError(
            f"{name} is a {header.kind} of {header.n_pages} {pages}; expected one image: save each as a separate file"
        )
    if header.kind == "JPEG":
        check_jpeg_is_whole(data, name)
    if header.unassociated_alpha_at is not None:
        # libtiff would multiply the colours by alpha, but for colours that are said to be multiplied already.
        data = data.copy()
        data[header.unassociated_alpha_at] = 1
    flags = cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR
    if header.kind == "WebP":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    image = _oriented(_imdecode(data, name, flags), header.orientation)
    if header.may_break_off_inside:
        check_tiff_is_whole(data, name, image)
    if header.kind == "JPEG" and (header.is_progressive or _may_be_filled(image)):
        _check_scans_are_whole(data, name, flags, image)
    image = _checked(image, name)
    return np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3])


def _imdecode(data: NDArray[np.uint8], name: str, flags: int) -> NDArray[Any]:
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error as error:
        if error.code == _OUT_OF_MEMORY:
            raise MemoryError from error
        raise InputError(f"{name} could not be decoded ({error.err}); expected {FORMATS}") from error
    if image is None:
        raise InputError(f"{name} could not be decoded; expected {FORMATS}: remove it or capture the image again")
    return np.asarray(image)


def _oriented(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an image upright by its EXIF orientation, 1 to 8."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _may_be_filled(image: NDArray[Any]) -> bool:
    """Return whether one corner, whichever is the last one, has the grey that stands for missing data in a JPEG."""
    return any(np.all(image[y, x] == _FILLED_WITH) for y in (0, -1) for x in (0, -1))


def _check_scans_are_whole(data: NDArray[np.uint8], name: str, flags: int, image: NDArray[Any]) -> None:
    """Refuse a JPEG whose compressed data ends before the picture does: then what is added changes the picture.

    The decoder notices it, but only prints it to the terminal.
    """
    try:
        other = _imdecode(with_more_in_each_scan(data, name), name, flags)
    except InputError:
        other = image[:0]
    if not np.array_equal(image, other):
        raise InputError(f"{name} is a damaged JPEG with a missing part; copy it again or capture the image again")


def _as_rgb_from_decoder(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)


@contextmanager
def _enough_memory(name: str | Path) -> Iterator[None]:
    """Turn out-of-memory errors of Python and OpenCV, and any refusal by OpenCV, into an error of this picture."""
    try:
        yield
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != _OUT_OF_MEMORY:
            raise InputError(
                f"{name} could not be processed ({error.err}); make it smaller or capture it again"
            ) from error
        raise InputError(f"{name} needs more memory than is available; make it smaller or free memory") from error


def as_rgb(image: NDArray[Any], *, white_level: int = 65535) -> NDArray[np.uint8]:
    """Turn an array into uint8 [H, W, 3] RGB.

    Args:
        image: uint8 or uint16, [H, W] or [H, W, 1] grey, [H, W, 3] RGB, or [H, W, 4] RGBA whose alpha is dropped.
        white_level: the uint16 value that becomes 255; larger ones are clipped.

    Raises:
        InputError: another type or shape, or a side of length 0.

    Examples:
        >>> as_rgb(np.array([[0, 2048, 4095]], dtype=np.uint16), white_level=4095)[0, :, 0].tolist()
        [0, 128, 255]
        >>> as_rgb(np.zeros((4, 6), np.uint8)).shape
        (4, 6, 3)
    """
    with _enough_memory("the image"):
        image = _to_8_bit(_checked(image, "the image"), white_level)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _checked(image: NDArray[Any], name: str) -> NDArray[Any]:
    """Check an image and return it as uint8 or uint16 [H, W, 1, 3 or 4]."""
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} is a {type(image).__name__}; expected a path or a uint8 array of shape HxWx3 or HxW")
    if image.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f"{name} has element type {image.dtype}; expected uint8 (0 to 255) or uint16: convert it, do not rescale"
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4):
        raise InputError(f"{name} has shape {_shape(image)}; expected HxW grey, HxWx3 RGB or HxWx4 RGBA")
    if 0 in image.shape:
        raise InputError(f"{name} has shape {_shape(image)} without any pixel; expected at least 1x1")
    return image


def _to_8_bit(image: NDArray[Any], white_level: int) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return np.asarray(image, dtype=np.uint8)
    # By a table of all values and in blocks: a copy in floating point would take four times a large picture's memory.
    scaled = np.arange(65536, dtype=np.float32) * np.float32(255.0 / white_level)
    table = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    result = np.empty(image.shape, dtype=np.uint8)
    rows = max(1, _BLOCK // max(1, image[0].size))
    for y in range(0, len(image), rows):
        result[y : y + rows] = table[image[y : y + rows]]
    return result


def likely_white_level(largest: int, white_level: int) -> int | None:
    """Return the white level that was probably meant, where the largest 16-bit value of many pictures is far below it.

    Cameras of 8, 10, 12 and 14 bits have their values in files of 16. None: the white level fits, or was chosen.

    Examples:
        >>> likely_white_level(3980, white_level=65535)
        4095
        >>> print(likely_white_level(3980, white_level=4095))
        None
    """
    meant = next(level for level in (255, 1023, 4095, 16383, 65535) if largest <= level)
    return meant if white_level == 65535 != meant else None


def prepare(image: NDArray[np.uint8], preparation: Preparation) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] (or [H, W]) of any size to the model's uint8 [height, width, 3] (or [height, width]).

    A side that shrinks is averaged by pixel area, a side that grows is interpolated bilinearly, also if one shrinks and
    the other grows. An image that already has the model's size is returned as it is, without a copy.
    """
    height, width = image.shape[:2]
    if (height, width) == (preparation.height, preparation.width):
        return np.ascontiguousarray(image)
    smaller = (min(width, preparation.width), min(height, preparation.height))
    if smaller != (width, height):
        # INTER_AREA averages only where no side grows; with one that does it would skip pixels of the other.
        image = np.asarray(cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if smaller != (preparation.width, preparation.height):
        size = (preparation.width, preparation.height)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return image


def white_level_remark(largest: int | None, white_level: int) -> str | None:
    """Return the question to ask where `likely_white_level` guesses another one; None: it fits."""
    meant = None if largest is None else likely_white_level(largest, white_level)
    if meant is None:
        return None
    return (
        f"the 16-bit pictures have no value above {meant} (the largest is {largest}), but {white_level} counts as "
        f"white, so they are nearly black; did you mean --white-level {meant}?"
    )


def load_prepared(
    source: str | Path | NDArray[Any], preparation: Preparation, *, max_pixels: int | None = None
) -> NDArray[np.uint8]:
    """Read (a path) or check (an array) an image and bring it to the model's size, uint8 [height, width, 3].

    Raises:
        InputError: see `read_image` and `as_rgb`.
    """
    if isinstance(source, (str, Path)):
        with _enough_memory(source):
            # Channels are put in order last, when there are fewer pixels: each is resized by itself; nothing changes.
            image = _to_8_bit(read_pixels(source, max_pixels=max_pixels), preparation.white_level)
            return _as_rgb_from_decoder(prepare(image, preparation))
    with _enough_memory("the image"):
        return prepare(as_rgb(source, white_level=preparation.white_level), preparation)


def set_opencv_log_level(level: int) -> int:
    """Set how much OpenCV writes to stderr, 0 is nothing, and return what it was before."""
    # OpenCV 4.8 to 4.12 have the functions at the top.
    log: Any = getattr(cv2.utils, "logging", cv2)
    before: int = log.getLogLevel()
    log.setLogLevel(level)
    return before


def _shape(image: NDArray[Any]) -> str:
    return "x".join(map(str, image.shape))


_MAX_PIXELS_VARIABLE = "VAE_EDGE_MAX_PIXELS"
_HOW_TO_ALLOW = f"make it smaller, or allow it with --max-pixels, max_pixels= or the variable {_MAX_PIXELS_VARIABLE}"

_MOST_BYTES_PER_PIXEL = 8
"""Bytes per pixel of an uncompressed image file with four channels of 16 bits."""
_MOST_OTHER_BYTES = 1 << 26
"""For everything else in a file, such as a colour profile."""

_BLOCK = 1 << 20
"""Values that are looked up at once."""

_FILLED_WITH = 128
"""The grey of a block of a JPEG without data."""
_OUT_OF_MEMORY = -4
"""OpenCV's number for it, StsNoMem."""

_SPECIAL_FILES = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
