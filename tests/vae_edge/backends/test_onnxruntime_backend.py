from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, toy_outputs
from vae_edge.backends.base import Hint, RuntimeOptions
from vae_edge.bundle import Bundle
from vae_edge.errors import DeviceError
from vae_edge.platform.machine import look_at_machine

pytest.importorskip("onnxruntime")

import onnxruntime

from vae_edge.backends import onnxruntime_backend
from vae_edge.backends.onnxruntime_backend import OnnxRuntimeBackend
from vae_edge.backends.onnxruntime_devices import DEVICES

REAL_SESSION = onnxruntime.InferenceSession
HAS_OPENVINO = "OpenVINOExecutionProvider" in onnxruntime.get_available_providers()
needs_openvino = pytest.mark.skipif(
    not HAS_OPENVINO, reason="this ONNX Runtime has no OpenVINO: pip install onnxruntime-openvino in its place"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    return make_bundle(tmp_path / "toy")


def open_it(bundle: Bundle, **options: Any) -> OnnxRuntimeBackend:
    manifest = bundle.manifest
    return OnnxRuntimeBackend(
        bundle.model_path, manifest.inputs, manifest.outputs, max_batch=None, options=RuntimeOptions(**options)
    )


class SessionDouble:
    """A session whose provider seems to run some of the nodes; in truth the CPU computes.

    It takes over what is known of ONNX Runtime 1.32: a provider that does not start is missing in `get_providers`.
    """

    starts = True
    n_taken: int | None = 2
    """Of 3 nodes; None: an ONNX Runtime that does not tell."""

    def __init__(self, model: str, settings: Any, providers: Any, enable_fallback: int) -> None:
        type(self).opened.append(self)
        assert enable_fallback == 0  # Else a provider's error is a print, and the CPU.
        self.settings = settings
        self.asked = dict(providers or {})
        self._session = REAL_SESSION(model, settings, providers=["CPUExecutionProvider"])
        self.batches: list[int] = []

    opened: list[SessionDouble] = []  # noqa: RUF012 - emptied by the fixture

    @property
    def provider(self) -> str:
        return next(iter(self.asked), "QNNExecutionProvider")

    def get_providers(self) -> list[str]:
        return [self.provider, "CPUExecutionProvider"] if self.starts else ["CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        if self.n_taken is None:
            raise AttributeError("get_provider_graph_assignment_info")
        counts = {self.provider: self.n_taken, "CPUExecutionProvider": 3 - self.n_taken}
        return [SimpleNamespace(ep_name=k, get_nodes=lambda n=n: [None] * n) for k, n in counts.items() if n]

    def run(self, names: list[str], feeds: dict[str, Any], options: Any = None) -> Any:
        self.batches.append(len(feeds["image"]))
        return self._session.run(names, feeds, options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> type[SessionDouble]:
    """An ONNX Runtime with every provider of the table built in."""
    providers = [device.provider for device in DEVICES.values() if device.plugin is None]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", SessionDouble)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: sys.stdout.write("no CUDA here\n"), raising=False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # So that it is as before afterwards.
    for name, value in (("opened", []), ("starts", True), ("n_taken", 2)):
        monkeypatch.setattr(SessionDouble, name, value)
    return SessionDouble


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("cuda", {"CUDAExecutionProvider": {"use_tf32": "0"}}),
        ("CUDA:1", {"CUDAExecutionProvider": {"use_tf32": "0", "device_id": "1"}}),
        (
            "tensorrt:1",
            {
                "TensorrtExecutionProvider": {"device_id": "1"},
                "CUDAExecutionProvider": {"use_tf32": "0", "device_id": "1"},
            },
        ),
        (
            "openvino",
            {
                "OpenVINOExecutionProvider": {
                    "device_type": "CPU",
                    "precision": "ACCURACY",
                    "num_of_threads": "2",
                    "num_streams": "1",
                }
            },
        ),
        ("openvino:gpu.1", {"OpenVINOExecutionProvider": {"device_type": "GPU.1", "precision": "ACCURACY"}}),
        ("openvino:npu", {"OpenVINOExecutionProvider": {"device_type": "NPU"}}),
        ("dml:1", {"DmlExecutionProvider": {"device_id": "1"}}),
        (
            "coreml",
            {"CoreMLExecutionProvider": {"ModelFormat": "MLProgram", "AllowLowPrecisionAccumulationOnGPU": "0"}},
        ),
        ("xnnpack", {"XnnpackExecutionProvider": {"intra_op_num_threads": "2"}}),
    ],
)
def test_a_device_is_opened_with_its_provider_and_options(
    bundle: Bundle, runtime: type[SessionDouble], device: str, providers: dict[str, dict[str, str]]
) -> None:
    with open_it(bundle, device=device, threads=2) as backend:
        session = runtime.opened[-1]
        assert session.asked == providers
        assert list(session.asked) == list(providers)  # What the first leaves is the second's.
        assert session.settings.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        assert backend.device.name == device.lower()
        assert backend.device.reason == "asked for; it takes 2 of 3 nodes, the rest: CPU 1"


@pytest.mark.parametrize("device", ["dml", "coreml", "openvino:npu"])
def test_hardware_with_fixed_shapes_gets_one_image_at_a_time(
    bundle: Bundle, runtime: type[SessionDouble], device: str
) -> None:
    images = np.stack([dark_image(seed) for seed in range(3)])
    with open_it(bundle, device=device) as backend:
        assert backend.layout.batch == 1
        outputs = backend.run({"image": images})
    session = runtime.opened[-1]
    assert session.batches == [1, 1, 1]
    assert session.get_inputs()[0].shape[0] == 1
    maps, scores = toy_outputs(images)
    np.testing.assert_allclose(outputs["anomaly_map"], maps, atol=1e-6)
    np.testing.assert_allclose(outputs["score"], scores, atol=1e-6)


def test_directml_is_called_by_one_thread_at_a_time(bundle: Bundle, runtime: type[SessionDouble]) -> None:
    with open_it(bundle, device="dml", requests=4, hint=Hint.THROUGHPUT) as backend:
        assert backend.layout.requests == 1
        settings = runtime.opened[-1].settings
        assert not settings.enable_mem_pattern
        assert settings.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL


@pytest.mark.parametrize(
    ("device", "option", "value", "reduced_to"),
    [
        ("cuda", "use_tf32", "1", "TF32"),
        ("openvino:gpu", "precision", "FP16", "FP16"),
        ("openvino", "precision", "ACCURACY", None),
        ("coreml", "AllowLowPrecisionAccumulationOnGPU", "1", "FP32 with sums in FP16"),
    ],
)
def test_less_than_fp32_has_to_be_allowed(
    bundle: Bundle, runtime: type[SessionDouble], device: str, option: str, value: str, reduced_to: str | None
) -> None:
    with open_it(bundle, device=device, reduced=True) as backend:
        assert next(iter(runtime.opened[-1].asked.values()))[option] == value
        assert backend.reduced_to == reduced_to
    with open_it(bundle, device=device) as backend:
        assert backend.reduced_to is None


def test_tensorrt_computes_without_tf32_unless_the_user_wants_it(
    bundle: Bundle, runtime: type[SessionDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    open_it(bundle, device="tensorrt").close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    open_it(bundle, device="tensorrt").close()
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"


@pytest.mark.usefixtures("runtime")
def test_what_preloading_cuda_prints_is_not_on_stdout(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    open_it(bundle, device="cuda").close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "device", ["cuda", "cuda:1", "tensorrt", "openvino", "openvino:gpu", "dml", "coreml", "xnnpack"]
)
def test_a_device_that_was_asked_for_and_does_not_start_is_an_error(
    bundle: Bundle, runtime: type[SessionDouble], device: str
) -> None:
    runtime.starts = False
    with pytest.raises(DeviceError, match=f"could not start .*ExecutionProvider on {device}; check the device"):
        open_it(bundle, device=device)


def test_a_device_that_takes_no_node_is_an_error(bundle: Bundle, runtime: type[SessionDouble]) -> None:
    runtime.n_taken = 0
    with pytest.raises(DeviceError, match=r"CoreMLExecutionProvider started .* no node of .*all go to: CPU 3"):
        open_it(bundle, device="coreml")


def test_a_device_that_takes_all_nodes_says_so(bundle: Bundle, runtime: type[SessionDouble]) -> None:
    runtime.n_taken = 3
    with open_it(bundle, device="coreml") as backend:
        assert backend.device.reason == "asked for; it takes all 3 nodes"


def test_a_runtime_that_does_not_count_nodes_is_fine(bundle: Bundle, runtime: type[SessionDouble]) -> None:
    runtime.n_taken = None
    with open_it(bundle, device="coreml") as backend:
        assert backend.device.reason == "asked for"


def test_auto_takes_the_cpu_where_cuda_does_not_start_and_says_why(
    bundle: Bundle, runtime: type[SessionDouble], caplog: pytest.LogCaptureFixture
) -> None:
    runtime.starts = False
    with open_it(bundle) as backend:
        assert backend.device.name == "cpu"
        assert "could not start CUDAExecutionProvider" in backend.device.reason
        assert backend.layout.threads is not None
        np.testing.assert_allclose(
            backend.run({"image": dark_image(1)[None]})["score"], toy_outputs(dark_image(1)[None])[1], atol=1e-6
        )
    assert "the CPU is used" in caplog.text


def test_without_the_provider_auto_is_the_cpu(bundle: Bundle) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with open_it(bundle) as backend:
        assert backend.device.name == "cpu"
        assert "without NVIDIA GPUs" in backend.device.reason


def test_a_name_that_does_not_exist_gets_the_list_and_what_is_installed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.raises(
        DeviceError,
        match=r"know the device 'gpu'; expected auto, cpu, cuda or cuda:N, tensorrt or tensorrt:N, openvino or "
        r"openvino:DEVICE, dml or dml:N, coreml, qnn, xnnpack. This installation has cpu, cuda$",
    ):
        open_it(bundle, device="gpu")


def test_a_provider_that_is_not_installed_is_an_error_with_advice(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda", "tensorrt", "openvino", "dml", "coreml", "qnn", "xnnpack"):
        with pytest.raises(
            DeviceError, match=r"has no \w+ExecutionProvider .it has CPU\w+.; .*or open with device='cpu'"
        ):
            open_it(bundle, device=device)


@pytest.fixture
def qnn(monkeypatch: pytest.MonkeyPatch, runtime: type[SessionDouble]) -> dict[str, Any]:
    """An ONNX Runtime beside which onnxruntime-qnn 2 is installed: a plug-in that finds the devices in `kinds`."""
    state: dict[str, Any] = {"kinds": ["CPU", "NPU"], "registered": [], "added": []}
    package = ModuleType("onnxruntime_qnn")
    package.__dict__["get_library_path"] = lambda: "libonnxruntime_providers_qnn.so"
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", package)
    package.__spec__ = SimpleNamespace(name="onnxruntime_qnn")  # type: ignore[assignment]  # its name is all that is read
    monkeypatch.setattr(onnxruntime_backend, "_registered", set())

    def devices() -> list[Any]:
        return [
            SimpleNamespace(ep_name="QNNExecutionProvider", device=SimpleNamespace(type=SimpleNamespace(name=kind)))
            for kind in state["kinds"]
        ]

    monkeypatch.setattr(
        onnxruntime,
        "register_execution_provider_library",
        lambda *given: state["registered"].append(given),
        raising=False,
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", devices, raising=False)
    real: Callable[[], Any] = onnxruntime.SessionOptions

    class Settings(real):  # type: ignore[misc, valid-type]  # a base known at run time
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            state["added"].append(([device.device.type.name for device in devices], options))

    monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
    return state


@pytest.mark.parametrize(("flags", "entry"), [(("avx2",), "1"), (("avx2", "avx512_vnni"), None)])
def test_sums_of_int8_are_exact_without_vnni_too(
    flags: tuple[str, ...], entry: str | None, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries: dict[str, str] = {}
    real: Callable[[], Any] = onnxruntime.SessionOptions

    class Settings(real):  # type: ignore[misc, valid-type]  # The base is known only while this runs.
        def add_session_config_entry(self, name: str, value: str) -> None:
            entries[name] = value
            super().add_session_config_entry(name, value)

    machine = replace(look_at_machine(), architecture="x86_64", processor_flags=flags)
    monkeypatch.setattr("vae_edge.backends.onnxruntime_backend.look_at_machine", lambda: machine)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Settings)
    with open_it(bundle, device="cpu"):
        assert entries.get("session.x64quantprecision") == entry


def test_a_plug_in_is_registered_once_and_used_on_its_npu(bundle: Bundle, qnn: dict[str, Any]) -> None:
    for _ in range(2):
        with open_it(bundle, device="qnn") as backend:
            assert backend.device.name == "qnn"
            assert backend.run({"image": dark_image(1)[None]})["score"].shape == (1,)
    assert qnn["registered"] == [("QNNExecutionProvider", "libonnxruntime_providers_qnn.so")]
    assert qnn["added"] == [(["NPU"], {"backend_type": "htp"})] * 2


def test_a_plug_in_without_its_hardware_is_an_error(bundle: Bundle, qnn: dict[str, Any]) -> None:
    qnn["kinds"] = ["CPU"]
    with pytest.raises(DeviceError, match=r"QNNExecutionProvider finds no NPU here that it can use .it finds CPU"):
        open_it(bundle, device="qnn")


def test_a_plug_in_that_does_not_load_is_an_error(
    bundle: Bundle, qnn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("needs ONNX Runtime 1.99")

    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", fail)
    with pytest.raises(DeviceError, match=r"onnxruntime-qnn does not load in ONNX Runtime .*needs ONNX Runtime 1.99"):
        open_it(bundle, device="qnn")
    assert qnn["added"] == []


@needs_openvino
@pytest.mark.parametrize("device", ["openvino", "openvino:cpu", "openvino:hetero:cpu", "openvino:auto:cpu"])
@pytest.mark.parametrize("hint", Hint)
def test_openvinos_provider_gives_the_models_outputs(bundle: Bundle, device: str, hint: Hint) -> None:
    images = np.stack([dark_image(seed) for seed in range(3)])
    maps, scores = toy_outputs(images)
    with open_it(bundle, device=device, hint=hint, threads=2) as backend:
        assert "it takes all" in backend.device.reason or "it takes the only node" in backend.device.reason
        for n in (1, 3):
            outputs = backend.run({"image": images[:n]})
            np.testing.assert_allclose(outputs["anomaly_map"], maps[:n], atol=1e-6)
            np.testing.assert_allclose(outputs["score"], scores[:n], atol=1e-6)


@needs_openvino
@pytest.mark.parametrize("device", ["openvino:gpu.7", "openvino:toaster"])
def test_a_device_that_openvinos_provider_lacks_is_an_error(bundle: Bundle, device: str) -> None:
    with pytest.raises(DeviceError, match=f"could not start|started on {device} but can run no node"):
        open_it(bundle, device=device)


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
