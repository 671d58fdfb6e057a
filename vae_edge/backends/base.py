"""The interface that every runtime is used through, and the registry that finds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import DeviceError, InputError, MissingDependencyError, UsageError
from vae_edge.manifest import TensorSpec
from vae_edge.targets import SUPPORTED, Target

Tensors = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime is to use the device."""

    device: str = "auto"
    """`auto`, or the runtime's own name of a device: `cpu`, `gpu`, `npu`, `cuda`, `cuda:1`."""
    threads: int | None = None
    """Processor threads for one inference; None: the runtime decides."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}; expected 1 or more, or nothing for the runtime's own choice")
        if not self.device.strip():
            raise UsageError("the device is empty; expected auto, cpu, gpu, npu, cuda or cuda:N")


@dataclass(frozen=True)
class DeviceChoice:
    """Which device a backend runs on and why."""

    name: str
    reason: str


class Backend(ABC):
    """A loaded model: named host arrays in, named host arrays out.

    A runtime writes its constructor, which loads the model, and `_run` and `close`. A backend knows tensors only, not
    images or verdicts. It can be called from several threads at once. `close` twice is fine, `run` after it is not.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        max_batch: int | None,
        device: DeviceChoice,
        version: str,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.max_batch = max_batch
        self.device = device
        self.version = version
        """The runtime and its version, such as `OpenVINO 2026.4.1`."""
        self._closed = False

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the model once.

        Args:
            feeds: one C-contiguous host array for every input, of exactly the dtype and shape of its spec.

        Returns:
            One host array for every output. They are the caller's: no later call changes them.

        Raises:
            InputError: a name, dtype or shape does not fit the specs, or the batch is larger than `max_batch`.
            DeviceError: the runtime failed, or the backend is closed.
        """
        if self._closed:
            raise DeviceError("this model has been closed; open it again to run it")
        check_feeds(feeds, self.inputs, self.max_batch)
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run checked feeds and return outputs that belong to the caller."""

    def close(self) -> None:
        """Free the model and everything it holds on the device."""
        self._closed = True

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_feeds(feeds: Mapping[str, NDArray[Any]], specs: tuple[TensorSpec, ...], max_batch: int | None) -> None:
    """Check host arrays against input specs.

    Raises:
        InputError: what came, what was expected.
    """
    if set(feeds) != {spec.name for spec in specs}:
        raise InputError(f"the inputs are {sorted(feeds)}; expected {sorted(spec.name for spec in specs)}")
    for spec in specs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            expected is None or expected == size for expected, size in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits:
            expected_shape = "x".join("N" if size is None else str(size) for size in spec.shape)
            shape = "x".join(map(str, array.shape))
            raise InputError(f"input {spec.name!r} is {array.dtype} {shape}; expected {spec.dtype} {expected_shape}")
        if array.shape[0] < 1 or (max_batch is not None and array.shape[0] > max_batch):
            limit = "1 or more" if max_batch is None else f"1 to {max_batch}"
            raise InputError(f"the batch holds {array.shape[0]} images; this model takes {limit} at a time")
        if not array.flags.c_contiguous:
            raise InputError(f"input {spec.name!r} is not C-contiguous; pass numpy.ascontiguousarray of it")


def open_backend(
    target: Target,
    model: Path,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    max_batch: int | None = None,
    options: RuntimeOptions | None = None,
) -> Backend:
    """Load a model file with the runtime it was made for.

    Raises:
        MissingDependencyError: the runtime is not installed; the message says what to install.
        DeviceError: the runtime is damaged, cannot load the model or has no such device.
    """
    record = SUPPORTED[target]
    module_name, class_name = record.backend.split(":")
    try:
        backend_class = cast("type[Any]", getattr(import_module(module_name), class_name))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "vae_edge":
            raise
        raise missing_runtime(target, error.name) from error
    except (ImportError, OSError) as error:
        # The package is there and one of its libraries is not, or is for another system.
        raise DeviceError(
            f"the package for target {target} is installed and does not load ({error}); "
            f"run: pip install --force-reinstall 'vae-edge[{record.extra}]'"
        ) from error
    backend: Backend = backend_class(model, inputs, outputs, max_batch=max_batch, options=options or RuntimeOptions())
    return backend


def missing_runtime(target: Target, package: str) -> MissingDependencyError:
    """Return the error for a target whose runtime is not installed, with the command that installs it."""
    return MissingDependencyError(
        f"target {target} needs the package {package!r}, which is not installed; "
        f"run: pip install 'vae-edge[{SUPPORTED[target].extra}]'"
    )
