"""Image files written by hand, byte by byte: what no encoder at hand makes."""

from __future__ import annotations

import struct
import zlib
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray


def part(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Return a picture with something everywhere, uint8 [H, W, 3] RGB."""
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return np.asarray(cv2.normalize(smooth, None, 20, 235, cv2.NORM_MINMAX), dtype=np.uint8)  # type: ignore[call-overload]  # None is allowed


def encoded(suffix: str, image: NDArray[Any], *options: int) -> bytes:
    """Encode RGB, RGBA or grey with OpenCV."""
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR if image.shape[2] == 3 else cv2.COLOR_RGBA2BGRA)
    done, data = cv2.imencode(suffix, image, options)
    assert done
    return data.tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(pixels: NDArray[Any], colour: int, *, before: bytes = b"") -> bytes:
    """Return a PNG of uint8 or uint16 pixels, [H, W] or [H, W, n]; `before`: chunks before its data."""
    height, width = pixels.shape[:2]
    big = pixels.astype(pixels.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + big[y].tobytes() for y in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour, 0, 0, 0)
    return b"".join(
        (b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", head), before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    )


def png_of_zeros(side: int, bits: int = 8, colour: int = 0) -> bytes:
    """Return a valid PNG that is small and claims a lot."""
    row = b"\0" * (1 + side * bits // 8 * (3 if colour else 1))
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated_png(*frames: NDArray[np.uint8]) -> bytes:
    """Return an APNG of RGB frames."""
    return png(frames[0], 2, before=chunk(b"acTL", struct.pack(">II", len(frames), 0)))


def animated_webp(*frames: NDArray[np.uint8]) -> bytes:
    """Return an animated WebP of RGB frames."""
    height, width = frames[0].shape[:2]
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = _riff(b"VP8X", b"\x02\0\0\0" + size) + _riff(b"ANIM", bytes(6))
    for frame in frames:
        picture = encoded(".webp", frame, cv2.IMWRITE_WEBP_QUALITY, 101)[12:]
        body += _riff(b"ANMF", bytes(6) + size + struct.pack("<I", 100)[:3] + b"\0" + picture)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def tiff(
    *pages: NDArray[Any],
    photometric: int = 2,
    extra: int | None = None,
    planar: int = 1,
    order: Literal["<", ">"] = "<",
    big: bool = False,
    sample_format: int = 1,
    subfile: tuple[int, ...] = (),
    tags: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """Return a TIFF or BigTIFF without compression, one strip a page (or a channel, where planar is 2).

    Args:
        pages: [H, W] or [H, W, n].
        photometric: 0 white is zero, 1 black is zero, 2 RGB and so on.
        extra: what a fourth (or second) sample means: 0 anything, 1 associated alpha, 2 unassociated alpha.
        planar: 2: each channel by itself.
        order: `<` or `>`.
        big: BigTIFF.
        sample_format: 1 unsigned, 2 signed, 3 floating point.
        subfile: NewSubfileType of each page.
        tags: further ones of type LONG; one that is there already is replaced.
    """
    word, entry_size = ("Q", 20) if big else ("I", 12)
    content = bytearray(b"II" if order == "<" else b"MM")
    content += struct.pack(order + "HHHQ", 43, 8, 0, 0) if big else struct.pack(order + "HI", 42, 0)
    link = 8 if big else 4
    for number, pixels in enumerate(pages):
        height, width = pixels.shape[:2]
        n = 1 if pixels.ndim == 2 else pixels.shape[2]
        ordered = pixels.astype(pixels.dtype.newbyteorder(order))
        strips = [ordered.tobytes()] if planar == 1 else [ordered[:, :, c].tobytes() for c in range(n)]
        offsets = []
        for strip in strips:
            offsets.append(len(content))
            content += strip + b"\0" * (len(strip) % 2)
        entries: dict[int, tuple[str, list[int]]] = {
            256: ("I", [width]),
            257: ("I", [height]),
            258: ("H", [8 * pixels.dtype.itemsize] * n),
            259: ("H", [1]),
            262: ("H", [photometric]),
            273: ("I", offsets),
            277: ("H", [n]),
            278: ("I", [height]),
            279: ("I", [len(strip) for strip in strips]),
            284: ("H", [planar]),
            339: ("H", [sample_format] * n),
        }
        if extra is not None:
            entries[338] = ("H", [extra])
        if subfile:
            entries[254] = ("I", [subfile[number]])
        entries |= {tag: ("I", [value]) for tag, value in tags}
        directory = bytearray()
        for tag, (kind, values) in sorted(entries.items()):
            raw = struct.pack(order + kind * len(values), *values)
            if len(raw) > struct.calcsize(word):
                where = len(content)
                content += raw + b"\0" * (len(raw) % 2)
                raw = struct.pack(order + word, where)
            head = struct.pack(order + "HH" + word, tag, {"H": 3, "I": 4}[kind], len(values))
            directory += (head + raw).ljust(entry_size, b"\0")
        struct.pack_into(order + word, content, link, len(content))
        content += struct.pack(order + ("Q" if big else "H"), len(entries)) + directory
        link = len(content)
        content += struct.pack(order + word, 0)
    return bytes(content)
