"""`vae-export` takes a checkpoint from anomalib: a run folder first, then bundles that give its scores."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.train.anomalib_checkpoints import make_constants, make_notes, save_own
from tests.train.circulated_vae import save_circulated
from tests.train.tiny_models import scoring_of, write_set
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.errors import MissingDependencyError
from vae_edge.export.checkpoint import compare_with_anomalib, predict_with_anomalib
from vae_edge.train.anomalib.checkpoint import read_checkpoint
from vae_edge.train.anomalib.taking_over import take_over
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.input_settings import IMAGENET, SYMMETRIC
from vae_edge.train.run.folder import RunFolder

Command = Callable[..., tuple[int, str, str]]

without_anomalib = pytest.mark.skipif(
    importlib.util.find_spec("anomalib") is not None, reason="anomalib is installed, and what is said is about it"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("surfaces"), n_good=30, n_test=2)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `own.ckpt`, `early.ckpt` without constants, and `weights.pt`; tests leave it as it is."""
    folder, notes = tmp_path_factory.mktemp("checkpoints"), make_notes()
    save_own(folder / "own.ckpt", notes, constants=make_constants(notes))
    save_own(folder / "early.ckpt", notes)
    save_circulated(folder / "weights.pt")
    return folder


def check_scores(run: RunFolder, folder: Path) -> None:
    """Compare the scores of a bundle's detector with those of torch."""
    files = run.find_images(("test",))
    _, expected = run_graph(run.load_graph(), load_images(files, run.record.preparation))
    assert np.ptp(expected) > 0.01, "the scores differ, so that a wrong one is seen"
    with Detector.open(Bundle.open(folder)) as detector:
        found = [detector.predict(file.path) for file in files]
    np.testing.assert_allclose(
        [prediction.score for prediction in found], expected, rtol=0, atol=1e-4 * np.abs(expected).max()
    )
    threshold = run.thresholds.image_threshold
    assert [prediction.is_anomalous for prediction in found] == [score > threshold for score in expected]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        pytest.param(
            "own.ckpt", [], "not compared with anomalib's own prediction: anomalib is not", marks=without_anomalib
        ),
        ("early.ckpt", [], "not compared with anomalib: its scoring is not the one that was requested"),
        ("own.ckpt", ["--scoring", "mse"], "not compared with anomalib: its scoring is not the one that was requested"),
        ("weights.pt", [], "not compared with anomalib: no anomalib release has the model of these weights"),
    ],
)
def test_a_checkpoint_becomes_a_run_and_bundles_that_give_its_scores(
    name: str, options: list[str], reason: str, command: Command, checkpoints: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    code, out, err = command(
        "export", checkpoints / name, "--data", data, "--target", "onnx,torch", "--out", tmp_path, *options
    )
    assert code == 0, err
    stem = name.partition(".")[0]
    made = [f"{stem}-onnx-fp32", f"{stem}-run", f"{stem}-torch-fp32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == made
    assert made[0] in out
    assert reason in " ".join(err.split())
    run = RunFolder.open(tmp_path / made[1])
    assert run.record.input_range == IMAGENET
    if "--scoring" in options:
        assert run.record.scoring == scoring_of("mse")
    for folder in (made[0], made[2]):
        check_scores(run, tmp_path / folder)


def test_the_name_the_rate_and_the_range_are_those_that_were_asked_for(
    command: Command, checkpoints: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--name", "tile", "--false-alarm-rate", "0.25", "--input-range", "symmetric", "--target", "torch")
    code, _, err = command("export", checkpoints / "weights.pt", "--data", data, "--out", tmp_path, *options)
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tile-run", "tile-torch-fp32"]
    assert "--input-range symmetric" not in err, "nothing is to be guessed"
    run = RunFolder.open(tmp_path / "tile-run")
    assert run.record.input_range == SYMMETRIC
    thresholds = Bundle.open(tmp_path / "tile-torch-fp32").manifest.thresholds
    assert thresholds.false_alarm_rate == run.thresholds.false_alarm_rate == 0.25
    check_scores(run, tmp_path / "tile-torch-fp32")


def test_the_run_exports_again_like_any_other(command: Command, checkpoints: Path, data: Path, tmp_path: Path) -> None:
    code, _, err = command("export", checkpoints / "weights.pt", "--data", data, "--target", "torch", "--out", tmp_path)
    assert code == 0, err
    run = tmp_path / "weights-run"
    code, _, err = command("export", run, "--target", "torch", "--out", tmp_path / "again", "--scoring", "mse")
    assert code == 0, err
    (bundle,) = (tmp_path / "again").iterdir()
    assert Bundle.open(bundle).manifest.scoring.endswith(scoring_of("mse").describe())


def refused(command: Command, *arguments: object) -> tuple[int, str]:
    """Run an export that is to end with one sentence, and nothing on stdout."""
    code, out, err = command("export", *arguments)
    assert out == ""
    assert "Traceback" not in err
    return code, " ".join(err.split())


def test_a_checkpoint_needs_normal_images(command: Command, checkpoints: Path, tmp_path: Path) -> None:
    code, said = refused(command, checkpoints / "own.ckpt", "--out", tmp_path / "out")
    assert code == 2
    assert "own.ckpt needs normal images for its thresholds; add --data NORMALS" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["nothing.ckpt", "nothing.PTH"])
def test_a_missing_checkpoint_is_named(name: str, command: Command, data: Path, tmp_path: Path) -> None:
    code, said = refused(command, tmp_path / name, "--data", data, "--out", tmp_path / "out")
    assert code == 1
    assert f"there is no file {tmp_path / name}" in said
    assert not (tmp_path / "out").exists()


def test_missing_images_are_named(command: Command, checkpoints: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    code, said = refused(command, checkpoints / "own.ckpt", "--data", gone, "--out", tmp_path / "out")
    assert code == 1
    assert str(gone) in said
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_checkpoint_is_refused(command: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("holiday")
    code, said = refused(command, tmp_path / "model.pt", "--data", data, "--out", tmp_path / "out")
    assert code == 1
    assert "model.pt is not a checkpoint that torch saved" in said


def test_a_taken_run_folder_is_refused(command: Command, checkpoints: Path, data: Path, tmp_path: Path) -> None:
    words = (checkpoints / "weights.pt", "--data", data, "--target", "torch", "--out", tmp_path)
    assert command("export", *words)[0] == 0
    code, said = refused(command, *words)
    assert code == 1
    assert "holds a complete run" in said


@pytest.mark.parametrize("rate", ["0", "1", "-1"])
def test_a_rate_that_is_none_is_refused_before_any_work(
    rate: str, command: Command, checkpoints: Path, data: Path, tmp_path: Path
) -> None:
    words = (checkpoints / "own.ckpt", "--data", data, "--out", tmp_path / "out")
    code, said = refused(command, *words, "--false-alarm-rate", rate)
    assert code == 2
    assert "the false-alarm rate is" in said
    assert not (tmp_path / "out").exists()


def test_a_range_is_for_checkpoints_that_do_not_say_it(
    command: Command, trained_run: RunFolder, checkpoints: Path, data: Path, tmp_path: Path
) -> None:
    words = ("--input-range", "imagenet", "--out", tmp_path / "out")
    code, said = refused(command, trained_run.folder, *words)
    assert code == 2
    assert "--input-range is for checkpoints" in said
    code, said = refused(command, checkpoints / "own.ckpt", "--data", data, *words)
    assert code == 2
    assert "already records the range of its network's input values" in said
    assert not (tmp_path / "out").exists()


@without_anomalib
def test_without_anomalib_it_is_told_how_to_install_it(checkpoints: Path, data: Path, tmp_path: Path) -> None:
    trained = read_checkpoint(checkpoints / "own.ckpt")
    run = take_over(trained, DataSource(root=str(data)), tmp_path / "run")
    with pytest.raises(MissingDependencyError, match=r"anomalib is not installed .*.vae-edge\[anomalib\]."):
        compare_with_anomalib(run, trained, Watcher())
    with pytest.raises(MissingDependencyError, match="anomalib is not installed"):
        predict_with_anomalib(trained.path, run.find_images(("test",)))
