"""The file of references: what is written comes back, and nothing that differs from its record in a bit is read."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny_bundles import toy_references
from vae_edge.errors import BundleError
from vae_edge.reference_file import (
    FEWEST_PICTURES,
    MAX_BYTES,
    PicturesRecord,
    ReferenceFile,
    ReferenceKind,
    Size,
    block_means,
    decode_picture,
    encode_pictures,
)


def noise(n: int, height: int, width: int, *, grey: bool = False) -> list[NDArray[np.uint8]]:
    images = np.random.default_rng(n).integers(0, 256, (n, height, width, 1 if grey else 3), dtype=np.uint8)
    return list(np.repeat(images, 3, axis=3) if grey else images)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    toy_references().file.write(tmp_path / "references.safetensors")
    return tmp_path / "references.safetensors"


def test_what_is_written_comes_back(written: Path) -> None:
    whole = toy_references()
    again = ReferenceFile.read(written, whole.record, Size(32, 32))
    assert again.pictures == whole.file.pictures
    for one, other in ((again.trained, whole.file.trained), (again.own, whole.file.own)):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.maps, other.maps)


def test_it_is_a_safetensors_file_like_any_other(written: Path) -> None:
    load_file = pytest.importorskip("safetensors.numpy").load_file
    tensors = load_file(written)
    assert {name: (str(each.dtype), each.shape[0]) for name, each in tensors.items() if name != "pictures"} == {
        "scores": ("float32", 6),
        "maps": ("float16", 6),
        "own_scores": ("float32", 6),
        "own_maps": ("float16", 6),
        "picture_sizes": ("uint32", 6),
    }


@pytest.mark.parametrize("grey", [False, True])
def test_pictures_come_back_to_the_bit_and_grey_ones_are_stored_as_grey(grey: bool) -> None:
    images = noise(7, 40, 50, grey=grey)
    encoded = encode_pictures(images)
    assert len(encoded) == 7
    for image, data in zip(images, encoded, strict=True):
        np.testing.assert_array_equal(decode_picture(data, Size(40, 50), "it"), image)
        assert data[25] == (0 if grey else 2)  # The colour type of a PNG.


def test_large_pictures_are_fewer_and_never_fewer_than_six() -> None:
    images = noise(16, 60, 84)  # Of 15 kB each.
    assert len(encode_pictures(images)) == 16
    assert len(encode_pictures(images, 160_000)) == 10
    coarse = encode_pictures(images, 60_000)
    assert FEWEST_PICTURES <= len(coarse) < 16
    assert sum(map(len, coarse)) <= 60_000
    first = decode_picture(coarse[0], Size(60, 84), "it")
    np.testing.assert_array_equal(first[::2, ::2], first[1::2, 1::2])  # Pixels of 2 x 2.


@pytest.mark.parametrize("size", [Size(32, 32), Size(33, 70), Size(256, 256), Size(1000, 37), Size(4096, 32)])
def test_block_means_are_those_of_numpy(size: Size) -> None:
    maps = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    found = block_means(maps, size)
    assert found.shape == (2, *size.blocks)
    assert np.prod(size.blocks) <= 1200
    side = size.block
    for row, column in ((0, 0), (size.blocks[0] - 1, size.blocks[1] - 1)):
        block = maps[1, row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert found[1, row, column] == pytest.approx(block.mean(dtype=np.float64))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_pixel_that_is_no_number_spoils_its_block(broken: float) -> None:
    maps = np.ones((1, 64, 64), np.float32)
    maps[0, 63, 0] = broken
    assert not np.isfinite(block_means(maps, Size(64, 64))[0, -1, 0])


def test_every_changed_bit_of_the_header_and_every_other_length_is_refused(written: Path) -> None:
    whole, record = written.read_bytes(), toy_references().record
    end = 8 + int.from_bytes(whole[:8], "little")
    for place in range(end):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        written.write_bytes(changed)
        with pytest.raises(BundleError, match="its header is not the one that its record says"):
            ReferenceFile.read(written, record, Size(32, 32))
    for other in (whole[:-1], whole + b"\0", b"", whole[:7], whole * 2):
        written.write_bytes(other)
        with pytest.raises(BundleError, match="bytes; its record says"):
            ReferenceFile.read(written, record, Size(32, 32))


def test_a_changed_bit_behind_the_header_is_an_error_or_leaves_pictures_and_finite_numbers(written: Path) -> None:
    whole, record = written.read_bytes(), toy_references().record
    start = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    n_refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(rng.choice((1, 1, 50))):
            changed[rng.randrange(start, len(whole))] ^= 1 << rng.randrange(8)
        written.write_bytes(changed)
        try:
            found = ReferenceFile.read(written, record, Size(32, 32))
            images = list(found.images())
        except BundleError:
            n_refused += 1
            continue
        assert {image.shape for image in images} == {(32, 32, 3)}
        assert found.trained is not None
        assert np.isfinite(found.trained.scores).all()
        assert np.isfinite(found.trained.maps).all()
    assert n_refused > 100  # A PNG has checksums.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_images": 7}, "its record says"),
        ({"n_picture_bytes": 1}, "its record says"),
        ({"n_picture_bytes": MAX_BYTES}, "expected at most 3000000"),
        ({"own": None}, "its record says"),
    ],
)
def test_a_record_of_other_pictures_does_not_fit(written: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        ReferenceFile.read(written, toy_references().record.model_copy(update=change), Size(32, 32))


def test_another_model_size_does_not_fit(written: Path) -> None:
    with pytest.raises(BundleError, match="its record says"):
        ReferenceFile.read(written, toy_references().record, Size(40, 40))
    # As many blocks, and pictures of another size.
    found = ReferenceFile.read(written, toy_references().record, Size(32, 32))
    with pytest.raises(BundleError, match="has 32x32 pixels; expected 33x32"):
        decode_picture(found.pictures[0], Size(33, 32), "the first")
    # Of a larger one no limit of the device is to blame.
    with pytest.raises(BundleError, match="has 32x32 pixels; expected 16x32") as caught:
        decode_picture(found.pictures[0], Size(16, 32), "the first")
    assert "max-pixels" not in str(caught.value)


def test_pictures_whose_sizes_do_not_add_up_are_refused(written: Path) -> None:
    whole, record = toy_references().file, toy_references().record
    path = written
    ReferenceFile(
        whole.size, (whole.pictures[0] + whole.pictures[1], b"", *whole.pictures[2:]), whole.trained, whole.own
    ).write(path)
    with pytest.raises(BundleError, match="its pictures have other sizes"):
        ReferenceFile.read(path, record, Size(32, 32))


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" + bytes(60), b"BM" + bytes(60)])
def test_a_picture_that_is_no_whole_png_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="the first"):
        decode_picture(data, Size(32, 32), "the first")


def test_a_png_that_claims_to_be_huge_is_refused_before_it_is_decoded() -> None:
    data = bytearray(toy_references().file.pictures[0])
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(BundleError, match="has 60000x60000 pixels; expected 32x32"):
        decode_picture(bytes(data), Size(32, 32), "it")


def test_a_link_is_not_read(written: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(written)
    with pytest.raises(BundleError, match="symbolic link"):
        ReferenceFile.read(link, toy_references().record, Size(32, 32))
    with pytest.raises(BundleError, match="is missing"):
        ReferenceFile.read(tmp_path / "nothing", toy_references().record, Size(32, 32))


@pytest.mark.parametrize("scores", [[np.nan] * 6, [np.inf] * 6])
def test_stored_outputs_that_are_no_numbers_are_refused(written: Path, scores: list[float]) -> None:
    whole = toy_references().file
    assert whole.trained is not None
    spoilt = ReferenceFile(
        whole.size, whole.pictures, type(whole.trained)(np.array(scores, np.float32), whole.trained.maps), whole.own
    )
    spoilt.write(written)
    with pytest.raises(BundleError, match="not a finite number"):
        ReferenceFile.read(written, toy_references().record, Size(32, 32))


def test_a_runs_file_has_only_pictures(tmp_path: Path) -> None:
    encoded = tuple(encode_pictures(noise(8, 40, 40)))
    record = PicturesRecord(
        kind=ReferenceKind.PARTS, images="noise", n_images=8, n_picture_bytes=sum(map(len, encoded))
    )
    ReferenceFile(Size(40, 40), encoded).write(tmp_path / "run")
    found = ReferenceFile.read(tmp_path / "run", record, Size(40, 40))
    assert (found.pictures, found.trained, found.own) == (encoded, None, None)
