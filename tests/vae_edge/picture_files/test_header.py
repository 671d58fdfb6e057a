from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.picture_bytes import (
    animated_png,
    animated_webp,
    chunk,
    encoded,
    part,
    png,
    png_of_zeros,
    tiff,
)
from vae_edge.errors import InputError, UsageError
from vae_edge.image import Preparation, decode_image, likely_white_level, load_prepared, read_image
from vae_edge.picture_files.header import read_header

RGB = part()
GREY = np.ascontiguousarray(RGB[:, :, 1])
ALPHA = np.linspace(1, 255, 64).astype(np.uint8)[None].repeat(48, 0)
RGBA = np.dstack([RGB, ALPHA])
GREY_ALPHA = np.dstack([GREY, ALPHA])


def wide(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return (pixels.astype(np.uint16) * 257).astype(np.uint16)


def decoded(content: bytes, **options: Any) -> NDArray[np.uint8]:
    return decode_image(np.frombuffer(content, dtype=np.uint8), name="part", **options)


LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 101)

WITH_ALPHA = {
    "PNG": png(RGBA, 6),
    "PNG of 16 bits": png(wide(RGBA), 6),
    "WebP": encoded(".webp", RGBA, *LOSSLESS),
    "BMP": encoded(".bmp", RGBA),
    "TIFF of OpenCV": encoded(".tiff", RGBA),
    **{f"TIFF, extra {extra}": tiff(RGBA, extra=extra) for extra in (0, 1, 2)},
    **{f"TIFF of 16 bits, extra {extra}": tiff(wide(RGBA), extra=extra) for extra in (0, 1, 2)},
    "TIFF, planar": tiff(RGBA, extra=2, planar=2),
    "TIFF, big endian": tiff(RGBA, extra=2, order=">"),
    "BigTIFF": tiff(RGBA, extra=2, big=True),
    "BigTIFF, big endian": tiff(RGBA, extra=2, big=True, order=">"),
    "TIFF, extra as a long": tiff(RGBA, extra=2, tags=((338, 2),), order=">"),
}


@pytest.mark.parametrize("content", WITH_ALPHA.values(), ids=WITH_ALPHA.keys())
def test_alpha_is_dropped_without_multiplying_in_every_format(content: bytes) -> None:
    np.testing.assert_array_equal(decoded(content), RGB)


@pytest.mark.parametrize(
    "content",
    [
        png(GREY_ALPHA, 4),
        png(wide(GREY_ALPHA), 4),
        *(tiff(pixels, photometric=1, extra=extra) for pixels in (GREY_ALPHA, wide(GREY_ALPHA)) for extra in (0, 1, 2)),
        png(GREY, 0, before=chunk(b"tRNS", struct.pack(">H", int(GREY[0, 0])))),
        tiff(255 - GREY, photometric=0),
    ],
)
def test_grey_with_alpha_is_the_grey(content: bytes) -> None:
    np.testing.assert_array_equal(decoded(content), GREY[:, :, None].repeat(3, 2))


def test_a_palette_with_transparent_entries_is_its_colours() -> None:
    indices = (np.arange(48 * 64) % 16).astype(np.uint8).reshape(48, 64)
    palette = np.random.default_rng(1).integers(0, 256, (16, 3)).astype(np.uint8)
    content = png(indices, 3, before=chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", bytes(range(0, 160, 10))))
    np.testing.assert_array_equal(decoded(content), palette[indices])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(RGB, 255 - RGB), "TIFF of 2 pages"),
        (tiff(RGB, RGB, RGB, big=True, order=">"), "TIFF of 3 pages"),
        (animated_png(RGB, 255 - RGB), "PNG of 2 frames"),
        (animated_webp(RGB, 255 - RGB, RGB), "WebP of 3 frames"),
        (tiff(RGB[::2, ::2], RGB, subfile=(1, 0)), "first page is a preview"),
    ],
)
def test_several_pages_or_frames_are_refused_with_their_number(content: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        decoded(content)


@pytest.mark.parametrize(
    "content",
    [
        tiff(RGB, RGB[::2, ::2], subfile=(0, 1)),
        tiff(RGB, RGB[::2, ::2], subfile=(0, 4)),
        animated_png(RGB),
        tiff(RGB, subfile=(2,)),
    ],
)
def test_a_preview_or_a_mask_behind_the_picture_and_an_animation_of_one_frame_are_one_picture(content: bytes) -> None:
    np.testing.assert_array_equal(decoded(content), RGB)


def test_of_a_phones_jpeg_with_a_second_picture_behind_it_the_first_is_taken() -> None:
    content = encoded(".jpg", RGB)
    np.testing.assert_array_equal(decoded(content + encoded(".jpg", 255 - RGB)), decoded(content))


def test_a_file_of_nothing_but_headers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_edge.picture_files.header._MOST_CHUNKS", 1000)
    with pytest.raises(InputError, match="more than 1000 parts"):
        decoded(png(RGB, 2, before=chunk(b"tEXt", b"") * 1001))
    with pytest.raises(InputError, match="more than 10000 parts"):
        decoded(b"\xff\xd8" + b"\xff\xe0\0\x02" * 10_001 + encoded(".jpg", RGB)[2:])


def test_directories_in_a_circle_end() -> None:
    content = bytearray(tiff(RGB))
    content[-4:] = content[4:8]
    np.testing.assert_array_equal(decoded(bytes(content)), RGB)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tiff(RGB.astype(np.float32), sample_format=3), "float32"),
        (tiff(GREY.astype(np.int32), photometric=1, sample_format=2), "int32"),
        (tiff(GREY.astype(np.int16), photometric=1, sample_format=2), "int16"),
        (tiff(GREY.astype(np.uint32), photometric=1), "uint32"),
        (tiff(65535 - wide(GREY), photometric=0), "0 for white"),
        (tiff(wide(RGB), planar=2), "planar"),
        (tiff(wide(RGBA), photometric=5), "CMYK"),
        (tiff(RGB, photometric=8), "CIELab"),
        (tiff(np.dstack([RGBA, GREY])), "5 channels"),
        (tiff(RGB, tags=((322, 60000), (323, 60000))), "tiles of 60000x60000"),
        (b"GIF89a" + bytes(100), "expected PNG, JPEG"),
        (b"BM are only two letters" + bytes(100), "expected PNG, JPEG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "expected PNG, JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(4), "header is incomplete"),
        (png(RGB, 2)[:33] + b"\x7f\xff\xff\xffIDAT", "ends too early"),
        (b"II*\0\xff\xff\xff\xff" + bytes(100), "header is incomplete"),
    ],
)  # fmt: skip
def test_what_would_be_decoded_to_something_else_is_refused(content: bytes, says: str) -> None:
    begin_s = time.perf_counter()
    with pytest.raises(InputError, match=says) as caught:
        decoded(content)
    assert str(caught.value).startswith("part ")
    assert time.perf_counter() - begin_s < 2


HUGE = {
    "PNG": png(RGB, 2)[:16] + struct.pack(">II", 32000, 32000) + png(RGB, 2)[24:],
    "JPEG": b"\xff\xd8\xff\xc0\0\x0b\x08" + struct.pack(">HH", 65000, 65000) + b"\x01\x01\x11\0\xff\xda\0\x02\xff\xd9",
    "BMP": b"BM" + bytes(12) + struct.pack("<Iii", 40, 32000, -32000) + bytes(40),
    "TIFF": tiff(GREY, photometric=1, tags=((256, 32000), (257, 32000))),
    "BigTIFF": tiff(GREY, photometric=1, big=True, order=">", tags=((256, 32000), (257, 32000))),
    "WebP lossy": b"RIFF\x20\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16000, 16000),
    "WebP lossless": b"RIFF\x20\0\0\0WEBPVP8L\x05\0\0\0\x2f" + struct.pack("<I", 15999 | 15999 << 14),
    "WebP extended": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xff\xff\0",
}  # fmt: skip


@pytest.mark.parametrize("content", HUGE.values(), ids=HUGE.keys())
def test_a_picture_that_claims_too_many_pixels_is_refused_by_its_header(content: bytes) -> None:
    with pytest.raises(InputError, match=r"million; expected at most 100 million: .*--max-pixels"):
        decoded(content)


def test_the_limit_is_the_callers_or_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content, n_pixels = encoded(".png", RGB), 48 * 64
    (tmp_path / "part.png").write_bytes(content)
    preparation = Preparation(height=32, width=32)
    assert decoded(content, max_pixels=n_pixels).shape == RGB.shape
    with pytest.raises(InputError, match="64x48 pixels"):
        decoded(content, max_pixels=n_pixels - 1)
    with pytest.raises(InputError, match="64x48 pixels"):
        read_image(tmp_path / "part.png", max_pixels=n_pixels - 1)
    with pytest.raises(InputError, match="64x48 pixels"):
        load_prepared(tmp_path / "part.png", preparation, max_pixels=n_pixels - 1)
    monkeypatch.setenv("VAE_EDGE_MAX_PIXELS", "100")
    with pytest.raises(InputError, match="64x48 pixels"):
        decoded(content)
    monkeypatch.setenv("VAE_EDGE_MAX_PIXELS", "many")
    with pytest.raises(UsageError, match="VAE_EDGE_MAX_PIXELS"):
        decoded(content)
    with pytest.raises(UsageError, match="max_pixels is 0"):
        decoded(content, max_pixels=0)


def test_a_small_file_of_many_pixels_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_of_zeros(12_000))
    code = (
        "import resource, sys\nfrom vae_edge import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_image(sys.argv[1])\nexcept ValueError as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    says, grown_mb = subprocess.check_output(
        [sys.executable, "-c", code, str(tmp_path / "bomb.png")], text=True
    ).splitlines()
    assert "12000x12000 pixels" in says
    assert int(grown_mb) < 50


def test_a_large_sparse_file_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    path.write_bytes(encoded(".png", RGB))
    os.truncate(path, 300 * 10**9)
    with pytest.raises(InputError, match="a file of 300000 MB; expected at most"):
        read_image(path)
    os.truncate(path, 10**6)
    assert read_image(path).shape == RGB.shape  # Zeros behind the end are nobody's business.


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes in the file system are POSIX's")
@pytest.mark.parametrize("through_link", [False, True])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, through_link: bool) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        for path, says in (
            (tmp_path / "pipe.png", "a named pipe"),
            (tmp_path / "socket.png", "a socket"),
            (Path("/dev/zero"), "a device"),
        ):
            if through_link:
                link = tmp_path / f"link-{path.name}"
                link.symlink_to(path)
                path = link
            begin_s = time.perf_counter()
            with pytest.raises(InputError, match=f"is {says}; expected an image file"):
                read_image(path)
            assert time.perf_counter() - begin_s < 1


def test_a_name_that_no_system_has_is_an_error_of_the_picture() -> None:
    for name in ("a\0b.png", "x" * 5000):
        with pytest.raises(InputError, match="could not be read"):
            read_image(name)


def test_a_lack_of_memory_is_an_error_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        error = cv2.error("no")
        error.code, error.err = -4, "Failed to allocate 123 bytes"
        raise error

    monkeypatch.setattr(cv2, "imdecode", fail)
    with pytest.raises(InputError, match="part needs more memory than is available"):
        decoded(encoded(".png", RGB))


def test_a_lack_of_memory_while_resizing_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(cv2, "resize", fail)
    with pytest.raises(InputError, match="the image needs more memory"):
        load_prepared(RGB, Preparation(height=32, width=32))


def holes(content: bytes, n: int, size: int) -> list[bytes]:
    """Cut a piece out of the middle half, at several places."""
    places = np.random.default_rng(n).integers(len(content) // 4, 3 * len(content) // 4, n)
    return [content[:place] + content[place + size :] for place in map(int, places)]


@pytest.mark.parametrize("colour", [True, False])
@pytest.mark.parametrize(
    ("options", "least"),
    [((), 0.9), ((cv2.IMWRITE_JPEG_RST_INTERVAL, 4), 1.0), ((cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 0.6)],
    ids=["sequential", "restarts", "progressive"],
)
def test_a_jpeg_with_a_hole_is_refused_and_a_whole_one_is_not(
    options: tuple[int, ...], least: float, colour: bool
) -> None:
    image = part(333, 517)
    content = encoded(".jpg", image if colour else image[:, :, 0], *options)
    assert decoded(content).shape == (333, 517, 3)
    n_refused = 0
    for damaged in holes(content, 20, 1024):
        try:
            decoded(damaged)
        except InputError:
            n_refused += 1
    assert n_refused >= least * 20


def test_a_whole_jpeg_with_grey_corners_is_whole() -> None:
    image = np.full((96, 96, 3), 128, np.uint8)
    image[30:60, 30:60] = 20
    for options in ((), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)):
        np.testing.assert_allclose(decoded(encoded(".jpg", image, *options)).astype(int), image, atol=25)


def test_any_changed_byte_of_a_png_is_told() -> None:
    content = png(RGB, 2)
    for place in range(45, len(content) - 12, 97):
        with pytest.raises(InputError):
            decoded(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])


def test_a_webp_is_turned_by_its_orientation_by_every_opencv() -> None:
    picture = encoded(".webp", RGB, *LOSSLESS)[12:]
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + struct.pack("<HH", 6, 0) + bytes(4)
    size = struct.pack("<I", 63)[:3] + struct.pack("<I", 47)[:3]
    body = b"VP8X\x0a\0\0\0\x08\0\0\0" + size + picture + b"EXIF" + struct.pack("<I", len(exif)) + exif
    content = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    np.testing.assert_array_equal(decoded(content), np.rot90(RGB, -1))


def test_a_header_says_size_and_kind_without_decoding() -> None:
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".bmp", "BMP"), (".tiff", "TIFF"), (".webp", "WebP")):
        header = read_header(np.frombuffer(encoded(suffix, RGB), np.uint8), "part")
        assert (header.kind, header.width, header.height, header.n_pages) == (kind, 64, 48, 1)


@pytest.mark.parametrize(
    ("largest", "meant"), [(4095, 4095), (4096, 16383), (300, 1023), (200, 255), (16383, 16383), (40000, None)]
)
def test_the_white_level_that_was_meant_is_guessed_from_the_largest_value(largest: int, meant: int | None) -> None:
    assert likely_white_level(largest, 65535) == meant
    assert likely_white_level(largest, 4095) is None


def test_16_bits_become_8_without_a_copy_in_floating_point() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for white_level in (65535, 4095, 1023):
        expected = np.clip(np.rint(ramp.astype(np.float32) * np.float32(255.0 / white_level)), 0, 255)
        np.testing.assert_array_equal(decoded(png(ramp, 0), white_level=white_level)[:, :, 0], expected)


SEEDS = {
    **WITH_ALPHA,
    "JPEG": encoded(".jpg", RGB),
    "progressive": encoded(".jpg", RGB, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": encoded(".jpg", RGB, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "LZW": encoded(".tiff", RGB, cv2.IMWRITE_TIFF_COMPRESSION, 5),
    "pages": tiff(RGB, RGB),
    "APNG": animated_png(RGB, RGB),
    "animated WebP": animated_webp(RGB, RGB),
    "grey BMP": encoded(".bmp", GREY),
    "lossy WebP": encoded(".webp", RGB, cv2.IMWRITE_WEBP_QUALITY, 80),
}
N_MUTATIONS = int(os.environ.get("VAE_EDGE_FUZZ_TRIES", "600"))


def test_mutated_files_are_pictures_or_input_errors_in_bounded_time_and_memory() -> None:
    rng = np.random.default_rng(20)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = list(SEEDS)
    for number in range(N_MUTATIONS):
        data = bytearray(SEEDS[names[number % len(names)]])
        for _ in range(int(rng.integers(1, 6))):
            # Headers first: there the sizes, the numbers of pages and the offsets stand.
            at = int(rng.integers(0, len(data) if rng.random() < 0.4 else min(len(data), 200)))
            kind = rng.integers(5)
            if kind == 0:
                data[at] = int(rng.integers(256))
            elif kind == 1:
                data[at] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                del data[at : at + int(rng.integers(1, 64))]
            elif kind == 3:
                data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\1\0"])
            else:
                data[at:at] = bytes(data[at : at + int(rng.integers(1, 64))])
            data = data or bytearray(b"\0")
        begin_s = time.perf_counter()
        try:
            picture = decoded(bytes(data), max_pixels=1_000_000)
        except InputError:
            pass
        else:
            assert picture.dtype == np.uint8
            assert picture.ndim == 3
            assert 0 < picture.size <= 3_000_000
        assert time.perf_counter() - begin_s < 5
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024
    assert grown_mb < 300


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1), (1, 1)])
def test_a_very_long_picture_is_prepared_or_an_input_error(tmp_path: Path, shape: tuple[int, int]) -> None:
    (tmp_path / "long.png").write_bytes(png(np.full(shape, 77, np.uint8), 0))
    prepared = load_prepared(tmp_path / "long.png", Preparation(height=32, width=48))
    assert (prepared == 77).all()


def test_what_opencv_refuses_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise cv2.error("no")

    monkeypatch.setattr(cv2, "resize", fail)
    with pytest.raises(InputError, match="could not be processed"):
        load_prepared(RGB, Preparation(height=32, width=32))


def compressed_tiff(pixels: NDArray[Any], compression: int, rows: int) -> bytearray:
    options = (cv2.IMWRITE_TIFF_COMPRESSION, compression, 278, rows)  # RowsPerStrip: older OpenCV has no name for it
    return bytearray(encoded(".tiff", pixels, *options))


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("compression", [5, 8, 32946])
def test_a_compressed_tiff_that_is_damaged_inside_is_refused(compression: int, rows: int) -> None:
    noise = np.random.default_rng(0).integers(1, 256, (60, 90, 3), dtype=np.uint8)
    content = compressed_tiff(noise, compression, rows)
    assert np.array_equal(decoded(bytes(content)), noise)
    for place in (len(content) // 4, len(content) // 2):
        damaged = content.copy()
        damaged[place : place + 400] = b"\xff" * 400
        with pytest.raises(
            InputError, match=r"^part is a damaged TIFF, its part \d+ of \d+ is incomplete; copy it again"
        ):
            decoded(bytes(damaged))


@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("compression", [5, 8, 32773, 32946])
def test_a_compressed_tiff_that_is_black_is_read(compression: int, rows: int) -> None:
    dark = np.random.default_rng(0).integers(0, 256, (60, 900, 3), dtype=np.uint8)
    dark[:20] = dark[-9:] = dark[:, 300:] = 0
    for pixels in (dark, np.zeros_like(dark), wide(dark), dark[:, :, 0]):
        expected = pixels if pixels.dtype == np.uint8 else dark
        found = decoded(bytes(compressed_tiff(np.ascontiguousarray(pixels), compression, rows)))
        assert np.array_equal(found, expected if expected.ndim == 3 else np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("compression", [9, 34712, 34892, 50002, 12345])
def test_a_tiff_compressed_in_an_unknown_way_is_refused(compression: int) -> None:
    content = bytearray(tiff(RGB))
    place = content.index(struct.pack("<HHI", 259, 3, 1)) + 8
    content[place : place + 2] = struct.pack("<H", compression)
    with pytest.raises(InputError, match=f"TIFF of compression {compression}, which is not supported"):
        decoded(bytes(content))
