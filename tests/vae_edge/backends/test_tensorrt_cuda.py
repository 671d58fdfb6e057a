"""The two CUDA adapters: their choice and errors anywhere, themselves on an NVIDIA GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.vae_edge.backends.tensorrt_double import run_onnx
from tests.vae_edge.backends.tensorrt_models import make_onnx
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.cuda import gpus
from vae_edge.backends.cuda.cuda_bindings_memory import CudaBindingsMemory, call
from vae_edge.backends.cuda.gpus import Gpu, find_gpus, open_cuda_memory
from vae_edge.backends.cuda.memory import CudaMemory, Lane
from vae_edge.backends.cuda.pycuda_memory import PycudaMemory
from vae_edge.backends.tensorrt_backend import TensorRtBackend
from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.manifest import graph_inputs, graph_outputs


@pytest.fixture
def gpu() -> Gpu:
    try:
        return find_gpus()[0]
    except DeviceError as error:
        pytest.skip(str(error))


def opened(adapter: type[PycudaMemory] | type[CudaBindingsMemory]) -> CudaMemory:
    try:
        assert adapter.device_count() > 0
        return adapter(0)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def missing(reason: str) -> Any:
    def refuse(cls: type) -> int:
        raise MissingDependencyError(reason)

    return classmethod(refuse)


def test_without_pycuda_and_cuda_bindings_the_pip_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "find_gpus", lambda: [Gpu(0, "Orin", "8.7")])
    monkeypatch.setattr(PycudaMemory, "device_count", missing("pycuda: libcurand.so not found"))
    monkeypatch.setattr(CudaBindingsMemory, "device_count", missing("cuda-bindings: not there"))
    with pytest.raises(MissingDependencyError) as caught:
        open_cuda_memory(0, "tensorrt-rtx")
    assert "libcurand.so not found; cuda-bindings: not there" in str(caught.value)
    assert str(caught.value).endswith("run: pip install 'vae-edge[tensorrt-rtx]'")


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "find_gpus", lambda: [Gpu(0, "Orin", "8.7")])
    with pytest.raises(DeviceError, match=r"there is no cuda:1 here; choose from cuda:0 \(Orin, compute capability"):
        open_cuda_memory(1, "tensorrt")


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
@pytest.mark.parametrize("adapter", [PycudaMemory, CudaBindingsMemory])
def test_bytes_go_to_the_gpu_and_back_from_several_threads(
    gpu: Gpu, adapter: type[PycudaMemory] | type[CudaBindingsMemory]
) -> None:
    memory = opened(adapter)

    def round_trip(seed: int) -> None:
        content = np.random.default_rng(seed).integers(0, 256, 4096, dtype=np.uint8)
        with memory.activate():
            lane = Lane(memory, {"tensor": 4096})
            assert lane.stream.handle != 0
            lane.pinned["tensor"].array[:] = content
            lane.send("tensor", 4096)
            lane.synchronize()
            lane.pinned["tensor"].array[:] = 0
            lane.fetch("tensor", 4000)
            lane.synchronize()
            np.testing.assert_array_equal(lane.pinned["tensor"].array[:4000], content[:4000])
            assert not lane.pinned["tensor"].array[4000:].any()
            lane.free()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(round_trip, seed) for seed in range(8)]:
            done.result()
    memory.close()


@pytest.mark.gpu
@pytest.mark.parametrize("adapter", [PycudaMemory, CudaBindingsMemory])
def test_a_real_engine_gives_onnx_runtimes_results(
    gpu: Gpu, adapter: type[PycudaMemory] | type[CudaBindingsMemory], tmp_path: Path
) -> None:
    memory = opened(adapter)
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
        open_memory=lambda index, extra: memory,
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
