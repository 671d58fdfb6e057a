"""Good parts that were kept on a device train the network, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle, spotted_image, write_image
from tests.train.listener import Listener
from tests.train.run.test_fitting import settings
from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.keep_rules import KeepRules
from vae_edge.sinks.kept_pictures import KeptFolder
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.checkpoints import TrainingInterruptedError
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import SPLIT_FILE
from vae_edge.train.sample import SampleSettings, write_sample_set

N_MORE = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=3, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


@pytest.fixture
def kept(tmp_path: Path, data: Path) -> Path:
    """Five good parts, one of which is in the data already; a defective one, and one without a label."""
    folder = tmp_path / "kept"
    KeptFolder(folder, KeepRules.parse(["near"]), 10**6, make_bundle(tmp_path / "toy")).close()
    for seed in range(N_MORE - 1):
        write_image(folder / "normal" / f"{seed}.png", spotted_image(seed, 64))
    shutil.copy(min((data / "train" / "good").iterdir()), folder / "normal" / "known.png")
    write_image(folder / "anomalous" / "bad.png", spotted_image(90, 64))
    write_image(folder / "unlabelled" / "other.png", spotted_image(91, 64))
    return folder


def test_labelled_normals_train_the_network_and_the_others_keep_their_roles(
    data: Path, kept: Path, tmp_path: Path
) -> None:
    usual = fit_run(settings(data, epochs=1), out=tmp_path / "usual")
    listener = Listener()
    source = {"root": str(data), "more_normals": str(kept)}
    run = fit_run(settings(data, epochs=1, source=source), out=tmp_path / "more", watcher=listener)
    roles = {image.sha256: image.role for image in run.split.images}
    before = {image.sha256: image.role for image in usual.split.images}
    assert {sha256: roles[sha256] for sha256 in before} == before
    added = [image for image in run.split.images if image.sha256 not in before]
    assert sorted(image.name for image in added) == [f"kept/normal/{seed}.png" for seed in range(N_MORE - 1)]
    assert {image.role for image in added} == {"fit"}
    assert any(
        f"of {kept} {N_MORE - 1} pictures labelled as normal train the network, too" in sentence
        for sentence in listener.said
    )
    # An export finds them again, where the data was moved, too.
    assert len(run.find_images(["fit"])) == len(run.split.of("fit"))
    moved = shutil.copytree(data, tmp_path / "moved")
    assert len(run.find_images(["fit"], moved)) == len(run.split.of("fit"))


def test_an_interrupted_run_goes_on_with_them(data: Path, kept: Path, tmp_path: Path) -> None:
    source = {"root": str(data), "more_normals": str(kept)}
    with pytest.raises(TrainingInterruptedError):
        fit_run(settings(data, source=source), out=tmp_path / "run", watcher=Listener("training", 4))
    run = resume_run(tmp_path / "run", data=shutil.copytree(data, tmp_path / "moved"))
    assert (run.folder / SPLIT_FILE).is_file()
    assert len([image for image in run.split.of("fit") if image.name.startswith("kept/")]) == N_MORE - 1


def test_they_need_other_good_parts_to_hold_out(data: Path, kept: Path, tmp_path: Path) -> None:
    source = {"root": str(data), "more_normals": str(kept)}
    with pytest.raises(UsageError, match=r"too few other good parts, 24, .* or --calibration split"):
        fit_run(settings(data, source=source, calibration="cross"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_a_folder_with_labels_is_refused(data: Path, kept: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder of kept pictures"):
        DataSource(root=str(data), more_normals=str(data)).open()
    with pytest.raises(InputError, match=r"is a folder of kept pictures, .* pass it with --more-normals"):
        DataSource(root=str(kept)).open()
    shutil.rmtree(kept / "normal")
    with pytest.raises(InputError, match=r"has no picture in normal/; move good parts there"):
        DataSource(root=str(data), more_normals=str(kept)).open()
