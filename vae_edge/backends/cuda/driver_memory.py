"""CUDA memory through the driver itself: what is used unless another adapter is chosen."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_uint64, c_void_p

import numpy as np

from vae_edge.backends.cuda.driver import DEVICE_MAP, NON_BLOCKING, DeviceAttribute, Driver
from vae_edge.backends.cuda.memory import CudaMemory, DeviceBuffer, PinnedBuffer, Stream
from vae_edge.errors import DeviceError

_log = logging.getLogger(__name__)


class DriverMemory(CudaMemory):
    """One device through the CUDA driver.

    The primary context is retained here and released in `close`; the driver counts, so torch and TensorRT keep theirs.

    Args:
        index: the GPU's number in the driver's order.
        copies: copy even where the device can use the host's memory in place, to compare.
    """

    def __init__(self, index: int, *, copies: bool = False) -> None:
        self._driver = Driver()
        self.library = f"the CUDA driver ({self._driver.version})"
        self._device = self._driver.device(index)
        # On a GPU with memory of its own, mapped memory would be read over PCIe, value by value.
        self.maps_host_memory = not copies and all(
            self._driver.attribute(attribute, self._device)
            for attribute in (DeviceAttribute.INTEGRATED, DeviceAttribute.CAN_MAP_HOST_MEMORY)
        )
        context = c_void_p()
        self._driver.call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._context: c_void_p | None = context

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Push the primary context on this thread's stack and pop it again."""
        if self._context is None:
            raise DeviceError("this GPU's memory has been closed; open it again")
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        except BaseException:
            try:
                self._pop()
            except DeviceError as error:  # It follows from the first error, which says more.
                _log.warning("%s", error)
            raise
        self._pop()

    def _pop(self) -> None:
        self._driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def create_stream(self) -> Stream:
        """Create a non-blocking stream."""
        stream = c_void_p()
        self._driver.call("cuStreamCreate", byref(stream), NON_BLOCKING)
        return Stream(stream.value or 0)

    def destroy_stream(self, stream: Stream) -> None:
        """Free the stream."""
        self._driver.call("cuStreamDestroy_v2", stream.handle)

    def allocate_pinned(self, size_bytes: int) -> PinnedBuffer:
        """Allocate page-locked memory, mapped where the device uses it in place, and show it as a flat array."""
        address = c_void_p()
        flags = DEVICE_MAP if self.maps_host_memory else 0
        self._driver.call("cuMemHostAlloc", byref(address), size_bytes, flags)
        block = (ctypes.c_uint8 * size_bytes).from_address(address.value or 0)
        return PinnedBuffer(np.ctypeslib.as_array(block), address.value)

    def free_pinned(self, buffer: PinnedBuffer) -> None:
        """Free page-locked memory."""
        self._driver.call("cuMemFreeHost", buffer.owner)

    def map_pinned(self, buffer: PinnedBuffer) -> DeviceBuffer:
        """Return where the device sees page-locked memory."""
        address = c_uint64()
        self._driver.call("cuMemHostGetDevicePointer_v2", byref(address), buffer.owner, 0)
        return DeviceBuffer(address.value, buffer.array.size, buffer.owner)

    def allocate_device(self, size_bytes: int) -> DeviceBuffer:
        """Allocate device memory."""
        address = c_uint64()
        self._driver.call("cuMemAlloc_v2", byref(address), size_bytes)
        return DeviceBuffer(address.value, size_bytes, address.value)

    def free_device(self, buffer: DeviceBuffer) -> None:
        """Free device memory."""
        self._driver.call("cuMemFree_v2", buffer.owner)

    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy to the device."""
        self._driver.call("cuMemcpyHtoDAsync_v2", target.address, source.owner, size_bytes, stream.handle)

    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy from the device."""
        self._driver.call("cuMemcpyDtoHAsync_v2", target.owner, source.address, size_bytes, stream.handle)

    def synchronize(self, stream: Stream) -> None:
        """Wait for the stream, without holding up other Python threads."""
        self._driver.call("cuStreamSynchronize", stream.handle)

    def close(self) -> None:
        """Release the primary context; a second call does nothing."""
        if self._context is not None:
            self._context = None
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)
