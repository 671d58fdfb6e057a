"""Cross-conformal calibration: every good part is scored by a network that has not seen it, and the rate is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.train.listener import Listener
from vae_edge.decision import PixelTail, conformal_p_value, fit_image_threshold
from vae_edge.errors import BundleError, InputError
from vae_edge.manifest import ThresholdMethod
from vae_edge.platform.atomic import sha256_file
from vae_edge.records import make_record
from vae_edge.train.data.inspection_set import ImageFile, load_images
from vae_edge.train.data.split import split_into_folds
from vae_edge.train.loop.checkpoints import TrainingInterruptedError
from vae_edge.train.loop.settings import Calibration, TrainSettings
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import DeployedGraph, run_graph
from vae_edge.train.model.input_settings import InputSettings, Tiling
from vae_edge.train.model.presets import Architecture
from vae_edge.train.run.cross_conformal import announce, divide, score_out_of_fold
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import CALIBRATION_FILE, MODEL_FILE, SCORING_FILE, RunFolder
from vae_edge.train.run.records import CalibrationRecord
from vae_edge.train.sample import SampleSettings, write_sample_set

TINY = Architecture(n_features=4, latent_vec_size=8, height=32, width=32)
N, K = 24, 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=N, n_test_good=2, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


def settings(data: Path, **values: object) -> TrainSettings:
    given = {"source": {"root": str(data)}, "architecture": TINY, "epochs": 2, "batch_size": 8, "accelerator": "cpu"}
    return make_record(TrainSettings, given | {"folds": K, "false_alarm_rate": 0.05} | values)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit_run(settings(data), out=tmp_path_factory.mktemp("runs") / "first")


class MeanImage(DeployedGraph):
    """The simplest model of good parts: the distance from their mean."""

    image_size = (2, 2)
    # Smaller than a network's image could be.
    input_settings = InputSettings(Tiling.model_construct(image_height=2, image_width=2, tile_height=2, tile_width=2))

    def __init__(self, images: NDArray[np.uint8]) -> None:
        super().__init__()
        self.mean = torch.from_numpy(images.astype(np.float32).mean(axis=(0, 3)))

    def describe(self) -> str:
        return "the distance from the mean picture"

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        maps = (image.float().mean(dim=3) - self.mean).abs()
        return maps, maps.mean(dim=(1, 2))


def parts(n: int) -> list[ImageFile]:
    return [ImageFile(Path(f"{i}"), f"{i}", hashlib.sha256(str(i).encode()).hexdigest()) for i in range(n)]


def out_of_fold(images: NDArray[np.uint8], n_folds: int) -> tuple[NDArray[np.float32], PixelTail]:
    files = parts(len(images))
    tail = PixelTail(len(images) * 4, 0.1)
    scores = score_out_of_fold(
        files,
        images,
        split_into_folds(files, n_folds)[1],
        lambda number, fit, statistics, watcher: MeanImage(np.concatenate([fit, statistics])),
        tail,
        Watcher(),
    )
    return scores, tail


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_p_values_of_new_normals_keep_the_rate_though_the_deployed_model_saw_every_normal(rate: float) -> None:
    rng = np.random.default_rng(0)
    n, n_new = 24, 40
    shares, naive = [], []
    for _ in range(150):
        images = rng.integers(0, 256, (n + n_new, 2, 2, 3), dtype=np.uint8)
        scores, tail = out_of_fold(images[:n], 5)
        deployed = MeanImage(images[:n])
        maps, new_scores = run_graph(deployed, images[n:])
        ordered = np.sort(scores.astype(np.float64))
        shares.append(np.mean([conformal_p_value(float(score), ordered) <= rate for score in new_scores]))
        assert np.mean(maps > tail.threshold()) < 0.25
        threshold, _ = fit_image_threshold(run_graph(deployed, images[:n])[1], rate)
        naive.append(np.mean(new_scores > threshold))
    # The allowance is three standard errors of the mean.
    assert np.mean(shares) <= rate + 3 * np.std(shares) / np.sqrt(len(shares))
    # It is not conservative by accident: the scores of images that were trained on would break the promise.
    assert np.mean(naive) > np.mean(shares)


def test_every_image_is_scored_by_the_model_that_has_not_seen_it() -> None:
    images = np.zeros((20, 2, 2, 3), np.uint8)
    images[7] = 200
    scores, _ = out_of_fold(images, 4)
    # The mean of its own fold's training images is without it; a model that had seen it would be nearer.
    assert scores[7] == 200.0
    assert sorted(set(scores.tolist())) == [0.0, pytest.approx(200 / 15), 200.0]


@pytest.mark.parametrize(
    ("values", "n_folds"),
    [
        ({}, K),  # 7 of 24 can be held out, and 0.05 needs 19
        ({"false_alarm_rate": 0.125}, 0),
        ({"false_alarm_rate": 0.12}, K),
        ({"calibration": "split"}, 0),
        ({"calibration": "cross", "false_alarm_rate": 0.3, "folds": 5}, 5),
        ({"split": {"threshold_share": 0.3}}, 0),
    ],
)
def test_folds_are_made_where_too_few_normals_can_be_held_out_or_as_asked_for(
    data: Path, values: dict[str, object], n_folds: int
) -> None:
    split, folds = divide(parts(N), settings(data, **values))
    assert len(folds) == n_folds
    assert (len(split.threshold) == 0) == (n_folds > 0)


def test_a_share_to_hold_out_and_folds_are_refused(data: Path) -> None:
    with pytest.raises(InputError, match=r"a share of 0\.3 .* holds nothing out"):
        divide(parts(N), settings(data, calibration="cross", split={"threshold_share": 0.3}))


def test_that_several_trainings_follow_is_said_in_a_sentence_with_the_reason(data: Path) -> None:
    asked = announce(settings(data, calibration=Calibration.CROSS), N, 5)
    assert asked.startswith("6 trainings follow because cross-conformal calibration was requested: ")
    assert "--calibration split" not in asked
    assert "a false-alarm rate of 0.05 needs 19 scores" in announce(settings(data), N, 5)


def test_a_cross_conformal_run_has_a_score_of_every_good_part_by_a_network_without_it(run: RunFolder) -> None:
    record, counts = run.calibration, run.record.counts
    assert run.thresholds.method is ThresholdMethod.CROSS_CONFORMAL
    assert (counts["fit"] + counts["statistics"], counts["threshold"]) == (N, 0)
    assert len(record.scores) == run.thresholds.n_normals == N
    assert run.thresholds.false_alarm_rate == 0.05
    assert run.thresholds.calibration_scores == tuple(sorted(score.score for score in record.scores))
    assert {score.sha256 for score in record.scores} == {image.sha256 for image in run.split.of("fit", "statistics")}
    assert {score.fold for score in record.scores} == set(range(1, K + 1))

    files = run.find_calibration_images()
    assert [file.sha256 for file in files] == [score.sha256 for score in record.scores]
    maps, own = run_graph(run.load_graph(), load_images(files, run.record.preparation))
    assert [score.final_score for score in record.scores] == pytest.approx(own.tolist(), rel=1e-5)
    assert [score.score for score in record.scores] != pytest.approx(own.tolist(), rel=1e-2)
    final = record.final_pixel_threshold
    assert final is not None
    assert np.mean(maps > final + 1e-4) <= run.thresholds.pixel_false_positive_rate < np.mean(maps >= final - 1e-4)
    assert final != run.thresholds.pixel_threshold


def test_every_training_is_named_and_the_folds_leave_their_logs_only(data: Path, tmp_path: Path) -> None:
    listener = Listener()
    whole = fit_run(settings(data), out=tmp_path / "run", watcher=listener)
    trainings = [stage for stage in listener.stages if stage.startswith("training")]
    assert trainings == ["training", "training fold 1 of 3", "training fold 2 of 3", "training fold 3 of 3"]
    assert sum("4 trainings follow" in sentence for sentence in listener.said) == 1
    for number in range(1, K + 1):
        folder = whole.folder / "checkpoints" / f"fold-{number}"
        assert [path.name for path in folder.iterdir()] == ["logs"]
    assert (whole.folder / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize(
    ("stop", "says"),
    [
        (Listener("training fold 2 of 3", 3), r"the training of fold 2 of 3 was interrupted, 1 epoch is kept"),
        (Listener("scoring fold 2 of 3", 8, number=None), r"the training was interrupted, 2 epochs are kept"),
    ],
    ids=["in a training", "in between"],
)
def test_an_interrupted_calibration_that_goes_on_ends_with_the_same_bytes(
    run: RunFolder, data: Path, tmp_path: Path, stop: Listener, says: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(TrainingInterruptedError, match=rf"{says}; to continue: vae-train --resume {out}$"):
        fit_run(settings(data), out=out, watcher=stop)
    listener = Listener()
    resumed = resume_run(out, watcher=listener)
    # What was complete is not trained again.
    assert not {"training", "training fold 1 of 3"} & set(listener.stages)
    assert "training fold 3 of 3" in listener.stages
    for name in (MODEL_FILE, SCORING_FILE, CALIBRATION_FILE):
        assert sha256_file(resumed.folder / name) == sha256_file(run.folder / name)


def test_the_longest_time_is_that_of_each_training(data: Path, tmp_path: Path) -> None:
    short = fit_run(settings(data, epochs=1000, max_time_minutes=1e-4), out=tmp_path / "run")
    assert short.record.training.ended_by == "time"
    assert {score.fold for score in short.calibration.scores} == set(range(1, K + 1))


def test_a_cross_conformal_calibration_without_the_deployed_networks_scores_is_damaged(
    run: RunFolder, tmp_path: Path
) -> None:
    content = json.loads((run.folder / CALIBRATION_FILE).read_text())
    assert CalibrationRecord.model_validate(content) == run.calibration
    content["scores"][3]["final_score"] = None
    with pytest.raises(ValueError, match="lacks the scores of the deployed network"):
        CalibrationRecord.model_validate(content)


def test_calibration_scores_of_other_images_are_refused(run: RunFolder) -> None:
    scores = run.calibration.scores
    other = (scores[0].model_copy(update={"sha256": "0" * 64}), *scores[1:])
    changed = run.calibration.model_copy(update={"scores": other})
    with pytest.raises(BundleError, match=r"calibration\.json and split\.json do not match"):
        RunFolder(run.folder, run.record, run.split, changed, run.metrics).find_calibration_images()
