"""`vae-train` from the command line: what it says, what it refuses, and how it goes on after an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from vae_edge.cli.main import invoke
from vae_edge.detectability import FoundAtRate
from vae_edge.errors import InputError
from vae_edge.platform.atomic import sha256_file
from vae_edge.train.choice.image_size import parse_image_size
from vae_edge.train.options import GROUPS, NEW, RESUMED
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set
from vae_edge.train.summary import cost_of_rate, print_result

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
    for word in ("recall at the promised rate of 0.125", "pasted defects found", "by kind", "32 % (10 px)"):
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
        "4 trainings follow because a false-alarm rate of 0.05 needs 19 scores of normals that the network has not "
        "seen, more than can be held out of 24 (all together support 0.04): one on all good parts, for the network "
        "that is deployed, and one for each of 3 folds of them, to score the good parts that it has not seen; "
        "--calibration split trains once"
    ) in notes
    assert "held-out normals, there are" not in notes
    assert "cross-conformal from 24 normals" in out
    assert "at most 0.05 of normal parts in practice (cross-conformal calibration), without a proof" in out
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
        (["--resume", "nowhere"], "nowhere is not a run"),
        (["--data", "sample"], "expected --out RUN"),
        (["--out", "run"], "--data sample"),
        (["--data", "x", "--normal", "y", "--out", "run"], "either --data or --normal"),
        (["--data", "x", "--out", "run", "--preset", "huge"], "'huge'; expected one of"),
        (["--data", "x", "--out", "run", "--image-size", "100", "--tile-size", "none"], "96x96 and 112x112"),
        (["--data", "x", "--out", "run", "--image-size", "100", "--tile-size", "128"], "tiles that are not larger"),
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


FOLDER, DRAWN = ("--data", "x", "--out", "run"), ("--data", "sample", "--out", "run")
BY_NAME = ("--normal", "x", "--out", "run")
NOT_CUT = "--tile-overlap is for pictures that are cut into tiles, but these are not"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*FOLDER, "--normal-test", "y"),
            "--normal-test is for folders by name (--normal); but x is a folder",
        ),
        ((*FOLDER, "--abnormal", "y", "--masks", "z"), "--abnormal and --masks are for folders by name"),
        ((*DRAWN, "--masks", "z"), "--masks is for folders by name (--normal); but sample is the drawn set"),
        (
            (*DRAWN, "--white-level", "4095"),
            "--white-level is for folders (--data) and folders by name (--normal)",
        ),
        (("--data", "sample:board", *DRAWN[2:], "--white-level", "65535"), "but sample:board is the drawn set"),
        ((*BY_NAME, "--masks", "z"), "--masks is for the pictures of --abnormal: add that option"),
        ((*BY_NAME, "--choose-on-labels"), "labelled test images, which are --normal-test and --abnormal: add both"),
        ((*BY_NAME, "--abnormal", "y", "--choose-on-labels"), "--normal-test and --abnormal: add both"),
        (
            (*FOLDER, "--choose-on-labels", "--photometric", "none", "--scoring", "mse"),
            "--choose-on-labels is for choosing light or scoring, but both were given",
        ),
        (
            (*FOLDER, "--calibration", "cross", "--held-out", "0.3"),
            "--held-out is 0.3, but --calibration cross holds no good parts out",
        ),
        (
            (*FOLDER, "--calibration", "split", "--folds", "5"),
            "--folds is for --calibration cross, but --calibration split was given",
        ),
        (
            (*FOLDER, "--held-out", "0.3", "--folds", "4"),
            "is for --calibration cross, but --held-out was given",
        ),
        ((*FOLDER, "--tile-size", "none", "--tile-overlap", "0.5"), NOT_CUT),
        ((*FOLDER, "--preset", "reference", "--tile-overlap", "0.5"), NOT_CUT),
        ((*FOLDER, "--image-size", "64", "--tile-overlap", "0.5"), NOT_CUT),
        ((*FOLDER, "--image-size", "64", "--tile-size", "64", "--tile-overlap", "0.25"), NOT_CUT),
        (
            (*FOLDER, "--kl-weight", "0", "--kl-warmup", "0.1"),
            "--kl-warmup is for the Kullback-Leibler term, but --kl-weight is 0",
        ),
        ((*FOLDER, "--preset", "feature", "--epochs", "3"), "--epochs is for networks that reconstruct whole pictures"),
        ((*FOLDER, "--preset", "nano", "--backbone-weights", "x"), "--backbone-weights is for a network on features"),
        (
            (*FOLDER, "--preset", "feature", "--devices", "2"),
            "--devices is for networks that reconstruct whole pictures",
        ),
        (
            (*FOLDER, "--preset", "nano", "--calibration", "split", "--jobs", "2"),
            "--jobs is for the folds of --calibration cross, but --calibration split was given, which trains one",
        ),
        (
            (*FOLDER, "--preset", "edge", "--held-out", "0.3", "--jobs", "2"),
            "but --held-out was given, which trains one",
        ),
        (
            (*FOLDER, "--preset", "nano", "--calibration", "cross", "--folds", "3", "--jobs", "4"),
            "the number of jobs is 4, but there are 3 folds; expected 3 at most",
        ),
        ((*FOLDER, "--preset", "nano", "--jobs", "2", "--devices", "2"), "2 jobs were given along with 2 processes"),
        ((*FOLDER, "--preset", "nano", "--num-nodes", "2"), "the number of nodes is 2, but this is the only process"),
        ((*FOLDER, "--preset", "nano", "--devices", "both"), "devices is 'both'; expected auto, a number such as 2"),
    ],
)
def test_what_would_have_no_effect_is_refused_with_the_reason(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vae_train(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(NEW.options - RESUMED.options))
def test_an_interrupted_run_goes_on_with_its_own_settings_and_takes_no_others(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = {parameter.name: parameter for group in GROUPS for parameter in group.parameters()}
    kind = str(declared[name].annotation)
    value = [] if kind.startswith("typing.Annotated[bool") else ["0.01"]
    for word, given in (("Schedule", "constant"), ("Augmentation", "flips"), ("Calibration", "cross"), ("[int", "7")):
        value = [given] if word in kind else value
    flag = f"--{name.replace('_', '-')}"
    assert vae_train("--resume", "run", flag, *value) == 2
    assert capsys.readouterr().err == (
        f"error: {flag} is for new trainings; but run is an interrupted run, which continues with its own settings: "
        "leave it out\n"
    )


def test_what_the_data_leave_without_effect_is_said(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--false-alarm-rate", "0.2", "--folds", "3", "--epochs", "1", "--accelerator", "cpu", *SMALL)
    assert vae_train("--data", data, "--out", tmp_path / "run", *words) == 0
    said = capsys.readouterr().err
    assert "--folds is for cross-conformal calibration, but enough good parts could be held out: no effect" in said
    assert "--tile-overlap" not in said


def test_the_first_screen_of_the_help_says_what_is_needed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert vae_train("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    screen = "\n".join(lines[:23])
    for text in (
        " vae-train --data pictures --out runs/part ",
        " vae-train --data sample --out runs/first ",
        " vae-train --resume runs/part ",
        "│ --data  ",
        "│ --out  ",
        "│ --normal  ",
        "│ --abnormal  ",
        "│ --false-alarm-rate  ",
        "│ --preset  ",
    ):
        assert text in screen, text
    panels = [line.split("─ ")[1].split(" ─")[0] for line in lines if line.startswith("╭")]
    assert panels == ["Options", *(group.panel for group in GROUPS if group.panel is not None)]


def test_image_sizes_are_read_as_height_and_width() -> None:
    assert parse_image_size("256") == (256, 256)
    assert parse_image_size("256x320") == (256, 320)
    with pytest.raises(InputError, match="256x320"):
        parse_image_size("256,320")


def test_a_blind_model_gets_a_warning_first_and_the_rate_that_was_asked_for_its_price(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert vae_train("--data", data, "--out", out, "--epochs", "1", "--accelerator", "cpu", *TINY) == 0
    capsys.readouterr()
    trained_run = RunFolder.open(out)
    seen = trained_run.metrics.detectability
    assert seen is not None
    found = seen.model_copy(
        update={
            "by_size": tuple(cell.model_copy(update={"n_found": 0}) for cell in seen.by_size),
            "n_found_at_requested_rate": 0,
        }
    )
    no_labels = {"detectability": found, "recall": None, "recall_at_requested_rate": None}
    rates = {"false_alarm_rate_requested": 1e-6, "false_alarm_rate": 1 / (trained_run.thresholds.n_normals + 1)}
    thresholds = trained_run.thresholds.model_copy(update=rates)
    run = replace(
        trained_run,
        metrics=trained_run.metrics.model_copy(update=no_labels),
        calibration=trained_run.calibration.model_copy(update={"thresholds": thresholds}),
    )
    print_result(run)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert warnings[0].startswith(f"warning: {found.blindness()}; try ")
    for option in ("--preset (now ", "good parts (now ", "--false-alarm-rate (now "):
        assert option in warnings[0]
    assert "0% of the pasted defects are found" in warnings[1]
    assert "about 0% would be at 1e-06" in warnings[1]

    assert "the threshold is the score of" not in warnings[1]

    larger = FoundAtRate(false_alarm_rate=0.05, threshold=0.1, n_found=found.n // 2)
    hanging = no_labels | {"detectability": found.model_copy(update={"at_larger_rate": larger})}
    print_result(replace(run, metrics=run.metrics.model_copy(update=hanging)))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert f"{found.blindness()}; try a higher --false-alarm-rate (now " in warnings[0]
    highest = max(run.calibration.scores, key=lambda each: each.score)
    assert f"the threshold is the score of {highest.name}, {highest.score:.3g} (the next is " in warnings[1]
    assert "0% of the pasted defects are found, 50% would be at --false-alarm-rate 0.05" in warnings[1]

    labelled = no_labels | {"recall": 0.75, "recall_at_requested_rate": 0.5}
    cost = cost_of_rate(run.metrics.model_copy(update=labelled), thresholds)
    assert cost is not None
    assert "75% of the defective test images are found" in cost
    assert "about 50% would be" in cost
