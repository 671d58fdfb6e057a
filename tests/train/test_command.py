"""`vae-train` from the command line: what it says, what it refuses, and how it goes on after an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae_edge.cli.main import invoke
from vae_edge.errors import InputError
from vae_edge.platform.atomic import sha256_file
from vae_edge.train.command import parse_image_size
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set

SMALL = (
    "--image-size",
    "32",
    "--n-features",
    "4",
    "--max-features",
    "8",
    "--latent-vec-size",
    "8",
    "--batch-size",
    "8",
)
TINY = (*SMALL, "--calibration", "split")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=3, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


def vae_train(*words: str | Path) -> int:
    return invoke([str(word) for word in words], command="train")


def test_a_training_from_start_to_table(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert vae_train("--data", data, "--out", out, "--epochs", "2", "--accelerator", "cpu", *TINY) == 0
    printed = capsys.readouterr()
    notes = " ".join(printed.err.split())
    assert "the network has" in notes
    assert "M parameters and an image takes" in notes
    assert "24 images to train on" in notes
    assert "train the network" in notes
    assert "a false-alarm rate of 0.01 needs at least 99 held-out normals" in notes
    for word in ("image AUROC", "AUPRO", "recall", "threshold", "defect", "vae-export", "split-conformal"):
        assert word in printed.out
    assert "0.125 with 7 normals, 1 / (7 + 1)" in printed.out
    assert RunFolder.open(out).record.training.epochs_run == 2

    assert vae_train("--data", data, "--out", out, *TINY) == 1
    assert "--overwrite" in capsys.readouterr().err
    again = ("--data", data, "--out", out, "--epochs", "1", "--overwrite", "--accelerator", "cpu")
    assert vae_train(*again, *TINY) == 0
    assert RunFolder.open(out).record.training.epochs_run == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_few_good_parts_are_calibrated_by_folds_which_is_said_beforehand_and_afterwards(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--folds", "3", "--false-alarm-rate", "0.05", "--epochs", "1", "--accelerator", "cpu")
    assert vae_train("--data", data, "--out", tmp_path / "run", *words, *SMALL) == 0
    printed = capsys.readouterr()
    notes, out = " ".join(printed.err.split()), " ".join(printed.out.split())
    assert "and all 24 set the threshold" in notes
    assert (
        "4 trainings follow, because a false-alarm rate of 0.05 needs 19 scores of normals that the network has not "
        "seen, more than can be held out of 24 (all together support 0.04): one on all good parts, for the network "
        "that is deployed, and one for each of 3 folds of them, to score the good parts that it has not seen; "
        "--calibration split trains once"
    ) in notes
    assert "held-out normals, there are" not in notes
    assert "cross-conformal from 24 normals" in out
    assert "at most 0.05 of normal parts in practice, by cross-conformal calibration: not proven" in out
    assert "0.04 with 24 normals, 1 / (24 + 1)" in out


@pytest.mark.slow
def test_a_killed_training_goes_on_and_ends_as_if_nothing_had_happened(data: Path, tmp_path: Path) -> None:
    words = ["--data", str(data), "--epochs", "40", "--accelerator", "cpu", *TINY]
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "vae_edge", "train", "--out", str(out), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (out / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "model.json").exists()
    assert vae_train("--resume", out) == 0
    assert vae_train("--out", tmp_path / "whole", *words) == 0
    hashes = {sha256_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole")}
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "run", "--epochs", "5"], "--resume was given along with --epochs"),
        (["--resume", "nowhere"], "nowhere is not a run"),
        (["--data", "sample"], "expected --out RUN"),
        (["--out", "run"], "--data sample"),
        (["--data", "x", "--normal", "y", "--out", "run"], "either --data or --normal"),
        (["--data", "x", "--out", "run", "--preset", "huge"], "'huge'; expected one of"),
        (["--data", "x", "--out", "run", "--image-size", "100", "--tile-size", "none"], "96x96 and 112x112"),
        (["--data", "x", "--out", "run", "--image-size", "100", "--tile-size", "128"], "tiles that are no larger"),
        (["--data", "x", "--out", "run", "--image-size", "100", "--tile-size", "50"], "48x48 and 56x56"),
        (["--data", "x", "--out", "run", "--tile-size", "small"], "'small'; expected auto, none or a side in pixels"),
        (["--data", "x", "--out", "run", "--tile-overlap", "0.9"], "overlap is 0.9"),
        (["--data", "x", "--out", "run", "--scoring", "best"], "'best' of the scoring"),
        (["--data", "x", "--out", "run", "--photometric", "dark"], "'dark'; expected one of auto, none, image, local"),
        (["--data", "x", "--out", "run", "--averaging", "1"], "averaging is 1.0"),
        (["--data", "x", "--out", "run", "--image-size", "big"], "'big'; expected auto, a side such as 256"),
        (["--data", "x", "--out", "run", "--false-alarm-rate", "1.5"], "false_alarm_rate is 1.5"),
        (["--data", "x", "--out", "run", "--n-features", "0"], "n_features is 0"),
        (["--data", "x", "--out", "run", "--held-out", "0.9"], "threshold_share is 0.9"),
        (["--data", "x", "--out", "run", "--calibration", "cross", "--held-out", "0.3"], "holds no good parts out"),
        (["--data", "x", "--out", "run", "--folds", "1"], "folds is 1"),
        (["--data", "nowhere", "--out", "run"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vae_train(*words) == (1 if "nowhere" in words else 2)  # 2: also another folder would not help
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_image_sizes_are_read_as_height_and_width() -> None:
    assert parse_image_size("256") == (256, 256)
    assert parse_image_size("256x320") == (256, 320)
    with pytest.raises(InputError, match="256x320"):
        parse_image_size("256,320")
