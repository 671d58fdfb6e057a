"""The CUDA driver's own functions through ctypes: no Python package, no compiler, the same on Linux and Windows.

Only what `driver_memory` and `gpus` need is declared. Functions whose arguments changed from 32 to 64 bits have a
second version in the driver's library (`_v2`); the first is there for programs of 2010 and must not be called. Sources:
cuda.h and the CUDA Driver API's reference.
"""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

from vae_edge.errors import DeviceError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the stream does not wait for the default stream, which torch uses."""
DEVICE_MAP = 2
"""CU_MEMHOSTALLOC_DEVICEMAP: page-locked memory that the device can also read and write where it lies."""

_CU_DEVICE = c_int
_CU_DEVICE_POINTER = c_uint64
_CU_CONTEXT = c_void_p
_CU_STREAM = c_void_p

_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(_CU_DEVICE), c_int),
    "cuDeviceGetName": (c_char_p, c_int, _CU_DEVICE),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, _CU_DEVICE),
    "cuDevicePrimaryCtxRetain": (POINTER(_CU_CONTEXT), _CU_DEVICE),
    "cuDevicePrimaryCtxRelease_v2": (_CU_DEVICE,),
    "cuCtxPushCurrent_v2": (_CU_CONTEXT,),
    "cuCtxPopCurrent_v2": (POINTER(_CU_CONTEXT),),
    "cuStreamCreate": (POINTER(_CU_STREAM), c_uint),
    "cuStreamDestroy_v2": (_CU_STREAM,),
    "cuStreamSynchronize": (_CU_STREAM,),
    "cuMemAlloc_v2": (POINTER(_CU_DEVICE_POINTER), c_size_t),
    "cuMemFree_v2": (_CU_DEVICE_POINTER,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostGetDevicePointer_v2": (POINTER(_CU_DEVICE_POINTER), c_void_p, c_uint),
    "cuMemcpyHtoDAsync_v2": (_CU_DEVICE_POINTER, c_void_p, c_size_t, _CU_STREAM),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _CU_DEVICE_POINTER, c_size_t, _CU_STREAM),
}
"""The arguments of every function in use. All of them return a CUresult, an int."""

_NO_ACCESS = (
    "start a container with --runtime nvidia, and on a Jetson add the user to the group video "
    "(sudo usermod -aG video USER, then log in again)"
)
_ADVICE = {
    "CUDA_ERROR_OUT_OF_MEMORY": "close other programs that use the GPU, or use an engine for smaller batches",
    "CUDA_ERROR_NOT_INITIALIZED": "a child that was forked after CUDA started cannot use it: start workers with spawn",
    "CUDA_ERROR_DEINITIALIZED": "the program is ending: close the model before its end",
    "CUDA_ERROR_STUB_LIBRARY": "the library is a placeholder for linking: start a container with --runtime nvidia",
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "another process has the GPU for itself: end it",
    "CUDA_ERROR_NO_DEVICE": _NO_ACCESS,
    "CUDA_ERROR_OPERATING_SYSTEM": _NO_ACCESS,
    "CUDA_ERROR_NOT_PERMITTED": _NO_ACCESS,
    "CUDA_ERROR_UNKNOWN": f"{_NO_ACCESS}; if that does not help, restart the device",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated: restart the device",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "update the driver, or use a container for the CUDA of this one",
}
_ADVICE_FOR_OTHERS = "restart the program; if that does not help, restart the device"


class DeviceAttribute(IntEnum):
    """Numbers of CUdevice_attribute in cuda.h, the same in every CUDA version."""

    MULTIPROCESSOR_COUNT = 16
    INTEGRATED = 18
    CAN_MAP_HOST_MEMORY = 19
    COMPUTE_CAPABILITY_MAJOR = 75
    COMPUTE_CAPABILITY_MINOR = 76


def load_library() -> Any:
    """Load the driver's library; everything in this package that reaches the driver gets it from here.

    Raises:
        OSError: it is not there.
    """
    return ctypes.CDLL(LIBRARY)


class Driver:
    """The driver, started, with every function's arguments declared.

    Raises:
        DeviceError: there is no driver, it is too old, or it does not start.
    """

    def __init__(self) -> None:
        try:
            library = load_library()
        except OSError as error:
            raise DeviceError(
                f"the driver's library {LIBRARY} could not be loaded: install NVIDIA's driver, or start the container "
                "with --runtime nvidia"
            ) from error
        self._functions: dict[str, Any] = {}
        for name, arguments in _PROTOTYPES.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise DeviceError(f"NVIDIA's driver has no {name} and is too old: install one for CUDA 12") from error
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function
        self.call("cuInit", 0)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function; ctypes lets other Python threads run meanwhile.

        Raises:
            DeviceError: it returned an error; the message names the function and the error, and says what to do.
        """
        code = self._functions[function](*arguments)
        if code != 0:
            name, meaning = self._text("cuGetErrorName", code), self._text("cuGetErrorString", code)
            advice = _ADVICE.get(name or "", _ADVICE_FOR_OTHERS)
            raise DeviceError(f"{function} failed: {meaning or 'no reason'} ({name or f'error {code}'}); {advice}")

    @property
    def version(self) -> str:
        """The newest CUDA that the driver supports, such as `12.6`."""
        number = c_int()
        self.call("cuDriverGetVersion", byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def device_count(self) -> int:
        """Return how many GPUs there are."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value

    def device(self, index: int) -> int:
        """Return the driver's handle of a GPU."""
        device = _CU_DEVICE()
        self.call("cuDeviceGet", byref(device), index)
        return device.value

    def device_name(self, device: int) -> str:
        """Return what a GPU calls itself."""
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), device)
        return name.value.decode(errors="replace")

    def attribute(self, attribute: DeviceAttribute, device: int) -> int:
        """Return a number that the driver knows of a GPU."""
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), attribute, device)
        return value.value

    def _text(self, function: str, code: int) -> str | None:
        text = c_char_p()
        if self._functions[function](code, byref(text)) != 0 or not text.value:
            return None
        return text.value.decode(errors="replace")
