"""From runs with a pretrained backbone to bundles of all targets and precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.train.random_backbones import random_weights
from tests.train.run.test_feature_fitting import settings
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.export.settings import Budget, LowPrecisionSettings
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.train.model.presets import Network
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    sizes = SampleSettings(image_size=64, n_train=80, n_test_good=6, n_test_per_defect=1)
    (data,) = write_sample_set(tmp_path_factory.mktemp("data"), ["dial"], sizes)
    weights = tmp_path_factory.mktemp("weights") / "backbone.safetensors"
    save_file(random_weights("timm", 0), weights)
    return fit_run(settings(data, weights, Network.BOTH), out=tmp_path_factory.mktemp("runs") / "both")


def test_every_target_and_precision_becomes_a_bundle_that_says_how_it_was_quantized(
    run: RunFolder, tmp_path: Path
) -> None:
    for module in ("openvino", "nncf", "onnxruntime", "tensorrt_rtx"):
        pytest.importorskip(module)
    # The weights are random: what they lose in INT8 says nothing.
    low_precision = LowPrecisionSettings(n_calibration_images=32, budget=Budget(None, None, None))
    asked = ExportSettings(tuple(Target), tuple(Precision), only_supported=True, low_precision=low_precision)
    results = export_run(run, tmp_path / "bundles", asked)
    assert [str(result.error) for result in results if result.error is not None] == []
    bundles = [result.bundle for result in results if result.bundle is not None]
    assert len(bundles) == sum(len(row.precisions) for row in SUPPORTED.values())
    for bundle in bundles:
        manifest = bundle.manifest
        assert manifest.verified or manifest.target is Target.TENSORRT
        if manifest.precision is not Precision.INT8:
            assert manifest.quantization is None
            continue
        assert manifest.quantization is not None
        assert manifest.calibration_set is not None
        assert (manifest.calibration_set.n_images, manifest.calibration_set.n_with_defects) == (40, 8)
        assert len([name for name in manifest.quantization.layers if name.startswith("backbone.")]) == 31
        saturation = manifest.quantization.saturation
        assert saturation is not None
        assert saturation.layer in manifest.quantization.layers
