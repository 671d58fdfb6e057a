"""A run with tiles, even light, fused maps and a latent term becomes bundles in every precision, within its budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.train.tiny_models import scoring_of, write_set
from vae_edge.bundle import Bundle
from vae_edge.detector import Detector
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.export.settings import Budget, LowPrecisionSettings
from vae_edge.records import make_record
from vae_edge.targets import Precision, Target
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.presets import Architecture
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder

SCORING = scoring_of("gradient/0.02/local+pixel/top1%,l2/0.03/image+pixel/top1%,ssim/0.02/image+pixel/top2%,latent")
TARGETS = (Target.ONNX, Target.OPENVINO, Target.TORCH, Target.TENSORRT)
LOW = [(t, p) for t in TARGETS if t is not Target.TORCH for p in (Precision.FP16, Precision.INT8)]
BUDGET = Budget(max_auroc_drop=0.05, max_flip_rate=0.2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    data = write_set(tmp_path_factory.mktemp("surfaces"), n_good=120, n_test=8)
    settings = make_record(
        TrainSettings,
        {
            "source": {"root": str(data)},
            "architecture": Architecture(n_features=8, latent_vec_size=16, height=32, width=32),
            "size": {"image": (48, 64), "tiles": 32},
            "photometric": "local",
            "scoring": SCORING,
            "epochs": 12,
            "recipe": {"learning_rate": 2e-3, "schedule": "one-cycle"},
            "accelerator": "cpu",
            "calibration": "split",
            "false_alarm_rate": 0.1,
            "split": {"group_by": "none"},
        },
    )
    return fit_run(settings, out=tmp_path_factory.mktemp("runs") / "surface")


@pytest.fixture(scope="module")
def bundles(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Target, Precision], Bundle]:
    for package in ("onnxruntime", "openvino", "nncf", "tensorrt_rtx"):
        pytest.importorskip(package)
    settings = ExportSettings(
        targets=TARGETS,
        precisions=tuple(Precision),
        only_supported=True,
        low_precision=LowPrecisionSettings(budget=BUDGET),
    )
    results = export_run(run, tmp_path_factory.mktemp("bundles"), settings)
    assert [str(result.error) for result in results if result.error is not None] == []
    return {(r.target, r.precision): r.bundle for r in results if r.bundle is not None}


def test_every_target_and_precision_is_made(bundles: dict[tuple[Target, Precision], Bundle]) -> None:
    assert bundles.keys() >= {(target, Precision.FP32) for target in TARGETS} | set(LOW)


@pytest.mark.parametrize(("target", "precision"), LOW)
def test_low_precision_keeps_to_the_budget_and_rounds_something(
    target: Target, precision: Precision, bundles: dict[tuple[Target, Precision], Bundle]
) -> None:
    manifest = bundles[target, precision].manifest
    accuracy = manifest.accuracy
    assert accuracy is not None
    assert BUDGET.exceeded_by(accuracy) == ()
    assert manifest.parity is not None
    assert manifest.parity.max_score_difference > 0
    if precision is Precision.INT8:
        assert manifest.quantization is not None
        assert len(manifest.quantization.layers) >= 4, "most of the network stays in INT8"


@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO, Target.TORCH])
def test_a_detector_gives_the_runs_scores(
    target: Target, run: RunFolder, bundles: dict[tuple[Target, Precision], Bundle]
) -> None:
    files = run.find_images(("test",))
    _, expected = run_graph(run.load_graph(), load_images(files, run.record.preparation))
    with Detector.open(bundles[target, Precision.FP32]) as detector:
        found = [detector.predict(file.path).score for file in files]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_scoring_is_told_in_words_in_every_manifest(bundles: dict[tuple[Target, Precision], Bundle]) -> None:
    assert {bundle.manifest.scoring for bundle in bundles.values()} == {
        "images of 48x64, cut into 6 tiles of 32x32 (2 x 3); brightness and contrast normalized by the surroundings'; "
        + SCORING.describe()
    }


def test_another_composition_can_be_chosen_at_export_for_the_same_tiles(run: RunFolder, tmp_path: Path) -> None:
    scoring = scoring_of("l1/0.03/image+pixel/max,gradient/0.02/none/top1%,kl,fusion=max")
    (result,) = export_run(run, tmp_path, ExportSettings(targets=(Target.TORCH,), scoring=scoring))
    assert result.bundle is not None
    assert result.bundle.manifest.scoring.endswith(scoring.describe())
    assert (result.bundle.manifest.preparation.height, result.bundle.manifest.preparation.width) == (48, 64)
    with Detector.open(result.bundle) as detector:
        prediction = detector.predict(run.find_images(("test",))[0].path)
    assert prediction.anomaly_map.shape == (48, 64)
    assert np.isfinite(prediction.score)


def test_the_command_takes_a_composition_and_refuses_what_is_none(
    command: object, run: RunFolder, tmp_path: Path
) -> None:
    assert callable(command)
    words = ("export", run.folder, "--target", "torch", "--out", tmp_path, "--scoring")
    code, _, err = command(*words, "l1/0.03/image/top1%")
    assert code == 0, err
    code, _, err = command(*words, "l1/0.03/image/best")
    assert code == 2
    assert "the pooling 'best'" in err
    assert len(err.splitlines()) == 1
    code, _, err = command(*words, "auto")
    assert code == 2
