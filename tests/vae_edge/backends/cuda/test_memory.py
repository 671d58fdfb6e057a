"""What every adapter to a GPU's memory must do: with a driver or a device that is host memory, and on a real GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import NamedTuple

import numpy as np
import pytest

from tests.vae_edge.backends.cuda.driver_fake import DriverFake, use
from tests.vae_edge.backends.tensorrt_double import CudaDouble
from vae_edge.backends.cuda.cuda_bindings_memory import CudaBindingsMemory
from vae_edge.backends.cuda.driver_memory import DriverMemory
from vae_edge.backends.cuda.gpus import find_gpus
from vae_edge.backends.cuda.memory import CudaMemory, Lane
from vae_edge.backends.cuda.pycuda_memory import PycudaMemory
from vae_edge.errors import DeviceError, MissingDependencyError

SIZE = 4096
ON_A_GPU: dict[str, Callable[[int], CudaMemory]] = {
    "driver": DriverMemory,
    "driver-copies": partial(DriverMemory, copies=True),
    "pycuda": PycudaMemory,
    "cuda-bindings": CudaBindingsMemory,
}


class Opened(NamedTuple):
    memory: CudaMemory
    live: Callable[[], int]
    """How many things are allocated, as far as that can be known."""


def double(*, maps_host_memory: bool) -> Opened:
    memory = CudaDouble(maps_host_memory=maps_host_memory)
    return Opened(memory, memory.live)


@pytest.fixture(
    params=[
        "driver, copied",
        "driver, mapped",
        "double, copied",
        "double, mapped",
        *(pytest.param(f"GPU: {name}", marks=pytest.mark.gpu) for name in ON_A_GPU),
    ]
)
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    kind, _, how = request.param.replace(": ", ", ").partition(", ")
    if kind == "double":
        made = double(maps_host_memory=how == "mapped")
    elif kind == "driver":
        fake = use(DriverFake(integrated=how == "mapped"), monkeypatch)
        made = Opened(DriverMemory(0), lambda: fake.live() - fake.retained)
    else:
        made = Opened(open_real(how), lambda: 0)
    yield made
    made.memory.close()
    if kind == "driver":
        assert fake.misuses == []
        assert fake.live() == 0


def open_real(name: str) -> CudaMemory:
    try:
        find_gpus()
    except DeviceError as error:
        pytest.skip(str(error))
    try:
        return ON_A_GPU[name](0)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def round_trip(memory: CudaMemory, seed: int) -> None:
    content = np.random.default_rng(seed).integers(0, 256, SIZE, dtype=np.uint8)
    with memory.activate():
        lane = Lane(memory, {"tensor": SIZE, "other": 1})
        assert lane.stream.handle != 0
        lane.pinned["tensor"].array[:] = content
        lane.pinned["other"].array[:] = 1
        lane.send("tensor", SIZE)
        lane.synchronize()
        if not memory.maps_host_memory:
            lane.pinned["tensor"].array[:] = 0
        lane.fetch("tensor", SIZE - 96)
        lane.synchronize()
        found = lane.pinned["tensor"].array
        np.testing.assert_array_equal(found[: SIZE - 96], content[: SIZE - 96])
        if not memory.maps_host_memory:
            assert not found[SIZE - 96 :].any()
        lane.free()


def test_bytes_go_to_the_device_and_back_from_four_threads(opened: Opened) -> None:
    together = Barrier(4)

    def work(seed: int) -> None:
        together.wait(30)
        for step in range(4):
            round_trip(opened.memory, seed * 10 + step)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in range(4)]:
            done.result(60)
    assert opened.live() == 0


def test_lanes_live_side_by_side(opened: Opened) -> None:
    memory = opened.memory
    with memory.activate():
        lanes = [Lane(memory, {"tensor": 64}) for _ in range(3)]
        for number, lane in enumerate(lanes):
            lane.pinned["tensor"].array[:] = number
            lane.send("tensor", 64)
        assert len({lane.stream.handle for lane in lanes}) == 3
        assert len({lane.device["tensor"].address for lane in lanes}) == 3
        for number, lane in enumerate(lanes):
            lane.fetch("tensor", 64)
            lane.synchronize()
            assert set(lane.pinned["tensor"].array.tolist()) == {number}
            lane.free()
    assert opened.live() == 0


def test_one_activation_inside_another_is_fine(opened: Opened) -> None:
    with opened.memory.activate():
        with opened.memory.activate():
            stream = opened.memory.create_stream()
        opened.memory.synchronize(stream)
        opened.memory.destroy_stream(stream)
    assert opened.live() == 0


def test_a_lane_frees_itself_once(opened: Opened) -> None:
    with opened.memory.activate():
        lane = Lane(opened.memory, {"a": 16, "b": 32})
        lane.free()
        assert lane.pinned == {}
        assert lane.device == {}
    assert opened.live() == 0


@pytest.mark.parametrize("maps_host_memory", [False, True])
def test_a_lane_that_finds_no_room_frees_what_it_got(maps_host_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, _ = double(maps_host_memory=maps_host_memory)
    assert isinstance(memory, CudaDouble)
    allocate = memory.allocate_pinned

    def refuse_the_second(size_bytes: int) -> object:
        if memory.pinned:
            raise DeviceError("cuMemHostAlloc failed: out of memory")
        return allocate(size_bytes)

    monkeypatch.setattr(memory, "allocate_pinned", refuse_the_second)
    with memory.activate(), pytest.raises(DeviceError, match="out of memory"):
        Lane(memory, {"a": 16, "b": 32})
    assert memory.live() == 0


def test_an_adapter_that_cannot_map_says_so() -> None:
    with pytest.raises(NotImplementedError, match="a double does not map host memory"):
        CudaMemory.map_pinned(CudaDouble(), object())  # type: ignore[arg-type]  # never looked at
