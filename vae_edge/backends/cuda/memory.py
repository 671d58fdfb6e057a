"""What the TensorRT backend needs of CUDA, and nothing more.

The implementations, `driver_memory`, `pycuda_memory` and `cuda_bindings_memory`, work in the device's primary context,
the one that torch and the CUDA runtime use too, so that all of them can live in one process.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import DeviceError


@dataclass(frozen=True, eq=False)
class Stream:
    """A queue of work on the device; never the default stream."""

    handle: int
    """The address of CUDA's own object, never 0, which is the default stream."""


@dataclass(frozen=True, eq=False)
class PinnedBuffer:
    """Host memory that the device can copy from and to while the host does something else."""

    array: NDArray[np.uint8]
    """Shape (n_bytes,). Not to be touched after the buffer is freed."""
    owner: Any
    """What the implementation frees it by."""


@dataclass(frozen=True, eq=False)
class DeviceBuffer:
    """Memory on the device."""

    address: int
    size_bytes: int
    owner: Any


class CudaMemory(ABC):
    """Memory, copies and streams of one device.

    Every method but `close` must be called inside `activate`, by any thread. Every method raises
    DeviceError, naming the CUDA call and its error, when the device or the driver fails.
    """

    library: str
    """What is behind it, with its version."""
    refused: tuple[str, ...] = ()
    """The adapters that were tried before this one, each with the reason why it did not start."""
    maps_host_memory: bool = False
    """Whether the device uses pinned memory where it lies (`map_pinned`), so that nothing has to be copied: on
    integrated GPUs, whose memory is the host's."""

    @abstractmethod
    def activate(self) -> AbstractContextManager[None]:
        """Make the device current on the calling thread for the length of a `with` block, then restore the former."""

    @abstractmethod
    def create_stream(self) -> Stream:
        """Create a stream that does not wait for the default stream."""

    @abstractmethod
    def destroy_stream(self, stream: Stream) -> None:
        """Free a stream whose work is done."""

    @abstractmethod
    def allocate_pinned(self, size_bytes: int) -> PinnedBuffer:
        """Allocate page-locked host memory."""

    @abstractmethod
    def free_pinned(self, buffer: PinnedBuffer) -> None:
        """Free page-locked host memory."""

    def map_pinned(self, buffer: PinnedBuffer) -> DeviceBuffer:
        """Return where the device sees pinned memory; it is freed with it. Only where `maps_host_memory` is true."""
        raise NotImplementedError(f"{self.library} does not map host memory")

    @abstractmethod
    def allocate_device(self, size_bytes: int) -> DeviceBuffer:
        """Allocate memory on the device."""

    @abstractmethod
    def free_device(self, buffer: DeviceBuffer) -> None:
        """Free memory on the device."""

    @abstractmethod
    def copy_in(self, target: DeviceBuffer, source: PinnedBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy of the first `size_bytes` bytes from host to device."""

    @abstractmethod
    def copy_out(self, target: PinnedBuffer, source: DeviceBuffer, size_bytes: int, stream: Stream) -> None:
        """Queue a copy of the first `size_bytes` bytes from device to host."""

    @abstractmethod
    def synchronize(self, stream: Stream) -> None:
        """Wait until everything queued on the stream is done."""

    @abstractmethod
    def close(self) -> None:
        """Release the device. Everything allocated must have been freed."""


_log = logging.getLogger(__name__)


class Lane:
    """A stream and buffers of fixed sizes, allocated once and reused. Only one thread may use it at a time.

    Where the device uses host memory in place, a tensor's two buffers are the same memory and nothing is copied: what
    the host writes before work is queued is seen by that work, and what the work writes is seen after `synchronize`.
    """

    def __init__(self, memory: CudaMemory, sizes_bytes: Mapping[str, int]) -> None:
        """Allocate everything, inside `memory.activate()`.

        Args:
            memory: the device.
            sizes_bytes: size of every tensor's buffers by tensor name.

        Raises:
            DeviceError: the device has no room; what was allocated until then has been freed again.
        """
        self._memory = memory
        self.pinned: dict[str, PinnedBuffer] = {}
        self.device: dict[str, DeviceBuffer] = {}
        self.stream = memory.create_stream()
        try:
            for name, size_bytes in sizes_bytes.items():
                pinned = self.pinned[name] = memory.allocate_pinned(size_bytes)
                if memory.maps_host_memory:
                    self.device[name] = memory.map_pinned(pinned)
                else:
                    self.device[name] = memory.allocate_device(size_bytes)
        except DeviceError:
            self.free()
            raise

    def send(self, name: str, size_bytes: int) -> None:
        """Queue the copy of one tensor's first bytes to the device, where it needs one."""
        if self._memory.maps_host_memory:
            return
        self._memory.copy_in(self.device[name], self.pinned[name], size_bytes, self.stream)

    def fetch(self, name: str, size_bytes: int) -> None:
        """Queue the copy of one tensor's first bytes from the device, where it needs one."""
        if self._memory.maps_host_memory:
            return
        self._memory.copy_out(self.pinned[name], self.device[name], size_bytes, self.stream)

    def synchronize(self) -> None:
        """Wait for everything queued."""
        self._memory.synchronize(self.stream)

    def free(self) -> None:
        """Free everything, inside `memory.activate()`. One failure does not keep the rest from being freed."""
        if not self._memory.maps_host_memory:
            for device in self.device.values():
                _freed(self._memory.free_device, device)
        for pinned in self.pinned.values():
            _freed(self._memory.free_pinned, pinned)
        _freed(self._memory.destroy_stream, self.stream)
        self.device.clear()
        self.pinned.clear()


def _freed(free: Callable[..., None], thing: object) -> None:
    try:
        free(thing)
    except DeviceError as error:
        # After a failed kernel every later CUDA call fails too; the process ends soon and nothing more can be done.
        _log.warning("could not free device memory: %s", error)
