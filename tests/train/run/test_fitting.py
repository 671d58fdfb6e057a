"""Training is repeatable, can be interrupted, and uses each image for one thing only."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.train.exposures import write_exposures
from tests.train.listener import Listener
from vae_edge.errors import BundleError, InputError
from vae_edge.platform.atomic import sha256_file
from vae_edge.records import make_record
from vae_edge.train.data.sources import DataSource
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, load_checkpoint, read_state
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.training import fit_vae
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.presets import Architecture
from vae_edge.train.model.scoring import MSE_SCORING
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import MODEL_FILE, SCORING_FILE, SPLIT_FILE, RunFolder
from vae_edge.train.run.records import Role
from vae_edge.train.sample import SampleSettings, write_sample_set

TINY = Architecture(n_features=4, latent_vec_size=8, height=32, width=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=3, n_test_per_defect=1)
    return write_sample_set(folder, ["dial"], sizes)[0]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit_run(settings(data), out=tmp_path_factory.mktemp("runs") / "first")


def settings(data: Path, **values: object) -> TrainSettings:
    given = {"source": {"root": str(data)}, "architecture": TINY, "epochs": 3, "batch_size": 8, "accelerator": "cpu"}
    return make_record(TrainSettings, given | {"calibration": "split"} | values)


def images(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def weights_of(run: RunFolder) -> tuple[str, str]:
    return sha256_file(run.folder / MODEL_FILE), sha256_file(run.folder / SCORING_FILE)


def test_the_same_seed_gives_the_same_bytes(run: RunFolder, data: Path, tmp_path: Path) -> None:
    again = fit_run(settings(data), out=tmp_path / "again")
    assert weights_of(again) == weights_of(run)
    assert again.fingerprint == run.fingerprint
    assert again.thresholds == run.thresholds
    other = fit_run(settings(data, seed=1), out=tmp_path / "other")
    assert weights_of(other)[0] != weights_of(run)[0]


@pytest.mark.parametrize(
    ("number", "step", "says"),
    [
        (signal.SIGINT, 5, r"interrupted, \d epochs? (is|are) kept; to continue: vae-train --resume"),
        (
            signal.SIGTERM,
            1,
            "interrupted, nothing of it is kept; to begin again, with the same settings: vae-train --r",
        ),
    ],
)
def test_an_interrupted_run_that_goes_on_ends_with_the_same_bytes(
    run: RunFolder, data: Path, tmp_path: Path, number: int, step: int, says: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingInterruptedError, match=says) as caught:
        fit_run(settings(data), out=out, watcher=Listener("training", step, number=number))
    assert caught.value.exit_code == 130
    with pytest.raises(BundleError, match="not finished; continue with: vae-train --resume"):
        RunFolder.open(out)
    resumed = resume_run(out)
    assert weights_of(resumed) == weights_of(run)
    assert resumed.record.training.epochs_run == 3
    assert resumed.metrics == run.metrics


def test_an_interruption_after_the_training_repeats_no_epoch(run: RunFolder, data: Path, tmp_path: Path) -> None:
    class InterruptAfterwards(Watcher):
        def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
            if stage == "scoring test images":
                raise KeyboardInterrupt

    class NoTraining(Watcher):
        def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
            assert stage != "training"

    with pytest.raises(TrainingInterruptedError, match="3 epochs are kept"):
        fit_run(settings(data), out=tmp_path / "run", watcher=InterruptAfterwards())
    assert weights_of(resume_run(tmp_path / "run", watcher=NoTraining())) == weights_of(run)


def test_a_run_does_not_go_on_with_other_images_or_a_damaged_split(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterruptedError):
        fit_run(settings(data), out=tmp_path / "run", watcher=Listener("training", 3))
    other = write_sample_set(tmp_path, ["dial"], SampleSettings(seed=5, image_size=64, n_train=24, n_test_good=1))[0]
    with pytest.raises(InputError, match=r"not the ones that the run .* was started with"):
        resume_run(tmp_path / "run", data=str(other))
    (tmp_path / "run" / SPLIT_FILE).write_text("{")
    with pytest.raises(BundleError, match=r"split\.json cannot be read"):
        resume_run(tmp_path / "run")


def test_a_complete_run_has_nothing_to_go_on_with(run: RunFolder) -> None:
    with pytest.raises(InputError, match="is complete"):
        resume_run(run.folder)


def test_each_image_is_used_for_one_thing(run: RunFolder) -> None:
    counts = run.record.counts
    assert counts["fit"] + counts["statistics"] + counts["threshold"] == 24
    assert len({image.sha256 for image in run.split.images}) == len(run.split.images)
    held_out = {image.sha256 for image in run.split.of("threshold")}
    assert {score.sha256 for score in run.calibration.scores} == held_out
    assert run.thresholds.n_normals == counts["threshold"] == len(held_out)


def test_pictures_of_the_same_part_are_kept_together_recorded_and_not_looked_for_again(tmp_path: Path) -> None:
    write_exposures(tmp_path / "data" / "train" / "good", 16, 3)
    write_exposures(tmp_path / "data" / "test" / "good", 12, 2, first_part=16)
    first, second = Listener("training", 2), Watcher()
    with pytest.raises(TrainingInterruptedError):
        fit_run(settings(tmp_path / "data"), out=tmp_path / "run", watcher=first)
    assert first.heard("48 good parts look like 16 different ones")
    assert first.heard("show 5 different parts")
    assert "comparing pictures" in first.stages

    seen: set[str] = set()
    second.progress = lambda stage, done, total, note="": seen.add(stage)  # type: ignore[method-assign]  # this test only listens
    split = resume_run(tmp_path / "run", watcher=second).split
    assert "training" in seen
    assert "comparing pictures" not in seen
    normals: tuple[Role, ...] = ("fit", "statistics", "threshold")
    for images, n in ((split.of(*normals), 16), (split.of("test"), 12)):
        assert len({image.part for image in images}) == len({image.name.split("_")[0] for image in images}) == n
        assert all(image.group is not None for image in images)
    of_role = [{image.part for image in split.of(role)} for role in normals]
    assert sum(map(len, of_role)) == 16


def test_everything_is_measured_where_there_are_labels_and_masks(run: RunFolder) -> None:
    metrics = run.metrics
    assert (metrics.n_normal, metrics.n_anomalous) == (counts := (3, len(metrics.per_defect)))
    assert counts[1] > 1
    assert None not in (metrics.image_auroc, metrics.image_aupr, metrics.pixel_auroc, metrics.aupro, metrics.recall)
    assert metrics.threshold == run.thresholds.image_threshold
    assert metrics.detectability is not None
    assert metrics.detectability.threshold == run.thresholds.image_threshold
    assert (metrics.recall_at_requested_rate is None) == (run.thresholds.n_normals < 8)


def test_without_test_images_no_metric_is_made_up(data: Path, tmp_path: Path) -> None:
    alone = fit_run(settings(data / "train" / "good", epochs=1), out=tmp_path / "run")
    assert alone.metrics.image_auroc is None
    assert "image_auroc" not in (alone.folder / "metrics.json").read_text()


def test_images_given_by_folder_need_no_masks_and_no_good_test_images(tmp_path: Path) -> None:
    for name, n in (("good", 10), ("bad/dent", 3)):
        (tmp_path / name).mkdir(parents=True)
        for i, image in enumerate(images(n, seed=n)):
            cv2.imwrite(str(tmp_path / name / f"{i}.png"), image)
    source = {"normal": str(tmp_path / "good"), "abnormal": str(tmp_path / "bad")}
    trained = fit_run(settings(tmp_path, source=source, epochs=1, scoring=MSE_SCORING), out=tmp_path / "run")
    assert trained.metrics.per_defect["dent"].n == 3
    assert trained.metrics.per_defect["dent"].recall is not None
    assert trained.metrics.image_auroc is None
    assert trained.metrics.pixel_auroc is None
    assert [image.defect for image in trained.find_images(["test"])] == ["dent"] * 3


def test_training_ends_when_nothing_gets_better(tmp_path: Path) -> None:
    # Noise that the network cannot learn, at a rate at which it soon fits the training images instead.
    asked = settings(tmp_path, epochs=400, patience=2, recipe={"learning_rate": 5e-3})
    fitted = fit_vae(asked, images(16), images(4, seed=1), tmp_path)
    assert fitted is not None
    outcome = fitted[1]
    assert outcome.ended_by == "patience"
    assert outcome.best_epoch <= outcome.epochs_run - 2 < 398


def test_training_ends_when_the_time_is_over(tmp_path: Path) -> None:
    fitted = fit_vae(settings(tmp_path, epochs=1000, max_time_minutes=1e-4), images(8), images(2), tmp_path)
    assert fitted is not None
    assert fitted[1].ended_by == "time"
    assert fitted[1].epochs_run < 1000


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="smaller learning rate"):
        fit_vae(settings(tmp_path, recipe={"learning_rate": 1e30}), images(8), images(2), tmp_path)


def test_an_accelerator_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accelerator 'abacus'"):
        fit_vae(settings(tmp_path, accelerator="abacus"), images(8), images(2), tmp_path)


def test_training_leaves_the_process_as_it_was_and_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(7)
    state, handler = torch.get_rng_state(), signal.getsignal(signal.SIGINT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit_vae(settings(tmp_path), images(8), images(2), tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not torch.are_deterministic_algorithms_enabled()
    assert capfd.readouterr() == ("", "")


def test_the_logs_hold_every_epoch(run: RunFolder) -> None:
    table = (run.folder / "logs" / "csv" / "version_0" / "metrics.csv").read_text()
    assert "held_out_loss" in table
    assert {line.split(",")[0] for line in table.splitlines()[1:]} == {"0", "1", "2"}
    assert list((run.folder / "logs" / "tensorboard").glob("events.*"))


def test_a_checkpoint_that_holds_more_than_plain_values_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "surprise": os.system}, path)
    with pytest.raises(BundleError, match="not a checkpoint of this program"):
        load_checkpoint(path)
    path.write_bytes(b"half a file")
    with pytest.raises(BundleError, match="not a checkpoint of this program"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(BundleError, match="another program"):
        read_state(path)


def test_a_wrong_setting_is_refused_with_its_value() -> None:
    source = DataSource(root="x")
    with pytest.raises(InputError, match="epochs is 0"):
        make_record(TrainSettings, {"source": source, "architecture": TINY, "epochs": 0})
