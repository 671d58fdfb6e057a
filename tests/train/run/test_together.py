"""Whole runs by two processes: the split, thresholds and files of one process, whoever starts the second one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.train.listener import Listener
from vae_edge.cli.main import invoke
from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.loop.checkpoints import TrainingInterruptedError
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set

N, K = 24, 3
WORDS = (
    "--preset nano --image-size 32 --tile-size none --n-features 4 --max-features 8 --latent-vec-size 8 --epochs 3 "
    "--batch-size 9 --accelerator cpu --precision 32-true --photometric none --scoring mse --calibration cross "
    f"--folds {K} --false-alarm-rate 0.05"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=N, n_test_good=3, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


@pytest.fixture(autouse=True)
def leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert invoke(["--data", str(data), "--out", str(out), *WORDS], command="train") == 0
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def together(alone: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    listener = Listener()
    asked = asked_of(alone, devices=2)
    run = fit_run(asked, out=tmp_path_factory.mktemp("runs") / "run", watcher=listener)
    assert any(
        "2 processes train together, and share the images of each step: the batch size, 9 at most, is that of all" in s
        for s in listener.said
    )
    return run


def asked_of(run: RunFolder, **values: object) -> TrainSettings:
    """Return the settings of a run as they were asked for, with others in their place."""
    given = {name: getattr(run.record.settings, name) for name in TrainSettings.model_fields}
    undecided = {"tiling": None, "traits": None, "picture_size": None}
    return make_record(TrainSettings, given | undecided | values)


def names_of(run: RunFolder) -> set[str]:
    return {re.sub(r"tfevents.*", "", p.relative_to(run.folder).as_posix()) for p in run.folder.rglob("*")}


def contents_of(run: RunFolder) -> list[bytes]:
    names = ("model.safetensors", "scoring.safetensors", "split.json", "calibration.json", "metrics.json")
    return [(run.folder / name).read_bytes() for name in names]


@pytest.mark.slow
def test_two_processes_end_where_one_does_but_for_rounding(alone: RunFolder, together: RunFolder) -> None:
    assert together.split == alone.split
    assert names_of(together) == names_of(alone)
    assert together.record.training.n_processes == 2
    assert together.record.training.batch_size == alone.record.training.batch_size
    assert together.record.training.epochs_run == alone.record.training.epochs_run
    assert together.record.training.fit_loss == pytest.approx(alone.record.training.fit_loss, rel=1e-3)
    assert together.record.training.best_held_out_loss == pytest.approx(
        alone.record.training.best_held_out_loss, rel=1e-3
    )
    # Each fold is trained by one process, as always.
    scores = [[(s.name, s.fold, s.score) for s in run.calibration.scores] for run in (alone, together)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == N
    assert together.thresholds == alone.thresholds
    final = [np.array([s.final_score for s in run.calibration.scores], np.float64) for run in (alone, together)]
    assert np.allclose(final[0], final[1], rtol=1e-3)
    assert not np.array_equal(final[0], final[1])
    assert (together.metrics.n_normal, together.metrics.n_anomalous) == (
        alone.metrics.n_normal,
        alone.metrics.n_anomalous,
    )
    for run in (alone, together):
        rows = (run.folder / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
        assert len(rows) == 1 + 2 * 3


@pytest.mark.slow
def test_torchrun_ends_with_the_same_bytes_and_only_its_first_process_speaks_and_writes(
    together: RunFolder, data: Path, tmp_path: Path, leftovers: Path
) -> None:
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "vae_edge", "train", "--data", str(data), "--out", str(out), *WORDS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    run = RunFolder.open(out)
    assert contents_of(run) == contents_of(together)
    assert names_of(run) == names_of(together)
    assert ended.stdout.count("Next: vae-export") == 1
    assert ended.stderr.count("24 images to train on") == 1
    assert [path.name for path in tmp_path.iterdir() if path != leftovers] == ["run"]
    assert not [path.name for path in leftovers.iterdir() if not path.name.startswith("torchelastic")]


@pytest.mark.slow
def test_ctrl_c_ends_both_processes_and_the_run_goes_on_to_the_same_bytes(
    together: RunFolder, tmp_path: Path, leftovers: Path
) -> None:
    with pytest.raises(TrainingInterruptedError, match="interrupted, 1 epoch is kept; to continue: vae-train"):
        fit_run(asked_of(together, devices=2), out=tmp_path / "run", watcher=Listener("training", 4))
    assert not list(leftovers.iterdir())
    assert contents_of(resume_run(tmp_path / "run")) == contents_of(together)


@pytest.mark.slow
def test_folds_side_by_side_end_with_the_same_bytes_after_an_interruption_too(
    alone: RunFolder, tmp_path: Path, leftovers: Path
) -> None:
    # Which fold this process gets is left to chance.
    with pytest.raises(
        TrainingInterruptedError, match=r"the training of fold \d of 3 was interrupted, 1 epoch is kept; to continue:"
    ):
        fit_run(asked_of(alone), out=tmp_path / "run", watcher=Listener(r"training fold \d of 3", 4), jobs=2)
    assert not list(leftovers.iterdir())
    listener = Listener()
    run = resume_run(tmp_path / "run", watcher=listener, jobs=2)
    assert run.record.training.n_processes == 1
    # The metrics and the deployed network are of this process alone, which has all threads for them.
    assert contents_of(run) == contents_of(alone)
    # What was interrupted has a second log, or began none.
    assert {name for name in names_of(run) ^ names_of(alone) if "/logs/csv/version_" not in name} == set()
    assert not list(leftovers.iterdir())


@pytest.mark.slow
def test_a_fold_that_fails_ends_the_run_with_its_reason(alone: RunFolder, tmp_path: Path, leftovers: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingInterruptedError):
        fit_run(asked_of(alone), out=out, watcher=Listener("scoring normals with the deployed network", N))
    for number in (1, 2, 3):
        broken = out / "checkpoints" / f"fold-{number}" / "checkpoints" / "last.ckpt"
        broken.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint of this program"):
        resume_run(out, jobs=2)
    assert not list(leftovers.iterdir())


def test_more_jobs_than_folds_are_refused_before_anything_is_written(alone: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the number of jobs is 4, but there are 3 folds"):
        fit_run(asked_of(alone), out=tmp_path / "run", jobs=4)
    assert not (tmp_path / "run").exists()


def test_settings_of_the_run_say_nothing_of_jobs(alone: RunFolder) -> None:
    assert "jobs" not in json.loads((alone.folder / "training.json").read_text())
