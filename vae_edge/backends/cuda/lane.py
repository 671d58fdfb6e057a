"""One thread's own way through the device: a stream, and a pinned and a device buffer for every tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from vae_edge.backends.cuda.memory import CudaMemory, DeviceBuffer, PinnedBuffer
from vae_edge.errors import DeviceError

_log = logging.getLogger(__name__)


class Lane:
    """A stream and buffers of fixed sizes, allocated once and reused. Only one thread may use it at a time."""

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
                self.pinned[name] = memory.allocate_pinned(size_bytes)
                self.device[name] = memory.allocate_device(size_bytes)
        except DeviceError:
            self.free()
            raise

    def send(self, name: str, size_bytes: int) -> None:
        """Queue the copy of one tensor's first bytes to the device."""
        self._memory.copy_in(self.device[name], self.pinned[name], size_bytes, self.stream)

    def fetch(self, name: str, size_bytes: int) -> None:
        """Queue the copy of one tensor's first bytes from the device."""
        self._memory.copy_out(self.pinned[name], self.device[name], size_bytes, self.stream)

    def synchronize(self) -> None:
        """Wait for everything queued."""
        self._memory.synchronize(self.stream)

    def free(self) -> None:
        """Free everything, inside `memory.activate()`. One failure does not keep the rest from being freed."""
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
        _log.warning("could not free memory of the device: %s", error)
