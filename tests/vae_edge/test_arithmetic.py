"""`Detector.open(arithmetic="auto")`: less than FP32 only where the bundle's references agree in it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_bundles import dark_image, make_bundle
from vae_edge import Detector, references
from vae_edge.bundle import Bundle
from vae_edge.errors import BundleError, UsageError
from vae_edge.targets import Target

pytest.importorskip("onnx")
pytest.importorskip("openvino")

from vae_edge.backends import openvino_backend
from vae_edge.backends.openvino_module import openvino_core

NATIVE = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bfloat16 = pytest.mark.skipif(not NATIVE, reason="this processor does not compute in bfloat16")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "toy", Target.OPENVINO)


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """An OpenVINO that says it computes in bfloat16 where it may, and computes as this processor does."""
    asked: list[bool] = []
    settings = openvino_backend._settings

    def seen(place: Any, options: Any) -> dict[str, Any]:
        asked.append(options.reduced)
        return {**settings(place, options), "INFERENCE_PRECISION_HINT": "f32"}

    monkeypatch.setattr(openvino_backend, "_settings", seen)
    monkeypatch.setattr(openvino_backend, "_reduced_to", lambda place, model: "bfloat16")
    return asked


@needs_bfloat16
def test_bfloat16_is_refused_where_it_moves_the_references(bundle: Bundle) -> None:
    with Detector.open(bundle, arithmetic="auto") as detector:
        assert detector.backend.reduced_to is None
        assert "; it computes in FP32, because in bfloat16: scores from the trained model's: " in (
            detector.backend.device.reason
        )
        assert detector.check_references().agrees


@needs_bfloat16
def test_bfloat16_is_taken_where_the_tolerances_allow_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    record = references.record_of(bundle)
    assert record.own is not None
    tolerances = {"score_tolerance": 0.05, "map_tolerance": 0.05}
    wide = record.model_copy(update={"own": record.own.model_copy(update=tolerances), **tolerances})
    monkeypatch.setattr(references, "record_of", lambda bundle: wide)
    with Detector.open(bundle) as exact, Detector.open(bundle, arithmetic="auto") as detector:
        assert detector.backend.device.reason.endswith("; it computes in bfloat16, in which the references agree")
        assert (exact.backend.reduced_to, detector.backend.reduced_to) == (None, "bfloat16")
        score = exact.predict(dark_image(3)).score
        assert 0 < abs(detector.predict(dark_image(3)).score / score - 1) < 0.01


def test_the_faster_arithmetic_is_taken_where_the_references_agree(bundle: Bundle, claimed: list[bool]) -> None:
    with Detector.open(bundle, arithmetic="auto") as detector:
        assert detector.backend.reduced_to == "bfloat16"
        assert detector.backend.device.reason.endswith("; it computes in bfloat16, in which the references agree")
        assert claimed == [True]
        assert len(list(detector.stream([dark_image(0), dark_image(1)]))) == 2
        assert claimed == [True, True]  # The second model, for streams, computes in the same.


def test_fp32_is_the_default_and_nothing_is_checked(
    bundle: Bundle, claimed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "check_references", lambda *_, **__: pytest.fail("the references were run"))
    with Detector.open(bundle) as detector:
        assert detector.backend.reduced_to is None
        list(detector.stream([dark_image(0)]))
    assert claimed == [False, False]


def test_references_that_cannot_be_run_leave_fp32(
    bundle: Bundle, claimed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BundleError("this bundle has no references")

    monkeypatch.setattr(references, "check_references", fail)
    with Detector.open(bundle, arithmetic="auto") as detector:
        assert detector.backend.device.reason.endswith("FP32, because in bfloat16: this bundle has no references")
        list(detector.stream([dark_image(0)]))
    assert claimed == [True, False, False]


def test_a_device_without_a_faster_arithmetic_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with Detector.open(make_bundle(tmp_path / "onnx"), device="cpu", arithmetic="auto") as detector:
        assert detector.backend.device.reason == "asked for; there is no faster arithmetic for this model here"


def test_a_copy_of_a_detector_computes_in_the_same(bundle: Bundle, claimed: list[bool]) -> None:
    with (
        Detector.open(bundle, arithmetic="auto") as detector,
        pickle.loads(pickle.dumps(detector)) as copy,
    ):
        assert copy.backend.reduced_to == "bfloat16"
    assert claimed == [True, True]


def test_another_word_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="arithmetic is 'fp16'; expected 'fp32' or 'auto'"):
        Detector.open(bundle, arithmetic="fp16")  # type: ignore[arg-type]  # the wrong word is the point


def test_vae_run_says_what_it_computes_in(command: Run, bundle: Bundle, claimed: list[bool], tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "part.png"), dark_image(1))
    code, _, said = command(
        "run", bundle.folder, tmp_path / "part.png", "--arithmetic", "auto", "--out", tmp_path / "out"
    )
    assert code == 0
    assert "in bfloat16, in which the references agree" in " ".join(said.split())
    assert claimed == [True]


def test_vae_run_refuses_it_for_a_runtime_without(command: Run, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    torch_bundle = make_bundle(tmp_path / "torch", Target.TORCH)
    code, _, said = command("run", torch_bundle.folder, "x.png", "--arithmetic", "auto")
    assert code == 2
    assert "--arithmetic is for bundles for" in " ".join(said.split())
