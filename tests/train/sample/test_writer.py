"""The sample set on disk: its layout, its reuse, and what is refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vae_edge.errors import InputError
from vae_edge.train.sample import SampleSettings, defect_kinds, draw_defective, draw_normal, write_sample_set

TINY = SampleSettings(image_size=64, n_train=2, n_test_good=1, n_test_per_defect=1)
PRODUCT = "board"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_set(tmp_path_factory.mktemp("sample"), (PRODUCT,), TINY)[0]


def test_the_layout_is_that_of_mvtec_ad(written: Path) -> None:
    kinds = defect_kinds(PRODUCT)
    expected = {"sample.json", "train/good/000.png", "train/good/001.png", "test/good/000.png"}
    expected |= {f"test/{kind}/000.png" for kind in kinds}
    expected |= {f"ground_truth/{kind}/000_mask.png" for kind in kinds}
    assert set(contents(written)) == expected
    assert written.name == PRODUCT


def test_files_hold_the_drawn_pixels(written: Path) -> None:
    image = cv2.imread(str(written / "train/good/001.png"))
    assert image is not None
    assert np.array_equal(image[:, :, ::-1], draw_normal(PRODUCT, 1, TINY))
    kind = defect_kinds(PRODUCT)[0]
    mask = cv2.imread(str(written / f"ground_truth/{kind}/000_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert np.array_equal(mask, draw_defective(PRODUCT, kind, 0, TINY).mask)


def test_two_sets_have_the_same_bytes(written: Path, tmp_path: Path) -> None:
    again = write_sample_set(tmp_path / "deep" / "folder", (PRODUCT,), TINY)[0]
    assert contents(again) == contents(written)


def test_more_images_leave_the_others_as_they_were(written: Path, tmp_path: Path) -> None:
    more = SampleSettings(image_size=64, n_train=3, n_test_good=2, n_test_per_defect=2)
    larger = contents(write_sample_set(tmp_path, (PRODUCT,), more)[0])
    for name, data in contents(written).items():
        if name != "sample.json":
            assert larger[name] == data


def test_a_whole_set_is_reused_and_not_drawn_again(written: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    calls: list[tuple[int, int]] = []
    folders = write_sample_set(written.parent, [PRODUCT], TINY, lambda done, total: calls.append((done, total)))
    assert folders == [written]
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_progress_counts_every_image(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    write_sample_set(tmp_path, ("dial", "fabric"), TINY, lambda done, total: calls.append((done, total)))
    # Two for training, a good one and one of each kind for testing.
    total = sum(2 + 1 + len(defect_kinds(product)) for product in ("dial", "fabric"))
    assert calls == [(n, total) for n in range(1, total + 1)]


def test_a_product_named_twice_is_written_once(written: Path) -> None:
    assert write_sample_set(written.parent, (PRODUCT, PRODUCT), TINY) == [written]


def test_a_foreign_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / PRODUCT).mkdir()
    (tmp_path / PRODUCT / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="not a sample set"):
        write_sample_set(tmp_path, ("dial", PRODUCT), TINY)
    assert contents(tmp_path) == {f"{PRODUCT}/thesis.txt": b"irreplaceable"}


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / PRODUCT).write_text("a file")
    with pytest.raises(InputError, match="not a sample set"):
        write_sample_set(tmp_path, (PRODUCT,), TINY)
    assert (tmp_path / PRODUCT).read_text() == "a file"


def test_a_set_of_other_settings_or_another_version_is_refused_and_kept(written: Path, tmp_path: Path) -> None:
    before = contents(written)
    with pytest.raises(InputError, match="drawn with seed 0 instead of 1 and n_train"):
        write_sample_set(written.parent, (PRODUCT,), SampleSettings(seed=1, image_size=64))
    assert contents(written) == before

    older = write_sample_set(tmp_path, (PRODUCT,), TINY)[0] / "sample.json"
    marker = json.loads(older.read_text())
    older.write_text(json.dumps({**marker, "sample_version": 0}))
    with pytest.raises(InputError, match="sample_version 0 instead of 1"):
        write_sample_set(tmp_path, (PRODUCT,), TINY)


def test_a_set_that_lost_a_file_is_not_taken_for_whole(tmp_path: Path) -> None:
    folder = write_sample_set(tmp_path, (PRODUCT,), TINY)[0]
    (folder / "train/good/001.png").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of its files, train/good/001\.png"):
        write_sample_set(tmp_path, (PRODUCT,), TINY)


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / PRODUCT).mkdir()
    folder = write_sample_set(tmp_path, (PRODUCT,), TINY)[0]
    assert (folder / "sample.json").is_file()


def test_an_interrupted_run_leaves_no_half_set(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample_set(tmp_path, (PRODUCT,), TINY, interrupt)
    assert list(tmp_path.iterdir()) == []
    assert write_sample_set(tmp_path, (PRODUCT,), TINY) == [tmp_path / PRODUCT]


def test_an_unknown_product_or_none_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'teapot'.*dial, board, fabric"):
        write_sample_set(tmp_path, ("dial", "teapot"), TINY)
    with pytest.raises(InputError, match="at least one"):
        write_sample_set(tmp_path, (), TINY)
    assert list(tmp_path.iterdir()) == []
