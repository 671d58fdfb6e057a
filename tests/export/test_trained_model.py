"""A bundle's thresholds from the run's: its own scores, or out-of-fold scores moved by its drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vae_edge.agreement import Outputs
from vae_edge.bundle import Bundle
from vae_edge.decision import PixelTail, fit_image_threshold
from vae_edge.detector import Detector
from vae_edge.errors import InputError
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.export.settings import Budget, LowPrecisionSettings
from vae_edge.export.trained_model import ThresholdRule
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.targets import Precision, Target
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.scoring import MSE_SCORING
from vae_edge.train.run.folder import RunFolder

ANYTHING_GOES = LowPrecisionSettings(budget=Budget(max_auroc_drop=None, max_flip_rate=None))

KINDS = [
    (Target.TORCH, Precision.FP32),
    (Target.ONNX, Precision.FP32),
    (Target.ONNX, Precision.INT8),
    (Target.OPENVINO, Precision.INT8),
]


def outputs(run: RunFolder) -> Outputs:
    maps, scores = run_graph(run.load_graph(), load_images(run.find_calibration_images(), run.record.preparation))
    return Outputs(maps, scores)


@pytest.fixture(scope="module")
def trained(cross_run: RunFolder) -> Outputs:
    """The deployed model's outputs for the normals that it was trained on."""
    return outputs(cross_run)


@pytest.fixture(scope="module")
def bundles(cross_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Target, Precision], Bundle]:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    settings = ExportSettings(
        targets=(Target.TORCH, Target.ONNX, Target.OPENVINO),
        precisions=(Precision.FP32, Precision.INT8),
        only_supported=True,
        low_precision=ANYTHING_GOES,
    )
    results = export_run(cross_run, tmp_path_factory.mktemp("cross"), settings)
    assert [str(result.error) for result in results if result.error is not None] == []
    return {(r.target, r.precision): r.bundle for r in results if r.bundle is not None}


def test_the_rule_of_a_split_run_adds_nothing(trained_run: RunFolder) -> None:
    rule = ThresholdRule.of_run(trained_run.calibration)
    assert rule.is_split
    assert not rule.score_offsets.any()
    fitted = rule.fit(outputs(trained_run), scored_by=trained_run.thresholds.scored_by)
    expected = trained_run.thresholds
    assert fitted.image_threshold == pytest.approx(expected.image_threshold, rel=1e-5)
    assert fitted.pixel_threshold == pytest.approx(expected.pixel_threshold, rel=1e-5)
    assert fitted.calibration_scores == pytest.approx(expected.calibration_scores, rel=1e-5)
    assert fitted.scored_by == expected.scored_by
    assert "held-out normal images" in rule.describe_normals()


def test_a_model_without_drift_has_the_runs_thresholds(cross_run: RunFolder, trained: Outputs) -> None:
    rule = ThresholdRule.of_run(cross_run.calibration)
    fitted = rule.fit(trained, scored_by="itself")
    run = cross_run.thresholds
    assert fitted.method is run.method is ThresholdMethod.CROSS_CONFORMAL
    assert fitted.image_threshold == pytest.approx(run.image_threshold, rel=1e-5)
    assert fitted.pixel_threshold == pytest.approx(run.pixel_threshold, rel=1e-5)
    assert fitted.calibration_scores == pytest.approx(run.calibration_scores, rel=1e-5)
    assert fitted.scored_by == f"{run.scored_by}; drift by itself"
    assert "of the training" in rule.describe_normals()


def test_a_drift_common_to_all_moves_the_thresholds_by_just_that(cross_run: RunFolder, trained: Outputs) -> None:
    moved = Outputs(trained.maps + np.float32(0.25), trained.scores + np.float32(0.5))
    fitted = ThresholdRule.of_run(cross_run.calibration).fit(moved, scored_by="a test")
    assert fitted.image_threshold == pytest.approx(cross_run.thresholds.image_threshold + 0.5, rel=1e-5)
    assert fitted.pixel_threshold == pytest.approx(cross_run.thresholds.pixel_threshold + 0.25, rel=1e-5)


def test_each_image_has_its_own_drift(cross_run: RunFolder, trained: Outputs) -> None:
    drift = np.random.default_rng(0).normal(size=len(trained.scores)).astype(np.float32)
    fitted = ThresholdRule.of_run(cross_run.calibration).fit(
        Outputs(trained.maps, trained.scores + drift), scored_by="a test"
    )
    expected = np.sort([score.score for score in cross_run.calibration.scores] + drift)
    assert fitted.calibration_scores == pytest.approx(expected.tolist(), abs=1e-4)


def test_another_rate_can_be_asked_for(cross_run: RunFolder, trained: Outputs) -> None:
    fitted = ThresholdRule.of_run(cross_run.calibration, 0.3).fit(trained, scored_by="a test")
    assert (fitted.false_alarm_rate_requested, fitted.false_alarm_rate) == (0.3, 0.3)
    scores = [score.score for score in cross_run.calibration.scores]
    assert fitted.image_threshold == pytest.approx(fit_image_threshold(np.array(scores), 0.3)[0], rel=1e-5)


def expected_thresholds(run: RunFolder, bundle: Bundle) -> tuple[list[float], float, float]:
    """Return scores, image and pixel threshold, from the bundle's predictions and calibration.json alone."""
    record = run.calibration
    with Detector.open(bundle) as detector:
        predictions = list(detector.predict_batch([file.path for file in run.find_calibration_images()]))
    scores = [
        known.score + (prediction.score - (known.final_score or 0.0))
        for known, prediction in zip(record.scores, predictions, strict=True)
    ]
    maps = np.stack([prediction.anomaly_map for prediction in predictions])
    tail = PixelTail(maps.size, record.thresholds.pixel_false_positive_rate)
    tail.add(maps)
    assert record.final_pixel_threshold is not None
    pixel = record.thresholds.pixel_threshold + (tail.threshold() - record.final_pixel_threshold)
    return sorted(scores), fit_image_threshold(np.array(scores), 0.05)[0], pixel


@pytest.mark.parametrize(("target", "precision"), KINDS)
def test_a_cross_conformal_bundle_has_the_out_of_fold_scores_moved_by_its_own_drift(
    target: Target, precision: Precision, bundles: dict[tuple[Target, Precision], Bundle], cross_run: RunFolder
) -> None:
    bundle = bundles[target, precision]
    thresholds = bundle.manifest.thresholds
    scores, image, pixel = expected_thresholds(cross_run, bundle)
    assert thresholds.method is ThresholdMethod.CROSS_CONFORMAL
    assert thresholds.n_normals == 40
    assert thresholds.false_alarm_rate == 0.05
    assert thresholds.calibration_scores == pytest.approx(scores, rel=1e-4)
    assert thresholds.image_threshold == pytest.approx(image, rel=1e-4)
    assert thresholds.pixel_threshold == pytest.approx(pixel, rel=1e-4)
    assert "drift by" in thresholds.scored_by
    drift = np.abs(np.array(thresholds.calibration_scores) - cross_run.thresholds.calibration_scores).max()
    assert (drift > 2e-4) == (precision is Precision.INT8), drift
    assert bundle.manifest.parity is not None
    assert "40 normal images of the training" in bundle.manifest.parity.images


def test_a_cross_conformal_verdict_agrees_with_its_p_value(
    bundles: dict[tuple[Target, Precision], Bundle], cross_run: RunFolder
) -> None:
    with Detector.open(bundles[Target.ONNX, Precision.INT8]) as detector:
        for prediction in detector.stream([file.path for file in cross_run.find_images(("fit", "test"))]):
            assert prediction.is_anomalous == (prediction.p_value <= 0.05)


def test_a_bundle_that_cannot_run_here_has_the_runs_own_thresholds(cross_run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (result,) = export_run(cross_run, tmp_path, ExportSettings(targets=(Target.TENSORRT,)))
    assert result.bundle is not None
    manifest = result.bundle.manifest
    if manifest.verified:
        pytest.skip("this machine has a GPU that runs the engine")
    own: Thresholds = cross_run.thresholds
    assert manifest.thresholds.image_threshold == pytest.approx(own.image_threshold, rel=1e-5)
    assert manifest.thresholds.pixel_threshold == pytest.approx(own.pixel_threshold, rel=1e-5)


def test_another_scoring_is_refused_where_the_networks_that_scored_are_gone(
    cross_run: RunFolder, tmp_path: Path
) -> None:
    mse = ExportSettings(targets=(Target.TORCH,), scoring=MSE_SCORING)
    with pytest.raises(InputError, match=r"come from the networks of the folds.* train with that --scoring"):
        export_run(cross_run, tmp_path / "bundles", mse)
    own = ExportSettings(targets=(Target.TORCH,), scoring=cross_run.record.scoring)
    (result,) = export_run(cross_run, tmp_path / "bundles", own)
    assert result.error is None
