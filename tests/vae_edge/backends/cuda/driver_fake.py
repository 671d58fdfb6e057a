"""A CUDA driver that is host memory: C functions under the driver's names, called through ctypes like the real ones.

Every function knows from cuda.h what its arguments are, and refuses a caller that declared others. Copies are done when
their stream is synchronized. What a real driver would answer with a crash or silence is kept in `misuses`.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import pytest

from vae_edge.backends.cuda import driver

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_DEVICE, INVALID_CONTEXT, INVALID_HANDLE = 1, 2, 3, 101, 201, 400
NO_DEVICE, OPERATING_SYSTEM = 100, 304
ERRORS = {
    INVALID_VALUE: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    OUT_OF_MEMORY: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    NOT_INITIALIZED: ("CUDA_ERROR_NOT_INITIALIZED", "initialization error"),
    NO_DEVICE: ("CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"),
    INVALID_DEVICE: ("CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"),
    INVALID_CONTEXT: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    OPERATING_SYSTEM: ("CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"),
    INVALID_HANDLE: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
}

C_TYPES: dict[str, Any] = {
    "int": c_int,
    "unsigned": c_uint,
    "size_t": c_size_t,
    "CUresult": c_int,
    "CUdevice": c_int,
    "CUdevice_attribute": c_int,
    "CUdeviceptr": c_uint64,
    "CUcontext": c_void_p,
    "CUstream": c_void_p,
    "void*": c_void_p,
    "char*": c_char_p,
    "int*": POINTER(c_int),
    "CUdevice*": POINTER(c_int),
    "CUdeviceptr*": POINTER(c_uint64),
    "CUcontext*": POINTER(c_void_p),
    "CUstream*": POINTER(c_void_p),
    "void**": POINTER(c_void_p),
    "char**": POINTER(c_char_p),
}
HEADER = {
    "cuInit": "unsigned",
    "cuDriverGetVersion": "int*",
    "cuGetErrorName": "CUresult char**",
    "cuGetErrorString": "CUresult char**",
    "cuDeviceGetCount": "int*",
    "cuDeviceGet": "CUdevice* int",
    "cuDeviceGetName": "char* int CUdevice",
    "cuDeviceGetAttribute": "int* CUdevice_attribute CUdevice",
    "cuDevicePrimaryCtxRetain": "CUcontext* CUdevice",
    "cuDevicePrimaryCtxRelease_v2": "CUdevice",
    "cuCtxPushCurrent_v2": "CUcontext",
    "cuCtxPopCurrent_v2": "CUcontext*",
    "cuStreamCreate": "CUstream* unsigned",
    "cuStreamDestroy_v2": "CUstream",
    "cuStreamSynchronize": "CUstream",
    "cuMemAlloc_v2": "CUdeviceptr* size_t",
    "cuMemFree_v2": "CUdeviceptr",
    "cuMemHostAlloc": "void** size_t unsigned",
    "cuMemFreeHost": "void*",
    "cuMemHostGetDevicePointer_v2": "CUdeviceptr* void* unsigned",
    "cuMemcpyHtoDAsync_v2": "CUdeviceptr void* size_t CUstream",
    "cuMemcpyDtoHAsync_v2": "void* CUdeviceptr size_t CUstream",
}
"""The functions' arguments as cuda.h of CUDA 12 has them."""

GARBAGE = 0xA5
_CONTEXT = 0x7EAC_0000_1000
_FIRST_STREAM = 0x7EAC_0000_2000
_MAPPED = 2


class DriverFake:
    """The driver's library.

    Args:
        integrated: whether the GPU shares the host's memory.
        can_map: whether it can use host memory in place.
        n_devices: how many GPUs there are; their numbers of multiprocessors are 16, 17, ...
        missing: functions that this version of the driver lacks.
    """

    def __init__(
        self, *, integrated: bool = False, can_map: bool = True, n_devices: int = 1, missing: tuple[str, ...] = ()
    ) -> None:
        self.attributes = {18: int(integrated), 19: int(can_map), 75: 8, 76: 7}
        self.n_devices = n_devices
        self.calls: Counter[str] = Counter()
        self.misuses: list[str] = []
        self.fault: tuple[str, int, int] | None = None
        """A function, which of its calls fails, counted from 1, and the code that it returns."""
        self.retained = 0
        self.pinned: dict[int, tuple[Any, bool]] = {}
        self.device: dict[int, Any] = {}
        self.streams: dict[int, list[tuple[int, int, int]]] = {}
        self._is_started = False
        self._last_stream = _FIRST_STREAM
        self._stack = threading.local()
        self._lock = threading.RLock()
        self._texts = {code: tuple(map(str.encode, texts)) for code, texts in ERRORS.items()}
        for name, arguments in HEADER.items():
            if name not in missing:
                setattr(self, name, self._exported(name, [C_TYPES[each] for each in arguments.split()]))

    def live(self) -> int:
        """Return how many things are allocated."""
        return len(self.pinned) + len(self.device) + len(self.streams) + self.retained

    def depth(self) -> int:
        """Return how many contexts are on this thread's stack."""
        return len(self._contexts())

    def _contexts(self) -> list[int]:
        contexts: list[int] = self._stack.__dict__.setdefault("contexts", [])
        return contexts

    def _exported(self, name: str, types: list[Any]) -> Any:
        """Make the C function."""
        # Pointers come in as addresses, to be written through.
        raw = [each if each in (c_int, c_uint, c_size_t, c_uint64) else c_void_p for each in types]
        body: Callable[..., int] = getattr(self, f"_{name.removesuffix('_v2')}")

        def called(*arguments: Any) -> int:
            try:
                with self._lock:
                    if list(exported.argtypes) != types or exported.restype is not c_int:
                        raise AssertionError(f"{name} was declared as {exported.argtypes}; cuda.h says {types}")
                    self.calls[name] += 1
                    if self.fault is not None and self.fault[:2] == (name, self.calls[name]):
                        return self.fault[2]
                    if not self._is_started and name not in ("cuInit", "cuGetErrorName", "cuGetErrorString"):
                        return NOT_INITIALIZED
                    return body(*arguments)
            except Exception as error:  # noqa: BLE001 - no exception passes through C
                self.misuses.append(f"{name}: {error}")
                return INVALID_VALUE

        exported: Any = CFUNCTYPE(c_int, *raw)(called)
        # Nothing is declared yet, as in a library that was just loaded.
        exported.argtypes, exported.restype = [], None
        return exported

    def _cuInit(self, flags: int) -> int:
        self._is_started = True
        return INVALID_VALUE if flags else 0

    def _cuDriverGetVersion(self, version: int) -> int:
        c_int.from_address(version).value = 12060
        return 0

    def _cuGetErrorName(self, code: int, text: int, which: int = 0) -> int:
        if code not in self._texts:
            c_void_p.from_address(text).value = None
            return INVALID_VALUE
        c_char_p.from_address(text).value = self._texts[code][which]
        return 0

    def _cuGetErrorString(self, code: int, text: int) -> int:
        return self._cuGetErrorName(code, text, 1)

    def _cuDeviceGetCount(self, count: int) -> int:
        c_int.from_address(count).value = self.n_devices
        return 0

    def _cuDeviceGet(self, device: int, ordinal: int) -> int:
        if not 0 <= ordinal < self.n_devices:
            return INVALID_DEVICE
        # A handle that is no ordinal: one may not be used for the other.
        c_int.from_address(device).value = 1000 + ordinal
        return 0

    def _cuDeviceGetName(self, name: int, length: int, device: int) -> int:
        self._check_device(device)
        text = b"Orin"[: length - 1] + b"\0"
        ctypes.memmove(name, text, len(text))
        return 0

    def _cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> int:
        self._check_device(device)
        found = {**self.attributes, 16: 16 + device - 1000}.get(attribute)
        if found is None:
            return INVALID_VALUE
        c_int.from_address(value).value = found
        return 0

    def _check_device(self, device: int) -> None:
        if not 1000 <= device < 1000 + self.n_devices:
            raise AssertionError(f"{device} is no device's handle")

    def _cuDevicePrimaryCtxRetain(self, context: int, device: int) -> int:
        self._check_device(device)
        self.retained += 1
        c_void_p.from_address(context).value = _CONTEXT
        return 0

    def _cuDevicePrimaryCtxRelease(self, device: int) -> int:
        self._check_device(device)
        if not self.retained:
            raise AssertionError("a context was released that was not retained")
        self.retained -= 1
        return 0

    def _cuCtxPushCurrent(self, context: int) -> int:
        if context != _CONTEXT or not self.retained:
            return INVALID_CONTEXT
        self._contexts().append(context)
        return 0

    def _cuCtxPopCurrent(self, context: int) -> int:
        if not self._contexts():
            return INVALID_CONTEXT
        c_void_p.from_address(context).value = self._contexts().pop()
        return 0

    def _check_context(self) -> None:
        if not self._contexts():
            raise AssertionError("no context is current on this thread")

    def _cuStreamCreate(self, stream: int, flags: int) -> int:
        self._check_context()
        if flags != 1:
            raise AssertionError("the stream waits for the default stream")
        self._last_stream += 16
        self.streams[self._last_stream] = []
        c_void_p.from_address(stream).value = self._last_stream
        return 0

    def _cuStreamDestroy(self, stream: int) -> int:
        self._check_context()
        if self.streams.get(stream):
            raise AssertionError("a stream was destroyed with work in it")
        return INVALID_HANDLE if self.streams.pop(stream, None) is None else 0

    def _cuStreamSynchronize(self, stream: int) -> int:
        self._check_context()
        if stream not in self.streams:
            return INVALID_HANDLE
        for target, source, size in self.streams[stream]:
            ctypes.memmove(target, source, size)
        self.streams[stream].clear()
        return 0

    def _cuMemAlloc(self, pointer: int, size: int) -> int:
        self._check_context()
        if size == 0:
            return INVALID_VALUE
        block = _filled(size)
        self.device[ctypes.addressof(block)] = block
        c_uint64.from_address(pointer).value = ctypes.addressof(block)
        return 0

    def _cuMemFree(self, pointer: int) -> int:
        self._check_context()
        return INVALID_VALUE if self.device.pop(pointer, None) is None else 0

    def _cuMemHostAlloc(self, pointer: int, size: int, flags: int) -> int:
        self._check_context()
        if size == 0 or flags not in (0, _MAPPED):
            return INVALID_VALUE
        block = _filled(size)
        self.pinned[ctypes.addressof(block)] = block, flags == _MAPPED
        c_void_p.from_address(pointer).value = ctypes.addressof(block)
        return 0

    def _cuMemFreeHost(self, pointer: int) -> int:
        self._check_context()
        return INVALID_VALUE if self.pinned.pop(pointer, None) is None else 0

    def _cuMemHostGetDevicePointer(self, pointer: int, host: int, flags: int) -> int:
        self._check_context()
        _, is_mapped = self.pinned[host]
        if flags or not is_mapped:
            return INVALID_VALUE
        c_uint64.from_address(pointer).value = host
        return 0

    def _cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copy(target, source, size, stream, self.device[target], self.pinned[source][0])

    def _cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> int:
        return self._copy(target, source, size, stream, self.pinned[target][0], self.device[source])

    def _copy(self, target: int, source: int, size: int, stream: int, *blocks: Any) -> int:
        self._check_context()
        if size > min(map(ctypes.sizeof, blocks)):
            raise AssertionError("a copy is larger than its buffer")
        if stream not in self.streams:
            return INVALID_HANDLE
        self.streams[stream].append((target, source, size))
        return 0


def _filled(size: int) -> Any:
    block = (ctypes.c_uint8 * size)()
    ctypes.memset(block, GARBAGE, size)
    return block


def use(fake: DriverFake, monkeypatch: pytest.MonkeyPatch) -> DriverFake:
    """Let the package load a fake instead of the driver's library."""
    monkeypatch.setattr(driver, "load_library", lambda: fake)
    return fake
