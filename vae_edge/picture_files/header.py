"""What an image file says about itself, read from its bytes before anything is decoded: format, size, pages, alpha.

The decoders behind OpenCV believe whatever a header says and allocate it, give the first of several pages without a
word, and multiply colours by alpha in some TIFF files. So the headers are read here first. Sources: ITU-T T.81 annex B
(JPEG), W3C PNG third edition (with APNG), TIFF 6.0 and BigTIFF, the WebP container specification, Microsoft's BMP.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError

HEAD_BYTES = 32
"""So many bytes are enough to tell the format."""

FORMATS = "PNG, JPEG, BMP, TIFF or WebP"

_MOST_PARTS = 10_000
"""Chunks, segments or pages that are examined: a file of nothing but headers must not take minutes."""

_MOST_STRIPS = 1_000_000
_MOST_CHUNKS = 1_000_000
"""Of a PNG, whose data often comes in chunks of 8 kB."""

_BREAKS_OFF = (struct.error, IndexError, OverflowError)
"""What reading at a place outside the file raises."""

_DAMAGED = "copy it again or capture the image again"


@dataclass(frozen=True)
class ImageHeader:
    """What the header of an image file says."""

    kind: str
    """PNG, JPEG, BMP, TIFF or WebP."""
    width: int
    height: int
    """Pixels, before the orientation is applied."""
    n_pages: int = 1
    """Pages of a TIFF, frames of an animation. Previews of a TIFF and the further pictures of a JPEG from a phone (MPO)
    do not count."""
    orientation: int = 1
    """EXIF orientation of a WebP file, which not every OpenCV applies; 1 for the other formats, where each does."""
    unassociated_alpha_at: int | None = None
    """Where a TIFF says that colours are to be multiplied by alpha; the byte at this place says so."""
    is_progressive: bool = False
    """A JPEG in several scans."""
    may_break_off_inside: bool = False
    """A TIFF so compressed that OpenCV leaves black what it cannot decompress; see `check_tiff_is_whole`."""

    @property
    def n_pixels(self) -> int:
        """Pixels of one page."""
        return self.width * self.height


def format_of(head: bytes) -> str | None:
    """Tell the format by the first `HEAD_BYTES` bytes, whatever the file is called; None: none that is decoded here."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    # Two letters are little: the size of the second header says more.
    if head.startswith(b"BM") and head[14:18] in _BMP_HEADERS:
        return "BMP"
    return None


def read_header(data: NDArray[np.uint8], name: str) -> ImageHeader:
    """Read the header of an image file's bytes, uint8 [n].

    Raises:
        InputError: it is another format, its header is damaged, or it holds what cannot become 8-bit RGB faithfully.
    """
    kind = format_of(data[:HEAD_BYTES].tobytes())
    if kind is None:
        raise InputError(f"{name} could not be decoded; expected {FORMATS}: remove it or capture the image again")
    content = data.data
    try:
        header = _READERS[kind](content, name)
    except _BREAKS_OFF as error:
        raise InputError(f"{name} could not be decoded, its {kind} header is incomplete; {_DAMAGED}") from error
    if header.width < 1 or header.height < 1:
        raise InputError(f"{name} is a {kind} of {header.width}x{header.height} pixels; {_DAMAGED}")
    return header


def _read_png(content: memoryview, name: str) -> ImageHeader:
    width, height = struct.unpack_from(">II", content, 16)
    n_frames, position = 1, 8
    for _ in range(_MOST_CHUNKS):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"acTL":
            (n_frames,) = struct.unpack_from(">I", content, position + 8)
        # To its end: OpenCV allocates what a chunk claims, wherever it stands.
        position += 12 + length
        if position > len(content):
            raise InputError(f"{name} is a PNG that ends too early; {_DAMAGED}")
        if kind == b"IEND":
            return ImageHeader("PNG", width, height, n_pages=n_frames)
    _too_many_parts(name, _MOST_CHUNKS)


def _read_jpeg(content: memoryview, name: str) -> ImageHeader:
    header: ImageHeader | None = None
    for kind, position in _jpeg_segments(content, name):
        if kind == 0xDA:
            break
        # C0 to CF begin a frame, except for the tables C4 and CC and the reserved C8.
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 3)
            if header is not None:
                raise InputError(f"{name} is a JPEG with two sizes; {_DAMAGED}")
            header = ImageHeader("JPEG", width, height, is_progressive=kind in (0xC2, 0xC6, 0xCA, 0xCE))
    if header is None:
        raise InputError(f"{name} is a JPEG that ends too early; {_DAMAGED}")
    return header


def _jpeg_segments(content: memoryview, name: str) -> Iterator[tuple[int, int]]:
    """Give the kind of each segment and where its length stands, up to the end of the picture."""
    position = 2
    for _ in range(_MOST_PARTS):
        marker = _JPEG_MARKER.search(content, position)
        if marker is None:
            return
        kind, position = content[marker.end() - 1], marker.end()
        yield kind, position
        if kind == 0xD9:
            return
        if kind != 0x01:  # the one other marker without a segment: TEM
            position += int.from_bytes(content[position : position + 2], "big")
    _too_many_parts(name)


def check_jpeg_is_whole(data: NDArray[np.uint8], name: str) -> None:
    """Refuse a JPEG without an end or with restart markers missing: decoders fill what is missing with grey.

    The segments are walked: a thumbnail in the header and what a camera adds behind the end have ends of their own,
    which do not count.

    Raises:
        InputError: it breaks off, or a part of it is missing.
    """
    content = data.data
    ends_with_end = data[-2:].tobytes() == b"\xff\xd9"
    interval, n_mcus, n_components = 0, 0, 0
    for kind, position in _jpeg_segments(content, name):
        if kind == 0xDD:
            (interval,) = struct.unpack_from(">H", content, position + 2)
        elif kind in (0xC0, 0xC1):
            n_components = content[position + 7]
            n_mcus = _count_mcus(content, position, n_components)
        elif kind == 0xDA:
            # Where a scan holds all components, the number of its restarts is known.
            is_known = interval > 0 and n_mcus > 0 and content[position + 2] == n_components
            if is_known and not _restarts_are_there(data, position, -(-n_mcus // interval) - 1):
                raise InputError(f"{name} is a JPEG with a missing part, according to its restart markers; {_DAMAGED}")
            # Behind the first start of scan no thumbnail comes any more: an end there is the picture's.
            if ends_with_end and position < len(content) - 2:
                return
        elif kind == 0xD9:
            return
    raise InputError(f"{name} is a JPEG that ends too early; {_DAMAGED}")


def _count_mcus(content: memoryview, position: int, n_components: int) -> int:
    """Return the units that restarts are counted in, of a frame header whose scan holds all of its components."""
    height, width = struct.unpack_from(">HH", content, position + 3)
    factors = [content[position + 9 + 3 * i] for i in range(n_components)] if n_components > 1 else [0x11]
    across, down = 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)
    return int(-(-width // max(across, 1)) * -(-height // max(down, 1)))


def _restarts_are_there(data: NDArray[np.uint8], position: int, n_expected: int) -> bool:
    """Return whether a scan has as many restart markers as its picture needs, in order; one more at its end is fine."""
    begin = position + int.from_bytes(data[position : position + 2].tobytes(), "big")
    end = _scan_end(data, begin)
    kinds = data[np.flatnonzero(data[begin : end - 1] == 0xFF) + begin + 1]
    found = kinds[(kinds >= 0xD0) & (kinds <= 0xD7)] & 7
    return len(found) in (n_expected, n_expected + 1) and bool(np.array_equal(found, np.arange(len(found)) % 8))


def _scan_end(data: NDArray[np.uint8], begin: int) -> int:
    """Return where the marker stands that ends the compressed data which begins at `begin`."""
    content = data.data
    marker = _JPEG_MARKER.search(content, begin)
    return data.size if marker is None else marker.start()


def with_more_in_each_scan(data: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Return a JPEG with bytes added at the end of each scan: a decoder uses them only where a scan is incomplete."""
    content = data.data
    pieces, begin = [], 0
    for kind, position in _jpeg_segments(content, name):
        if kind == 0xDA:
            end = _scan_end(data, position + int.from_bytes(content[position : position + 2], "big"))
            pieces += [data[begin:end], _MORE]
            begin = end
    return np.concatenate([*pieces, data[begin:]])


def _read_bmp(content: memoryview, name: str) -> ImageHeader:
    old = content[14] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", content, 18)
    return ImageHeader("BMP", abs(width), abs(height))


def _read_webp(content: memoryview, name: str) -> ImageHeader:
    sizes: list[tuple[int, int]] = []
    n_frames, is_animated, orientation = 0, False, 1
    position = 12
    for _ in range(_MOST_PARTS):
        if position + 8 > len(content):
            break
        kind, length = struct.unpack_from("<4sI", content, position)
        body = position + 8
        if kind == b"VP8X":
            is_animated = bool(content[body] & 2)
            width, height = (1 + int.from_bytes(content[body + i : body + i + 3], "little") for i in (4, 7))
            sizes.append((width, height))
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", content, body + 6)
            sizes.append((width & 0x3FFF, height & 0x3FFF))
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", content, body + 1)
            sizes.append((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)))
        elif kind == b"ANMF":
            n_frames += 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(content[body : body + length])
        position = body + length + length % 2
    else:
        _too_many_parts(name)
    if not sizes:
        raise InputError(f"{name} is a WebP file without an image; {_DAMAGED}")
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    # An animation of one frame, too: not every OpenCV reads one, and colours may be multiplied by alpha.
    return ImageHeader("WebP", width, height, n_pages=max(2, n_frames) if is_animated else 1, orientation=orientation)


def _exif_orientation(content: memoryview) -> int:
    """Return the orientation, 1 to 8, of an EXIF block; 1 where it has none."""
    begin = 6 if content[:6].tobytes() == b"Exif\0\0" else 0
    try:
        directory = _tiff_directory(content[begin:], *_tiff_start(content[begin:]))
        value = directory.tags.get(274, (1,))[0]
    except _BREAKS_OFF:
        return 1
    return int(value) if 1 <= value <= 8 else 1


@dataclass(frozen=True)
class _TiffStart:
    """How numbers stand in a TIFF."""

    order: str
    """`<` or `>`."""
    is_big: bool


@dataclass(frozen=True)
class _TiffDirectory:
    """The tags of one picture in a TIFF: those that matter, the first few values of each, all of those of its parts."""

    tags: dict[int, tuple[int, ...]]
    extra_samples_at: int | None
    """Where the first value of ExtraSamples has its lowest byte."""
    following: int


def _tiff_start(content: memoryview) -> tuple[_TiffStart, int]:
    start = _TiffStart("<" if content[0] == ord("I") else ">", 43 in (content[2], content[3]))
    where = struct.unpack_from(start.order + ("Q" if start.is_big else "I"), content, 8 if start.is_big else 4)[0]
    return start, where


def _tiff_directory(content: memoryview, start: _TiffStart, position: int) -> _TiffDirectory:
    order = start.order
    count_format, entry_size = (order + "Q", 20) if start.is_big else (order + "H", 12)
    offset_format = order + ("Q" if start.is_big else "I")
    (n_entries,) = struct.unpack_from(count_format, content, position)
    position += struct.calcsize(count_format)
    tags: dict[int, tuple[int, ...]] = {}
    extra_samples_at = None
    if n_entries > _MOST_PARTS:
        raise IndexError  # As if they were not there.
    for entry in range(position, position + n_entries * entry_size, entry_size):
        tag, value_type = struct.unpack_from(order + "HH", content, entry)
        if tag not in _TIFF_TAGS or value_type not in _TIFF_TYPES:
            continue
        (n_values,) = struct.unpack_from(offset_format, content, entry + 4)
        value_format = _TIFF_TYPES[value_type]
        value_size = struct.calcsize(order + value_format)
        at = entry + entry_size - struct.calcsize(offset_format)
        if n_values * value_size > struct.calcsize(offset_format):
            (at,) = struct.unpack_from(offset_format, content, at)
        n_read = min(n_values, _MOST_STRIPS if tag in _TIFF_PARTS else 8)
        values = struct.unpack_from(f"{order}{n_read}{value_format}", content, at)
        # Of a tag that stands there twice the larger values count: nobody knows which ones a decoder takes.
        tags[tag] = max(tags.get(tag, ()), values)
        if tag == 338 and values:
            extra_samples_at = at if order == "<" else at + value_size - 1
    end = position + n_entries * entry_size
    (following,) = struct.unpack_from(offset_format, content, end)
    return _TiffDirectory(tags, extra_samples_at, following)


def _read_tiff(content: memoryview, name: str) -> ImageHeader:
    start, position = _tiff_start(content)
    first: _TiffDirectory | None = None
    n_pages, n_before, seen = 0, 0, set[int]()
    while position and position not in seen:
        if len(seen) == _MOST_PARTS:
            _too_many_parts(name)
        seen.add(position)
        try:
            directory = _tiff_directory(content, start, position)
        except _BREAKS_OFF:
            if first is None:
                raise
            break  # What comes behind the first picture is not decoded.
        # Bit 0: a smaller version of another picture; bit 2: a mask. Before TIFF 6.0 a smaller version was kind 2.
        is_page = not (directory.tags.get(254, (0,))[0] & 0b101 or directory.tags.get(255, (0,))[0] == 2)
        if first is None:
            first, n_before = directory, int(not is_page)
        n_pages += is_page
        position = directory.following
    if first is None:
        raise IndexError
    if n_before and n_pages:
        raise InputError(f"{name} is a TIFF whose first page is a preview; convert it, for example to PNG")
    tags = first.tags
    _check_tiff_samples(tags, name)
    (width, *_), (height, *_) = tags.get(256, (0,)), tags.get(257, (0,))
    tile_width, tile_height = tags.get(322, (0,))[0], tags.get(323, (0,))[0]
    if tile_width * tile_height > max(4 * width * height, 1 << 20):
        tiles = f"{tile_width}x{tile_height}"
        raise InputError(f"{name} is a TIFF of {width}x{height} pixels in tiles of {tiles}; {_DAMAGED}")
    unassociated = 2 in tags.get(338, ())
    return ImageHeader(
        "TIFF",
        width,
        height,
        n_pages=max(n_pages, 1),
        unassociated_alpha_at=first.extra_samples_at if unassociated else None,
        may_break_off_inside=tags.get(259, (1,))[0] in _TIFF_LENGTHS,
    )


def _check_tiff_samples(tags: dict[int, tuple[int, ...]], name: str) -> None:
    """Refuse kinds of TIFF that OpenCV decodes to other colours than are meant, or to numbers without a white."""
    bits, (kind, *_) = tags.get(258, (1,)), tags.get(339, (1,))
    photometric, n_samples = tags.get(262, (1,))[0], tags.get(277, (1,))[0]
    advice = "expected 8- or 16-bit grey, RGB or RGBA: convert it, for example to PNG"
    if kind != 1 or max(bits) > 16:
        numbers = {2: "int", 3: "float"}.get(kind, "uint")
        raise InputError(f"{name} is a TIFF of element type {numbers}{max(bits)}; {advice}")
    if n_samples > 4 or len(set(bits[:n_samples])) > 1:
        raise InputError(f"{name} is a TIFF of {n_samples} channels with {', '.join(map(str, bits))} bits; {advice}")
    if photometric not in (0, 1, 2, 3, 5, 6) or (max(bits) > 8 and photometric not in (1, 2)):
        colours = _TIFF_COLOURS.get(photometric, f"kind {photometric}")
        raise InputError(f"{name} is a TIFF whose values are {colours} of {max(bits)} bits; {advice}")
    if (compression := tags.get(259, (1,))[0]) not in (1, 2, 3, 4, 7, *_TIFF_LENGTHS):
        raise InputError(f"{name} is a TIFF of compression {compression}, which is not supported; {advice}")
    if max(bits) > 8 and n_samples > 1 and tags.get(284, (1,))[0] == 2:
        raise InputError(f"{name} is a 16-bit TIFF with separate channels (planar); {advice}")


def check_tiff_is_whole(data: NDArray[np.uint8], name: str, image: NDArray[Any]) -> None:
    """Refuse a TIFF of which strips or tiles do not decompress to their end.

    OpenCV leaves black what is missing and only prints it. So all parts are decompressed once more where Deflate with
    its checksums was used. LZW and PackBits have none: of the parts that end black, and of all where it is not known
    where they are in the image, the length is worked out.

    Args:
        data: the file, uint8 [n], of which `read_header` says that it may break off inside.
        name: what messages call it.
        image: what was decoded, [H, W] or [H, W, channels].

    Raises:
        InputError: with the part.
    """
    content = data.data
    tags = _tiff_directory(content, *_tiff_start(content)).tags
    (width, *_), (height, *_), compression = tags[256], tags[257], tags[259][0]
    n_samples, is_planar = tags.get(277, (1,))[0], tags.get(284, (1,))[0] == 2
    is_tiled = 322 in tags
    part_width, part_height = (tags[322][0], tags[323][0]) if is_tiled else (width, tags.get(278, (height,))[0])
    part_height = part_height if is_tiled else max(min(part_height, height), 1)
    offsets, sizes = (tags.get(tag, ()) for tag in ((324, 325) if is_tiled else (273, 279)))
    n_in_plane = -(-height // max(part_height, 1)) * -(-width // max(part_width, 1))
    n_parts = n_in_plane * (n_samples if is_planar else 1)
    if min(len(offsets), len(sizes)) < n_parts:
        raise InputError(f"{name} is a TIFF in {n_parts} parts without their positions; {_DAMAGED}")
    row_bytes = (part_width * max(tags.get(258, (1,))) * (1 if is_planar else n_samples) + 7) // 8
    is_upright = tags.get(274, (1,))[0] == 1 and image.shape[:2] == (height, width)
    has_checksum = _TIFF_LENGTHS[compression] is _deflated_length
    for part in range(n_parts):
        top = part % n_in_plane * part_height
        n_rows = part_height if is_tiled else min(part_height, height - top)
        ends = image[top + n_rows - 1, width // 2 :] if is_upright and not is_tiled else None
        if ends is not None and not has_checksum and not _may_be_missing(ends, tags.get(262, (1,))[0]):
            continue
        packed = content[offsets[part] : offsets[part] + sizes[part]]
        n_bytes = n_rows * row_bytes
        if tags.get(266, (1,))[0] == 1 and _TIFF_LENGTHS[compression](packed, n_bytes) < n_bytes:
            raise InputError(f"{name} is a damaged TIFF, its part {part + 1} of {n_parts} is incomplete; {_DAMAGED}")


def _may_be_missing(pixels: NDArray[Any], photometric: int) -> bool:
    """Return whether the last pixels of a strip may be what is left where nothing was decompressed."""
    if photometric in (1, 2):
        return not pixels.any()
    return bool((pixels == pixels[:1]).all())


def _deflated_length(packed: memoryview, wanted: int) -> int:
    unpack = zlib.decompressobj()
    try:
        n_bytes = len(unpack.decompress(packed, wanted))
        unpack.decompress(unpack.unconsumed_tail, 1)  # The checksum comes behind.
    except zlib.error:
        return -1
    return n_bytes


def _lzw_length(packed: memoryview, wanted: int) -> int:
    """Return how many bytes LZW as TIFF has it gives (TIFF 6.0, section 13), without making them; -1: it is not one."""
    if len(packed) > 1 and packed[0] == 0 and packed[1] & 1:
        return wanted  # As it was before TIFF 5.0, the other way round.
    lengths = [1] * 256 + [0, 0]
    n_bytes, held, n_held, width, before = 0, 0, 0, 9, 0
    for byte in packed:
        held, n_held = (held << 8 | byte) & 0xFFFFFF, n_held + 8
        if n_held < width:
            continue
        n_held -= width
        code = held >> n_held & (1 << width) - 1
        if code == 256:
            del lengths[258:]
            width, before = 9, 0
            continue
        if code == 257 or n_bytes >= wanted:
            break
        if code > len(lengths) - (not before):
            return -1
        if before and len(lengths) < 4096:
            lengths.append(before + 1)
        before = lengths[code]
        n_bytes += before
        width = 9 + (len(lengths) > 510) + (len(lengths) > 1022) + (len(lengths) > 2046)
    return n_bytes


def _packbits_length(packed: memoryview, wanted: int) -> int:
    n_bytes = position = 0
    while position < len(packed) and n_bytes < wanted:
        count = packed[position]
        n_bytes += 0 if count == 128 else count + 1 if count < 128 else 257 - count
        position += 1 if count == 128 else count + 2 if count < 128 else 2
    return n_bytes if position <= len(packed) else -1


def _too_many_parts(name: str, most: int = _MOST_PARTS) -> NoReturn:
    raise InputError(f"{name} has more than {most} parts; {_DAMAGED}")


_READERS: dict[str, Callable[[memoryview, str], ImageHeader]] = {
    "PNG": _read_png,
    "JPEG": _read_jpeg,
    "BMP": _read_bmp,
    "WebP": _read_webp,
    "TIFF": _read_tiff,
}

_BMP_HEADERS = tuple(struct.pack("<I", size) for size in (12, 16, 36, 40, 52, 56, 64, 108, 124))

_TIFF_PARTS = frozenset({273, 279, 324, 325})
_TIFF_TAGS = _TIFF_PARTS | {254, 255, 256, 257, 258, 259, 262, 266, 274, 277, 278, 284, 322, 323, 338, 339}
_TIFF_LENGTHS = {5: _lzw_length, 8: _deflated_length, 32773: _packbits_length, 32946: _deflated_length}
"""What gives the number of bytes in a part, by the compression."""
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_TIFF_COLOURS = {0: "grey with 0 for white", 3: "indices into a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}

# Within compressed data 0xFF comes before 0x00 or a restart marker (D0 to D7) only; 0xFF may be repeated as filling.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)

_MORE = np.frombuffer(bytes((0x5A, 0xC3, 0x96, 0x3C)) * 16, dtype=np.uint8)
"""Neither runs of the same bits, which could mean nothing, nor 0xFF, which begins a marker."""
