"""Which NVIDIA GPUs there are, asked of the driver's own library, and the Python package that reaches their memory.

No Python package for CUDA is needed to list them. The answer comes first in everything that needs a GPU: a machine
without one gets a sentence about the GPU, not advice to install packages that could not help it.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from vae_edge.backends.cuda.cuda_bindings_memory import CudaBindingsMemory
from vae_edge.backends.cuda.memory import CudaMemory
from vae_edge.backends.cuda.pycuda_memory import PycudaMemory
from vae_edge.errors import DeviceError, MissingDependencyError

# Numbers of CUdevice_attribute in cuda.h, the same in every CUDA version.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """One GPU that the driver shows to this process."""

    index: int
    name: str
    compute_capability: str
    """Such as `8.7`."""

    @property
    def kind(self) -> str:
        """What all GPUs of this kind share, such as `Orin (8.7)`: what is built on one runs on the others."""
        return f"{self.name} ({self.compute_capability})"

    def __str__(self) -> str:
        return f"cuda:{self.index} ({self.name}, compute capability {self.compute_capability})"


def find_gpus() -> list[Gpu]:
    """List the GPUs in the driver's order, at least one.

    Raises:
        DeviceError: there is no driver or no GPU; the message gives the driver's reason.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise no_gpu(f"the driver's library {library} could not be loaded") from error
    _call(driver, "cuInit", 0)
    count = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise no_gpu("the driver reports no device")
    return [_describe(driver, index) for index in range(count.value)]


def no_gpu(reason: str) -> DeviceError:
    """Return the one error for a machine without a usable GPU."""
    return DeviceError(
        f"TensorRT needs an NVIDIA GPU and its driver; none was found ({reason}): "
        "run this on the device itself, or use an onnx or openvino bundle here"
    )


def _describe(driver: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(device), index)
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    return Gpu(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}")


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        meaning = text.value.decode(errors="replace") if text.value else "no text"
        raise no_gpu(f"{function} returned {code}, {meaning}")


def open_cuda_memory(index: int, extra: str) -> CudaMemory:
    """Open one device's memory with pycuda, or with cuda-bindings where pycuda is not there or does not load.

    Args:
        index: the GPU's number in the driver's order.
        extra: the extra of this package to name when neither is installed, such as `tensorrt`.

    Raises:
        DeviceError: there is no GPU or driver, or no GPU of that number.
        MissingDependencyError: neither package is installed.
    """
    gpus = find_gpus()
    if index >= len(gpus):
        raise DeviceError(f"there is no cuda:{index} here; choose from {', '.join(map(str, gpus))}")
    reasons = []
    for adapter in (PycudaMemory, CudaBindingsMemory):
        try:
            count = adapter.device_count()
        except MissingDependencyError as error:
            reasons.append(str(error))
            continue
        if index >= count:
            raise DeviceError(f"{adapter.__name__} sees {count} GPUs, so there is no cuda:{index} for it")
        return adapter(index)
    raise MissingDependencyError(
        f"TensorRT needs pycuda or cuda-bindings to access the GPU, but neither loads ({'; '.join(reasons)}); "
        f"run: pip install 'vae-edge[{extra}]'"
    )
