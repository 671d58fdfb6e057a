"""The references of a bundle in their file: pictures, and what the trained model and the bundle gave for them.

The file has the safetensors format: eight bytes with the length of a JSON header, the header, the tensors one after the
other. Which tensors there are, of which types and sizes, follows from the record in the manifest and from the model's
size, and so does every byte of the header. So nothing in the file decides how it is read: its size is compared before
it is read, and its header as text. Only the pictures are decoded, as PNG and one at a time, and their size is known.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vae_edge.errors import BundleError, InputError
from vae_edge.image import decode_image
from vae_edge.records import FileName, Record, open_regular, read_bounded
from vae_edge.text_enum import TextEnum

REFERENCES_FILE = "references.safetensors"

MAX_BYTES = 3_000_000
"""Of the file."""

N_PICTURES, FEWEST_PICTURES, MOST_PICTURES = 16, 6, 32
"""How many there are unless they take too much room; and how many there may be."""

_MOST_BLOCKS = 1024
"""Of a map: about 32 x 32 means are kept."""

_ROOM_FOR_MAPS = 200_000
"""Bytes for all that is not a picture: twice 32 maps of 1,024 blocks and a little more, scores, the header."""

MOST_PICTURE_BYTES = MAX_BYTES - _ROOM_FOR_MAPS

_ADVICE = "copy or export the bundle again"


class ReferenceKind(TextEnum):
    """Where the pictures come from."""

    PARTS = "parts"
    """Good parts of the run and defects pasted on them."""
    GIVEN = "given"
    """Pictures of a folder that was named at export."""
    DRAWN = "drawn"
    """Drawn by a program; they show no part."""


class PicturesRecord(Record):
    """The pictures of a file of references."""

    file: FileName = REFERENCES_FILE
    kind: ReferenceKind
    images: str
    """What they are, in words."""
    n_images: int = Field(ge=FEWEST_PICTURES, le=MOST_PICTURES)
    n_picture_bytes: int = Field(ge=1, le=MAX_BYTES)
    """Of all of them, as PNG."""

    @property
    def shows_parts(self) -> bool:
        """Whether pictures of products travel with the file."""
        return self.kind is not ReferenceKind.DRAWN


class OwnOutputs(Record):
    """A bundle's own outputs for its references where it was exported, kept to compare those on other devices with."""

    runtime: str
    """Such as `ONNX Runtime 1.32.0`."""
    device: str
    """Such as `cpu`. Another kind of device computes in another arithmetic and is not held to them."""
    score_tolerance: float = Field(gt=0, le=1)
    """As `ReferencesRecord.score_tolerance`."""
    map_tolerance: float = Field(gt=0, le=1)
    """As `ReferencesRecord.map_tolerance`."""
    saturating_sums: bool | None = None
    """INT8, in bundles of earlier versions alone: whether the processor adds 8-bit products up in 16 bits
    (`Machine.saturates_int8_sums`), which changed their outputs."""
    int8_arithmetic: str | None = None
    """INT8: which processors give equal outputs: those with this `Machine.int8_rounding`, and in bundles of earlier
    versions, or for other devices, those with this `Machine.int8_arithmetic`; None: not known."""
    architecture: str | None = None
    """FP16: the processor's, such as `x86_64`: one of another kind may compute in FP16 what this one converts, and is
    not held to these outputs."""


class ReferencesRecord(PicturesRecord):
    """The references of a bundle, and how far a device may be from them."""

    computed_by: str
    """What gave the trained model's scores and maps."""
    trained_threshold: float
    """The trained model's image threshold, from which its verdicts follow."""
    image_threshold: float
    """The bundle's at export. A re-fit on a device changes the manifest's, and the pictures stay what they are."""
    map_scale: float = Field(gt=0)
    """Largest absolute block mean of the trained model; the file has maps divided by it."""
    score_tolerance: float = Field(gt=0, le=1)
    """How far a score may be from the trained model's, in its unit: see `vae_edge.references.Units`."""
    map_tolerance: float = Field(gt=0, le=1)
    """The same of a block of a map."""
    own: OwnOutputs | None = None
    """None: the bundle could not run where it was exported."""


@dataclass(frozen=True)
class BlockOutputs:
    """A model's outputs for the pictures, as the file has them."""

    scores: NDArray[np.float32]
    """float32 [n]"""
    maps: NDArray[np.float16]
    """float16 [n, rows, columns], means of square blocks divided by `ReferencesRecord.map_scale`."""


class Size(NamedTuple):
    """Height and width of a model's input in pixels."""

    height: int
    width: int

    @property
    def block(self) -> int:
        """Side of the square blocks whose means are kept, in pixels.

        Examples:
            >>> Size(256, 256).block, Size(1000, 40).block, Size(32, 32).block
            (8, 7, 1)
        """
        return math.ceil(math.sqrt(self.height * self.width / _MOST_BLOCKS))

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks; those at the end may be smaller."""
        return -(-self.height // self.block), -(-self.width // self.block)


def block_means(maps: NDArray[np.float32], size: Size) -> NDArray[np.float64]:
    """Return the means of the blocks of maps, float32 [n, H, W] to float64 [n, rows, columns].

    Examples:
        >>> block_means(np.ones((1, 64, 33), np.float32), Size(64, 33))[0].shape
        (32, 17)
    """
    sums = np.asarray(maps, dtype=np.float64)
    counts = np.ones((size.height, size.width))
    for axis, side in ((-2, size.height), (-1, size.width)):
        starts = np.arange(0, side, size.block)
        sums, counts = (np.add.reduceat(values, starts, axis=axis) for values in (sums, counts))
    return np.asarray(sums / counts)


def encode_pictures(images: Sequence[NDArray[np.uint8]], most_bytes: int = MOST_PICTURE_BYTES) -> list[bytes]:
    """Encode pictures, uint8 [H, W, 3] RGB, as PNG without loss, grey ones as grey: the first ones that fit.

    Where not even six fit, they are made of larger pixels (of 2 x 2, 3 x 3, ...) until they do: a picture need not be
    pretty to be a reference, only the same everywhere.

    Args:
        images: six or more, of one size.
        most_bytes: that all of them may take.
    """
    for side in range(1, min(images[0].shape[:2]) + 1):
        encoded: list[bytes] = []
        left = most_bytes
        for image in images[:MOST_PICTURES]:
            encoded.append(_as_png(_coarsened(image, side)))
            left -= len(encoded[-1])
            if left < 0:
                encoded.pop()
                break
        if len(encoded) >= FEWEST_PICTURES:
            return encoded
    raise AssertionError(f"{len(images)} pictures do not fit into {most_bytes} bytes")


def decode_picture(data: bytes, size: Size, name: str) -> NDArray[np.uint8]:
    """Decode one picture to uint8 [H, W, 3] RGB.

    Raises:
        BundleError: it is damaged or of another size; with `name`.
    """
    if not data.startswith(b"\x89PNG"):
        raise BundleError(f"{name} is not a PNG; {_ADVICE}")
    # Every PNG begins with its width and height. They are compared first: about a larger picture decoding would advise
    # an option that does not apply here.
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    if len(data) >= 24 and (height, width) != tuple(size):
        raise BundleError(f"{name} has {height}x{width} pixels; expected {size.height}x{size.width}; {_ADVICE}")
    try:
        return decode_image(np.frombuffer(data, dtype=np.uint8), name=name, max_pixels=size.height * size.width)
    except InputError as error:
        raise BundleError(f"{error}; {_ADVICE}") from error


@dataclass(frozen=True)
class ReferenceFile:
    """What a file of references holds."""

    size: Size
    pictures: tuple[bytes, ...]
    """As PNG."""
    trained: BlockOutputs | None = None
    """Of the trained model; None: the file is a run's and has only pictures."""
    own: BlockOutputs | None = None
    """Of the bundle where it was exported."""

    def images(self, name: str = "reference") -> Iterator[NDArray[np.uint8]]:
        """Decode the pictures one after the other, uint8 [H, W, 3] RGB.

        Args:
            name: what they are called in messages.

        Raises:
            BundleError: one is damaged.
        """
        for number, data in enumerate(self.pictures, 1):
            yield decode_picture(data, self.size, f"{name} {number} of {len(self.pictures)}")

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            OSError: it cannot be written.
        """
        values: dict[str, NDArray[Any]] = {}
        for prefix, outputs in (("", self.trained), ("own_", self.own)):
            if outputs is not None:
                values[f"{prefix}scores"], values[f"{prefix}maps"] = outputs.scores, outputs.maps
        values["picture_sizes"] = np.array([len(data) for data in self.pictures], dtype=np.uint32)
        values["pictures"] = np.frombuffer(b"".join(self.pictures), dtype=np.uint8)
        layout = _layout(
            self.size,
            len(self.pictures),
            len(values["pictures"]),
            has_outputs=self.trained is not None,
            has_own=self.own is not None,
        )
        body = [
            np.ascontiguousarray(values[name], dtype=_DTYPES[spec.dtype]).tobytes() for name, spec in layout.items()
        ]
        path.write_bytes(_header(layout) + b"".join(body))

    @classmethod
    def read(cls, path: Path, record: PicturesRecord, size: Size) -> ReferenceFile:
        """Read a file that is exactly what its record says.

        Args:
            path: the file.
            record: of a bundle, or of a run, whose file has only pictures.
            size: of the model's input.

        Raises:
            BundleError: it is missing, or differs from its record in anything.
        """
        of_bundle = isinstance(record, ReferencesRecord)
        has_own = isinstance(record, ReferencesRecord) and record.own is not None
        layout = _layout(size, record.n_images, record.n_picture_bytes, has_outputs=of_bundle, has_own=has_own)
        values = _read(path, layout)
        sizes = values["picture_sizes"].tolist()
        if sum(sizes) != record.n_picture_bytes or 0 in sizes:
            raise BundleError(f"{path} does not fit its record: its pictures have other sizes; {_ADVICE}")
        data = values["pictures"].tobytes()
        ends = np.cumsum(sizes).tolist()
        pictures = tuple(data[end - length : end] for end, length in zip(ends, sizes, strict=True))
        trained = BlockOutputs(values["scores"], values["maps"]) if of_bundle else None
        own = BlockOutputs(values["own_scores"], values["own_maps"]) if has_own else None
        for outputs in (trained, own):
            if outputs is not None and not (np.isfinite(outputs.scores).all() and np.isfinite(outputs.maps).all()):
                raise BundleError(f"{path} has a score or a map that is not a finite number; {_ADVICE}")
        return cls(size, pictures, trained, own)


class _Tensor(NamedTuple):
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize


_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("u1"),
}


def _layout(size: Size, n_images: int, n_picture_bytes: int, *, has_outputs: bool, has_own: bool) -> dict[str, _Tensor]:
    layout: dict[str, _Tensor] = {}
    for prefix, is_there in (("", has_outputs), ("own_", has_own)):
        if is_there:
            layout[f"{prefix}scores"] = _Tensor("F32", (n_images,))
            layout[f"{prefix}maps"] = _Tensor("F16", (n_images, *size.blocks))
    layout["picture_sizes"] = _Tensor("U32", (n_images,))
    layout["pictures"] = _Tensor("U8", (n_picture_bytes,))
    return layout


def _header(layout: Mapping[str, _Tensor]) -> bytes:
    entries: dict[str, Any] = {}
    start = 0
    for name, tensor in layout.items():
        end = start + tensor.n_bytes
        entries[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _read(path: Path, layout: Mapping[str, _Tensor]) -> dict[str, NDArray[Any]]:
    header = _header(layout)
    n_bytes = len(header) + sum(tensor.n_bytes for tensor in layout.values())
    try:
        if n_bytes > MAX_BYTES:
            raise ValueError(f"its record says {n_bytes} bytes; expected at most {MAX_BYTES}")
        with open_regular(path, links=False) as file:
            found = os.fstat(file.fileno()).st_size
            if found != n_bytes:
                raise ValueError(f"it has {found} bytes; its record says {n_bytes}")
            data = read_bounded(file, n_bytes)
        if len(data) != n_bytes or not data.startswith(header):
            raise ValueError("its header is not the one that its record says")
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; {_ADVICE}") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be used ({error}); {_ADVICE}") from error
    values: dict[str, NDArray[Any]] = {}
    start = len(header)
    for name, tensor in layout.items():
        dtype = _DTYPES[tensor.dtype]
        values[name] = np.frombuffer(data, dtype, math.prod(tensor.shape), start).reshape(tensor.shape)
        start += tensor.n_bytes
    return values


def _as_png(image: NDArray[np.uint8]) -> bytes:
    is_grey = bool((image == image[:, :, :1]).all())
    pixels = image[:, :, 0] if is_grey else image[:, :, ::-1]
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise AssertionError("OpenCV did not encode a PNG")
    return bytes(data.tobytes())


def _coarsened(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a picture whose pixels are `side` x `side` large."""
    if side == 1:
        return image
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(width // side, 1), max(height // side, 1)), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
