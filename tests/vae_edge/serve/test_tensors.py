from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from vae_edge.errors import InputError
from vae_edge.serve.tensors import MOST_PICTURES, parse_body, pictures_of

PIXELS = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


def binary(inputs: list[dict[str, Any]], *tensors: bytes) -> tuple[bytes, str]:
    for given, tensor in zip(inputs, tensors, strict=True):
        given["parameters"] = {"binary_data_size": len(tensor)}
    head = json.dumps({"inputs": inputs}).encode()
    return b"".join([head, *tensors]), str(len(head))


@pytest.mark.parametrize("data", [PIXELS.tobytes(), PIXELS.tolist(), PIXELS.reshape(-1).tolist(), PIXELS.reshape(-1)])
def test_pixels_come_as_bytes_or_numbers(data: Any) -> None:
    found = pictures_of("image", "UINT8", [2, 3, 4, 3], data, None)
    assert [picture.name for picture in found] == ["image[0]", "image[1]"]
    assert np.array_equal(np.stack([picture.content for picture in found]), PIXELS)
    assert not found[0].is_encoded


def test_one_picture_needs_no_batch() -> None:
    (only,) = pictures_of("image", "UINT8", [3, 4, 3], PIXELS[0].tobytes(), None)
    assert np.array_equal(only.content, PIXELS[0])


def test_files_come_as_bytes_or_base64() -> None:
    text = base64.b64encode(b"picture").decode()
    for data, content_type in (([b"picture"], None), ([text], None), ([[text]], None), ([text.encode()], "base64")):
        (only,) = pictures_of("encoded", "BYTES", [1, 1], data, content_type)
        assert only.content.tobytes() == b"picture"
        assert only.is_encoded


@pytest.mark.filterwarnings("ignore:Creating an ndarray from ragged")  # NumPy before 1.24 only warns.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("picture", "UINT8", [1], b"", None), "is called 'picture'"),
        (("image", "FP32", [3, 4, 3], b"", None), "is FP32"),
        (("image", "UINT8", [3, 4], b"", None), "expected UINT8 .H, W, 3."),
        (("image", "UINT8", [0, 3, 4, 3], b"", None), "expected UINT8"),
        (("image", "UINT8", [-1, 4, 3], b"", None), "expected UINT8"),
        (("image", "UINT8", [3, 4, 3], b"12", None), "with 2 values; expected 36"),
        (("image", "UINT8", [2**62, 2**62, 3], b"12", None), "with 2 values"),
        (("image", "UINT8", [1, 1, 3], [1, 2, 256], None), "whole numbers from 0 to 255"),
        (("image", "UINT8", [1, 1, 3], [1, 2, -1], None), "whole numbers"),
        (("image", "UINT8", [1, 1, 3], [1, 2, 2.5], None), "whole numbers"),
        (("image", "UINT8", [1, 1, 3], [[1], [2, 3]], None), "with 0 values"),
        (("image", "UINT8", [1, 1, 3], None, None), "whole numbers"),
        (("image", "UINT8", [65, 1, 1, 3], bytes(195), None), f"at most {MOST_PICTURES}"),
        (("encoded", "BYTES", [2], [b"a"], None), "with 1 elements; expected 2"),
        (("encoded", "BYTES", [1, 2], [b"a", b"b"], None), "expected BYTES .N."),
        (("encoded", "BYTES", [1], ["/etc/passwd"], None), "not base64"),
        (("encoded", "BYTES", [1], [5], None), "is a int"),
        (("encoded", "BYTES", [1], "text", None), "with 1 elements|is a"),
        (("encoded", "BYTES", [10**9], [b""], None), "at most"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pictures_of(*arguments)


def test_tensors_behind_the_json_are_the_data_of_their_inputs() -> None:
    files = b"".join(struct.pack("<I", len(file)) + file for file in (b"first", b"", b"second"))
    inputs = [{"name": "encoded", "datatype": "BYTES"}, {"name": "image", "datatype": "UINT8"}]
    first, second = parse_body(*binary(inputs, files, b"123"))["inputs"]
    assert first["data"] == [b"first", b"", b"second"]
    assert bytes(second["data"]) == b"123"


@pytest.mark.parametrize(
    ("body", "length", "message"),
    [
        (b"{", None, "not JSON"),
        (b"\xff", None, "not JSON"),
        (b"[" * 200_000, None, "not JSON"),
        (b"[]", None, "no list 'inputs'"),
        (b'{"inputs": [1]}', None, "no list 'inputs'"),
        (b'{"inputs": []}', "-1", "Content-Length is '-1'"),
        (b'{"inputs": []}', "99", "expected 0 to 14"),
        (b'{"inputs": []}extra', "14", "5 bytes more"),
        (b'{"inputs": [{"parameters": {"binary_data_size": 5}}]}', None, "0 bytes are left"),
        (b'{"inputs": [{"parameters": {"binary_data_size": -5}}]}', None, "0 bytes are left"),
    ],
)
def test_a_broken_body_is_refused_in_a_sentence(body: bytes, length: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_body(body, length)


@pytest.mark.parametrize("tensor", [b"\x01", b"\x05\x00\x00\x00ab", b"\xff\xff\xff\xff"])
def test_bytes_that_break_off_are_refused(tensor: bytes) -> None:
    with pytest.raises(InputError, match="breaks off"):
        parse_body(*binary([{"name": "encoded", "datatype": "BYTES"}], tensor))


def test_many_empty_elements_do_not_fill_the_memory() -> None:
    with pytest.raises(InputError, match="at most"):
        parse_body(*binary([{"name": "encoded", "datatype": "BYTES"}], bytes(4_000_000)))
