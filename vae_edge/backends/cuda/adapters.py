"""Which adapter reaches a GPU's memory: the driver itself, or a Python package."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial

from vae_edge.backends.cuda.cuda_bindings_memory import CudaBindingsMemory
from vae_edge.backends.cuda.driver import Driver
from vae_edge.backends.cuda.driver_memory import DriverMemory
from vae_edge.backends.cuda.gpus import find_gpus
from vae_edge.backends.cuda.memory import CudaMemory
from vae_edge.backends.cuda.pycuda_memory import PycudaMemory
from vae_edge.errors import DeviceError, MissingDependencyError, UsageError

_log = logging.getLogger(__name__)

VARIABLE = "VAE_EDGE_CUDA"
"""The environment variable that chooses an adapter; unset or empty: the first that starts."""

_IN_ORDER: Mapping[str, Callable[[int], CudaMemory]] = {
    "driver": DriverMemory,
    "pycuda": PycudaMemory,
    "cuda-bindings": CudaBindingsMemory,
}
"""What is tried without a choice, first to last."""

CHOICES = (*_IN_ORDER, "driver-copies")
"""Values of the variable. `driver-copies` is the driver with copies also on a GPU that shares the host's memory, to
compare the two there."""


def chosen_adapter() -> str | None:
    """Return the adapter that the environment variable names, or None.

    Raises:
        UsageError: there is none of that name.
    """
    name = os.environ.get(VARIABLE, "").strip()
    if name and name not in CHOICES:
        raise UsageError(f"{VARIABLE} is {name!r}; expected one of {', '.join(CHOICES)}, or nothing")
    return name or None


def open_cuda_memory(index: int) -> CudaMemory:
    """Open one device's memory with the adapter that is chosen, or else with the first that starts.

    Args:
        index: the GPU's number in the driver's order.

    Returns:
        The memory; its `refused` names the adapters that were tried before it, each with the reason.

    Raises:
        UsageError: the environment variable names no adapter.
        DeviceError: there is no GPU or driver, no GPU of that number, or no adapter starts.
        MissingDependencyError: the package of the chosen adapter is not installed.
    """
    choice = chosen_adapter()
    gpus = find_gpus()
    if index >= len(gpus):
        raise DeviceError(f"there is no cuda:{index} here; choose from {', '.join(map(str, gpus))}")
    if choice is not None:
        return _open_chosen(choice, index)
    refused: list[str] = []
    for name, adapter in _IN_ORDER.items():
        try:
            memory = adapter(index)
        except (DeviceError, MissingDependencyError) as error:
            _log.debug("the CUDA adapter %s does not start: %s", name, error)
            refused.append(_with_name(name, error))
            continue
        if refused:
            _log.warning("the GPU is used through %s: %s", memory.library, "; ".join(refused))
        memory.refused = tuple(refused)
        return memory
    raise DeviceError(f"cuda:{index} cannot be used: no CUDA adapter starts ({'; '.join(refused)})")


def _open_chosen(choice: str, index: int) -> CudaMemory:
    adapter = _IN_ORDER[choice] if choice in _IN_ORDER else partial(DriverMemory, copies=True)
    try:
        return adapter(index)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"{VARIABLE} chooses {choice}, which does not load ({error}); "
            f"run: {_how_to_install(choice)}, or unset {VARIABLE}"
        ) from error
    except DeviceError as error:
        raise DeviceError(f"{VARIABLE} chooses {choice}, which does not start: {error}") from error


def _how_to_install(choice: str) -> str:
    if choice == "pycuda":  # It is compiled by nvcc, which is not on the path of a Jetson.
        path = "PATH=/usr/local/cuda/bin:$PATH " if sys.platform == "linux" else ""
        return f'{path}pip install "vae-edge[pycuda]"'
    # The newest is for CUDA 13; JetPack 6 has CUDA 12.
    old = ' "cuda-bindings<13"' if int(Driver().version.partition(".")[0]) < 13 else ""
    return f'pip install "vae-edge[{choice}]"{old}'


def _with_name(name: str, error: Exception) -> str:
    return str(error) if str(error).startswith(name) else f"{name}: {error}"
