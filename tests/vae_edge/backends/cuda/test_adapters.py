from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.vae_edge.backends.cuda.driver_fake import NO_DEVICE, OUT_OF_MEMORY, DriverFake, use
from tests.vae_edge.backends.tensorrt_double import CudaDouble
from vae_edge.backends.cuda import adapters
from vae_edge.backends.cuda.adapters import CHOICES, VARIABLE, open_cuda_memory
from vae_edge.backends.cuda.driver import Driver
from vae_edge.backends.cuda.driver_memory import DriverMemory
from vae_edge.errors import DeviceError, MissingDependencyError, UsageError


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> DriverFake:
    return use(DriverFake(integrated=True), monkeypatch)


def refuse(error: Exception) -> Callable[[int], Any]:
    def make(index: int) -> Any:
        raise error

    return make


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The adapters on Python packages: pycuda does not load, cuda-bindings is a double."""
    made = {
        **adapters._IN_ORDER,
        "pycuda": refuse(MissingDependencyError("pycuda: libcurand.so not found")),
        "cuda-bindings": lambda index: CudaDouble(),
    }
    monkeypatch.setattr(adapters, "_IN_ORDER", made)
    return made


def test_the_driver_comes_first(fake: DriverFake, others: dict[str, Any]) -> None:
    memory = open_cuda_memory(0)
    assert isinstance(memory, DriverMemory)
    assert memory.library == "the CUDA driver (12.6)"
    assert memory.refused == ()
    memory.close()
    assert (fake.live(), fake.misuses) == (0, [])


def test_where_one_does_not_start_the_next_is_taken_and_the_reasons_kept(
    fake: DriverFake, others: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    fake.fault = ("cuDevicePrimaryCtxRetain", 1, OUT_OF_MEMORY)
    memory = open_cuda_memory(0)
    assert isinstance(memory, CudaDouble)
    driver, pycuda = memory.refused
    assert driver.startswith("driver: cuDevicePrimaryCtxRetain failed: out of memory")
    assert pycuda == "pycuda: libcurand.so not found"
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.getMessage() == f"the GPU is used through a double: {driver}; {pycuda}"
    assert fake.live() == 0


def test_where_none_starts_every_reason_is_told(fake: DriverFake, others: dict[str, Any]) -> None:
    fake.fault = ("cuDevicePrimaryCtxRetain", 1, OUT_OF_MEMORY)
    others["cuda-bindings"] = refuse(DeviceError("cudaSetDevice failed: no device"))
    with pytest.raises(DeviceError) as caught:
        open_cuda_memory(0)
    for part in (
        "cuda:0 cannot be used: no CUDA adapter starts",
        "driver: cuDevicePrimaryCtxRetain failed",
        "pycuda: libcurand.so not found",
        "cuda-bindings: cudaSetDevice failed",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("choice", "kind"), [("driver", DriverMemory), ("cuda-bindings", CudaDouble), (" ", DriverMemory)]
)
def test_the_variable_chooses(
    fake: DriverFake, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch, choice: str, kind: type
) -> None:
    monkeypatch.setenv(VARIABLE, choice)
    memory = open_cuda_memory(0)
    assert isinstance(memory, kind)
    assert memory.maps_host_memory is (kind is DriverMemory)
    memory.close()


def test_copies_can_be_chosen_where_memory_could_be_mapped(fake: DriverFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "driver-copies")
    memory = open_cuda_memory(0)
    assert not memory.maps_host_memory
    memory.close()


def test_a_choice_that_is_not_installed_is_told_and_nothing_else_is_tried(
    fake: DriverFake, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "pycuda")
    with pytest.raises(MissingDependencyError) as caught:
        open_cuda_memory(0)
    path = "PATH=/usr/local/cuda/bin:$PATH " if sys.platform == "linux" else ""
    assert str(caught.value) == (
        "VAE_EDGE_CUDA chooses pycuda, which does not load (pycuda: libcurand.so not found); "
        f'run: {path}pip install "vae-edge[pycuda]", or unset VAE_EDGE_CUDA'
    )


def test_cuda_bindings_are_advised_in_the_version_for_the_driver(
    fake: DriverFake, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "cuda-bindings")
    others["cuda-bindings"] = refuse(MissingDependencyError("cuda-bindings: no module named cuda"))
    advice = r'run: pip install "vae-edge\[cuda-bindings\]"{}, or unset VAE_EDGE_CUDA$'
    with pytest.raises(MissingDependencyError, match=advice.format(' "cuda-bindings<13"')):  # The driver has 12.6.
        open_cuda_memory(0)
    monkeypatch.setattr(Driver, "version", "13.0")
    with pytest.raises(MissingDependencyError, match=advice.format("")):
        open_cuda_memory(0)


def test_a_choice_that_does_not_start_is_told_and_nothing_else_is_tried(
    fake: DriverFake, others: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "driver")
    fake.fault = ("cuDevicePrimaryCtxRetain", 1, NO_DEVICE)
    with pytest.raises(DeviceError, match=r"^VAE_EDGE_CUDA chooses driver, which does not start: cuDevicePrimary"):
        open_cuda_memory(0)


def test_an_unknown_choice_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "cupy")
    with pytest.raises(UsageError, match=rf"VAE_EDGE_CUDA is 'cupy'; expected one of {', '.join(CHOICES)}, or nothing"):
        open_cuda_memory(0)


def test_a_gpu_that_is_not_there_is_told_with_those_that_are(fake: DriverFake) -> None:
    with pytest.raises(DeviceError, match=r"there is no cuda:1 here; choose from cuda:0 \(Orin, compute capability"):
        open_cuda_memory(1)


def test_packages_that_are_not_installed_are_missing_dependencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycuda", None)  # as if it were not installed
    with pytest.raises(MissingDependencyError, match=r"^pycuda: "):
        adapters._IN_ORDER["pycuda"](0)
