"""A TensorRT that computes with ONNX Runtime, and a device that is host memory: for tests where there is no GPU.

The calls are TensorRT's own (their names are checked against the table of its API). Work is queued on streams and done
when the stream is synchronized, as on a device, so results that are read too early are wrong. Misuse raises
`MisuseError`.
"""

from __future__ import annotations

import ctypes
import json
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from vae_edge.backends import tensorrt_backend
from vae_edge.backends.cuda.gpus import Gpu
from vae_edge.backends.cuda.memory import CudaMemory, DeviceBuffer, PinnedBuffer, Stream
from vae_edge.backends.tensorrt.module import FLAVOURS, TensorRtModule, version_numbers, wrap_tensorrt
from vae_edge.errors import MissingDependencyError

if TYPE_CHECKING:
    import pytest

GARBAGE = 0xA5
"""What fresh memory holds."""


class MisuseError(AssertionError):
    """A call that a real device would answer with an error, a crash or wrong results."""


def must(condition: bool, message: str) -> None:
    if not condition:
        raise MisuseError(message)


class CudaDouble(CudaMemory):
    """Host memory behind the interface of a device's memory.

    Args:
        maps_host_memory: be an integrated GPU, which uses pinned memory in place.
    """

    library = "a double"

    def __init__(self, *, maps_host_memory: bool = False) -> None:
        self.maps_host_memory = maps_host_memory
        self.streams: dict[int, list[tuple[str, Callable[[], None]]]] = {}
        self.pinned: dict[int, PinnedBuffer] = {}
        self.device: dict[int, DeviceBuffer] = {}
        self.closed = 0
        self.events: list[str] = []
        self._depth = threading.local()
        self._last_handle = 0
        self._lock = threading.RLock()

    def is_active(self) -> bool:
        return getattr(self._depth, "value", 0) > 0

    def live(self) -> int:
        return len(self.streams) + len(self.pinned) + len(self.device)

    def note(self, event: str) -> None:
        must(self.is_active(), f"{event} without the device being current on this thread")
        must(self.closed == 0, f"{event} after the device was closed")
        with self._lock:
            self.events.append(event)

    @contextmanager
    def activate(self) -> Iterator[None]:
        self._depth.value = getattr(self._depth, "value", 0) + 1
        try:
            yield
        finally:
            self._depth.value -= 1

    def create_stream(self) -> Stream:
        self.note("create_stream")
        with self._lock:
            self._last_handle += 1
            self.streams[self._last_handle] = []
            return Stream(self._last_handle)

    def destroy_stream(self, stream: Stream) -> None:
        self.note("destroy_stream")
        must(stream.handle in self.streams, "a stream was destroyed twice")
        must(not self.streams.pop(stream.handle), "a stream was destroyed with work in it")

    def allocate_pinned(self, size_bytes: int) -> PinnedBuffer:
        self.note("allocate_pinned")
        array = np.full(size_bytes, GARBAGE, np.uint8)
        buffer = PinnedBuffer(array, array.ctypes.data)
        self.pinned[id(buffer)] = buffer
        return buffer

    def free_pinned(self, buffer: PinnedBuffer) -> None:
        self.note("free_pinned")
        must(self.pinned.pop(id(buffer), None) is buffer, "pinned memory was freed twice")
        if self.maps_host_memory:
            self.device.pop(buffer.owner, None)

    def map_pinned(self, buffer: PinnedBuffer) -> DeviceBuffer:
        self.note("map_pinned")
        must(self.maps_host_memory and id(buffer) in self.pinned, "memory was mapped that cannot be")
        mapped = DeviceBuffer(buffer.owner, buffer.array.size, buffer.owner)
        self.device[mapped.address] = mapped
        return mapped

    def allocate_device(self, size_bytes: int) -> DeviceBuffer:
        self.note("allocate_device")
        array = np.full(size_bytes, GARBAGE, np.uint8)
        buffer = DeviceBuffer(array.ctypes.data, size_bytes, array)
        self.device[buffer.address] = buffer
        return buffer

    def free_device(self, buffer: DeviceBuffer) -> None:
        self.note("free_device")
        must(self.device.pop(buffer.address, None) is buffer, "device memory was freed twice")

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size_bytes: int, stream: Stream) -> None:
        self.note("copy_in")
        self._queue_copy("copy_in", target, source, size_bytes, stream, to_device=True)

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size_bytes: int, stream: Stream) -> None:
        self.note("copy_out")
        self._queue_copy("copy_out", source, target, size_bytes, stream, to_device=False)

    def _queue_copy(
        self, name: str, device: DeviceBuffer, host: PinnedBuffer, size_bytes: int, stream: Stream, *, to_device: bool
    ) -> None:
        must(not self.maps_host_memory, "memory that the device uses in place was copied")
        must(size_bytes <= min(device.size_bytes, host.array.size), "a copy is larger than its buffer")

        def copy() -> None:
            must(self.device.get(device.address) is device and id(host) in self.pinned, "a copy uses freed memory")
            pair = (device.address, host.array.ctypes.data)
            ctypes.memmove(*(pair if to_device else pair[::-1]), size_bytes)

        self.queue(stream.handle, name, copy)

    def queue(self, handle: int, name: str, work: Callable[[], None]) -> None:
        must(handle != 0, "work on the default stream")
        must(handle in self.streams, "work on a stream that is not there")
        self.streams[handle].append((name, work))

    def synchronize(self, stream: Stream) -> None:
        self.note("synchronize")
        must(stream.handle in self.streams, "a stream that is not there was waited for")
        while self.streams[stream.handle]:
            self.streams[stream.handle].pop(0)[1]()

    def close(self) -> None:
        must(self.live() == 0, f"closed with {self.live()} things not freed")
        self.closed += 1


class TensorRtDouble:
    """Makes a module with the part of TensorRT's API that vae-edge uses.

    Args:
        cuda: the device.
        version: what the module says its version is; it loads plans of this version alone.
        flavour: `tensorrt` or `tensorrt_rtx`.
        faults: calls that shall fail: `set_input_shape`, `set_tensor_address`, `execute_async_v3`,
            `deserialize_cuda_engine`, `create_execution_context`, `build_serialized_network`, `parse`,
            `add_optimization_profile`, `set_timing_cache`.
    """

    def __init__(
        self, cuda: CudaDouble, version: str = "10.3.0", flavour: str = "tensorrt", faults: tuple[str, ...] = ()
    ) -> None:
        self.cuda, self.faults = cuda, set(faults)
        self.flavour = FLAVOURS[flavour]
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self.engines: weakref.WeakSet[Any] = weakref.WeakSet()
        self.n_contexts = 0
        self.built: list[Any] = []
        self.validity = (0, 0)
        """What TensorRT-RTX says of every engine: its validity and the diagnostics."""
        self.refused: list[bytes] = []
        """Plans that shall not load."""
        self.built_differ = False
        """Whether no two builds give the same bytes, as is TensorRT's way."""
        self.major = version_numbers(version)[0]
        self.api = self._make_api(version)
        self.module: TensorRtModule = wrap_tensorrt(self.api, self.flavour)

    def find_module(self, flavour: str | None = None) -> TensorRtModule:
        if flavour not in (None, self.flavour.module):
            raise MissingDependencyError(f"{flavour} is not installed")
        return self.module

    def open_memory(self, index: int) -> CudaDouble:
        must(index == 0, "another device was asked for")
        return self.cuda

    def write_plan(self, path: Path, onnx: bytes, max_batch: int = 8, version: str | None = None) -> None:
        path.write_bytes(self.plan_bytes(onnx, {"image": [1, 1, max_batch]}, version))

    def plan_bytes(self, onnx: bytes, batches: dict[str, list[int]], version: str | None = None) -> bytes:
        numbers = (*version_numbers(version or self.api.__version__), 0, 0, 0, 0)[:4]
        description = json.dumps(batches).encode()
        head = self.flavour.magic + bytes(20) + bytes(numbers) + bytes(4)
        return head + len(description).to_bytes(4, "little") + description + onnx

    def fails(self, call: str) -> bool:
        if call in self.faults:
            self.module.logger.log(self.api.ILogger.Severity.ERROR, f"{call} was told to fail")
        return call in self.faults

    def _make_api(self, version: str) -> Any:
        # Imported here: it needs this module's names.
        from tests.vae_edge.backends import tensorrt_double_api

        api = types.ModuleType(self.flavour.module)
        api.__dict__.update(tensorrt_double_api.make_classes(self), __version__=version)
        return api


def run_onnx(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def in_place_of_tensorrt(monkeypatch: pytest.MonkeyPatch) -> TensorRtDouble:
    """Let bundles for TensorRT be opened with a double; their engines, which are for another, are built anew."""
    double = TensorRtDouble(CudaDouble())
    real = tensorrt_backend.TensorRtBackend

    def open_with_double(*arguments: Any, **named: Any) -> tensorrt_backend.TensorRtBackend:
        double.cuda.closed = 0
        return real(
            *arguments,
            **named,
            find_module=double.find_module,
            open_memory=double.open_memory,
            find_gpus=lambda: [Gpu(0, "Orin", "8.7")],
        )

    monkeypatch.setattr(tensorrt_backend, "TensorRtBackend", open_with_double)
    return double
