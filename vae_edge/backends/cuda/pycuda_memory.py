"""CUDA memory through pycuda."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vae_edge.backends.cuda.memory import CudaMemory, DeviceBuffer, PinnedBuffer, Stream
from vae_edge.errors import DeviceError, MissingDependencyError

# One primary context for each device, retained once and kept: when pycuda releases one that is not current, it pushes
# it on the driver's stack and leaves it there, and from another thread than the one that retained it, it leaks it.
_contexts: dict[int, Any] = {}
_retaining = threading.Lock()


@atexit.register
def _release_contexts() -> None:
    """Release the primary contexts by name: pycuda's own clean-up would treat them as contexts that it made."""
    for context in _contexts.values():
        context.detach()


# CU_STREAM_NON_BLOCKING of cuda.h: the stream does not wait for the default stream, which torch uses.
_NON_BLOCKING = 1


class PycudaMemory(CudaMemory):
    """One device through pycuda.

    The primary context is retained, never `pycuda.autoinit` or `make_default_context`: those create a second context
    and clash with torch and the CUDA runtime in the same process.
    """

    def __init__(self, index: int) -> None:
        self._driver = _load_driver()
        self.library = _version()
        # The only references to the streams: pycuda frees a stream with its last reference, for which the context has
        # to be current, so it must happen in `destroy_stream` and nowhere else.
        self._streams: dict[int, Any] = {}
        with _retaining, _named("cuDevicePrimaryCtxRetain", self._driver):
            if index not in _contexts:
                _contexts[index] = self._driver.Device(index).retain_primary_context()
            self._context = _contexts[index]

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Push the primary context on this thread's stack and pop it again."""
        with _named("cuCtxPushCurrent", self._driver):
            self._context.push()
        try:
            yield
        finally:
            with _named("cuCtxPopCurrent", self._driver):
                self._context.pop()

    def create_stream(self) -> Stream:
        """Create a non-blocking stream."""
        with _named("cuStreamCreate", self._driver):
            stream = self._driver.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return Stream(int(stream.handle))

    def destroy_stream(self, stream: Stream) -> None:
        """Drop the last reference to the stream."""
        del self._streams[stream.handle]

    def allocate_pinned(self, size_bytes: int) -> PinnedBuffer:
        """Allocate page-locked memory as a flat array."""
        with _named("cuMemHostAlloc", self._driver):
            array = self._driver.pagelocked_empty(size_bytes, np.uint8)
        return PinnedBuffer(array, array.base)

    def free_pinned(self, buffer: PinnedBuffer) -> None:
        """Free page-locked memory at once instead of with its last reference."""
        with _named("cuMemFreeHost", self._driver):
            buffer.owner.free()

    def allocate_device(self, size_bytes: int) -> DeviceBuffer:
        """Allocate device memory."""
        with _named("cuMemAlloc", self._driver):
            allocation = self._driver.mem_alloc(size_bytes)
        return DeviceBuffer(int(allocation), size_bytes, allocation)

    def free_device(self, buffer: DeviceBuffer) -> None:
        """Free device memory at once instead of with its last reference."""
        with _named("cuMemFree", self._driver):
            buffer.owner.free()

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        with _named("cuMemcpyHtoDAsync", self._driver):
            self._driver.memcpy_htod_async(target.address, source.array[:size_bytes], self._streams[stream.handle])

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy from the device."""
        with _named("cuMemcpyDtoHAsync", self._driver):
            self._driver.memcpy_dtoh_async(target.array[:size_bytes], source.address, self._streams[stream.handle])

    def synchronize(self, stream: Stream) -> None:
        """Wait for the stream, without holding up other Python threads."""
        with _named("cuStreamSynchronize", self._driver):
            self._streams[stream.handle].synchronize()

    def close(self) -> None:
        """Do nothing: the primary context stays for the process, as it does with the CUDA runtime."""


def _load_driver() -> Any:
    """Import pycuda.driver and start it.

    Raises:
        MissingDependencyError: pycuda is not installed, or was built for another CUDA and does not load.
        DeviceError: the driver does not start.
    """
    try:
        import pycuda.driver as driver
    except ImportError as error:
        raise MissingDependencyError(f"pycuda: {error}") from error
    with _named("cuInit", driver):
        driver.init()
    return driver


def _version() -> str:
    import pycuda

    return f"pycuda {pycuda.VERSION_TEXT}"


@contextmanager
def _named(call: str, driver: Any) -> Iterator[None]:
    """Turn pycuda's errors into DeviceError with the name of the CUDA call."""
    try:
        yield
    except driver.Error as error:
        raise DeviceError(f"{call} failed: {error}") from error
