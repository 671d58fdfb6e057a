"""A bundle whose model computes something else is noticed by its references, whatever its hashes say."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disturbed_bundles import DISTURBANCES, Disturbance, disturb, noise_added
from tests.export.conftest import train
from tests.vae_edge.backends.tensorrt_double import TensorRtDouble, in_place_of_tensorrt
from vae_edge.bundle import Bundle
from vae_edge.cli.main import invoke
from vae_edge.detector import Detector
from vae_edge.errors import ParityError
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.export.settings import Budget, LowPrecisionSettings
from vae_edge.targets import SUPPORTED, Precision, Target
from vae_edge.train.model.presets import make_architecture
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import SampleSettings, write_sample_set

Bundles = dict[tuple[Target, Precision], Bundle]
Command = Callable[..., tuple[int, str, str]]

ALL = [(target, precision) for target in Target for precision in SUPPORTED[target].precisions]
DISTURBED = [pair for pair in ALL if pair[1] is not Precision.FP16]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose network has learnt something: where its output is the mean picture, few weights matter."""
    images = SampleSettings(image_size=64, n_train=80, n_test_good=6, n_test_per_defect=1)
    (folder,) = write_sample_set(tmp_path_factory.mktemp("sample"), ["dial"], images)
    architecture = make_architecture("nano", (32, 32), n_features=8, latent_vec_size=16)
    return train(folder, tmp_path_factory.mktemp("runs") / "dial", epochs=40, architecture=architecture)


@pytest.fixture(scope="module")
def bundles(trained: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    for module in ("onnxruntime", "openvino", "nncf", "tensorrt_rtx"):
        pytest.importorskip(module)
    settings = ExportSettings(
        targets=tuple(Target),
        precisions=tuple(Precision),
        only_supported=True,
        low_precision=LowPrecisionSettings(budget=Budget(max_auroc_drop=None, max_flip_rate=None)),
    )
    results = export_run(trained, tmp_path_factory.mktemp("whole"), settings)
    assert [str(result.error) for result in results if result.error is not None] == []
    return {(r.target, r.precision): r.bundle for r in results if r.bundle is not None}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = invoke([str(argument) for argument in arguments])
        sys.stdout.flush()
        captured = capsys.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return run


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> TensorRtDouble:
    """A TensorRT that computes with ONNX Runtime; a bundle's engine, which is for another, is built anew."""
    return in_place_of_tensorrt(monkeypatch)


@pytest.mark.parametrize(("target", "precision"), ALL, ids=str)
def test_a_whole_bundle_is_verified_without_any_data(
    bundles: Bundles, command: Command, double: TensorRtDouble, tmp_path: Path, target: Target, precision: Precision
) -> None:
    source = bundles[target, precision]
    assert source.manifest.verified == (target is not Target.TENSORRT)
    folder = shutil.copytree(source.folder, tmp_path / source.folder.name)
    code, out, _ = command("verify", folder)
    assert code == 0
    assert "16 of 16 are the trained model's" in out
    assert "is verified on this device" in out
    manifest = Bundle.open(folder).manifest
    assert manifest.verified
    assert manifest.thresholds == source.manifest.thresholds
    assert str(manifest.verified_by).endswith("on cuda:0" if target is Target.TENSORRT else "on cpu")


@pytest.mark.parametrize("disturbance", DISTURBANCES, ids=lambda each: each.__name__)
@pytest.mark.parametrize(("target", "precision"), DISTURBED, ids=str)
def test_a_disturbed_model_is_noticed_and_does_not_stay_verified(
    bundles: Bundles,
    command: Command,
    double: TensorRtDouble,
    tmp_path: Path,
    target: Target,
    precision: Precision,
    disturbance: Disturbance,
) -> None:
    folder = disturb(bundles[target, precision], tmp_path / "disturbed", disturbance)
    code, _, err = command("verify", folder)
    assert code == 3, err
    assert "does not give its reference outputs" in err
    assert err.count("error: ") == 1
    manifest = Bundle.open(folder).manifest
    assert not manifest.verified
    assert "not give its reference outputs" in str(manifest.not_verified_because)
    with pytest.raises(ParityError, match="does not give its reference outputs"):
        Detector.open(folder, check=True)


@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO], ids=str)
def test_a_little_noise_is_noticed_in_fp16_too(
    bundles: Bundles, command: Command, tmp_path: Path, target: Target
) -> None:
    folder = disturb(bundles[target, Precision.FP16], tmp_path / "disturbed", noise_added)
    assert command("verify", folder)[0] == 3


def test_an_engine_that_is_built_here_is_held_to_the_references_once(
    bundles: Bundles, double: TensorRtDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAE_EDGE_CACHE", str(tmp_path / "cache"))
    bundle = bundles[Target.TENSORRT, Precision.FP32]

    def n_runs() -> int:
        double.cuda.events.clear()
        Detector.open(bundle).close()
        return double.cuda.events.count("execute_async_v3")

    assert n_runs() == 16
    assert n_runs() == 0
    disturbed = disturb(bundle, tmp_path / "disturbed", DISTURBANCES[0])
    for _ in range(2):  # That it failed is not kept: nothing runs unchecked.
        with pytest.raises(ParityError, match=r"the engine that was built here from .* does not give its reference"):
            Detector.open(disturbed)
    assert double.cuda.live() == 0
