"""The adapters on Python packages, and every adapter under a real engine on an NVIDIA GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest

from tests.vae_edge.backends.tensorrt_double import run_onnx
from tests.vae_edge.backends.tensorrt_models import make_onnx
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda.adapters import CHOICES, VARIABLE, open_cuda_memory
from vae_edge.backends.cuda.cuda_bindings_memory import call
from vae_edge.backends.cuda.gpus import Gpu, find_gpus
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.manifest import graph_inputs, graph_outputs


@pytest.fixture
def gpu() -> Gpu:
    try:
        return find_gpus()[0]
    except DeviceError as error:
        pytest.skip(str(error))


def test_an_error_code_of_the_cuda_runtime_is_told_with_its_function() -> None:
    code = Enum("code", {"cudaSuccess": 0, "cudaErrorMemoryAllocation": 2})
    runtime = SimpleNamespace(
        cudaError_t=code,
        cudaMalloc=lambda size: (code["cudaErrorMemoryAllocation"], None),
        cudaFree=lambda address: (code["cudaSuccess"],),
        cudaGetDevice=lambda: (code["cudaSuccess"], 3),
        cudaGetErrorString=lambda error: (code["cudaSuccess"], b"out of memory"),
    )
    with pytest.raises(DeviceError, match=r"^cudaMalloc failed: out of memory \(cudaErrorMemoryAllocation\)"):
        call(runtime, "cudaMalloc", 1 << 50)
    assert call(runtime, "cudaFree", 0) is None
    assert call(runtime, "cudaGetDevice") == 3


def test_cuda_bindings_has_every_name_in_use() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    functions = "GetDeviceCount GetDevice SetDevice StreamCreateWithFlags StreamDestroy StreamSynchronize HostAlloc"
    functions += " FreeHost Malloc Free MemcpyAsync GetErrorString"
    assert all(callable(getattr(runtime, f"cuda{name}")) for name in functions.split())
    assert runtime.cudaError_t.cudaSuccess == 0
    assert (runtime.cudaStreamNonBlocking, runtime.cudaHostAllocDefault) == (1, 0)
    kinds = runtime.cudaMemcpyKind
    assert (kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost) == (1, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", CHOICES)
def test_a_real_engine_gives_onnx_runtimes_results(
    gpu: Gpu, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, adapter)
    try:
        open_cuda_memory(0).close()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    from vae_edge.backends.tensorrt.build import EngineSettings, build_engine

    (tmp_path / "model.onnx").write_bytes(make_onnx())
    try:
        build_engine(tmp_path / "model.onnx", tmp_path / "model.engine", EngineSettings(max_batch=4))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    session = onnxruntime.InferenceSession(make_onnx(), providers=["CPUExecutionProvider"])
    with TensorRtBackend(
        tmp_path / "model.engine",
        graph_inputs(32, 32),
        graph_outputs(32, 32),
        max_batch=4,
        options=RuntimeOptions(),
    ) as backend:

        def compare(seed: int) -> None:
            rng = np.random.default_rng(seed)
            images = rng.integers(0, 256, (1 + seed % 4, 32, 32, 3), dtype=np.uint8)
            expected = run_onnx(session, {"image": images})
            for name, value in backend.run({"image": images}).items():
                # FP32 convolutions may run in TF32 on a GPU, which keeps 10 bits of the mantissa.
                np.testing.assert_allclose(value, expected[name], atol=2e-2)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(compare, range(12)))
