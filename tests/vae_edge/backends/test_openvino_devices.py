from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, toy_outputs
from tests.vae_edge.backends.openvino_double import CoreDouble
from vae_edge.backends.base import Hint, RuntimeOptions
from vae_edge.backends.openvino_devices import Place, parse
from vae_edge.bundle import Bundle
from vae_edge.cache.compiled import entries
from vae_edge.errors import DeviceError
from vae_edge.targets import Target

pytest.importorskip("openvino")

from vae_edge.backends import openvino_backend
from vae_edge.backends.openvino_backend import OpenVinoBackend
from vae_edge.backends.openvino_module import openvino_core

FP32 = {"INFERENCE_PRECISION_HINT": "f32"}
FOUND = ["CPU", "GPU.0", "GPU.1", "NPU"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    return make_bundle(tmp_path / "toy", Target.OPENVINO)


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> CoreDouble:
    double = CoreDouble(openvino_core())
    monkeypatch.setattr(openvino_backend, "openvino_core", lambda: double)
    return double


@contextmanager
def open_it(bundle: Bundle, *, cache: bool = False, **options: Any) -> Iterator[OpenVinoBackend]:
    manifest = bundle.manifest
    sha256 = bundle.model_sha256 if cache else None
    backend = OpenVinoBackend(
        bundle.model_path,
        manifest.inputs,
        manifest.outputs,
        max_batch=None,
        options=RuntimeOptions(model_sha256=sha256, **options),
    )
    with backend:
        yield backend


@pytest.mark.parametrize("device", ["hetero:cpu", "AUTO:CPU", "multi:cpu"])
@pytest.mark.parametrize("hint", Hint)
def test_devices_made_of_others_give_the_models_outputs(bundle: Bundle, device: str, hint: Hint) -> None:
    images = np.stack([dark_image(seed) for seed in range(3)])
    maps, scores = toy_outputs(images)
    with open_it(bundle, device=device, hint=hint, requests=2 if hint is Hint.THROUGHPUT else None) as backend:
        assert backend.device.name == device.lower()
        assert backend.device.reason == "asked for; runs on CPU"
        outputs = backend.run({"image": images})
        # In bfloat16, the default of the CPUs that have it, they are 1e-3 away.
        np.testing.assert_allclose(outputs["anomaly_map"], maps, atol=1e-6)
        np.testing.assert_allclose(outputs["score"], scores, atol=1e-6)


def test_a_model_of_several_devices_is_cached_where_openvino_can_export_it(bundle: Bundle) -> None:
    image = dark_image(1)[None]
    for device, is_kept in (("hetero:cpu", True), ("auto:cpu", False), ("multi:cpu", False)):
        for is_second in (False, True):
            with open_it(bundle, device=device, cache=True) as backend:
                assert backend.is_from_cache == (is_kept and is_second)
                np.testing.assert_allclose(backend.run({"image": image})["score"], toy_outputs(image)[1], atol=1e-6)
    assert [entry.key.device.partition(",")[0] for entry in entries() if entry.key is not None] == ["HETERO:CPU"]


@pytest.mark.parametrize(
    ("device", "plugin", "properties"),
    [
        ("gpu", "GPU", FP32),
        ("GPU.1", "GPU.1", FP32),
        ("npu", "HETERO:NPU,CPU", {"DEVICE_PROPERTIES": {"CPU": FP32}}),
        ("hetero:npu", "HETERO:NPU", {"DEVICE_PROPERTIES": {}}),
        ("hetero:gpu.1,cpu", "HETERO:GPU.1,CPU", {"DEVICE_PROPERTIES": {"GPU.1": FP32, "CPU": FP32}}),
        ("auto:gpu, cpu", "AUTO:GPU,CPU", {"DEVICE_PROPERTIES": {"GPU": FP32, "CPU": FP32}}),
        ("multi:gpu.0,gpu.1", "MULTI:GPU.0,GPU.1", {"DEVICE_PROPERTIES": {"GPU.0": FP32, "GPU.1": FP32}}),
    ],
)
def test_every_device_but_the_npu_computes_in_fp32(
    bundle: Bundle, core: CoreDouble, device: str, plugin: str, properties: dict[str, Any]
) -> None:
    with open_it(bundle, device=device):
        assert core.compiled == [(plugin, {"PERFORMANCE_HINT": "LATENCY", **properties})]


def test_reduced_arithmetic_has_to_be_asked_for(bundle: Bundle, core: CoreDouble) -> None:
    for device in ("cpu", "gpu", "hetero:gpu,cpu"):
        with open_it(bundle, device=device, reduced=True):
            assert "INFERENCE_PRECISION_HINT" not in str(core.compiled[-1])


def test_what_the_npu_cannot_run_is_left_to_the_cpu_and_counted(bundle: Bundle, core: CoreDouble) -> None:
    with open_it(bundle, device="npu") as backend:
        assert backend.device.name == "npu"
        assert backend.device.reason == "asked for; layers: NPU 9, CPU 1"
        assert backend.layout.batch == 1
    assert core.compiled[0][0] == "HETERO:NPU,CPU"


def test_threads_are_the_cpus_part_of_a_shared_model(bundle: Bundle, core: CoreDouble) -> None:
    with open_it(bundle, device="hetero:gpu,cpu", threads=3, hint=Hint.THROUGHPUT, requests=2):
        assert core.compiled[0][1] == {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "PERFORMANCE_HINT_NUM_REQUESTS": 2,
            "DEVICE_PROPERTIES": {"GPU": FP32, "CPU": {**FP32, "INFERENCE_NUM_THREADS": 3}},
        }


@pytest.mark.parametrize(
    "device", ["toaster", "cuda", "hetero:", "hetero", "auto:toaster", "batch:cpu", "multi:cpu,", ""]
)
def test_a_name_that_openvino_does_not_know_gets_the_names(device: str) -> None:
    with pytest.raises(DeviceError, match=r"does not know the device .*expected auto, cpu, .* finds CPU, GPU.0, GPU.1"):
        parse(device, FOUND, "2026.4.1")


@pytest.mark.parametrize("device", ["gpu", "npu", "gpu.1", "hetero:npu,cpu", "auto:gpu,cpu", "hetero:cpu,gpu.0"])
def test_a_device_that_is_not_there_is_an_error_with_those_that_are(device: str) -> None:
    with pytest.raises(DeviceError, match=r"OpenVINO 2026.4.1 finds no [gn]pu(.\d)? here .it finds CPU.; install"):
        parse(device, ["CPU"], "2026.4.1")


def test_names_are_read_in_any_case_and_devices_once() -> None:
    assert parse(" Hetero:GPU, cpu,gpu ", FOUND, "") == Place("hetero:gpu,cpu", "HETERO:GPU,CPU", ("GPU", "CPU"))
    assert parse("gpu.1", FOUND, "") == Place("gpu.1", "GPU.1", ("GPU.1",))
