"""The network as a model of anomalib: `Engine` trains, tests, predicts and exports it; a checkpoint becomes bundles."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_documents import snippet
from vae_edge import Detector
from vae_edge.cli.main import invoke
from vae_edge.errors import InputError, UsageError
from vae_edge.train.sample import SampleSettings, write_sample_set

pytest.importorskip("anomalib", reason="anomalib is not installed")

N_TRAIN, N_TEST = 40, 6 + 7 * 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = SampleSettings(image_size=96, n_train=N_TRAIN, n_test_good=6, n_test_per_defect=2)
    return write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)[0]


def mvtec(data: Path, **arguments: Any) -> Any:
    from anomalib.data import MVTecAD

    return MVTecAD(root=data.parent, category=data.name, num_workers=0, **arguments)


def small(**arguments: Any) -> Any:
    from vae_edge.anomalib import Vae

    given = {"n_features": 8, "latent_vec_size": 16, "max_features": 32, "learning_rate": 1e-3}
    given["pre_processor"] = Vae.configure_pre_processor((64, 64))
    return Vae(**{**given, **arguments})


def engine(folder: Path, **arguments: Any) -> Any:
    from anomalib.engine import Engine

    given = {"accelerator": "cpu", "max_epochs": 3, "enable_progress_bar": False}
    return Engine(default_root_dir=folder, **{**given, **arguments})


def predictions(batches: Any) -> dict[str, tuple[float, bool]]:
    """Return score and label by file."""
    return {
        path: (float(score), bool(label))
        for batch in batches
        for path, score, label in zip(batch.image_path, batch.pred_score, batch.pred_label, strict=True)
    }


class Trained:
    """A small model that was trained once for all tests of this module."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.model, self.engine = small(), engine(folder / "results")
        self.module = mvtec(data)
        self.engine.fit(self.model, datamodule=self.module)
        self.checkpoint = Path(self.engine.best_model_path)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(data, tmp_path_factory.mktemp("trained"))


class TestEngine:
    def test_test_measures_and_prints(self, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
        (metrics,) = trained.engine.test(trained.model, datamodule=trained.module)
        assert set(metrics) == {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
        assert all(0 <= value <= 1 for value in metrics.values())
        assert "image_AUROC" in capsys.readouterr().out

    def test_validate_fits_nothing_new(self, trained: Trained) -> None:
        before = trained.model.thresholds
        trained.engine.validate(trained.model, datamodule=trained.module)
        assert trained.model.thresholds == before

    def test_a_part_of_the_normals_does_not_train(self, trained: Trained) -> None:
        roles = list(trained.model._roles.values())
        assert len(roles) == N_TRAIN
        assert {role: roles.count(role) for role in set(roles)} == {"fit": 22, "statistics": 6, "threshold": 12}
        assert len(trained.model._held_back) == 18

    def test_held_back_images_do_not_reach_the_network(self, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def forward(pixels: Any) -> None:
            seen.append(len(pixels))
            raise _StoppedError

        monkeypatch.setattr(trained.model.model.vae, "forward", forward)
        loader = trained.module.train_dataloader()
        batch = next(iter(loader))
        with pytest.raises(_StoppedError):
            trained.model.train().training_step(batch, 0)
        trained.model.eval()
        expected = sum(str(Path(path).absolute()) not in trained.model._held_back for path in batch.image_path)
        assert seen == [expected]
        assert expected < len(batch.image_path)

    def test_predict_gives_maps_and_verdicts(self, trained: Trained) -> None:
        batches = trained.engine.predict(trained.model, datamodule=trained.module)
        assert sum(len(batch.image_path) for batch in batches) == N_TEST
        assert all(tuple(batch.anomaly_map.shape[-2:]) == (64, 64) for batch in batches)
        assert all(batch.pred_mask is not None for batch in batches)
        scores = predictions(batches)
        assert all((score > 0.5) == label for score, label in scores.values())

    def test_a_checkpoint_predicts_the_same(self, trained: Trained, tmp_path: Path) -> None:
        from vae_edge.anomalib import Vae

        again = Vae.load_from_checkpoint(trained.checkpoint)
        expected = predictions(trained.engine.predict(trained.model, datamodule=trained.module))
        found = predictions(engine(tmp_path).predict(again, datamodule=mvtec(trained.data)))
        assert found.keys() == expected.keys()
        for path, (score, label) in expected.items():
            assert found[path][0] == pytest.approx(score, abs=1e-5)
            assert found[path][1] == label

    @pytest.mark.parametrize("size", [None, (96, 96)])
    def test_what_anomalib_exports_gives_the_same_verdicts(
        self, trained: Trained, tmp_path: Path, size: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from anomalib.deploy import ExportType, OpenVINOInferencer

        monkeypatch.chdir(tmp_path)  # The inferencer leaves a cache where it is called.
        path = trained.engine.export(trained.model, ExportType.OPENVINO, export_root=tmp_path, input_size=size)
        inferencer = OpenVINOInferencer(path, config={"INFERENCE_PRECISION_HINT": "f32"})
        for file, (score, label) in predictions(
            trained.engine.predict(trained.model, datamodule=trained.module)
        ).items():
            found = inferencer.predict(file)
            assert float(np.ravel(found.pred_score)[0]) == pytest.approx(score, abs=2e-3)
            assert bool(np.ravel(found.pred_label)[0]) == label

    def test_thresholds_keep_the_rate_on_the_normals_that_set_them(self, trained: Trained) -> None:
        thresholds = trained.model.thresholds
        scores = np.array(thresholds.calibration_scores)
        assert len(scores) == 12
        assert (scores > thresholds.image_threshold).mean() <= 1 / 13
        assert float(trained.model.post_processor._image_threshold) == pytest.approx(thresholds.image_threshold)


class TestArguments:
    def test_epochs_follow_from_the_images_where_nobody_says_how_many(self, data: Path, tmp_path: Path) -> None:
        from lightning.pytorch import Callback

        seen = {}

        class Stopping(Callback):
            def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
                seen["epochs"] = trainer.max_epochs
                trainer.should_stop = True

        engine(tmp_path, max_epochs=None, callbacks=[Stopping()]).fit(small(), datamodule=mvtec(data))
        assert seen == {"epochs": 300}

    def test_tiles_and_evened_light(self, data: Path, tmp_path: Path) -> None:
        model = small(tile_size=32, photometric="image", scoring="normalized")
        trainer = engine(tmp_path, max_epochs=1)
        trainer.fit(model, datamodule=mvtec(data))
        assert model.model.input_settings.tiling.n_tiles == 9
        (metrics,) = trainer.test(model, datamodule=mvtec(data))
        assert math.isfinite(metrics["image_AUROC"])
        scores = _export_and_score(Path(trainer.best_model_path), data, tmp_path)
        raw = _raw_scores(model, data)
        assert scores == pytest.approx(raw, rel=1e-3)

    def test_anomalibs_own_components(self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from anomalib.metrics import AUROC, Evaluator
        from anomalib.post_processing import PostProcessor
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import Compose, Normalize, Resize

        from vae_edge.anomalib import Vae

        imagenet = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        model = small(
            pre_processor=PreProcessor(Compose([Resize((64, 64), antialias=True), imagenet])),
            post_processor=PostProcessor(),
            evaluator=Evaluator(test_metrics=[AUROC(fields=["pred_score", "gt_label"], prefix="only_")]),
            visualizer=False,
        )
        trainer = engine(tmp_path, max_epochs=1)
        trainer.fit(model, datamodule=mvtec(data))
        assert trainer.test(model, datamodule=mvtec(data))[0].keys() == {"only_AUROC"}
        again = Vae.load_from_checkpoint(trainer.best_model_path)
        assert type(again.pre_processor) is PreProcessor
        assert type(again.post_processor) is PostProcessor
        assert _raw_scores(again, data) == pytest.approx(_raw_scores(model, data), rel=1e-4)
        assert np.isfinite(_export_and_score(Path(trainer.best_model_path), data, tmp_path)).all()
        assert "a device resizes with OpenCV" in " ".join(capsys.readouterr().err.split())

    def test_a_folder_and_loggers(self, data: Path, tmp_path: Path) -> None:
        from anomalib.data import Folder
        from lightning.pytorch.callbacks import LearningRateMonitor
        from lightning.pytorch.loggers import CSVLogger

        module = Folder("parts", root=data, normal_dir="train/good", abnormal_dir="test/chip", num_workers=0)
        logger = CSVLogger(tmp_path / "logs")
        engine(tmp_path, max_epochs=2, logger=logger, callbacks=[LearningRateMonitor()], log_every_n_steps=1).fit(
            small(), datamodule=module
        )
        columns = (Path(logger.log_dir) / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
        assert {"train_loss", "train_kl", "lr-Adam"} <= set(columns.split(","))


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ({"size": (70, 70)}, "70x70.*nearest that fit are 64x64 and 80x80"),
            ({"tile_size": 128}, "tiles are 128x128 and the image is 64x64"),
            ({"scoring": "auto"}, "'auto'"),
            ({"photometric": "dark"}, "expected one of none, image, local"),
            ({"false_alarm_rate": 0.0}, "false-alarm rate is 0.0"),
            ({"pre_processor": False}, "pre-processor"),
        ],
    )
    def test_arguments_that_cannot_be(self, arguments: dict[str, Any], sentence: str) -> None:
        from vae_edge.anomalib import Vae

        if size := arguments.pop("size", None):
            arguments["pre_processor"] = Vae.configure_pre_processor(size)
        with pytest.raises((InputError, UsageError), match=sentence):
            small(**arguments)

    def test_a_pre_processor_that_does_what_no_device_does(self) -> None:
        from anomalib.pre_processing import PreProcessor
        from torchvision.transforms.v2 import CenterCrop, Compose, Resize

        with pytest.raises(InputError, match="CenterCrop"):
            small(pre_processor=PreProcessor(Compose([Resize((96, 96)), CenterCrop(64)])))

    def test_a_data_module_without_normal_images(self, data: Path, tmp_path: Path) -> None:
        from anomalib.data import Folder

        module = Folder("parts", root=data, normal_dir="train/good", abnormal_dir="test/chip", num_workers=0)
        set_up = module.setup

        def setup(stage: str | None = None) -> None:
            set_up(stage)
            module.train_data.samples["label_index"] = 1

        module.setup = setup
        with pytest.raises(InputError, match="no normal image to train on"):
            engine(tmp_path).fit(small(), datamodule=module)

    def test_a_model_that_was_never_fitted(self, data: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="has not been fitted"):
            engine(tmp_path).test(small(), datamodule=mvtec(data))

    def test_another_models_checkpoint(self, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from anomalib.models import Ganomaly
        from lightning.pytorch import Trainer

        from vae_edge.anomalib import Vae

        other = Ganomaly(n_features=8, pre_processor=Ganomaly.configure_pre_processor((32, 32)))
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=0)
        trainer.strategy.connect(other)
        trainer.save_checkpoint(tmp_path / "other.ckpt")
        assert invoke([str(tmp_path / "other.ckpt"), "--data", str(data)], command="export") == 1
        assert re.search(r"other.ckpt is a\s+checkpoint\s+of\s+another\s+model", capsys.readouterr().err)
        with pytest.raises(InputError, match="not a checkpoint of"):
            Vae.load_from_checkpoint(tmp_path / "other.ckpt")


class TestBundles:
    def test_every_bundle_gives_anomalibs_verdict(self, trained: Trained, tmp_path: Path) -> None:
        scores = predictions(trained.engine.predict(trained.model, datamodule=trained.module))
        arguments = [str(trained.checkpoint), "--data", str(trained.data), "--out", str(tmp_path), "--name", "dial"]
        assert (
            invoke(
                [*arguments, "--target", "all", "--precision", "all", "--calibration-data", str(_more(tmp_path))],
                command="export",
            )
            == 0
        )
        bundles = sorted(path.name for path in tmp_path.iterdir() if (path / "manifest.json").is_file())
        assert {"dial-onnx-fp32", "dial-onnx-int8", "dial-openvino-fp16", "dial-openvino-int8"} <= set(bundles)
        for name in ("dial-onnx-fp32", "dial-openvino-fp32"):
            with Detector.open(tmp_path / name) as detector:
                for path, (_, label) in scores.items():
                    assert detector.predict(path).is_anomalous == label, (name, path)

    def test_the_thresholds_are_those_of_the_model(self, trained: Trained, tmp_path: Path) -> None:
        arguments = [str(trained.checkpoint), "--data", str(trained.data), "--out", str(tmp_path), "--target", "onnx"]
        assert invoke(arguments, command="export") == 0
        manifest = json.loads((tmp_path / "model-onnx-fp32" / "manifest.json").read_text(encoding="utf-8"))
        expected = trained.model.thresholds
        assert manifest["thresholds"]["image_threshold"] == pytest.approx(expected.image_threshold, rel=1e-3)
        assert len(manifest["thresholds"]["calibration_scores"]) == len(expected.calibration_scores)

    def test_it_is_held_against_anomalibs_own_prediction(
        self, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = [str(trained.checkpoint), "--data", str(trained.data), "--out", str(tmp_path), "--target", "onnx"]
        assert invoke(arguments, command="export") == 0
        said = " ".join(capsys.readouterr().err.split())
        assert f"against anomalib's own prediction of {12 + N_TEST} images: 0 verdicts differ" in said


@pytest.mark.slow
def test_the_readmes_lines_run(tmp_path: Path) -> None:
    """The lines of anomalib's documentation with one import changed; only how long it trains is cut short here."""
    lines = snippet("from vae_edge.anomalib import Vae")
    assert "Vae(n_features=64, latent_vec_size=128, kl_weight=0.00025)" in lines
    assert "Engine()" in lines
    lines = lines.replace("Engine()", "Engine(max_epochs=1, accelerator='cpu', limit_train_batches=2)")
    sizes = SampleSettings(image_size=64, n_train=12, n_test_good=2, n_test_per_defect=1)
    drawn = write_sample_set(tmp_path / "drawn", ["dial"], sizes)[0]
    (tmp_path / "datasets" / "MVTecAD").mkdir(parents=True)
    drawn.rename(tmp_path / "datasets" / "MVTecAD" / "bottle")
    start = "from tests.anomalib import conftest\n"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", start + lines],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "image_AUROC" in done.stdout


class _StoppedError(Exception):
    pass


def _more(folder: Path) -> Path:
    """Draw other normal images, as many as INT8 calibration needs."""
    sizes = SampleSettings(image_size=96, n_train=40, n_test_good=1, n_test_per_defect=1, seed=7)
    return write_sample_set(folder / "more", ["dial"], sizes)[0]


def _test_files(data: Path) -> list[Path]:
    return sorted((data / "test").rglob("*.png"))


def _export_and_score(checkpoint: Path, data: Path, folder: Path) -> list[float]:
    """Return the scores of the test images by the exported ONNX bundle."""
    arguments = [str(checkpoint), "--data", str(data), "--out", str(folder / "bundles"), "--target", "onnx"]
    assert invoke([*arguments, "--name", "made"], command="export") == 0
    with Detector.open(folder / "bundles" / "made-onnx-fp32") as detector:
        return [detector.predict(path).score for path in _test_files(data)]


def _raw_scores(model: Any, data: Path) -> list[float]:
    """Return the scores of the test images by the model in anomalib, before they are normalized."""
    import torch
    from anomalib.data.utils import read_image

    model.eval()
    with torch.inference_mode():
        return [
            float(model.model(model.pre_processor.transform(read_image(path, as_tensor=True)[None])).pred_score[0])
            for path in _test_files(data)
        ]
