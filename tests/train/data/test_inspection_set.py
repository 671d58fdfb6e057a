import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.picture_bytes import animated_png, part, png, tiff
from vae_edge.cache.folders import cache_folder, sample_cache_folder
from vae_edge.errors import InputError
from vae_edge.image import Preparation, load_prepared
from vae_edge.train.data.inspection_set import (
    InspectionSet,
    fingerprint,
    load_images,
    load_masks,
    open_inspection_set,
    spread,
    spread_places,
)
from vae_edge.train.data.masks import read_mask, resize_mask
from vae_edge.train.data.report import DataReport, check_inspection_set
from vae_edge.train.data.sources import resolve_data


def write(path: Path, image: NDArray[Any] | int, size: tuple[int, int] = (40, 48)) -> Path:
    """Write an array, or random pixels of a seed."""
    if isinstance(image, int):
        image = np.random.default_rng(image).integers(0, 256, (*size, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(path.suffix, image)
    assert done
    data.tofile(path)
    return path


def a_mask(size: tuple[int, int] = (40, 48)) -> NDArray[np.uint8]:
    mask = np.zeros(size, np.uint8)
    mask[10:20, 10:30] = 255
    return mask


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small inspection set in the layout of MVTec AD."""
    root = tmp_path / "tile"
    for i in range(4):
        write(root / "train" / "good" / f"{i}.png", i)
    write(root / "test" / "good" / "0.jpg", 10)
    write(root / "test" / "scratch" / "0.png", 20)
    write(root / "test" / "scratch" / "1.png", 21)
    write(root / "test" / "dent" / "0.BMP", 30)
    write(root / "ground_truth" / "scratch" / "0_mask.png", a_mask())
    write(root / "ground_truth" / "scratch" / "1.bmp", a_mask())
    write(root / "ground_truth" / "dent" / "0_mask.png", a_mask())
    return root


def names(images: InspectionSet) -> tuple[list[str], list[str]]:
    return [image.name for image in images.train], [image.name for image in images.test]


def checked(root: Path) -> tuple[InspectionSet, DataReport]:
    return check_inspection_set(open_inspection_set(root))


# Layouts


def test_the_layout_of_mvtec_ad_is_read_with_classes_and_masks(root: Path) -> None:
    images = open_inspection_set(root)
    assert images.layout == "mvtec"
    assert names(images) == (
        [f"train/good/{i}.png" for i in range(4)],
        ["test/dent/0.BMP", "test/good/0.jpg", "test/scratch/0.png", "test/scratch/1.png"],
    )
    assert images.defects == ("dent", "scratch")
    assert [image.defect for image in images.test] == ["dent", None, "scratch", "scratch"]
    assert [image.mask.name if image.mask else None for image in images.test] == [
        "0_mask.png", None, "0_mask.png", "1.bmp",
    ]  # fmt: skip
    assert [image.is_anomalous for image in images.test] == [True, False, True, True]
    assert images.unmatched_masks == ()
    first = images.train[0]
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_a_plain_folder_is_all_for_training_with_everything_below_it(tmp_path: Path) -> None:
    write(tmp_path / "b.png", 0)
    write(tmp_path / "monday" / "a.tiff", 1)
    images = open_inspection_set(str(tmp_path))
    assert images.layout == "folder"
    assert names(images) == (["b.png", "monday/a.tiff"], [])


def test_folders_may_be_given_by_name(tmp_path: Path) -> None:
    write(tmp_path / "ok" / "0.png", 0)
    write(tmp_path / "ok2" / "0.png", 1)
    write(tmp_path / "bad" / "loose.png", 2)
    write(tmp_path / "bad" / "scratch" / "0.png", 3)
    write(tmp_path / "truth" / "scratch" / "0.png", a_mask())
    write(tmp_path / "truth" / "loose_mask.png", a_mask())
    images = open_inspection_set(
        normal=tmp_path / "ok", normal_test=tmp_path / "ok2", abnormal=tmp_path / "bad", masks=tmp_path / "truth"
    )
    assert images.layout == "folders"
    assert names(images) == (
        ["normal/0.png"],
        ["normal_test/0.png", "abnormal/loose.png", "abnormal/scratch/0.png"],
    )
    assert [image.defect for image in images.test] == [None, "bad", "scratch"]
    assert [image.mask is not None for image in images.test] == [False, True, True]


def test_other_files_are_counted_and_hidden_ones_are_not(root: Path) -> None:
    (root / "train" / "good" / "Thumbs.db").write_bytes(b"x")
    (root / "test" / "scratch" / "readme.txt").write_text("x")
    (root / "train" / "good" / ".hidden.png").write_bytes(b"x")
    write(root / "train" / "good" / ".cache" / "0.png", 77)
    images = open_inspection_set(root)
    assert images.n_ignored == 2
    assert len(images.train) == 4


@pytest.mark.parametrize("target", ["nowhere.png", "link.png"])
def test_a_link_to_nowhere_is_left_out_and_named(root: Path, target: str) -> None:
    (root / "train" / "good" / "link.png").symlink_to(target)
    images, report = checked(root)
    assert len(images.train) == 4
    assert report.counts == {"link_to_nowhere": 1}
    assert "train/good: 1 image, skipped: broken links (link.png)" in images.describe()
    with pytest.raises(InputError, match=r"1 problem .*link\.png"):
        check_inspection_set(open_inspection_set(root), strict=True)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are any bytes on Linux only")
def test_a_name_that_is_no_utf_8_is_refused_before_any_record_is_written(root: Path) -> None:
    (root / "train" / "good" / os.fsdecode(b"St\xfcck.png")).write_bytes(b"")
    with pytest.raises(InputError, match=r"St\\udcfcck\.png' is not UTF-8; rename the file"):
        open_inspection_set(root)


def test_a_link_that_leads_back_up_does_not_loop(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 0)
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    assert names(open_inspection_set(tmp_path))[0] == ["a.png"]


def test_progress_is_told_while_opening_and_checking(root: Path) -> None:
    told: list[tuple[int, int]] = []
    images = open_inspection_set(root, progress=lambda done, total: told.append((done, total)))
    check_inspection_set(images, lambda done, total: told.append((done, total)))
    assert told == [(i, 8) for i in range(1, 9)] * 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ([], "does not exist"),
        (["set/"], "has no image"),
        (["set/notes.txt"], "1 other files"),
        (["set"], "is a file"),
        (["set/train/a.png"], "is unclear whether these contain good parts: train .*--normal .*set/train"),
        (["set/test/good/a.png"], "no train/good"),
        (["set/train/good/", "set/test/good/a.png"], "has no image"),
        (["set/dial/train/good/a.png", "set/fabric/train/good/a.png"], "dial, fabric"),
    ],
)
def test_a_folder_that_is_no_inspection_set_is_refused(tmp_path: Path, make: list[str], says: str) -> None:
    for name in make:
        path = tmp_path / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    with pytest.raises(InputError, match=says):
        open_inspection_set(tmp_path / "set")


def test_folders_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "ok" / "bad" / "0.png", 0)
    ok = tmp_path / "ok"
    with pytest.raises(InputError, match="expected one of the two"):
        open_inspection_set()
    with pytest.raises(InputError, match="expected one of the two"):
        open_inspection_set(ok, normal=ok)
    with pytest.raises(InputError, match="belong to normal"):
        open_inspection_set(ok, abnormal=ok)
    with pytest.raises(InputError, match="without abnormal"):
        open_inspection_set(normal=ok, masks=ok)
    with pytest.raises(InputError, match="overlap"):
        open_inspection_set(normal=ok, abnormal=ok / "bad")
    with pytest.raises(InputError, match="missing"):
        open_inspection_set(normal=ok, abnormal=tmp_path / "missing")


# Checking


def test_a_sound_set_has_no_problem_and_comes_back_as_it_was(root: Path) -> None:
    images = open_inspection_set(root)
    cleaned, report = check_inspection_set(images, strict=True)
    assert cleaned == images
    assert report.problems == ()
    assert (report.n_train, report.n_test_normal, report.n_test_anomalous, report.n_with_mask) == (4, 1, 3, 3)
    assert report.defects == {"dent": 1, "scratch": 2}
    assert report.smallest_size == report.largest_size == (40, 48)
    assert report.train_fingerprint == fingerprint(images.train)
    assert len(report.sentences()) == 1


def test_what_cannot_be_decoded_is_left_out_and_named(root: Path) -> None:
    good = root / "train" / "good"
    (good / "empty.png").write_bytes(b"")
    (good / "text.png").write_text("no picture")
    data = (good / "0.png").read_bytes()
    (good / "half.png").write_bytes(data[: len(data) // 2])
    cleaned, report = checked(root)
    assert len(cleaned.train) == 4
    assert report.counts == {"undecodable": 3}
    assert [Path(problem.path).name for problem in report.problems] == ["empty.png", "half.png", "text.png"]
    assert "empty.png is empty" in report.sentences()[1]
    with pytest.raises(InputError, match="3 problems"):
        check_inspection_set(open_inspection_set(root), strict=True)


def test_a_set_of_which_nothing_is_left_to_train_on_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"none of the 1 image.*a\.png"):
        checked(tmp_path)


def test_a_test_image_that_is_also_in_train_leaves_the_test_set(root: Path) -> None:
    (root / "test" / "good" / "again.png").write_bytes((root / "train" / "good" / "2.png").read_bytes())
    cleaned, report = checked(root)
    assert report.counts == {"test_in_train": 1}
    assert len(cleaned.train) == 4
    assert [image.name for image in cleaned.test if not image.is_anomalous] == ["test/good/0.jpg"]
    assert "again.png has the same bytes as train/good/2.png" in report.sentences()[1]


def test_an_image_that_is_both_good_and_defective_leaves_train_and_test(root: Path) -> None:
    data = (root / "train" / "good" / "2.png").read_bytes()
    (root / "test" / "dent" / "same.png").write_bytes(data)
    (root / "test" / "good" / "same.png").write_bytes(data)
    cleaned, report = checked(root)
    assert report.counts == {"contradictory": 3}
    assert len(cleaned.train) == 3
    assert len(cleaned.test) == 4


def test_of_copies_one_is_kept(root: Path) -> None:
    (root / "train" / "good" / "copy.png").write_bytes((root / "train" / "good" / "2.png").read_bytes())
    (root / "test" / "good" / "copy.jpg").write_bytes((root / "test" / "good" / "0.jpg").read_bytes())
    cleaned, report = checked(root)
    assert report.counts == {"duplicate_in_train": 1, "duplicate_in_test": 1}
    assert len(cleaned.train) == 4
    assert len(cleaned.test) == 4


def test_masks_that_cannot_be_used_are_named_and_their_images_stay(root: Path) -> None:
    truth = root / "ground_truth"
    write(truth / "scratch" / "0_mask.png", a_mask((20, 24)))
    write(truth / "scratch" / "1.bmp", np.zeros((40, 48), np.uint8))
    (truth / "dent" / "0_mask.png").write_bytes(b"no picture")
    write(truth / "dent" / "7_mask.png", a_mask())
    write(truth / "stain" / "0_mask.png", a_mask())
    write(root / "test" / "dent" / "8.png", 38)
    cleaned, report = checked(root)
    assert report.counts == {
        "undecodable_mask": 1,
        "mask_of_other_size": 1,
        "empty_mask": 1,
        "mask_without_image": 2,
        "anomalous_without_mask": 1,
    }
    assert len(cleaned.test) == 5
    assert all(image.mask is None for image in cleaned.test)
    assert report.n_with_mask == 0
    assert any("0.png is 40x48 and its mask 0_mask.png 20x24" in line for line in report.sentences())


def test_a_missing_mask_is_allowed_even_when_strict(root: Path) -> None:
    (root / "ground_truth" / "dent" / "0_mask.png").unlink()
    cleaned, report = check_inspection_set(open_inspection_set(root), strict=True)
    assert report.counts == {"anomalous_without_mask": 1}
    assert len(cleaned.test) == 4


def test_the_report_names_only_the_first_files_and_counts_the_rest(root: Path) -> None:
    for i in range(15):
        (root / "train" / "good" / f"bad{i:02d}.png").write_bytes(b"%d" % i)
    _, report = checked(root)
    line = report.sentences()[1]
    assert ": 15 (" in line
    assert "bad02.png" in line
    assert "bad03.png" not in line
    assert "and 12 more" in line
    assert DataReport.model_validate_json(report.model_dump_json()) == report


# Fingerprint, images and masks as arrays


def test_the_fingerprint_depends_on_contents_alone(root: Path) -> None:
    before = open_inspection_set(root).train
    (root / "train" / "good" / "0.png").rename(root / "train" / "good" / "z.png")
    after = open_inspection_set(root).train
    assert [image.name for image in before] != [image.name for image in after]
    assert fingerprint(before) == fingerprint(after) == fingerprint(after[::-1])
    assert fingerprint(after) != fingerprint(after[1:])
    assert len(fingerprint([])) == 64


def test_images_are_loaded_in_order_as_the_device_prepares_them(tmp_path: Path) -> None:
    for i in range(70):
        write(tmp_path / f"{i:02d}.png", i, size=(33 + i, 80 - i))
    images = open_inspection_set(tmp_path).train
    preparation = Preparation(height=32, width=40)
    told: list[tuple[int, int]] = []
    arrays = load_images(images, preparation, lambda done, total: told.append((done, total)))
    assert arrays.shape == (70, 32, 40, 3)
    assert arrays.dtype == np.uint8
    for array, image in zip(arrays, images, strict=True):
        np.testing.assert_array_equal(array, load_prepared(image.path, preparation))
    assert told == [(i, 70) for i in range(1, 71)]


def test_no_image_gives_an_empty_array() -> None:
    preparation = Preparation(height=32, width=40)
    assert load_images([], preparation).shape == (0, 32, 40, 3)
    masks, has_mask = load_masks([], preparation)
    assert masks.shape == (0, 32, 40)
    assert has_mask.shape == (0,)


def test_an_image_that_cannot_be_decoded_is_named_while_loading(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match=r"a\.png"):
        load_images(open_inspection_set(tmp_path).train, Preparation(height=32, width=32))


def test_masks_are_loaded_with_a_flag_where_they_are_missing(root: Path) -> None:
    (root / "ground_truth" / "scratch" / "1.bmp").unlink()
    test = open_inspection_set(root).test
    masks, has_mask = load_masks(test, Preparation(height=40, width=48))
    assert has_mask.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(masks[0], a_mask() > 0)
    assert not masks[1].any()
    assert not masks[3].any()


@pytest.mark.parametrize("size", [(32, 32), (50, 999), (1000, 40), (1500, 1500), (7, 1500)])
def test_a_scratch_one_pixel_wide_survives_resizing(size: tuple[int, int]) -> None:
    mask = np.zeros((1000, 999), bool)
    mask[501] = True
    resized = resize_mask(mask, *size)
    assert resized.shape == size
    assert resized.any(axis=0).all()
    assert resized.sum(axis=0).max() <= max(1, np.ceil(size[0] / 1000))


def test_a_single_pixel_survives_shrinking_wherever_it_is() -> None:
    for row in range(0, 97, 5):
        mask = np.zeros((97, 61), bool)
        mask[row, row % 61] = True
        assert resize_mask(mask, 32, 33).any()


def test_a_mask_of_labels_counts_from_1_and_of_a_jpeg_from_128(tmp_path: Path) -> None:
    labels = np.zeros((20, 20), np.uint8)
    labels[:, 10:] = 1
    assert read_mask(write(tmp_path / "labels.png", labels)).sum() == 200
    assert read_mask(write(tmp_path / "deep.png", labels.astype(np.uint16))).sum() == 200
    assert read_mask(write(tmp_path / "lossy.jpg", labels * 255)).sum() == 200
    opaque = np.zeros((20, 20, 4), np.uint8)
    opaque[:, :, 3] = 255
    assert not read_mask(write(tmp_path / "opaque.png", opaque)).any()


# The word `sample`, and the cache


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert sample_cache_folder() == tmp_path / "own" / "sample"
    monkeypatch.delenv("VAE_EDGE_CACHE")
    assert cache_folder() == tmp_path / "shared" / "vae-edge"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "vae-edge"


def test_a_path_is_taken_as_it_is_and_an_unknown_product_is_refused(tmp_path: Path) -> None:
    assert resolve_data("data/tile") == Path("data/tile")
    assert resolve_data("./sample") == Path("sample")
    with pytest.raises(InputError, match="teapot"):
        resolve_data("sample:teapot", tmp_path)


@pytest.mark.slow
def test_the_word_sample_writes_a_sound_set_once(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = resolve_data("sample", tmp_path, lambda done, total: told.append((done, total)))
    assert told
    assert told[-1][0] == told[-1][1]
    _, report = check_inspection_set(open_inspection_set(folder), strict=True)
    assert report.n_train > 99
    assert report.n_with_mask == report.n_test_anomalous
    told.clear()
    assert resolve_data("sample", tmp_path, lambda done, total: told.append((done, total))) == folder
    assert not told


@pytest.mark.parametrize(("bits", "meant"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (16, None)])
def test_16_bit_images_far_below_white_are_asked_about(tmp_path: Path, bits: int, meant: int | None) -> None:
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 2**bits, (40, 48)).astype(np.uint16)
        write(tmp_path / f"{number}.png", values)
    _, report = check_inspection_set(open_inspection_set(tmp_path))
    asked = [sentence for sentence in report.sentences() if "did you mean" in sentence]
    if meant is None:
        assert asked == []
    else:
        assert f"no value above {meant} " in asked[0]
        assert asked[0].endswith(f"did you mean --white-level {meant}?")
        assert not any("did you mean" in sentence for sentence in report.sentences(white_level=meant))


def test_a_picture_of_several_pages_or_too_large_is_left_out_and_named(root: Path) -> None:
    pixels = part(40, 48)
    (root / "train/good/pages.tif").write_bytes(tiff(pixels, pixels))
    (root / "train/good/frames.png").write_bytes(animated_png(pixels, pixels))
    (root / "train/good/bomb.png").write_bytes(png(pixels, 2)[:16] + bytes([0, 1, 0, 0] * 2) + png(pixels, 2)[24:])
    (root / "train/good/sparse.png").write_bytes(png(pixels, 2))
    os.truncate(root / "train/good/sparse.png", 300 * 10**9)
    images, report = checked(root)
    assert report.counts["undecodable"] == 4
    told = " ".join(report.sentences(max_names=9))
    for says in ("TIFF of 2 pages", "PNG of 2 frames", "65536x65536 pixels", "a file of 300000 MB"):
        assert says in told
    assert not {"pages.tif", "frames.png", "bomb.png", "sparse.png"} & {file.path.name for file in images.train}


@pytest.mark.parametrize(
    ("n", "most", "places"), [(0, 3, []), (2, 3, [0, 1]), (3, 3, [0, 1, 2]), (7, 3, [0, 2, 4]), (5, 0, [])]
)
def test_the_places_of_some_are_spread_over_all(n: int, most: int, places: list[int]) -> None:
    assert spread_places(n, most) == places
    assert spread([str(i) for i in range(n)], most) == tuple(str(place) for place in places)
