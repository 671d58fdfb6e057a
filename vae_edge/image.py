"""From a file or an array to the model's input: the one path that training, calibration and the device share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from vae_edge.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of the files that are taken for images, in lower case."""


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


def read_image(path: str | Path, *, white_level: int = 65535) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG, BMP, TIFF or WebP file, 8- or 16-bit, grey, RGB or RGBA.

    The EXIF orientation is applied and transparency is dropped.

    Returns:
        uint8 [H, W, 3], RGB, 0 to 255.

    Raises:
        InputError: the file is missing, empty or cannot be decoded.
    """
    return decode_image(_read_bytes(path), name=str(path), white_level=white_level)


def decode_image(data: NDArray[np.uint8], *, name: str, white_level: int = 65535) -> NDArray[np.uint8]:
    """Decode the bytes of an image file, uint8 [n], to uint8 [H, W, 3] RGB; see `read_image`.

    Raises:
        InputError: the bytes are no whole image; the message says `name`.
    """
    return _as_rgb_from_decoder(_decode(data, name, white_level))


def _read_bytes(path: str | Path) -> NDArray[np.uint8]:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path} could not be read ({error.strerror}); check the name and the permissions") from error


def _decode(data: NDArray[np.uint8], name: str, white_level: int) -> NDArray[np.uint8]:
    """Decode to what the decoder gives without further work: uint8 [H, W] grey or [H, W, 3] BGR."""
    if data.size == 0:
        raise InputError(f"{name} is empty (0 bytes); expected an image file: remove it or take the picture again")
    if _is_cut_off_jpeg(data):
        raise InputError(f"{name} is a JPEG that breaks off before its end; copy it again or take the picture again")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise InputError(f"{name} could not be decoded ({error.err}); expected {_FORMATS}") from error
    if image is None:
        raise InputError(f"{name} could not be decoded; expected {_FORMATS}: remove it or take the picture again")
    image = _to_8_bit(_checked(image, name), white_level)
    return np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3])


def _as_rgb_from_decoder(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    code = cv2.COLOR_GRAY2RGB if image.ndim == 2 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(image, code), dtype=np.uint8)


def as_rgb(image: NDArray[Any], *, name: str = "the image", white_level: int = 65535) -> NDArray[np.uint8]:
    """Turn an array into uint8 [H, W, 3] RGB.

    Args:
        image: uint8 or uint16, [H, W] or [H, W, 1] grey, [H, W, 3] RGB, or [H, W, 4] RGBA whose alpha is dropped.
        name: what to call the image in an error.
        white_level: the uint16 value that becomes 255; larger ones are clipped.

    Raises:
        InputError: another type or shape, or a side of length 0.
    """
    image = _to_8_bit(_checked(image, name), white_level)
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])


def _checked(image: NDArray[Any], name: str) -> NDArray[Any]:
    """Return an image that is one as uint8 or uint16 [H, W, 1, 3 or 4]."""
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
        raise InputError(f"{name} has shape {_shape(image)}: it holds no pixel; expected at least 1x1")
    return image


def _to_8_bit(image: NDArray[Any], white_level: int) -> NDArray[np.uint8]:
    if image.dtype == np.uint8:
        return np.asarray(image, dtype=np.uint8)
    scaled = image.astype(np.float32) * np.float32(255.0 / white_level)
    return np.asarray(np.clip(np.rint(scaled), 0, 255), dtype=np.uint8)


def prepare(image: NDArray[np.uint8], preparation: Preparation) -> NDArray[np.uint8]:
    """Resize uint8 [H, W, 3] (or [H, W]) of any size to the model's uint8 [height, width, 3] (or [height, width]).

    A side that shrinks is averaged by pixel area, a side that grows is interpolated bilinearly, also where one does
    this and the other that. An image that already has the model's size is returned as it is, without a copy.
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


def load_prepared(source: str | Path | NDArray[Any], preparation: Preparation) -> NDArray[np.uint8]:
    """Read (a path) or check (an array) an image and bring it to the model's size, uint8 [height, width, 3].

    Raises:
        InputError: see `read_image` and `as_rgb`.
    """
    if isinstance(source, (str, Path)):
        # Channels are put in order last, when there are fewer pixels: each is resized by itself, so nothing changes.
        image = _decode(_read_bytes(source), str(source), preparation.white_level)
        return _as_rgb_from_decoder(prepare(image, preparation))
    return prepare(as_rgb(source, white_level=preparation.white_level), preparation)


def is_image_file(path: Path) -> bool:
    """Tell whether the name ends like an image file."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_cut_off_jpeg(data: NDArray[np.uint8]) -> bool:
    """Tell whether a JPEG has no end: some decoders fill the missing rest with grey, and that must not get a verdict.

    The segments are walked (ITU-T T.81, annex B): a thumbnail in the header and what a camera adds behind the end have
    ends of their own, which do not count.
    """
    if data[:3].tobytes() != b"\xff\xd8\xff":
        return False
    content = memoryview(data)  # type: ignore[arg-type]  # an array is a buffer; numpy says so from 3.12 on
    ends_with_end = data[-2:].tobytes() == b"\xff\xd9"
    position = 2
    while (marker := _JPEG_MARKER.search(content, position)) is not None:
        kind, position = content[marker.end() - 1], marker.end()
        # Behind the first start of scan (DA) no thumbnail comes any more: an end there is the picture's.
        if kind == 0xD9 or (kind == 0xDA and ends_with_end and position < len(content) - 2):
            return False
        if kind != 0x01:  # the one other marker without a segment: TEM
            position += int.from_bytes(content[position : position + 2], "big")
    return True


def _shape(image: NDArray[Any]) -> str:
    return "x".join(map(str, image.shape))


# Within compressed data 0xFF comes before 0x00 or a restart marker (D0 to D7) only; 0xFF may be repeated as filling.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

_FORMATS = "PNG, JPEG, BMP, TIFF or WebP"
