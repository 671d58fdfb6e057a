from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vae_edge.backends.tensorrt_double import CudaDouble, TensorRtDouble
from tests.vae_edge.backends.tensorrt_models import make_onnx
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.adapters import open_cuda_memory
from vae_edge.backends.cuda.gpus import find_gpus
from vae_edge.backends.tensorrt import module as tensorrt_module
from vae_edge.backends.tensorrt.module import (
    FLAVOURS,
    ErrorLog,
    find_tensorrt,
    read_plan_header,
    version_numbers,
    wrap_tensorrt,
)
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.platform import wheels
from vae_edge.platform.machine import Jetson, look_at_machine
from vae_edge.platform.wheels import Platform


def reason_for_no_gpu() -> str | None:
    try:
        find_gpus()
    except DeviceError as error:
        return str(error)
    return None


NO_GPU = reason_for_no_gpu()
without_gpu = pytest.mark.skipif(NO_GPU is None, reason="there is an NVIDIA GPU here")


@pytest.mark.parametrize("version", ["8.6.2", "9.1.0", "10.0.1", "10.2.0.19"])
def test_a_tensorrt_below_the_floor_is_refused_with_the_jetpack_to_install(version: str) -> None:
    with pytest.raises(DeviceError, match=rf"TensorRT {version} is too old: .* 10\.3 or newer.*JetPack 6\.1"):
        TensorRtDouble(CudaDouble(), version=version)


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_newer_tensorrts_are_taken(version: str) -> None:
    assert str(TensorRtDouble(CudaDouble(), version=version).module) == f"TensorRT {version}"


def test_a_folder_called_tensorrt_is_not_taken_for_tensorrt() -> None:
    with pytest.raises(MissingDependencyError, match="'tensorrt' is not TensorRT or is damaged"):
        wrap_tensorrt(types.ModuleType("tensorrt"), FLAVOURS["tensorrt"])


def test_a_library_that_does_not_load_is_told_with_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise (
            OSError(f"lib{name}.so: cannot open shared object file")
            if name == "tensorrt"
            else ModuleNotFoundError("No module named 'tensorrt_rtx'")
        )

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(tensorrt_module, "_found", {})
    with pytest.raises(MissingDependencyError) as caught:
        find_tensorrt()
    assert "libtensorrt.so: cannot open" in str(caught.value)
    assert str(caught.value).endswith('; run: pip install "vae-edge[tensorrt]" or pip install "vae-edge[tensorrt-rtx]"')


def test_on_a_jetson_no_package_is_advised_but_jetpacks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    jetson = replace(look_at_machine(), jetson=Jetson("36.4.0"), sees_system_packages=True)
    monkeypatch.setattr(tensorrt_module, "look_at_machine", lambda: jetson)
    monkeypatch.setattr(tensorrt_module, "_found", {})
    for name in FLAVOURS:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"a part of JetPack: sudo apt-get install python3-libnvinfer$"):
        find_tensorrt()
    with pytest.raises(MissingDependencyError, match="uninstall it, then on a Jetson it is a part of JetPack: sudo"):
        wrap_tensorrt(types.ModuleType("tensorrt"), FLAVOURS["tensorrt"])


def test_where_there_is_no_tensorrt_another_bundle_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "this_platform", lambda: Platform("Darwin", "arm64", (3, 12)))
    monkeypatch.setattr(tensorrt_module, "this_platform", lambda: Platform("Darwin", "arm64", (3, 12)))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(tensorrt_module, "_found", {})
    with pytest.raises(MissingDependencyError) as caught:
        find_tensorrt("tensorrt")
    assert str(caught.value).endswith(
        "; there is none for Darwin on arm64 with Python 3.12: use an onnx or openvino bundle"
    )


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("10.3.0", (10, 3, 0)), ("10.13.0.35", (10, 13, 0, 35)), ("1.7.1.116.post2", (1, 7, 1, 116)), ("none", ())],
)
def test_versions_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(text) == numbers


def test_errors_are_kept_and_messages_forwarded(caplog: pytest.LogCaptureFixture) -> None:
    double = TensorRtDouble(CudaDouble())
    severity, module = double.api.ILogger.Severity, double.module
    mark = module.errors.mark()
    with caplog.at_level(logging.DEBUG, logger="vae_edge.backends.tensorrt.module"):
        module.logger.log(severity.INFO, "timing a kernel")
        module.logger.log(severity.WARNING, "a kernel is slow")
        module.logger.log(severity.WARNING, " (foreignNode) Converting conv weight scales to fp32.")
        module.logger.log(severity.ERROR, "no kernel fits")
        module.logger.log(severity.INTERNAL_ERROR, "assertion failed")
    assert module.errors.since(mark) == "no kernel fits; assertion failed"
    assert module.errors.since(module.errors.mark()) == "no reason was logged"
    assert [record.levelno for record in caplog.records] == [10, 30, 10, 40, 40]


def test_only_the_latest_errors_are_kept() -> None:
    errors = ErrorLog()
    for number in range(1000):
        errors.add(str(number))
    assert errors.since(0).split("; ") == [str(number) for number in range(968, 1000)]


def test_a_header_that_holds_no_version_is_left_to_tensorrt(tmp_path: Path) -> None:
    (tmp_path / "old.engine").write_bytes(b"ftrt" + bytes(60))
    assert str(read_plan_header(tmp_path / "old.engine")) == "TensorRT of unknown version"


def test_a_missing_engine_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="cannot be read"):
        read_plan_header(tmp_path / "none.engine")


@without_gpu
def test_without_a_gpu_every_way_in_gives_the_one_sentence() -> None:
    for way in (find_gpus, lambda: open_cuda_memory(0)):
        with pytest.raises(
            DeviceError, match=r"^TensorRT needs an NVIDIA GPU and its driver; none was found \("
        ) as caught:
            way()
        assert "\n" not in str(caught.value)


@without_gpu
def test_a_real_engine_without_a_gpu_gives_the_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from vae_edge.backends.tensorrt.build import EngineSettings, build_engine

    (tmp_path / "model.onnx").write_bytes(make_onnx())
    build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", EngineSettings())
    with pytest.raises(DeviceError, match=r"^TensorRT needs an NVIDIA GPU and its driver; none was found"):
        TensorRtBackend(
            tmp_path / "model.engine",
            graph_inputs(32, 32),
            graph_outputs(32, 32),
            max_batch=8,
            options=RuntimeOptions(),
        )


def test_nothing_heavy_is_imported_with_the_modules() -> None:
    code = (
        "import sys, vae_edge.backends.tensorrt_backend, vae_edge.backends.tensorrt.build\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'cuda', 'vae_edge.train'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert done.stdout.strip() == "[]"
