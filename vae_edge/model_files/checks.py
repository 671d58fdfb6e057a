"""What is checked of a bundle's model files before a runtime, whose parsers trust them, opens them.

Hashes tell that a file is the one that was exported, and nothing about who exported it. So sizes are bounded, nothing
may refer to a file that the manifest does not list, and nothing grows when it is parsed.

| file | checked |
|---|---|
| `.onnx` | tensors whose values are in another file; that it holds no loops, branches, functions and random operators |
| `.xml` (OpenVINO IR) | size, depth, document types and entities; that all weights are in the `.bin` |
| `.safetensors` | length of the header, number of tensors; that all tensors are in the file |
| `program.json` | size and number of values; the torch backend checks the rest |

What this does not promise: a runtime opens the file once more, so whoever can write to the folder at that moment can
show it another one. That is noticed by the files' places and times once the model is loaded (`Bundle.check_unchanged`),
when a runtime has parsed it already. A bundle belongs in a folder that only those can write to whose bundles are
trusted.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from vae_edge.errors import BundleError, InputError
from vae_edge.model_files.onnx_header import check_straight, read_external_data
from vae_edge.records import JsonLimits, open_regular, parse_json, read_bounded

PROGRAM_LIMITS = JsonLimits(10_000_000, 200_000)
"""Of `program.json`: a node takes about 200 bytes and 10 values."""
SAFETENSORS_LIMITS = JsonLimits(10_000_000, 500_000)
"""Of a safetensors header: a tensor takes about 100 bytes and 5 values."""

_MAX_IR_BYTES = 50_000_000
_MAX_ELEMENTS = 1_000_000
_MAX_DEPTH = 100


def check_model_files(folder: Path, names: Collection[str], *, advice: str) -> None:
    """Check the model files of a bundle.

    Args:
        folder: the bundle.
        names: the files that the manifest lists, all of which are there.
        advice: what to do about a damaged file, for the message.

    Raises:
        BundleError: one is damaged, too large, or refers to a file that is not among them.
    """
    for name in names:
        path = folder / name
        try:
            if path.suffix == ".onnx":
                others = read_external_data(path).difference(names)
                if others:
                    other = sorted(others)[0][:100]
                    raise InputError(f"{path} refers to the file {other!r}, which the manifest does not list")
                check_straight(path)
            elif path.suffix == ".xml":
                _check_weights(path, read_ir(path), names)
            elif path.suffix == ".safetensors":
                read_safetensors_header(path)
            elif path.suffix == ".json":
                with open_regular(path) as file:
                    parse_json(read_bounded(file, PROGRAM_LIMITS.size_bytes), PROGRAM_LIMITS)
        except InputError as error:
            raise BundleError(f"{error}; {advice}") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{path} cannot be read ({error}); {advice}") from error


def _check_weights(path: Path, listener: IrListener, names: Collection[str]) -> None:
    weights = path.with_suffix(".bin")
    there = weights.stat().st_size if weights.name in names else 0
    if listener.weights_end > there:
        raise InputError(
            f"{path} is damaged: its weights take {listener.weights_end} bytes, {weights.name} has {there}"
        )


def read_ir(path: Path) -> IrListener:
    """Parse an OpenVINO IR.

    Raises:
        InputError: it is not one, is damaged, or is larger than any.
        OSError: it cannot be read.
    """
    listener = IrListener()
    parser = expat.ParserCreate()
    parser.StartElementHandler = listener.start
    parser.EndElementHandler = listener.end
    # An IR has no document type; entities are what makes hostile XML grow.
    parser.StartDoctypeDeclHandler = listener.refuse
    try:
        with open_regular(path) as file:
            parser.Parse(read_bounded(file, _MAX_IR_BYTES), True)
    except (expat.ExpatError, ValueError) as error:
        raise InputError(f"{path} is not an OpenVINO IR, or is damaged: {error}") from error
    return listener


class IrListener:
    """Collects `net/rt_info` of an IR and the extent of its weights while it is parsed.

    Layers have `rt_info` of their own, deeper down, and some hold a body of further layers.
    """

    def __init__(self) -> None:
        self.version = ""
        self.n_layers = 0
        self.values: dict[tuple[str, ...], str] = {}
        self.weights_end = 0
        """How many bytes of the `.bin` its constants need."""
        self._open: list[str] = []
        self._n_elements = 0
        self._is_constant = False

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Enter an element."""
        self._n_elements += 1
        if self._n_elements > _MAX_ELEMENTS or len(self._open) > _MAX_DEPTH:
            raise ValueError(f"it has more than {_MAX_ELEMENTS} elements, or more than {_MAX_DEPTH} nested")
        if not self._open and tag != "net":
            raise ValueError(f"its first element is <{tag}>, expected <net>")
        if not self._open:
            self.version = attributes.get("version", "unknown")
        # A key that is not an XML name is written as <info name="..."/>.
        self._open.append(attributes.get("name", tag) if tag == "info" else tag)
        if self._open[:2] == ["net", "layers"] and len(self._open) == 3:
            self.n_layers += 1
        if self._open[:2] == ["net", "rt_info"] and "value" in attributes:
            self.values[tuple(self._open[2:])] = attributes["value"]

        if tag == "layer":
            self._is_constant = attributes.get("type") == "Const"
        if tag == "data" and self._is_constant:
            offset, size = int(attributes.get("offset", 0)), int(attributes.get("size", 0))
            if offset < 0 or size < 0:
                raise ValueError(f"a constant is declared with {size} bytes at {offset}")
            self.weights_end = max(self.weights_end, offset + size)

    def end(self, tag: str) -> None:
        """Leave an element."""
        self._open.pop()

    def refuse(self, name: str, system: str | None, public: str | None, internal: bool) -> None:
        """Refuse a document type declaration."""
        raise ValueError("it declares a document type")


class SafetensorsHeader(NamedTuple):
    """What the header of a safetensors file says."""

    dtypes: list[str]
    """One for each tensor."""
    metadata: dict[str, str]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file: eight bytes with its length, and JSON.

    Raises:
        InputError: it is not one, is damaged, or has a larger header than any.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
        if not 2 <= length <= min(size_bytes - 8, SAFETENSORS_LIMITS.size_bytes):
            raise InputError(
                f"{path} is not a safetensors file, or is damaged: its header cannot be {length} bytes long"
            )
        raw = file.read(length)
    try:
        header = parse_json(raw, SAFETENSORS_LIMITS)
        metadata = header.pop("__metadata__", {})
        dtypes = [str(tensor["dtype"]) for tensor in header.values()]
        ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
        words = {str(key): str(value) for key, value in metadata.items()}
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise InputError(
            f"{path} is not a safetensors file, or is damaged: its header cannot be read ({error})"
        ) from error
    missing = 8 + length + max(ends, default=0) - size_bytes
    if missing > 0:
        raise InputError(f"{path} is damaged: {missing} bytes are missing at the end")
    return SafetensorsHeader(dtypes, words)
