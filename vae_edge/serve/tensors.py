"""Tensors of the Open Inference Protocol: pictures out of a request's inputs, and the binary form of REST bodies.

https://github.com/kserve/open-inference-protocol, with the extension that puts the bytes of tensors behind the JSON:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/extension_binary_data.html
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError

IMAGE, ENCODED = "image", "encoded"
"""The two inputs: pixels, and the content of picture files."""

MOST_PICTURES = 64
"""In one request: a client with more sends more requests, and the memory for one stays bounded."""

_BASE64 = "base64"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Picture:
    """A picture of a request: pixels, or the content of a picture file that is not decoded yet."""

    name: str
    """For messages: `encoded[3]`."""
    content: NDArray[np.uint8]
    """uint8 [H, W, 3] RGB, or the file's bytes, uint8 [n]."""

    @property
    def is_encoded(self) -> bool:
        """Whether it has to be decoded."""
        return self.content.ndim == 1


def pictures_of(name: str, datatype: str, shape: Sequence[int], data: Any, content_type: str | None) -> list[Picture]:
    """Return the pictures of an input.

    Args:
        name: `image` or `encoded`.
        datatype: as in the protocol: UINT8 for `image`, BYTES for `encoded`.
        shape: [H, W, 3] or [N, H, W, 3] for `image`; [N] for `encoded`, or [N, 1].
        data: `image`: bytes, or whole numbers in lists, row by row; `encoded`: a list of the files' contents, as bytes,
            or as text in base64.
        content_type: `base64`: the bytes of `encoded` are base64, too.

    Raises:
        InputError: it is none of that.
    """
    sizes = [int(size) for size in shape]
    if name == IMAGE:
        return _from_pixels(datatype, sizes, data)
    if name == ENCODED:
        return _from_files(datatype, sizes, data, content_type)
    raise InputError(f"the input is called {name!r}; expected {IMAGE!r} or {ENCODED!r}")


def _from_pixels(datatype: str, shape: list[int], data: Any) -> list[Picture]:
    text = f"the input {IMAGE!r} is {datatype} {shape}"
    batch = [1, *shape] if len(shape) == 3 else shape
    if datatype != "UINT8" or len(batch) != 4 or batch[3] != 3 or min(batch) < 1:
        raise InputError(f"{text}; expected UINT8 [H, W, 3] or [N, H, W, 3], RGB")
    _check_count(batch[0])
    if isinstance(data, bytes | bytearray | memoryview):
        pixels = np.frombuffer(data, dtype=np.uint8)
    else:
        try:
            values = np.asarray(data)
        except (ValueError, OverflowError):
            values = np.empty(0)
        if values.dtype == object and values.ndim:  # Rows of different lengths, before NumPy 1.24.
            values = np.empty(0)
        if values.size and (values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255):
            raise InputError(f"{text}, but its data has other values than whole numbers from 0 to 255")
        pixels = values.astype(np.uint8).reshape(-1)
    expected = batch[0] * batch[1] * batch[2] * 3  # Python's integers do not overflow.
    if pixels.size != expected:
        raise InputError(f"{text} with {pixels.size} values; expected {expected}")
    return [Picture(f"{IMAGE}[{place}]", image) for place, image in enumerate(pixels.reshape(batch))]


def _from_files(datatype: str, shape: list[int], data: Any, content_type: str | None) -> list[Picture]:
    text = f"the input {ENCODED!r} is {datatype} {shape}"
    if datatype != "BYTES" or not shape or shape[1:] not in ([], [1]) or shape[0] < 1:
        raise InputError(f"{text}; expected BYTES [N], the contents of PNG or JPEG files")
    _check_count(shape[0])
    if not isinstance(data, list | tuple) or len(data) != shape[0]:
        n_given = len(data) if isinstance(data, list | tuple) else 1
        raise InputError(f"{text} with {n_given} elements; expected {shape[0]}")
    pictures = []
    for place, element in enumerate(data):
        name = f"{ENCODED}[{place}]"
        if isinstance(element, list) and len(element) == 1:
            (element,) = element  # [N, 1] as nested lists.
        if isinstance(element, str) or (isinstance(element, bytes) and content_type == _BASE64):
            try:
                element = base64.b64decode(element, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InputError(f"{name} is text but not base64; expected the content of a picture file") from error
        if not isinstance(element, bytes):
            raise InputError(f"{name} is a {type(element).__name__}; expected bytes, or base64 in JSON")
        pictures.append(Picture(name, np.frombuffer(element, dtype=np.uint8)))
    return pictures


def _check_count(n_pictures: int) -> None:
    if n_pictures > MOST_PICTURES:
        raise InputError(
            f"the request has {n_pictures} pictures; expected at most {MOST_PICTURES}: send several requests"
        )


def parse_body(body: bytes, header_length: str | None) -> dict[str, Any]:
    """Return a REST request's JSON, in which each input has its `data`: from the JSON, or from the bytes behind it.

    Args:
        body: the JSON, and behind it the bytes of the inputs whose parameters have `binary_data_size`.
        header_length: content of `Inference-Header-Content-Length`; None: everything is JSON.

    Raises:
        InputError: it is not such a request.
    """
    length = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length) > len(body):
            raise InputError(f"Inference-Header-Content-Length is {header_length!r}; expected 0 to {len(body)}")
        length = int(header_length)
    try:
        request: Any = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise InputError("the request's body is not JSON; see the Open Inference Protocol") from error
    if not isinstance(request, dict):
        request = {}
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(each, dict) for each in inputs):
        raise InputError("the request has no list 'inputs'; see the Open Inference Protocol")
    rest = memoryview(body)[length:]
    for each in inputs:
        parameters = each.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        if size is None:
            continue
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise InputError(f"binary_data_size is {size!r}, but {len(rest)} bytes are left in the request")
        each["data"] = _elements(rest[:size]) if each.get("datatype") == "BYTES" else rest[:size]
        rest = rest[size:]
    if len(rest):
        raise InputError(f"the request has {len(rest)} bytes more than its inputs; expected binary_data_size for each")
    found: dict[str, Any] = request
    return found


def _elements(data: memoryview) -> list[bytes]:
    """Return the elements of a BYTES tensor: before each, its length in four bytes, the lowest first."""
    found = []
    while len(data):
        if len(data) < _LENGTH.size:
            raise InputError("a BYTES tensor breaks off in the length of an element")
        (length,) = _LENGTH.unpack_from(data)
        if length > len(data) - _LENGTH.size:
            raise InputError(f"a BYTES tensor breaks off: an element has {length} bytes, but fewer are left")
        found.append(bytes(data[_LENGTH.size : _LENGTH.size + length]))
        data = data[_LENGTH.size + length :]
        if len(found) > MOST_PICTURES:
            _check_count(len(found))
    return found


def packed(elements: Sequence[bytes]) -> bytes:
    """Return the elements of a BYTES tensor as the bytes behind the JSON."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)
