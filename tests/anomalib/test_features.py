"""The network on features as a model of anomalib: trained, tested and predicted under `Engine`, and exported."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.train.random_backbones import random_weights
from vae_edge import Detector
from vae_edge.cli.main import invoke
from vae_edge.errors import InputError, UsageError
from vae_edge.train.model.presets import Network
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set

pytest.importorskip("anomalib", reason="anomalib is not installed")

N_TRAIN = 40


class Trained(NamedTuple):
    """A model, and what it was trained with."""

    model: Any
    engine: Any
    module: Any
    data: Path
    checkpoint: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=96, n_train=N_TRAIN, n_test_good=4, n_test_per_defect=1)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(random_weights(), path)
    return str(path)


def mvtec(data: Path) -> Any:
    from anomalib.data import MVTecAD

    return MVTecAD(root=data.parent, category=data.name, num_workers=0, train_batch_size=8)


def on_features(weights: str, size: tuple[int, int] = (64, 64), **arguments: Any) -> Any:
    from vae_edge.anomalib import Vae

    pre_processor = Vae.configure_pre_processor(size)
    return Vae(network="feature", backbone_weights=weights, pre_processor=pre_processor, **arguments)


def engine(folder: Path, **arguments: Any) -> Any:
    from anomalib.engine import Engine

    given = {"accelerator": "cpu", "max_epochs": 4, "enable_progress_bar": False, "check_val_every_n_epoch": 4}
    return Engine(default_root_dir=folder, **{**given, **arguments})


@pytest.fixture(scope="module")
def trained(data: Path, weights: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    model, module = on_features(weights), mvtec(data)
    trainer = engine(tmp_path_factory.mktemp("engine"))
    trainer.fit(model, datamodule=module)
    return Trained(model, trainer, module, data, Path(trainer.best_model_path))


def scores_of(engine: Any, model: Any, data: Path) -> dict[str, float]:
    batches = engine.predict(model, datamodule=mvtec(data))
    pairs = [(path, score) for batch in batches for path, score in zip(batch.image_path, batch.pred_score, strict=True)]
    return {Path(path).name + Path(path).parent.name: float(score) for path, score in pairs}


def test_the_default_is_the_network_on_pixels() -> None:
    from vae_edge.anomalib import Vae

    model = Vae(n_features=8, max_features=16, pre_processor=Vae.configure_pre_processor((64, 64)))
    assert model.network is Network.PIXEL
    assert model.learning_rate == 2e-4


def test_it_trains_and_is_tested(trained: Trained) -> None:
    (metrics,) = trained.engine.test(trained.model, datamodule=trained.module)
    assert {"image_AUROC", "pixel_AUROC"} <= set(metrics)
    assert all(0 <= value <= 1 for value in metrics.values())
    assert float(trained.model.model.channel_deviation.min()) > 0
    assert trained.model.thresholds.n_normals == 12


def test_only_the_normals_of_the_fit_train_the_network(trained: Trained) -> None:
    roles = list(trained.model._roles.values())
    assert {role: roles.count(role) for role in set(roles)} == {"fit": 22, "statistics": 6, "threshold": 12}
    assert trained.model.model._n_fit == 22


def test_the_backbone_stays_as_it_was(trained: Trained, weights: str) -> None:
    from vae_edge.train.features.backbone_weights import load_backbone

    expected = load_backbone(weights).module.state_dict()
    found = trained.model.model.backbone.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_predicts_the_same_without_the_file_of_weights(trained: Trained, tmp_path: Path) -> None:
    from vae_edge.anomalib import Vae

    again = Vae.load_from_checkpoint(trained.checkpoint)
    assert again.network is Network.FEATURE
    expected = scores_of(trained.engine, trained.model, trained.data)
    found = scores_of(engine(tmp_path), again, trained.data)
    assert found == pytest.approx(expected, abs=1e-5)
    assert len(set(expected.values())) > 1


def test_a_checkpoint_becomes_a_run_and_bundles_with_anomalibs_verdicts(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(trained.checkpoint), "--data", str(trained.data), "--out", str(tmp_path), "--name", "dial"]
    assert invoke([*arguments, "--target", "onnx,openvino"], command="export") == 0
    assert "0 verdicts differ" in " ".join(capsys.readouterr().err.split())
    runs = [RunFolder.open(path.parent) for path in tmp_path.rglob("model.json")]
    assert [run.record.network for run in runs] == [Network.FEATURE]
    batches = trained.engine.predict(trained.model, datamodule=mvtec(trained.data))
    for name in ("dial-onnx-fp32", "dial-openvino-fp32"):
        with Detector.open(tmp_path / name) as detector:
            for batch in batches:
                for path, label in zip(batch.image_path, batch.pred_label, strict=True):
                    assert detector.predict(path).is_anomalous == bool(label), (name, path)


def test_how_long_it_trains_where_nobody_says_it_and_how_the_learning_rate_goes(
    data: Path, weights: str, tmp_path: Path
) -> None:
    from lightning.pytorch import Callback

    seen: dict[str, Any] = {"rates": []}

    class Watching(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            seen["epochs"] = trainer.max_epochs
            seen["rates"].append(trainer.optimizers[0].param_groups[0]["lr"])
            trainer.should_stop = len(seen["rates"]) >= 10

    trainer = engine(tmp_path, max_epochs=None, callbacks=[Watching()], check_val_every_n_epoch=1)
    trainer.fit(on_features(weights), datamodule=mvtec(data))
    assert seen["epochs"] == math.ceil(300 / 5)
    assert seen["rates"][0] == pytest.approx(4e-3 / 25)
    assert (np.diff(seen["rates"]) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tile_size": 32}, "tile_size is 32, but does not apply to network='feature'"),
        ({"scoring": "mse"}, "scoring is 'mse'"),
        ({"size": (72, 64)}, "72x64.*nearest that fit are 64x64 and 80x64"),
    ],
)
def test_what_a_network_on_features_does_not_have_is_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        on_features("none.pth", **arguments)


def test_an_unknown_network_is_refused() -> None:
    from vae_edge.anomalib import Vae

    with pytest.raises(UsageError, match="'both'; expected one of pixel, feature"):
        Vae(network="both")


def test_a_model_that_was_never_fitted(data: Path, weights: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has not been fitted"):
        engine(tmp_path).test(on_features(weights), datamodule=mvtec(data))
