"""CUDA memory through cuda-bindings, NVIDIA's own package (the CUDA runtime under `cuda.bindings.runtime`)."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vae_edge.backends.cuda.memory import CudaMemory, DeviceBuffer, PinnedBuffer, Stream
from vae_edge.errors import DeviceError, MissingDependencyError


class CudaBindingsMemory(CudaMemory):
    """One device through the CUDA runtime, which works in the primary context by itself."""

    def __init__(self, index: int) -> None:
        self._runtime, version = _load_runtime()
        self._index = index
        self.library = f"cuda-bindings {version}"
        # The device is not touched before it is made current: one that does not start is to be found out here.
        with self.activate():
            pass

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make the device current on this thread, then the former one again."""
        former = call(self._runtime, "cudaGetDevice")
        call(self._runtime, "cudaSetDevice", self._index)
        try:
            yield
        finally:
            if former != self._index:
                call(self._runtime, "cudaSetDevice", former)

    def create_stream(self) -> Stream:
        """Create a non-blocking stream."""
        stream = call(self._runtime, "cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)
        return Stream(int(stream))

    def destroy_stream(self, stream: Stream) -> None:
        """Free the stream."""
        call(self._runtime, "cudaStreamDestroy", stream.handle)

    def allocate_pinned(self, size_bytes: int) -> PinnedBuffer:
        """Allocate page-locked memory and show it as a flat array."""
        address = int(call(self._runtime, "cudaHostAlloc", size_bytes, self._runtime.cudaHostAllocDefault))
        block = (ctypes.c_uint8 * size_bytes).from_address(address)
        return PinnedBuffer(np.ctypeslib.as_array(block), address)

    def free_pinned(self, buffer: PinnedBuffer) -> None:
        """Free page-locked memory."""
        call(self._runtime, "cudaFreeHost", buffer.owner)

    def allocate_device(self, size_bytes: int) -> DeviceBuffer:
        """Allocate device memory."""
        address = int(call(self._runtime, "cudaMalloc", size_bytes))
        return DeviceBuffer(address, size_bytes, address)

    def free_device(self, buffer: DeviceBuffer) -> None:
        """Free device memory."""
        call(self._runtime, "cudaFree", buffer.owner)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._runtime, "cudaMemcpyAsync", target.address, source.owner, size_bytes, kind, stream.handle)

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy from the device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._runtime, "cudaMemcpyAsync", target.owner, source.address, size_bytes, kind, stream.handle)

    def synchronize(self, stream: Stream) -> None:
        """Wait for the stream, without holding up other Python threads."""
        call(self._runtime, "cudaStreamSynchronize", stream.handle)

    def close(self) -> None:
        """Do nothing: the CUDA runtime keeps the primary context for the process."""


def call(runtime: Any, function: str, *arguments: Any) -> Any:
    """Call a function of the CUDA runtime, which returns its error code first, and give its value, if it has one.

    Raises:
        DeviceError: the error code is not success; the message names the function and the error.
    """
    code, *values = getattr(runtime, function)(*arguments)
    if code != runtime.cudaError_t.cudaSuccess:
        text = runtime.cudaGetErrorString(code)[1]
        meaning = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise DeviceError(f"{function} failed: {meaning} ({getattr(code, 'name', code)})")
    return values[0] if values else None


def _load_runtime() -> tuple[Any, str]:
    """Import the CUDA runtime's bindings: `cuda.bindings.runtime`, or `cuda.cudart` before cuda-python 12.6.

    Raises:
        MissingDependencyError: the package is not installed, or does not load.
    """
    try:
        try:
            import cuda.bindings as package
            from cuda.bindings import runtime
        except ModuleNotFoundError:
            import cuda as package
            from cuda import cudart as runtime
    except (ImportError, RuntimeError) as error:
        # Versions 12 load the driver's library on import and raise RuntimeError where they cannot.
        raise MissingDependencyError(f"cuda-bindings: {error}") from error
    return runtime, str(getattr(package, "__version__", "of unknown version"))
