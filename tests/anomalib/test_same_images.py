"""anomalib's data modules and this package read the same sets as the same images, classes and masks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.test_documents import snippet
from vae_edge.platform.atomic import sha256_file
from vae_edge.train import RunFolder, fit
from vae_edge.train.data.inspection_set import InspectionSet, open_inspection_set
from vae_edge.train.data.sources import list_images, source_of
from vae_edge.train.model.presets import Architecture
from vae_edge.train.run.folder import MODEL_FILE, SCORING_FILE
from vae_edge.train.sample import SampleSettings, write_sample_set

anomalib = pytest.importorskip("anomalib", reason="anomalib is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=4, n_test_per_defect=2)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


def mvtec(data: Path, **arguments: Any) -> Any:
    from anomalib.data import MVTecAD

    return MVTecAD(root=data.parent, category=data.name, num_workers=0, **arguments)


def folder(data: Path, **arguments: Any) -> Any:
    from anomalib.data import Folder

    defects = sorted(path.name for path in (data / "ground_truth").iterdir())
    given = {
        "normal_dir": "train/good",
        "normal_test_dir": "test/good",
        "abnormal_dir": [f"test/{name}" for name in defects],
        "mask_dir": [f"ground_truth/{name}" for name in defects],
    }
    return Folder(name=data.name, root=data, num_workers=0, **{**given, **arguments})


def check_same(named: InspectionSet, found: InspectionSet) -> None:
    assert named.root == found.root
    assert named.train == found.train
    assert named.test == found.test
    assert any(image.mask is not None for image in named.test)
    assert named.defects


@pytest.mark.parametrize("mode", ["none", "same_as_test", "from_test", "from_train", "synthetic"])
@pytest.mark.parametrize("make", [mvtec, folder])
def test_files_classes_and_masks_are_the_same_however_validation_is_divided(make: Any, mode: str, data: Path) -> None:
    check_same(source_of(make(data, val_split_mode=mode)).open(), open_inspection_set(data))


def test_what_is_drawn_from_the_training_images_to_test_on_is_tested_on(data: Path) -> None:
    listed = list_images(folder(data, normal_test_dir=None, val_split_mode="same_as_test", seed=3))
    normals = [image for image in listed.test if image.defect is None]
    assert len(normals) + len(listed.train) == len(open_inspection_set(data).train)
    assert normals
    assert all(image.path.startswith("train/good/") for image in normals)


def test_defects_that_anomalib_paints_are_not_tested_on(data: Path) -> None:
    listed = list_images(mvtec(data, test_split_mode="synthetic", val_split_mode="none"))
    assert {(image.path, image.defect) for image in listed.test} == {
        (image.name, None) for image in open_inspection_set(data).test if not image.is_anomalous
    }


def test_a_run_by_a_data_module_has_the_weights_of_one_by_the_folder(data: Path, tmp_path: Path) -> None:
    tiny: dict[str, Any] = {
        "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
        "batch_size": 8,
        "max_epochs": 2,
        "accelerator": "cpu",
        "calibration": "split",
    }
    runs = [fit(source, tmp_path / str(i), **tiny) for i, source in enumerate((data, mvtec(data)))]
    for name in (MODEL_FILE, SCORING_FILE):
        assert len({sha256_file(run.folder / name) for run in runs}) == 1
    assert runs[0].metrics == runs[1].metrics
    assert runs[0].split == runs[1].split


def test_the_readme_trains_on_a_data_module_as_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "datasets" / "bottle")
    monkeypatch.chdir(tmp_path)
    exec(snippet("runs/bottle").replace("max_epochs=40", "max_epochs=1"), {})
    run = RunFolder.open("runs/bottle")
    assert run.record.settings.source.listed is not None
    assert run.record.settings.source.listed.given_by == "MVTecAD"
    assert run.metrics.image_auroc is not None
