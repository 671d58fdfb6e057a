"""Chooses between pycuda and cuda-bindings."""

from __future__ import annotations

from vae_edge.backends.cuda.cuda_bindings_memory import CudaBindingsMemory
from vae_edge.backends.cuda.driver import find_gpus
from vae_edge.backends.cuda.memory import CudaMemory
from vae_edge.backends.cuda.pycuda_memory import PycudaMemory
from vae_edge.errors import DeviceError, MissingDependencyError


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
        f"TensorRT needs pycuda or cuda-bindings to reach the GPU, and neither loads ({'; '.join(reasons)}); "
        f"run: pip install 'vae-edge[{extra}]'"
    )
