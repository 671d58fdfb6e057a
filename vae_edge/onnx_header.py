"""Reads an ONNX file's versions and metadata without the onnx package, which a device does not have.

An ONNX file is one protocol buffer message, `ModelProto` (onnx/onnx.proto3). Its wire format is a sequence of fields,
each a number, a wire type and a value whose length is known before it is read, so the weights are skipped, not loaded
(https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vae_edge.errors import InputError

# Field numbers of ModelProto.
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSET, _METADATA = 1, 2, 3, 7, 8, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VALUE_BYTES = 1_000_000
"""Longest text that is read; nothing that belongs into metadata comes near it."""


@dataclass(frozen=True)
class OnnxHeader:
    """What an ONNX file says apart from its graph."""

    ir_version: int
    opsets: dict[str, int]
    """Version by domain; the domain of ONNX's own operators is empty."""
    producer: str
    metadata: dict[str, str]
    """`metadata_props`."""


def read_onnx_header(path: Path) -> OnnxHeader:
    """Read the header.

    Raises:
        InputError: the file is no ONNX model or is damaged.
        OSError: it cannot be read.
    """
    ir_version, has_graph = 0, False
    producer = ["", ""]
    opsets: dict[str, int] = {}
    metadata: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            for number, value in _fields(file, path.stat().st_size, {_PRODUCER, _PRODUCER_VERSION, _OPSET, _METADATA}):
                if number == _IR_VERSION and isinstance(value, int):
                    ir_version = value
                elif number == _GRAPH:
                    has_graph = True
                elif isinstance(value, bytes) and number in (_PRODUCER, _PRODUCER_VERSION):
                    producer[number - _PRODUCER] = value.decode()
                elif isinstance(value, bytes) and number == _OPSET:
                    entry = dict(_message(value))
                    opsets[_text(entry.get(1, b""))] = _number(entry.get(2, 0))
                elif isinstance(value, bytes) and number == _METADATA:
                    entry = dict(_message(value))
                    metadata[_text(entry.get(1, b""))] = _text(entry.get(2, b""))
    except ValueError as error:
        raise InputError(f"{path} is no ONNX model, or is damaged: {error}") from error
    if not (ir_version and has_graph and opsets):
        raise InputError(f"{path} is no ONNX model: it has no version, no operator set or no graph")
    return OnnxHeader(ir_version, opsets, " ".join(filter(None, producer)), metadata)


def _message(content: bytes) -> Iterator[tuple[int, int | bytes | None]]:
    return _fields(io.BytesIO(content), len(content), None)


def _fields(file: BinaryIO, size: int, wanted: set[int] | None) -> Iterator[tuple[int, int | bytes | None]]:
    """Yield field numbers and values; None for bytes that are not wanted, which are skipped."""
    while file.tell() < size:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            yield number, _varint(file)
            continue
        if kind not in (_BYTES, _FIXED64, _FIXED32) or number == 0:
            raise ValueError(f"field {number} of wire type {kind} at byte {file.tell()}")
        length = _varint(file) if kind == _BYTES else 8 if kind == _FIXED64 else 4
        if length > size - file.tell():
            raise ValueError(f"field {number} should have {length} bytes, {size - file.tell()} are left")
        if kind == _BYTES and (wanted is None or number in wanted):
            if length > _MAX_VALUE_BYTES:
                raise ValueError(f"field {number} has {length} bytes; expected a short text")
            yield number, file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)
            yield number, None


def _varint(file: BinaryIO) -> int:
    """Read an integer, seven bits a byte, lowest first."""
    result = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a number")
        result |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return result
    raise ValueError("a number has more than ten bytes")


def _text(value: int | bytes | None) -> str:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where a text should")
    return value.decode()


def _number(value: int | bytes | None) -> int:
    if not isinstance(value, int):
        raise ValueError("a text stands where a number should")
    return value
