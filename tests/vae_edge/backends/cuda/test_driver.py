"""The driver's functions and the adapter on them, against a driver of C functions that is host memory."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tests.vae_edge.backends.cuda.driver_fake import (
    ERRORS,
    HEADER,
    INVALID_VALUE,
    NO_DEVICE,
    NOT_INITIALIZED,
    OPERATING_SYSTEM,
    OUT_OF_MEMORY,
    DriverFake,
    use,
)
from vae_edge.backends.cuda import driver
from vae_edge.backends.cuda.driver import DeviceAttribute, Driver
from vae_edge.backends.cuda.driver_memory import DriverMemory
from vae_edge.backends.cuda.gpus import Gpu, find_gpus
from vae_edge.backends.cuda.memory import Lane
from vae_edge.errors import DeviceError

FREEING = {"cuStreamDestroy_v2", "cuMemFree_v2", "cuMemFreeHost", "cuDevicePrimaryCtxRelease_v2"}


@pytest.fixture(params=[False, True], ids=["copied", "mapped"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DriverFake:
    return use(DriverFake(integrated=request.param), monkeypatch)


def round_trip() -> None:
    """Send two tensors to the device and back, and leave nothing there."""
    memory = DriverMemory(0)
    try:
        with memory.activate():
            lane = Lane(memory, {"in": 64, "out": 16})
            try:
                lane.pinned["in"].array[:] = 7
                lane.send("in", 64)
                lane.synchronize()
                lane.fetch("out", 16)
                lane.synchronize()
            except DeviceError:
                # As the backend does: what is queued still uses the buffers.
                with suppress(DeviceError):
                    lane.synchronize()
                raise
            finally:
                lane.free()
    finally:
        memory.close()


def test_every_function_in_use_is_declared_as_in_the_header() -> None:
    assert set(driver._PROTOTYPES) == set(HEADER)


def test_declarations_and_numbers_are_those_of_nvidias_own_package() -> None:
    bindings = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    signatures = Path(bindings.__file__).with_name("cydriver.pxd").read_text(encoding="utf-8")
    for name, arguments in HEADER.items():
        found = re.search(rf"CUresult {name.removesuffix('_v2')}\(([^)]*)\)", signatures)
        assert found is not None, name
        types = [each.replace("const ", "").rsplit(" ", 1)[0] for each in found[1].split(", ")]
        assert [each.replace("unsigned int", "unsigned") for each in types] == arguments.split(), name
    for attribute in DeviceAttribute:
        assert attribute == getattr(bindings.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{attribute.name}")
    assert driver.DEVICE_MAP == bindings.CU_MEMHOSTALLOC_DEVICEMAP
    assert driver.NON_BLOCKING == bindings.CUstream_flags.CU_STREAM_NON_BLOCKING
    assert [hasattr(bindings.CUresult, name) for name in driver._ADVICE] == [True] * len(driver._ADVICE)
    for code, (name, _) in ERRORS.items():
        assert code == getattr(bindings.CUresult, name)


def test_nothing_is_left_and_nothing_misused(fake: DriverFake) -> None:
    round_trip()
    assert fake.misuses == []
    assert fake.live() == 0
    assert fake.depth() == 0
    copies = {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemAlloc_v2", "cuMemFree_v2"}
    mapping = {"cuMemHostGetDevicePointer_v2"}
    unused = (copies if fake.attributes[18] else mapping) | {"cuGetErrorName", "cuGetErrorString"}
    assert set(HEADER) - set(fake.calls) == unused | {"cuDeviceGetCount", "cuDeviceGetName"}


def failing_calls() -> list[tuple[bool, str, int]]:
    """List every call of a round trip, copied and mapped: which function, and which of its calls."""
    found = []
    for integrated in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            fake = use(DriverFake(integrated=integrated), patch)
            round_trip()
        found += [(integrated, name, number) for name, n in fake.calls.items() for number in range(1, n + 1)]
    return found


@pytest.mark.parametrize(("integrated", "function", "number"), failing_calls())
def test_whatever_call_fails_it_is_named_and_nothing_is_left(
    integrated: bool, function: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = use(DriverFake(integrated=integrated), monkeypatch)
    fake.fault = (function, number, OUT_OF_MEMORY)
    expected = f"{function} failed: out of memory (CUDA_ERROR_OUT_OF_MEMORY); close other programs"
    if function in FREEING - {"cuDevicePrimaryCtxRelease_v2"}:
        round_trip()
        assert expected in caplog.text
    else:
        with pytest.raises(DeviceError, match=re.escape(expected)):
            round_trip()
    assert fake.misuses == []
    assert fake.live() == (function in FREEING), "what could not be freed is all that is left"


def test_a_failure_inside_is_not_hidden_by_one_at_the_end(fake: DriverFake, caplog: pytest.LogCaptureFixture) -> None:
    memory = DriverMemory(0)
    fake.fault = ("cuCtxPopCurrent_v2", 1, INVALID_VALUE)

    def fail() -> None:
        with memory.activate():
            raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"):
        fail()
    assert "cuCtxPopCurrent_v2 failed: invalid argument" in caplog.text


@pytest.mark.parametrize(
    ("code", "name", "advice"),
    [
        (NO_DEVICE, "CUDA_ERROR_NO_DEVICE", r"--runtime nvidia, .* group video"),
        (OPERATING_SYSTEM, "CUDA_ERROR_OPERATING_SYSTEM", r"sudo usermod -aG video USER"),
        (NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "start workers with spawn"),
        (719, "error 719", "restart the program"),
    ],
)
def test_an_error_names_its_code_and_what_to_do(fake: DriverFake, code: int, name: str, advice: str) -> None:
    fake.fault = ("cuInit", 1, code)
    with pytest.raises(DeviceError, match=rf"^cuInit failed: .*\({name}\); .*{advice}"):
        Driver()


def test_without_a_library_the_container_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(driver, "load_library", missing)
    with pytest.raises(DeviceError, match=r"could not be loaded: install NVIDIA's driver, or .*--runtime nvidia"):
        Driver()


@pytest.mark.parametrize("function", list(HEADER))
def test_a_driver_that_lacks_a_function_is_too_old(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(DriverFake(missing=(function,)), monkeypatch)
    with pytest.raises(DeviceError, match=f"has no {function} and is too old"):
        Driver()


def test_gpus_are_told_apart_by_their_multiprocessors(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(DriverFake(n_devices=2), monkeypatch)
    assert find_gpus() == [Gpu(0, "Orin", "8.7", 16), Gpu(1, "Orin", "8.7", 17)]
    assert [gpu.kind for gpu in find_gpus()] == ["Orin (8.7, 16 SMs)", "Orin (8.7, 17 SMs)"]
    assert str(find_gpus()[1]) == "cuda:1 (Orin, compute capability 8.7, 17 SMs)"
    assert Gpu(0, "Orin", "8.7").kind == "Orin (8.7)"
    assert fake.misuses == []


def test_a_driver_without_gpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    use(DriverFake(n_devices=0), monkeypatch)
    with pytest.raises(DeviceError, match=r"none was found \(the driver reports no device\)"):
        find_gpus()


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"])
def test_a_driver_that_fails_while_gpus_are_listed_is_told_with_its_reason(fake: DriverFake, function: str) -> None:
    fake.fault = (function, 1, NO_DEVICE)
    with pytest.raises(DeviceError, match=rf"^TensorRT needs an NVIDIA GPU .*{function} failed: no CUDA-capable"):
        find_gpus()


@pytest.mark.parametrize(
    ("integrated", "can_map", "copies", "mapped"),
    [
        (True, True, False, True),
        (True, True, True, False),
        (True, False, False, False),
        (False, True, False, False),
    ],
)
def test_host_memory_is_used_in_place_on_integrated_gpus_that_can(
    integrated: bool, can_map: bool, copies: bool, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(DriverFake(integrated=integrated, can_map=can_map), monkeypatch)
    memory = DriverMemory(0, copies=copies)
    assert memory.maps_host_memory is mapped
    memory.close()


def test_mapped_memory_is_the_same_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = use(DriverFake(integrated=True), monkeypatch)
    memory = DriverMemory(0)
    with memory.activate():
        lane = Lane(memory, {"tensor": 8})
        lane.pinned["tensor"].array[:] = np.arange(8)
        block, _ = fake.pinned[lane.device["tensor"].address]
        assert list(block) == list(range(8))
        block[0] = 99
        assert lane.pinned["tensor"].array[0] == 99
        lane.free()
    memory.close()
    assert (fake.live(), fake.misuses) == (0, [])


def test_closing_twice_is_fine_and_using_it_afterwards_is_told(fake: DriverFake) -> None:
    memory = DriverMemory(0)
    memory.close()
    memory.close()
    assert fake.retained == 0
    with pytest.raises(DeviceError, match="has been closed"), memory.activate():
        pass


def test_a_context_that_others_retain_too_stays(fake: DriverFake) -> None:
    first, second = DriverMemory(0), DriverMemory(0)
    first.close()
    with second.activate():
        second.destroy_stream(second.create_stream())
    second.close()
    assert (fake.live(), fake.misuses) == (0, [])


class TestFake:
    """The fake must catch what it is there to catch."""

    def test_a_wrong_declaration(self, fake: DriverFake, monkeypatch: pytest.MonkeyPatch) -> None:
        prototypes = {**driver._PROTOTYPES, "cuMemAlloc_v2": driver._PROTOTYPES["cuInit"]}
        monkeypatch.setattr(driver, "_PROTOTYPES", prototypes)
        with pytest.raises(DeviceError, match="invalid argument"):
            Driver().call("cuMemAlloc_v2", 64)
        assert "cuMemAlloc_v2 was declared as" in fake.misuses[0]

    def test_a_call_without_a_context(self, fake: DriverFake) -> None:
        with pytest.raises(DeviceError, match="invalid argument"):
            DriverMemory(0).create_stream()
        assert fake.misuses == ["cuStreamCreate: no context is current on this thread"]

    def test_memory_that_is_freed_twice(self, fake: DriverFake) -> None:
        memory = DriverMemory(0)
        with memory.activate():
            pinned = memory.allocate_pinned(8)
            memory.free_pinned(pinned)
            with pytest.raises(DeviceError, match="cuMemFreeHost failed"):
                memory.free_pinned(pinned)
