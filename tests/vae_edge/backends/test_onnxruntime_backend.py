from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, toy_outputs
from vae_edge.backends.base import Hint, RuntimeOptions
from vae_edge.bundle import Bundle
from vae_edge.errors import DeviceError

pytest.importorskip("onnxruntime")

import onnxruntime

from vae_edge.backends.onnxruntime_backend import OnnxRuntimeBackend


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    return make_bundle(tmp_path / "toy")


def open_it(bundle: Bundle, **options: Any) -> OnnxRuntimeBackend:
    manifest = bundle.manifest
    return OnnxRuntimeBackend(
        bundle.model_path, manifest.inputs, manifest.outputs, max_batch=None, options=RuntimeOptions(**options)
    )


@pytest.fixture
def with_cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is listed, as in every onnxruntime-gpu, and a session silently has the CPU in its place."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    session = onnxruntime.InferenceSession

    def on_the_cpu(model: str, settings: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
        return session(model, settings, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)


@pytest.mark.usefixtures("with_cuda_that_does_not_start")
def test_a_gpu_that_was_asked_for_and_does_not_start_is_an_error(bundle: Bundle) -> None:
    for device in ("cuda", "cuda:1"):
        with pytest.raises(DeviceError, match="could not start CUDAExecutionProvider; check the driver"):
            open_it(bundle, device=device)


@pytest.mark.usefixtures("with_cuda_that_does_not_start")
def test_auto_takes_the_cpu_then_and_says_why(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with open_it(bundle) as backend:
        assert backend.device.name == "cpu"
        assert "could not start CUDAExecutionProvider" in backend.device.reason
        assert backend.layout.threads is not None
        np.testing.assert_allclose(
            backend.run({"image": dark_image(1)[None]})["score"], toy_outputs(dark_image(1)[None])[1], atol=1e-6
        )
    assert "the CPU is used" in caplog.text


def test_without_the_provider_auto_is_the_cpu(bundle: Bundle) -> None:
    with open_it(bundle) as backend:
        assert backend.device.name == "cpu"
        assert "without NVIDIA GPUs" in backend.device.reason


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({"threads": 4}, (1, 4)),
        ({"threads": 4, "hint": Hint.THROUGHPUT}, (4, 4)),
        ({"threads": 4, "hint": Hint.THROUGHPUT, "requests": 2}, (2, 4)),
        ({"threads": 1, "hint": Hint.THROUGHPUT, "requests": 3}, (3, 3)),
        ({"threads": 3, "requests": 2}, (1, 3)),
    ],
)
def test_threads_are_shared_out_among_the_requests(
    bundle: Bundle, options: dict[str, Any], layout: tuple[int, int]
) -> None:
    with open_it(bundle, device="cpu", **options) as backend:
        assert (backend.layout.requests, backend.layout.threads, backend.layout.batch) == (*layout, None)
