"""What is chosen for a run, from drawn images to the run folder: with tiles, light and scoring left to the data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.train.listener import Listener
from tests.train.tiny_models import scoring_of, write_set
from vae_edge.platform.atomic import sha256_file
from vae_edge.records import make_record
from vae_edge.train.choice.candidates import CANDIDATES
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.loop.checkpoints import TrainingInterruptedError
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.input_settings import Photometric, Tiling
from vae_edge.train.model.presets import Architecture
from vae_edge.train.model.scoring import DEFAULT_SCORING
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import MODEL_FILE, RECORD_FILE, SCORING_FILE, RunFolder

SCORING = scoring_of("l1/0.03/image+pixel/top1%,gradient/0.03/local+pixel/top1%,latent")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"))


def settings(data: Path, **values: object) -> TrainSettings:
    given: dict[str, object] = {
        "source": {"root": str(data)},
        "architecture": Architecture(n_features=4, latent_vec_size=8, height=32, width=32),
        "size": {"image": (48, 64), "tiles": 32},
        "photometric": None,
        "scoring": None,
        "epochs": 2,
        "accelerator": "cpu",
        "calibration": "split",
        "recipe": {"learning_rate": 1e-3, "schedule": "one-cycle"},
        "split": {"group_by": "none"},
    }
    return make_record(TrainSettings, given | values)


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def run(data: Path, listener: Listener, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit_run(settings(data), out=tmp_path_factory.mktemp("runs") / "auto", watcher=listener)


def scores_of(run: RunFolder) -> NDArray[np.float32]:
    return run_graph(run.load_graph(), load_images(run.find_images(("threshold",)), run.record.preparation))[1]


def weights_of(run: RunFolder) -> tuple[str, str]:
    return sha256_file(run.folder / MODEL_FILE), sha256_file(run.folder / SCORING_FILE)


def test_the_record_holds_what_was_chosen_from_what_and_why(run: RunFolder) -> None:
    record, choice = run.record, run.record.choice
    assert choice is not None
    assert record.counts["statistics"] == 12
    # Of two epochs, so that few are looked at: four on each.
    assert choice.judged_on == "12 held-out normals and 48 synthetic defects on them"
    assert {each.name for each in choice.photometric} == {"none", "image"}, (
        "by the surroundings only where labels judge"
    )
    names = [each.name for each in choice.scoring]
    assert {str(record.scoring), str(DEFAULT_SCORING)} <= set(names)
    assert choice.n_compositions == len(CANDIDATES)
    for ranked in (choice.photometric, choice.scoring):
        assert ranked[0].behind == 0
        assert [each.auroc for each in ranked] == sorted((each.auroc for each in ranked), reverse=True)
        assert all(each.behind == pytest.approx(ranked[0].auroc - each.auroc) for each in ranked)
    assert len(choice.because) == 2
    assert record.photometric.describe() in choice.because[0]
    assert (record.settings.photometric, record.settings.scoring) == (None, None), "as it was asked for"


def test_the_sizes_in_force_are_recorded_and_the_network_is_a_tiles(run: RunFolder) -> None:
    record = run.record
    assert record.tiling == Tiling(image_height=48, image_width=64, tile_height=32, tile_width=32)
    assert (record.preparation.height, record.preparation.width) == (48, 64)
    assert (record.architecture.height, record.architecture.width) == (32, 32)
    assert run.load_graph().image_size == (48, 64)


def test_it_is_told_while_it_happens(run: RunFolder, listener: Listener) -> None:
    assert [stage for stage in listener.stages if stage.startswith("trying light")] == [
        "trying light 1 of 2 (none)",
        "trying light 2 of 2 (image)",
    ]
    order = [listener.stages.index(stage) for stage in ("judging light 2 of 2", "training", "comparing scorings")]
    assert order == sorted(order)
    choice = run.record.choice
    assert choice is not None
    assert set(choice.because) <= set(listener.said)
    assert listener.heard("cut into 6 tiles of 32x32 (2 x 3)")


def test_the_run_loads_again_and_gives_the_recorded_scores(run: RunFolder) -> None:
    opened = RunFolder.open(run.folder)
    assert json.loads((run.folder / RECORD_FILE).read_text())["choice"]["scoring"][0]["behind"] == 0
    assert opened.record == run.record
    expected = np.array([score.score for score in opened.calibration.scores], dtype=np.float32)
    np.testing.assert_array_equal(scores_of(opened), expected)
    assert not (run.folder / "checkpoints" / "pilots").exists()


@pytest.mark.parametrize("stage", ["trying light 2 .*", "training", "comparing scorings"])
def test_an_interrupted_choice_goes_on_and_ends_with_the_same_bytes(
    stage: str, run: RunFolder, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingInterruptedError, match="to continue: vae-train --resume"):
        fit_run(settings(data), out=tmp_path / "run", watcher=Listener(stage))
    resumed = resume_run(tmp_path / "run")
    assert weights_of(resumed) == weights_of(run)
    assert resumed.record.choice == run.record.choice
    assert resumed.metrics == run.metrics
    assert resumed.calibration == run.calibration


def test_where_all_was_given_nothing_is_chosen(data: Path, tmp_path: Path) -> None:
    told = Listener()
    given = settings(data, photometric="local", scoring=SCORING, epochs=1)
    run = fit_run(given, out=tmp_path / "run", watcher=told)
    assert run.record.choice is None
    assert (run.record.photometric, run.record.scoring) == (Photometric.LOCAL, SCORING)
    choosing = ("trying light", "judging light", "comparing scorings")
    assert not [stage for stage in told.stages if stage.startswith(choosing)]
    np.testing.assert_array_equal(
        scores_of(run), np.array([score.score for score in run.calibration.scores], dtype=np.float32)
    )


def test_what_alone_was_left_open_is_chosen_alone(data: Path, tmp_path: Path) -> None:
    run = fit_run(settings(data, photometric="image", epochs=1), out=tmp_path / "run")
    choice = run.record.choice
    assert choice is not None
    assert choice.photometric == ()
    assert len(choice.scoring) > 3
    assert run.record.photometric is Photometric.IMAGE


def test_too_few_held_out_normals_choose_nothing_and_it_is_said(tmp_path: Path) -> None:
    data = write_set(tmp_path / "few", n_good=24, n_test=1)
    run = fit_run(settings(data, epochs=1), out=tmp_path / "run")
    assert run.record.counts["statistics"] < 8
    choice = run.record.choice
    assert choice is not None
    assert choice.judged_on == "nothing"
    assert (choice.photometric, choice.scoring, choice.n_compositions) == ((), (), 0)
    assert all("held-out normals are too few to choose with; expected 8 or more" in why for why in choice.because)
    assert (run.record.photometric, run.record.scoring) == (Photometric.NONE, DEFAULT_SCORING)


class TestChoosingByLabels:
    @pytest.fixture(scope="class")
    @staticmethod
    def labelled(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
        asked = settings(data, choose_on_labels=True, photometric="none", epochs=1)
        return fit_run(asked, out=tmp_path_factory.mktemp("labelled") / "run")

    def test_one_half_of_each_class_chooses_and_the_other_one_tests(self, labelled: RunFolder) -> None:
        chosen, tested = labelled.split.of("choice"), labelled.split.of("test")
        assert not {image.sha256 for image in chosen} & {image.sha256 for image in tested}
        for images in (chosen, tested):
            assert {kind: sum(image.defect == kind for image in images) for kind in (None, "hole", "speck")} == {
                None: 3,
                "hole": 3,
                "speck": 3,
            }
        assert len(labelled.split.images) == len({image.sha256 for image in labelled.split.images})

    def test_the_metrics_are_of_the_test_half_alone(self, labelled: RunFolder) -> None:
        metrics = labelled.metrics
        assert (metrics.n_normal, metrics.n_anomalous) == (3, 6)
        assert {kind: each.n for kind, each in metrics.per_defect.items()} == {"hole": 3, "speck": 3}
        assert labelled.record.counts["choice"] == 9

    def test_the_record_says_what_it_was_judged_on(self, labelled: RunFolder) -> None:
        assert labelled.record.choice is not None
        assert labelled.record.choice.judged_on == "3 normal and 6 anomalous labelled images"

    def test_too_few_labels_are_refused_with_what_is_needed(self, tmp_path: Path) -> None:
        data = write_set(tmp_path / "few", n_good=20, n_test=1)
        with pytest.raises(ValueError, match="expected at least 2 good ones and 2 of a class of defects"):
            fit_run(settings(data, choose_on_labels=True), out=tmp_path / "run")


def test_folds_are_trained_with_what_the_deployed_network_chose(data: Path, tmp_path: Path) -> None:
    told = Listener()
    asked = settings(data, calibration="cross", folds=2, epochs=1)
    run = fit_run(asked, out=tmp_path / "run", watcher=told)
    assert len([stage for stage in told.stages if stage.startswith("trying light")]) == 2
    assert [stage for stage in told.stages if stage.startswith("training")] == [
        "training",
        "training fold 1 of 2",
        "training fold 2 of 2",
    ]
    assert run.record.choice is not None
    final = np.array([score.final_score for score in run.calibration.scores], dtype=np.float32)
    images = load_images(run.find_calibration_images(), run.record.preparation)
    np.testing.assert_array_equal(run_graph(run.load_graph(), images)[1], final)
