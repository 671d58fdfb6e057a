"""What an anomalib data module names is read as from a folder; tests/anomalib has the same with anomalib's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.train.fake_datamodule import FakeDataModule, Images, Split, row, rows_of
from tests.train.listener import Listener
from vae_edge.errors import InputError
from vae_edge.platform.atomic import sha256_file
from vae_edge.train import DataSource, RunFolder, fit, resume_run
from vae_edge.train.data.inspection_set import InspectionSet, open_inspection_set
from vae_edge.train.data.sources import list_images, source_of
from vae_edge.train.loop.checkpoints import TrainingInterruptedError
from vae_edge.train.model.presets import Architecture
from vae_edge.train.run.folder import MODEL_FILE, SCORING_FILE
from vae_edge.train.sample import SampleSettings, write_sample_set

TINY: dict[str, Any] = {
    "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
    "batch_size": 8,
    "epochs": 2,
    "accelerator": "cpu",
    "calibration": "split",
    "photometric": "none",
    "scoring": "normalized",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=4, n_test_per_defect=2)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


def opened(datamodule: object) -> InspectionSet:
    return source_of(datamodule).open()


def names(datamodule: object) -> tuple[set[str], set[str]]:
    listed = list_images(datamodule)
    return {image.path for image in listed.train}, {image.path for image in listed.test}


def test_a_set_in_the_layout_of_mvtec_ad_is_the_same_by_a_data_module(data: Path) -> None:
    datamodule = FakeDataModule(**rows_of(data))
    named, found = opened(datamodule), open_inspection_set(data)
    assert (named.root, named.train, named.test) == (found.root, found.train, found.test)
    assert named.defects
    assert any(image.mask for image in named.test)
    assert datamodule.calls == ["prepare_data", "setup"]
    list_images(datamodule)
    assert datamodule.calls == ["prepare_data", "setup"], "what was set up is not divided once more"


def test_the_same_images_give_the_same_run_and_it_needs_no_data_module_afterwards(data: Path, tmp_path: Path) -> None:
    by_folder = fit(data, tmp_path / "folder", **TINY)
    by_module = fit(FakeDataModule(**rows_of(data)), tmp_path / "module", **TINY)
    for file in (MODEL_FILE, SCORING_FILE):
        assert sha256_file(by_module.folder / file) == sha256_file(by_folder.folder / file)
    assert by_module.metrics == by_folder.metrics
    assert by_module.split == by_folder.split
    assert by_module.record.data.layout == "listed"
    assert RunFolder.open(by_module.folder).find_images(["test"]) == by_folder.find_images(["test"])


def test_a_run_finds_its_images_where_they_were_moved_to(data: Path, tmp_path: Path) -> None:
    # Names that no layout knows, so that only the list can say what is what.
    images = open_inspection_set(data)
    place = tmp_path / "anywhere"
    place.mkdir()
    files = {image: Path(shutil.copy(image.path, place / f"{i:03}.png")) for i, image in enumerate(images.train)}
    (place / "bad").mkdir()
    bad = [Path(shutil.copy(image.path, place / "bad" / image.path.name)) for image in images.test[-2:]]
    datamodule = FakeDataModule(
        train=[row(path) for path in files.values()], test=[row(path, defect="dent", split="test") for path in bad]
    )
    run = fit(datamodule, tmp_path / "run", **TINY)
    moved = place.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no longer where they were"):
        run.find_images(["test"])
    assert [image.path.parent for image in run.find_images(["test"], moved)] == [moved / "bad"] * 2
    assert [image.defect for image in run.find_images(["test"], moved)] == ["dent"] * 2


def test_an_interrupted_run_goes_on_by_its_list_and_by_another_module(data: Path, tmp_path: Path) -> None:
    for name, again in (("list", None), ("module", FakeDataModule(**rows_of(data))), ("folder", data)):
        with pytest.raises(TrainingInterruptedError):
            fit(FakeDataModule(**rows_of(data)), tmp_path / name, watcher=Listener("training", 3), **TINY)
        assert resume_run(tmp_path / name, data=again).metrics.n_normal == 4
    rows = rows_of(data)
    with pytest.raises(TrainingInterruptedError):
        fit(FakeDataModule(**rows), tmp_path / "other", watcher=Listener("training", 3), **TINY)
    with pytest.raises(InputError, match="are not the ones that the run"):
        resume_run(tmp_path / "other", data=FakeDataModule(train=rows["train"][1:], test=rows["test"]))


def test_validation_images_go_back_to_where_they_came_from(data: Path) -> None:
    rows = rows_of(data)
    train, test = rows["train"], rows["test"]
    whole = names(FakeDataModule(train=train, test=test))
    assert names(FakeDataModule(train=train, test=test, val=test)) == whole
    assert names(FakeDataModule(train=train[5:], test=test, val=train[:5])) == whole
    assert names(FakeDataModule(train=train, test=test[5:], val=test[:5])) == whole
    # A folder of its own: good parts to train on, defects to test on.
    own = [{**each, "split": Split.VAL} for each in (*train[:3], *test)]
    assert names(FakeDataModule(train=train[3:], test=[], val=[each for each in own if each["label_index"]])) == (
        names(FakeDataModule(train=train[3:], test=[each for each in test if each["label_index"]]))
    )
    assert names(FakeDataModule(train=train[3:], test=test, val=own)) == whole


def test_painted_defects_are_replaced_by_the_images_they_were_painted_on(data: Path, tmp_path: Path) -> None:
    rows = rows_of(data)
    painted = [row(tmp_path / "a" / "b" / "painted.png", defect="abnormal", split="val")]
    validation = Images([*rows["train"][:2], *painted], source=rows["train"][:4])
    assert names(FakeDataModule(train=rows["train"][4:], test=rows["test"], val=validation)) == names(
        FakeDataModule(**rows)
    )
    normal = [each for each in rows["test"] if not each["label_index"]]
    test = Images([*normal[:2], *painted], source=normal)
    assert names(FakeDataModule(train=rows["train"], test=test)) == names(
        FakeDataModule(train=rows["train"], test=normal)
    )


def test_abnormal_training_images_and_such_without_a_label_are_left_out_with_a_sentence(
    data: Path, tmp_path: Path
) -> None:
    rows = rows_of(data)
    abnormal = [{**each, "split": "train"} for each in rows["test"] if each["label_index"]]
    unlabelled = [{**rows["test"][0], "label_index": value} for value in (-1,)]
    missing = [{**rows["test"][1], "label_index": float("nan")}, {**rows["test"][2], "label_index": None}]
    datamodule = FakeDataModule(train=[*rows["train"], *abnormal], test=[*unlabelled, *missing], val=rows["train"][:0])
    listener = Listener()
    run = fit(datamodule, tmp_path / "run", watcher=listener, **TINY)
    assert (run.record.data.n_train, run.record.data.n_test_anomalous) == (24, 0)
    said = " ".join(listener.said)
    assert f"{len(abnormal)} abnormal images in the training data of FakeDataModule are left out" in said
    assert "3 images without a label in FakeDataModule are left out" in said


def test_a_class_without_a_name_is_called_after_the_images_folder(data: Path) -> None:
    rows = rows_of(data)
    test = [{**each, "label": "abnormal" if each["label_index"] else "normal_test"} for each in rows["test"]]
    named = list_images(FakeDataModule(train=rows["train"], test=test))
    assert {image.defect for image in named.test} == {None, *open_inspection_set(data).defects}


def test_masks_are_taken_where_there_are_any(data: Path) -> None:
    rows = rows_of(data)
    for nothing in (None, "", float("nan")):
        test = [{**each, "mask_path": nothing} for each in rows["test"]]
        assert not any(image.mask for image in list_images(FakeDataModule(train=rows["train"], test=test)).test)
    # MVTec LOCO has several masks for an image.
    test = [{**each, "mask_path": [each["mask_path"]] * 2 if each["mask_path"] else None} for each in rows["test"]]
    named = [image for image in list_images(FakeDataModule(train=rows["train"], test=test)).test if image.mask]
    assert named
    assert all(image.further_masks == (image.mask,) for image in named)
    # A normal image's mask, as some data modules have it, says nothing.
    train = [{**each, "mask_path": each["image_path"]} for each in rows["train"]]
    assert not any(image.mask for image in list_images(FakeDataModule(train=train)).train)


def test_a_data_module_without_normal_images_is_refused_in_a_sentence(data: Path, tmp_path: Path) -> None:
    abnormal = [each for each in rows_of(data)["test"] if each["label_index"]]
    with pytest.raises(InputError, match=r"FakeDataModule has no normal image to train on \(\d+ abnormal"):
        fit(FakeDataModule(train=abnormal, test=abnormal), tmp_path / "run", **TINY)
    assert not (tmp_path / "run").exists()


def test_what_is_no_data_is_refused_in_a_sentence(tmp_path: Path) -> None:
    class Other:
        def prepare_data(self) -> None: ...

        def setup(self, stage: str) -> None: ...

    with pytest.raises(InputError, match=r"Other has no train_data\.samples after setup; expected an anomalib"):
        source_of(Other())
    with pytest.raises(InputError, match="the data is a int; expected a folder"):
        source_of(3)
    assert source_of("sample:dial") == DataSource(root="sample:dial")
    assert source_of(tmp_path) == DataSource(root=str(tmp_path))


def test_a_file_that_has_gone_is_named(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "copy"))
    source = source_of(FakeDataModule(**rows_of(copy)))
    assert json.loads(source.model_dump_json())["listed"]["given_by"] == "FakeDataModule"
    gone = next((copy / "train" / "good").iterdir())
    gone.unlink()
    with pytest.raises(InputError, match=rf"{gone.name} could not be read"):
        source.open()
