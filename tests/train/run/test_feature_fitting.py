"""Runs on features: what trains, what judges, what is in the folder, and that it opens to the same model."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.train.listener import Listener
from tests.train.random_backbones import random_weights
from vae_edge.cli.main import invoke
from vae_edge.errors import BundleError, InputError, MissingDependencyError, UsageError
from vae_edge.export.trained_model import measure_trained_model
from vae_edge.records import make_record
from vae_edge.train import command
from vae_edge.train.choice.network_choice import NetworkRanking
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.features import backbone_weights
from vae_edge.train.features.graph import FeatureGraph
from vae_edge.train.features.table import FEATURES_FILE
from vae_edge.train.loop.checkpoints import TrainingInterruptedError
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.watcher import TerminalWatcher
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.presets import Architecture, Network
from vae_edge.train.model.scoring import MSE_SCORING, NORMALIZED_SCORING
from vae_edge.train.run import feature_fitting, fitting
from vae_edge.train.run.fitting import fit_run, resume_run
from vae_edge.train.run.folder import MODEL_FILE, RECORD_FILE, RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set
from vae_edge.train.summary import print_result

TINY = Architecture(n_features=4, latent_vec_size=8, height=32, width=32)
FEATURE = {"n_hidden": 16, "latent_vec_size": 4, "n_steps": 20, "batch_size": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=3, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(random_weights("timm", 0), path)
    return path


def settings(data: Path, weights: Path | None, network: Network | None, **values: object) -> TrainSettings:
    given = {
        "source": {"root": str(data)},
        "network": network,
        "feature": FEATURE,
        "backbone_weights": None if weights is None else str(weights),
        "size": {"image": (64, 64), "tiles": "none"},
        "architecture": TINY,
        "epochs": 1,
        "batch_size": 8,
        "accelerator": "cpu",
        "photometric": None,
        "scoring": NORMALIZED_SCORING,
        "calibration": "split",
    }
    return make_record(TrainSettings, given | values)


@pytest.fixture(scope="module")
def run(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit_run(settings(data, weights, Network.FEATURE), out=tmp_path_factory.mktemp("runs") / "feature")


@pytest.fixture(scope="module")
def crossed(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    asked = settings(data, weights, Network.FEATURE, calibration="cross", folds=3)
    return fit_run(asked, out=tmp_path_factory.mktemp("runs") / "crossed")


@pytest.fixture(scope="module")
def both(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return fit_run(settings(data, weights, Network.BOTH), out=tmp_path_factory.mktemp("runs") / "both")


def test_a_run_on_features_holds_all_of_the_model_and_names_its_backbone(run: RunFolder, weights: Path) -> None:
    record = run.record
    assert record.network is Network.FEATURE
    assert record.feature is not None
    assert record.feature.backbone.source == weights.name
    assert record.feature.backbone.licence == backbone_weights.UNKNOWN_LICENCE
    names = set(load_file(run.folder / MODEL_FILE))
    assert any(name.startswith("backbone.") for name in names)
    assert all(name.startswith(("backbone.", "feature.")) for name in names)
    assert not (run.folder / "checkpoints" / FEATURES_FILE).exists()
    assert isinstance(run.load_graph(), FeatureGraph)


def test_features_are_compared_by_place_where_parts_lie_at_the_same_place(
    run: RunFolder, data: Path, weights: Path, tmp_path: Path
) -> None:
    assert run.record.feature is not None
    assert run.record.feature.settings.places is not None
    assert "good parts by place" in run.record.feature.describe()
    sizes = SampleSettings(image_size=64, n_train=24, n_test_good=3, n_test_per_defect=1)
    fabric = write_sample_set(tmp_path, ["fabric"], sizes)[0]
    surface = fit_run(settings(fabric, weights, Network.FEATURE), out=tmp_path / "run")
    assert surface.record.feature is not None
    assert surface.record.feature.settings.places is None


def test_the_thresholds_are_those_of_the_model_in_the_folder(run: RunFolder) -> None:
    files = run.find_calibration_images()
    _, scores = run_graph(run.load_graph(), load_images(files, run.record.preparation))
    recorded = [score.score for score in run.calibration.scores]
    assert np.allclose(scores, recorded, rtol=1e-5)


def test_the_same_seed_gives_the_same_run(run: RunFolder, data: Path, weights: Path, tmp_path: Path) -> None:
    again = fit_run(settings(data, weights, Network.FEATURE), out=tmp_path / "again")
    other = fit_run(settings(data, weights, Network.FEATURE, seed=1), out=tmp_path / "other")
    assert again.fingerprint == run.fingerprint
    assert other.fingerprint != run.fingerprint


def test_in_a_cross_conformal_run_each_score_is_by_a_network_that_has_not_seen_the_part(crossed: RunFolder) -> None:
    scores = crossed.calibration.scores
    assert len(scores) == 24
    assert {score.fold for score in scores} == {1, 2, 3}
    files = crossed.find_calibration_images()
    _, final = run_graph(crossed.load_graph(), load_images(files, crossed.record.preparation))
    recorded = np.array([score.final_score for score in scores])
    assert np.allclose(final, recorded, rtol=0.02, atol=0.02)  # Features were kept in float16.
    assert not np.allclose([score.score for score in scores], recorded, atol=0.02)


def test_both_networks_are_in_one_graph_that_opens_again(both: RunFolder) -> None:
    graph = both.load_graph()
    assert isinstance(graph, FeatureGraph)
    assert graph.pixels is not None
    assert both.record.feature is not None
    assert both.record.feature.settings.pixels is not None
    names = {name.partition(".")[0] for name in load_file(both.folder / MODEL_FILE)}
    assert names == {"backbone", "feature", "pixels"}
    files = both.find_calibration_images()
    _, scores = run_graph(graph, load_images(files, both.record.preparation))
    assert np.allclose(scores, [score.score for score in both.calibration.scores], rtol=1e-4, atol=1e-4)


def test_both_networks_can_be_calibrated_across_folds(data: Path, weights: Path, tmp_path: Path) -> None:
    asked = settings(data, weights, Network.BOTH, calibration="cross", folds=2)
    run = fit_run(asked, out=tmp_path / "run")
    scores = run.calibration.scores
    assert {score.fold for score in scores} == {1, 2}
    files = run.find_calibration_images()
    _, final = run_graph(run.load_graph(), load_images(files, run.record.preparation))
    recorded = np.array([score.final_score for score in scores])
    assert np.allclose(final, recorded, rtol=0.02, atol=0.02)  # Features were kept in float16.
    assert not np.allclose([score.score for score in scores], recorded, atol=0.02)


def test_a_run_on_features_has_no_network_on_pixels(run: RunFolder) -> None:
    with pytest.raises(InputError, match="expected one on pixels: train with --preset"):
        run.load_vae()


@pytest.mark.parametrize("stage", ["training on pixels", "judging the networks"])
def test_ctrl_c_while_a_kind_of_network_is_chosen_leaves_a_run_that_can_begin_again(
    stage: str,
    data: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def small(kind: type[TrainSettings], values: dict[str, object]) -> object:
        return make_record(kind, values | ({"feature": FEATURE} if kind is TrainSettings else {}))

    def interrupt(self: object, at: str, *progress: object) -> None:
        if at == stage:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command, "make_record", small)
    out = tmp_path / "run"
    words = ["--data", str(data), "--out", str(out), "--image-size", "64", "--backbone-weights", str(weights)]
    words += ["--calibration", "cross", "--folds", "2"]
    with monkeypatch.context() as patch:
        patch.setattr(TerminalWatcher, "progress", interrupt)
        assert invoke(words, command="train") == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the training was interrupted, nothing of it is kept; to begin again, with the same settings: vae-train "
        f"--resume {out}"
    )
    assert sorted(path.name for path in out.iterdir()) == ["split.json", "training.json"]
    assert invoke(["--resume", str(out)], command="train") == 0
    resumed = RunFolder.open(out)
    # Nothing is lost, so that the same command does the same without --overwrite, too.
    shutil.rmtree(out)
    with monkeypatch.context() as patch:
        patch.setattr(TerminalWatcher, "progress", interrupt)
        assert invoke(words, command="train") == 130
    assert invoke(words, command="train") == 0
    assert RunFolder.open(out).fingerprint == resumed.fingerprint


def test_weights_of_another_model_are_refused(run: RunFolder, tmp_path: Path) -> None:
    content = json.loads((run.folder / RECORD_FILE).read_text())
    content["feature"]["settings"]["n_hidden"] = 17
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in run.folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / RECORD_FILE).write_text(json.dumps(content))
    with pytest.raises(BundleError, match="cannot be used"):
        RunFolder.open(copy).load_graph()


def test_without_weights_a_choice_falls_on_pixels_and_says_what_is_missed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "find_backbone", lambda: None)
    listener = Listener()
    run = fit_run(settings(data, None, None), out=tmp_path / "run", watcher=listener)
    assert run.record.network is Network.PIXEL
    assert isinstance(run.load_graph(), AnomalyGraph)
    assert listener.heard('pip install "vae-edge[features]"')


def test_without_weights_a_network_on_features_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "find_backbone", lambda: None)
    with pytest.raises(MissingDependencyError, match="--backbone-weights"):
        fit_run(settings(data, None, Network.FEATURE), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_are_refused_before_the_pictures_are_looked_at(tmp_path: Path) -> None:
    tensors = random_weights("timm", 0)
    tensors["blocks.1.0.conv_pw.weight"] = tensors["blocks.1.0.conv_pw.weight"][:5].contiguous()
    save_file(tensors, tmp_path / "other.safetensors")
    for network in (Network.FEATURE, None):
        asked = settings(tmp_path / "no-pictures", tmp_path / "other.safetensors", network)
        with pytest.raises(InputError, match=r"the tensor 'blocks\.1\.0\.conv_pw\.weight' has the shape"):
            fit_run(asked, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pictures_too_small_for_the_strides_are_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    asked = settings(data, weights, Network.FEATURE, size={"image": (40, 64), "tiles": "none"})
    with pytest.raises(UsageError, match="multiples of 16"):
        fit_run(asked, out=tmp_path / "run")


def test_the_choice_is_made_on_defects_that_were_pasted_and_is_recorded(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_edge.train.run.feature_fitting.FEWEST_NORMALS", 2)
    listener = Listener()
    run = fit_run(settings(data, weights, None), out=tmp_path / "run", watcher=listener)
    choice = run.record.choice
    assert choice is not None
    assert "synthetic defects" in choice.judged_on
    names = {"feature", "both", "pixel", "places", "feature and places", "both and places"}
    assert {each.name for each in choice.network} == names  # The dial lies at the same place in all pictures.
    assert any(sentence.startswith(f"network: {run.record.network}") for sentence in listener.said)


def test_too_few_normals_to_choose_by_mean_features(
    data: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit_run(settings(data, weights, None), out=tmp_path / "run")
    assert run.record.network is Network.FEATURE
    assert run.record.choice is not None
    assert "too few to choose by" in run.record.choice.because[0]
    print_result(run)
    assert "nothing; the reason is in model.json" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_to_the_same_result(
    run: RunFolder, data: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingInterruptedError, match=r"nothing of it is kept; to begin again, .*--resume"):
        fit_run(
            settings(data, weights, Network.FEATURE),
            out=tmp_path / "run",
            watcher=Listener("training on features", number=None),
        )
    assert resume_run(tmp_path / "run").fingerprint == run.fingerprint


def test_the_networks_are_trained_in_the_precision_that_is_recorded(
    run: RunFolder, data: Path, weights: Path, tmp_path: Path
) -> None:
    mixed = fit_run(settings(data, weights, Network.FEATURE, precision="bf16-mixed"), out=tmp_path / "mixed")
    assert mixed.record.settings.precision == "bf16-mixed"
    assert mixed.fingerprint != run.fingerprint
    expected, found = (load_file(each.folder / MODEL_FILE) for each in (run, mixed))
    assert {name: value.dtype for name, value in found.items()} == {k: v.dtype for k, v in expected.items()}


def test_what_the_processor_multiplies_fast_decides_whatever_accelerator_there_is(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def resolve(precision: str, accelerator: str) -> str:
        asked.append(accelerator)
        return "32-true"

    monkeypatch.setattr(fitting, "resolve_precision", resolve)
    automatic = settings(data, weights, Network.FEATURE, precision="auto", accelerator="auto")
    run = fit_run(automatic, out=tmp_path / "run")
    assert run.record.settings.precision == "32-true"
    assert asked == ["cpu"]


def test_other_precisions_are_refused_before_anything_is_written(data: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'64-true' is for networks that reconstruct whole pictures; expected auto"):
        fit_run(settings(data, weights, Network.FEATURE, precision="64-true"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_export_measures_the_model_on_features_as_the_reference(run: RunFolder) -> None:
    trained = measure_trained_model(
        run, scoring=None, data_root=None, false_alarm_rate=None, progress=lambda what, done, total: None
    )
    assert trained.thresholds.image_threshold == pytest.approx(run.thresholds.image_threshold, rel=1e-4)
    with pytest.raises(InputError, match="leave out --scoring"):
        measure_trained_model(
            run,
            scoring=MSE_SCORING,
            data_root=None,
            false_alarm_rate=None,
            progress=lambda what, done, total: None,
        )


def ranking(feature: float, both: float, pixel: float, **others: float) -> NetworkRanking:
    reached = {"feature": feature, "both": both, "pixel": pixel}
    reached |= {name.replace("_", " "): auroc for name, auroc in others.items()}
    values = np.array(list(reached.values()))[:, None]
    return NetworkRanking(tuple(reached), np.repeat(values, 24, axis=1), np.repeat(values, 40, axis=1))


def test_pixels_join_unless_they_show_too_little_or_clearly_spoil_what_features_show() -> None:
    assert ranking(0.8, 0.81, 0.75).chosen is Network.BOTH
    assert ranking(0.8, 0.78, 0.65).chosen is Network.BOTH
    assert ranking(0.8, 0.76, 0.65).chosen is Network.FEATURE
    assert ranking(0.8, 0.80, 0.54).chosen is Network.FEATURE
    assert ranking(0.9, 0.90, 0.6).chosen is Network.FEATURE
    assert ranking(0.7, 0.8, 0.85).chosen is Network.BOTH
    assert "feature 0.700, both 0.800, pixel 0.850" in ranking(0.7, 0.8, 0.85).sentence()


def test_features_are_compared_by_place_by_the_same_rule() -> None:
    assert not ranking(0.8, 0.81, 0.75).by_place
    joined = ranking(0.8, 0.81, 0.75, places=0.8, feature_and_places=0.85, both_and_places=0.84)
    assert joined.by_place
    assert joined.chosen is Network.BOTH
    assert joined.sentence().startswith("network: both and places; AUROC")
    blind = ranking(0.8, 0.81, 0.75, places=0.53, feature_and_places=0.8, both_and_places=0.5)
    assert not blind.by_place
    assert blind.chosen is Network.BOTH
    assert not ranking(0.8, 0.81, 0.75, places=0.7, feature_and_places=0.76, both_and_places=0.8).by_place
    spoilt = ranking(0.8, 0.81, 0.75, places=0.8, feature_and_places=0.85, both_and_places=0.81)
    assert spoilt.chosen is Network.FEATURE


def test_the_table_on_disk_is_deleted_although_it_was_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "checkpoints" / FEATURES_FILE
    table.parent.mkdir()

    class Mapping:
        def __init__(self, *_: Any) -> None:
            self.table = np.memmap(table, np.float16, "w+", shape=(4,))
            self.feature = None
            self.itself = self  # Only the garbage collector ends such a cycle.

        def finish(self, network: Any, feature: Any, choice: Any) -> str:
            return "fitted"

    monkeypatch.setattr(feature_fitting, "_Fitting", Mapping)
    nothing: Any = None
    settings: Any = SimpleNamespace(network=Network.FEATURE)
    fitted: Any = feature_fitting.fit_with_features(settings, nothing, [], nothing, tmp_path, nothing)
    assert fitted == "fitted"
    assert not table.exists()
