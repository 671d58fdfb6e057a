"""Reads an ONNX file's versions, metadata and external data without the onnx package, which a device does not have.

An ONNX file is one protocol buffer message, `ModelProto` (onnx/onnx.proto3). Its wire format is a sequence of fields,
each a number, a wire type and a value whose length is known before it is read, so the weights are skipped, not loaded
(https://protobuf.dev/programming-guides/encoding).

A tensor's values may be in another file, which a runtime opens wherever the model says it is. What it says is read here
first; where this reader and a runtime's could read the same bytes differently, the file is refused.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vae_edge.errors import InputError

# Field numbers of ModelProto.
_IR_VERSION, _PRODUCER, _PRODUCER_VERSION, _GRAPH, _OPSET, _METADATA = 1, 2, 3, 7, 8, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VALUE_BYTES = 1_000_000
"""Longest text that is read; nothing that belongs in metadata comes near it."""

# Which fields of a message hold which messages, on all ways that lead to a tensor (onnx/onnx.proto3).
_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
_MAX_DEPTH = 100
"""Of messages in messages: protocol buffer parsers allow no more."""
_MAX_FIELDS = 1_000_000
_LOCATION = b"location"
_OPERATOR, _DOMAIN = 4, 7
"""Field numbers of NodeProto."""

_RANDOM = frozenset(
    b"Bernoulli Dropout Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split()
)
"""Operators that may give another result for the same picture."""
_GROWING = frozenset(b"ConstantOfShape EyeLike OneHot Range Resize Tile Upsample".split())
"""Operators that make as many values as a number in the file says."""


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
        InputError: the file is not an ONNX model or is damaged.
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
        raise InputError(f"{path} is not an ONNX model, or is damaged: {error}") from error
    if not (ir_version and has_graph and opsets):
        raise InputError(f"{path} is not an ONNX model: it has no version, no operator set or no graph")
    return OnnxHeader(ir_version, opsets, " ".join(filter(None, producer)), metadata)


def read_external_data(path: Path) -> set[str]:
    """Return the names of the files that an ONNX file's tensors have their values in, as it spells them.

    Raises:
        InputError: the file is not an ONNX model, is damaged, or is nested too deeply.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not _contains(file, _LOCATION):
            return set()  # The word is the key of such an entry, so there is none; the common case, and quick.
        try:
            return _locations(file, path.stat().st_size)
        except ValueError as error:
            raise InputError(f"{path} is not an ONNX model, or is damaged: {error}") from error


def check_straight(path: Path) -> None:
    """Refuse what gives no verdict, or another one every time.

    Nodes that hold graphs, and functions: a loop may never end, functions may multiply. Random operators. Those of
    domains other than ONNX's own, whose effect is unknown, and those that make memory out of a number.

    Raises:
        InputError: it holds one, is not an ONNX model, or is damaged.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        parts = [("model", 0, path.stat().st_size)]
        n_fields = 0
        try:
            while parts:
                kind, begin, end = parts.pop()
                file.seek(begin)
                for number, value in _fields(file, end, {_OPERATOR, _DOMAIN} if kind == "node" else set()):
                    n_fields += 1
                    if n_fields > _MAX_FIELDS:
                        raise ValueError(f"it has more than {_MAX_FIELDS} fields")
                    if isinstance(value, bytes):
                        _check_word(number, value)
                    part = _PARTS.get(kind, {}).get(number)
                    if (kind, part) == ("model", "graph") or part in ("node", "attribute"):
                        if isinstance(value, _Skipped):
                            parts.append((str(part), value.begin, value.end))
                    elif part in ("graph", "training", "function"):
                        raise ValueError("it contains a loop, a branch or a function, which no export does")
        except ValueError as error:
            raise InputError(f"{path} is not an ONNX model of vae-edge, or is damaged: {error}") from error


def _check_word(number: int, word: bytes) -> None:
    if number == _OPERATOR and word in _RANDOM | _GROWING:
        what = "gives a different result every time" if word in _RANDOM else "may generate values endlessly"
        raise ValueError(f"the operator {word.decode()} {what}, and no export uses it")
    if number == _DOMAIN and word not in (b"", b"ai.onnx"):
        raise ValueError(
            f"an operator belongs to the domain {ascii(word.decode(errors='replace'))[:80]}, which no export uses"
        )


def _contains(file: BinaryIO, word: bytes) -> bool:
    rest = b""
    while block := file.read(1 << 20):
        if word in rest + block:
            return True
        rest = block[1 - len(word) :]
    return False


def _locations(file: BinaryIO, size: int) -> set[str]:
    """Walk through all messages that may hold a tensor, without recursion: a file may be nested as deep as it likes."""
    found: set[str] = set()
    n_fields = 0
    parts = [("model", 0, size, 0)]
    while parts:
        kind, begin, end, depth = parts.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"its messages are nested more than {_MAX_DEPTH} deep")
        file.seek(begin)
        entry: dict[int, bytes] = {}
        for number, value in _fields(file, end, {1, 2} if kind == "external data" else set()):
            n_fields += 1
            if n_fields > _MAX_FIELDS:
                raise ValueError(f"it has more than {_MAX_FIELDS} fields")
            if isinstance(value, bytes):
                entry[number] = value
            elif isinstance(value, _Skipped) and number in _PARTS.get(kind, {}):
                parts.append((_PARTS[kind][number], value.begin, value.end, depth + 1))
        if entry.get(1) == _LOCATION:
            found.add(entry.get(2, b"").decode())
    return found


class _Skipped(NamedTuple):
    """Where a value lies that was not read."""

    begin: int
    end: int


_Value = int | bytes | _Skipped | None


def _message(content: bytes) -> Iterator[tuple[int, _Value]]:
    return _fields(io.BytesIO(content), len(content), None)


def _fields(file: BinaryIO, size: int, wanted: set[int] | None) -> Iterator[tuple[int, _Value]]:
    """Yield field numbers and values up to the byte `size`; bytes that are not wanted are skipped."""
    while file.tell() < size:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if key >= 1 << 32:  # Parsers drop the upper bits, and would see another field.
            raise ValueError(f"a field has the number {number}")
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
                raise ValueError(f"field {number} has {length} bytes; expected a short string")
            yield number, file.read(length)
        else:
            begin = file.tell()
            yield number, _Skipped(begin, begin + length) if kind == _BYTES else None
            file.seek(begin + length)
    if file.tell() > size:
        raise ValueError("a number extends beyond the end of its message")


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


def _text(value: _Value) -> str:
    if not isinstance(value, bytes):
        raise ValueError("there is a number instead of a string")
    return value.decode()


def _number(value: _Value) -> int:
    if not isinstance(value, int):
        raise ValueError("there is a string instead of a number")
    return value
