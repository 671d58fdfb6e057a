from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.image import Preparation, as_rgb, decode_image, load_prepared, prepare, read_image
from vae_edge.picture_files.listing import is_image_file

LOSSLESS = [".png", ".bmp", ".tiff", ".tif"]


def smooth(height: int = 48, width: int = 64, channels: int = 3) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 3), dtype=np.uint8).reshape(height, width, channels)


def encode(suffix: str, image: NDArray[Any], *parameters: int) -> NDArray[np.uint8]:
    done, data = cv2.imencode(suffix, image, list(parameters))
    assert done
    return np.asarray(data, dtype=np.uint8)


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    """Put an APP1 segment with a single tag, the orientation, behind the start of a JPEG."""
    tag = b"\x01\x12" + b"\x00\x03" + b"\x00\x00\x00\x01" + orientation.to_bytes(2, "big") + b"\x00\x00"
    tiff = b"MM\x00\x2a\x00\x00\x00\x08" + b"\x00\x01" + tag + b"\x00\x00\x00\x00"
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]


def as_bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_a_lossless_colour_file_comes_back_as_rgb(tmp_path: Path, suffix: str) -> None:
    image = smooth()
    path = tmp_path / f"part{suffix}"
    encode(suffix, image[:, :, ::-1]).tofile(path)
    np.testing.assert_array_equal(read_image(path), image)
    np.testing.assert_array_equal(read_image(str(path)), image)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_lossy_colour_file_comes_back_nearly_the_same_and_red_stays_red(suffix: str) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = 200
    decoded = decode_image(encode(suffix, image[:, :, ::-1]), name="part")
    np.testing.assert_allclose(decoded.astype(int), image.astype(int), atol=6)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_a_grey_file_gets_three_equal_channels(suffix: str) -> None:
    grey = smooth(channels=1)
    np.testing.assert_array_equal(decode_image(encode(suffix, grey), name="part"), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_16_bit_file_is_scaled_by_its_white_level(suffix: str, channels: int) -> None:
    image = smooth(channels=channels).astype(np.uint16)
    expected = image if channels == 1 else image[:, :, 2::-1]
    full = decode_image(encode(suffix, image * 257), name="part")
    np.testing.assert_array_equal(full, np.broadcast_to(expected, full.shape))
    twelve_bit = decode_image(encode(suffix, image * 16), name="part", white_level=4080)
    np.testing.assert_array_equal(twelve_bit, np.broadcast_to(expected, full.shape))


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".webp"])
def test_transparency_is_dropped_and_not_blended(suffix: str) -> None:
    image = np.full((16, 16, 4), (30, 60, 90, 128), np.uint8)
    decoded = decode_image(encode(suffix, image, cv2.IMWRITE_WEBP_QUALITY, 101), name="part")
    assert decoded.shape == (16, 16, 3)
    np.testing.assert_allclose(decoded[8, 8].astype(int), [90, 60, 30], atol=2)


@pytest.mark.parametrize(
    ("orientation", "turn"), [(1, 0), (3, 2), (6, -1), (8, 1)], ids=["upright", "half turn", "right", "left"]
)
def test_the_exif_orientation_is_applied(orientation: int, turn: int) -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:8, :8] = 255
    jpeg = encode(".jpg", image).tobytes()
    decoded = decode_image(as_bytes(with_exif_orientation(jpeg, orientation)), name="part")
    np.testing.assert_allclose(decoded.astype(int), np.rot90(image, turn).astype(int), atol=20)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".webp"])
def test_a_file_that_breaks_off_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    data = encode(suffix, smooth(200, 200))
    path = tmp_path / f"half{suffix}"
    data[: int(len(data) * share)].tofile(path)
    with pytest.raises(InputError, match=f"half{suffix}"):
        read_image(path)


def test_a_progressive_jpeg_that_breaks_off_between_its_scans_is_refused() -> None:
    data = encode(".jpg", smooth(200, 200), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode_image(data, name="part").shape == (200, 200, 3)
    last_scan = data.tobytes().rfind(b"\xff\xda")
    with pytest.raises(InputError, match="ends too early"):
        decode_image(data[:last_scan], name="part")


def test_a_jpeg_with_a_whole_thumbnail_that_breaks_off_itself_is_refused() -> None:
    jpeg = encode(".jpg", smooth(200, 200)).tobytes()
    thumbnail = encode(".jpg", smooth(16, 16)).tobytes()
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg[:2] + segment + jpeg[2:]
    assert decode_image(as_bytes(whole), name="part").shape == (200, 200, 3)
    for length in (len(segment) + 40, len(whole) // 2, len(whole) - 2):
        with pytest.raises(InputError, match="part"):
            decode_image(as_bytes(whole[:length]), name="part")


def test_a_jpeg_with_anything_behind_its_end_is_whole() -> None:
    jpeg = encode(".jpg", smooth()).tobytes()
    for tail in (b"\x00" * 100, b"\xff\xda\x00\x08 from a camera", b"\xff\xd8\xff\xda"):
        assert decode_image(as_bytes(jpeg + tail), name="part").shape == (48, 64, 3)


def test_a_jpeg_with_restart_markers_is_whole() -> None:
    data = encode(".jpg", smooth(64, 64), cv2.IMWRITE_JPEG_RST_INTERVAL, 1)
    assert decode_image(data, name="part").shape == (64, 64, 3)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.png is empty \(0 bytes\)"):
        read_image(tmp_path / "empty.png")


def test_a_text_file_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    with pytest.raises(InputError, match="could not be decoded"):
        read_image(tmp_path / "note.png")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="could not be read"):
        read_image(tmp_path)


def test_a_file_of_float_values_is_refused() -> None:
    with pytest.raises(InputError, match="float32"):
        decode_image(encode(".tiff", np.ones((8, 8), np.float32)), name="part")


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 1)])
def test_a_grey_array_gets_three_channels(shape: tuple[int, ...]) -> None:
    grey = np.arange(63, dtype=np.uint8).reshape(shape)
    rgb = as_rgb(grey)
    assert rgb.shape == (7, 9, 3)
    np.testing.assert_array_equal(rgb[..., 2], grey.reshape(7, 9))


def test_a_16_bit_array_above_the_white_level_is_clipped_and_not_wrapped() -> None:
    assert as_rgb(np.array([[0, 4095, 65535]], np.uint16), white_level=4095)[0, :, 0].tolist() == [0, 255, 255]


def test_a_view_with_strides_becomes_contiguous() -> None:
    image = smooth()
    flipped = as_rgb(image[::-1, ::2, ::-1])
    assert flipped.flags.c_contiguous
    np.testing.assert_array_equal(flipped, image[::-1, ::2, ::-1])


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((0, 5, 3), np.uint8), "0x5x3"),
        (np.zeros((5, 0), np.uint8), "without any pixel"),
        (np.zeros((0, 0), np.uint16), "without any pixel"),
        (np.zeros(0, np.uint8), "expected HxW"),
        (np.zeros((4, 4, 2), np.uint8), "4x4x2"),
        (np.zeros((1, 4, 4, 3), np.uint8), "1x4x4x3"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4), bool), "bool"),
        ([[1, 2], [3, 4]], "list"),
        (None, "NoneType"),
    ],
)
def test_an_array_that_is_no_image_is_refused_with_what_it_was(image: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        as_rgb(image)


def test_an_image_of_the_models_size_is_not_touched() -> None:
    image = smooth(32, 40)
    assert prepare(image, Preparation(height=32, width=40)) is image


def test_shrinking_by_a_whole_factor_averages() -> None:
    image = smooth(96, 128)
    expected = image.reshape(32, 3, 32, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(prepare(image, Preparation(height=32, width=32)), expected, atol=0.51)


def test_a_side_that_shrinks_is_averaged_also_where_the_other_grows() -> None:
    stripes = np.zeros((16, 1024, 3), np.uint8)
    stripes[:, ::2] = 200  # bilinear interpolation alone would pick single columns of these
    resized = prepare(stripes, Preparation(height=64, width=64))
    assert resized.shape == (64, 64, 3)
    np.testing.assert_allclose(resized, 100, atol=1)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (31, 33), (700, 20)])
def test_any_size_can_be_prepared_and_an_even_grey_stays_even(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 77, np.uint8)
    resized = prepare(image, Preparation(height=32, width=48))
    assert resized.shape == (32, 48, 3)
    assert resized.dtype == np.uint8
    assert (resized == 77).all()


def test_a_file_and_its_array_are_prepared_alike(tmp_path: Path) -> None:
    image = smooth(90, 70)
    encode(".png", image[:, :, ::-1]).tofile(tmp_path / "part.png")
    preparation = Preparation(height=32, width=32)
    np.testing.assert_array_equal(load_prepared(tmp_path / "part.png", preparation), load_prepared(image, preparation))


def test_a_prepared_16_bit_image_uses_the_preparations_white_level() -> None:
    image = np.full((32, 32), 4095, np.uint16)
    assert load_prepared(image, Preparation(height=32, width=32, white_level=4095)).min() == 255


@pytest.mark.parametrize("values", [{"height": 16}, {"width": 5000}, {"white_level": 100}, {"depth": 1}])
def test_a_preparation_refuses_values_out_of_range(values: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Preparation.model_validate({"height": 64, "width": 64, **values})


def test_image_files_are_told_by_their_suffix_in_either_case() -> None:
    assert all(is_image_file(Path(name)) for name in ("a.png", "a.JPG", "a.jpeg", "a.Bmp", "a.TIF", "a.tiff", "a.webp"))
    assert not any(is_image_file(Path(name)) for name in ("Thumbs.db", "a.txt", "png", ".png", "a.png.bak"))


@pytest.mark.parametrize(("suffix", "dtype"), [(".png", np.uint8), (".png", np.uint16), (".jpg", np.uint8)])
@pytest.mark.parametrize("shape", [(97, 131), (97, 131, 3), (64, 48, 3), (32, 200), (20, 30, 3), (640, 480, 3)])
def test_resizing_before_the_channels_are_ordered_changes_no_pixel(
    tmp_path: Path, suffix: str, shape: tuple[int, ...], dtype: type[np.unsignedinteger[Any]]
) -> None:
    pixels = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, shape).astype(dtype)
    path = tmp_path / f"picture{suffix}"
    assert cv2.imwrite(str(path), pixels)
    preparation = Preparation(height=64, width=48)
    np.testing.assert_array_equal(load_prepared(path, preparation), prepare(read_image(path), preparation))
