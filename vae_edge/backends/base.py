"""The interface of every runtime, and the registry that finds it."""

from __future__ import annotations

import atexit
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import (
    BundleError,
    DeviceError,
    InputError,
    MissingDependencyError,
    UsageError,
    VaeEdgeError,
    said_by,
)
from vae_edge.manifest import TensorSpec
from vae_edge.platform.after_fork import Process, never_free_in_children
from vae_edge.platform.outside import check_current_folder
from vae_edge.platform.wheels import install_command, this_platform
from vae_edge.platform.work import StepProgress
from vae_edge.targets import SUPPORTED, Target
from vae_edge.text_enum import TextEnum
from vae_edge.wording import count

Tensors = dict[str, NDArray[Any]]


MOST_THREADS = 1024
"""Of threads or requests; a runtime that is told to start a billion tries to."""


class Hint(TextEnum):
    """What a loaded model is optimized for."""

    LATENCY = "latency"
    """Latency: the entire device works on one image."""
    THROUGHPUT = "throughput"
    """Throughput: several images concurrently, each on a part of the device."""


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime should use the device."""

    device: str = "auto"
    """`auto`, or the runtime's own name of a device: `cpu`, `gpu`, `npu`, `cuda`, `cuda:1`, `hetero:gpu,cpu`."""
    hint: Hint = Hint.LATENCY
    threads: int | None = None
    """Processor threads in use, by all inferences together; None: the backend decides."""
    requests: int | None = None
    """Concurrent inferences with `Hint.THROUGHPUT`; None: the fastest number for the device."""
    spinning: bool = False
    """Whether a runtime's idle threads keep a processor core busy while they wait for work (ONNX Runtime only). It
    gains a little on a machine that does nothing else, and loses a lot where pictures are decoded on the same cores."""
    reduced: bool = False
    """Whether floating-point layers may be computed in the device's own faster type instead of FP32, such as bfloat16
    on a CPU or FP16 on a GPU (OpenVINO, ONNX Runtime): verdicts near the threshold can change."""
    model_sha256: str | None = None
    """Hash of the model's files, the key of the cache of compiled models; None: no cache."""
    rebuild: bool = True
    """Whether a model file that does not fit this device may be rebuilt from the ONNX beside it (TensorRT)."""
    built_for: str | None = None
    """The kind of GPU that the model file was built for, from its manifest (TensorRT); None: unknown, and the runtime
    finds out whether it fits."""
    progress: StepProgress | None = field(default=None, compare=False)
    """Called with the steps of a build, which take minutes."""

    def __post_init__(self) -> None:
        for name, value in (("threads", self.threads), ("requests", self.requests)):
            if value is not None and not 1 <= value <= MOST_THREADS:
                raise UsageError(f"{name} is {value}; expected 1 to {MOST_THREADS}, or None to let the backend choose")
        if not self.device.strip():
            raise UsageError("the device is empty; expected auto or the runtime's name of a device, such as cpu")


@dataclass(frozen=True)
class DeviceChoice:
    """Which device a backend runs on and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """How a loaded model uses its device."""

    requests: int
    """Concurrent inferences; further callers wait."""
    threads: int | None
    """Processor threads in use by all of them together; None: unknown, or the processor does not compute."""
    batch: int | None
    """Images in one inference, where the model was loaded for one size only; larger batches are split. None: any."""

    def __str__(self) -> str:
        requests = count(self.requests, "request")
        threads = "" if self.threads is None else f" on {self.threads} thread{'s' * (self.threads > 1)}"
        return f"{requests}{threads}, {'any batch' if self.batch is None else f'batch {self.batch}'}"


class _Calls:
    """The calls in progress in a backend: they keep it open, and no new one starts once it is closing.

    All of it can be called by a signal handler that interrupts it, and the handler's thread never waits for itself.
    """

    def __init__(self) -> None:
        # A call takes the lock itself, and wakes others only where some wait: right after an inference, which leaves
        # nothing in the processor's caches, all that a condition does costs ten times what it costs otherwise.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._n_waiting = 0
        self._threads: list[int] = []
        """The thread of each call."""
        self.is_closed = False
        self._is_freed = False

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._lock:
            self._threads.append(me)
            if not self.is_closed and me not in _ending:
                return
            self.__exit__()
        if me in _ending:
            raise SystemExit  # It ends a thread silently.
        raise DeviceError("this model has been closed; open it again to run it")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads.remove(threading.get_ident())
            if self._n_waiting:
                self._changed.notify_all()

    def end(self) -> None:
        """Stop new calls and wait for those of other threads."""
        with self._lock:
            self.is_closed = True
            self.wait()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the calls of other threads."""
        me = threading.get_ident()
        with self._lock:
            self._n_waiting += 1
            try:
                self._changed.wait_for(lambda: all(thread == me for thread in self._threads), timeout_s)
            finally:
                self._n_waiting -= 1

    def are_in_progress(self) -> bool:
        """Return whether any thread is in a call."""
        with self._lock:
            return bool(self._threads)

    def may_free(self) -> bool:
        """Return True once, when all calls have ended and the model must be freed."""
        with self._lock:
            may = self.is_closed and not self._threads and not self._is_freed
            self._is_freed = self._is_freed or may
            return may


class Backend(ABC):
    """A loaded model: named host arrays in, named host arrays out.

    A runtime writes its constructor, which loads the model, and `_run` and `_free`. A backend knows tensors only, not
    images or verdicts. It can be called from several threads at once. `close` waits for the calls in progress; calling
    it twice is fine, calling `run` after it is not.

    A model file comes from elsewhere, so nothing that the runtime returns or throws is trusted: `open_backend`
    and `run` turn every exception into one of this package, and check every output against its spec.
    """

    separate_throughput = False
    """Whether the model has to be loaded once more, with `Hint.THROUGHPUT`, to use the device fully in a stream."""

    reduced_to: str | None = None
    """What floating-point layers are computed in where `RuntimeOptions.reduced` had an effect, such as `bfloat16`."""

    notes: tuple[str, ...] = ()
    """What the user should know of how it was loaded, such as that an engine was rebuilt."""

    rebuilt_sha256: str | None = None
    """SHA-256 of what runs, where that is not the bundle's own file but was built of it on this device."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        *,
        max_batch: int | None,
        device: DeviceChoice,
        layout: Layout,
        version: str,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.max_batch = max_batch
        self.device = device
        self.layout = layout
        self.version = version
        """The runtime and its version, such as `OpenVINO 2026.4.1`."""
        self._calls = _Calls()
        self._usual_inputs = _usual_forms(inputs)
        self._usual_outputs = _usual_forms(outputs)
        self._process = Process("this model")
        never_free_in_children(self)
        _open.add(self)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the model once.

        Args:
            feeds: one C-contiguous host array for every input, of exactly the dtype and shape of its spec.

        Returns:
            One host array for every output. They belong to the caller: no later call changes them.

        Raises:
            InputError: a name, dtype or shape does not fit the specs, or the batch is larger than `max_batch`.
            DeviceError: the runtime failed, an output does not match its spec, the backend is closed, or it
                was loaded before this process was forked.
        """
        self._process.check()
        try:
            with self._calls:
                # The full checks have the messages; what has the usual form need not go through them.
                n_images = _n_images(feeds, self._usual_inputs, self.max_batch)
                if n_images is None:
                    check_feeds(feeds, self.inputs, self.max_batch)
                try:
                    outputs = self._run(feeds)
                except VaeEdgeError:
                    raise
                except Exception as error:
                    raise DeviceError(f"{self.version} failed on {self.device.name}: {said_by(error)}") from error
                if n_images is None or _n_images(outputs, self._usual_outputs) != n_images or _sharing_memory(outputs):
                    check_outputs(outputs, self.outputs, feeds[self.inputs[0].name].shape[0])
                return outputs
        finally:
            # A signal handler that interrupted this call has closed it.
            if self._calls.is_closed and self._calls.may_free():
                self._free()

    @abstractmethod
    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run checked feeds and return outputs that belong to the caller; any exception may be thrown."""

    def close(self) -> None:
        """Wait for the calls in progress, then free the model and everything it holds on the device.

        A signal handler that interrupts a call may close it, too: the model is freed when that call has ended. In a
        child that was forked since it does nothing: the model is the parent's.
        """
        if not self._process.is_this:
            return
        self._calls.end()
        if self._calls.may_free():
            self._free()

    @abstractmethod
    def _free(self) -> None:
        """Free everything; no call is in progress, and none will follow."""

    def __enter__(self) -> Backend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_open: WeakSet[Backend] = WeakSet()
_ending: frozenset[int] = frozenset()
"""The daemon threads that are left when the program ends."""

_loading: list[int] = []
"""The threads that load a model, or decode a picture for one."""
_LAST_CALL_S = 5.0


class InNativeCode:
    """Delays the end of the program for some seconds while a daemon thread is in the block.

    A class: after an inference a generator takes twice as long, 13 microseconds more.
    """

    def __enter__(self) -> None:
        me = threading.get_ident()
        _loading.append(me)  # No lock, which a forked child would find locked.
        if me in _ending:
            _loading.remove(me)
            raise SystemExit

    def __exit__(self, *_: object) -> None:
        _loading.remove(threading.get_ident())


in_native_code = InNativeCode()
"""The only one needed: it knows nothing of a block but its thread."""


@atexit.register
def _end_daemon_threads() -> None:
    """Let no daemon thread be inside a runtime at the interpreter's end: if Python ends a thread inside C++, it aborts.

    The process ended with `terminate called without an active exception` and exit code 134.
    """
    global _ending
    _ending = frozenset(thread.ident or 0 for thread in threading.enumerate()) - {threading.get_ident()}
    for backend in list(_open):
        if backend._process.is_this:
            backend._calls.wait(_LAST_CALL_S)
    deadline = time.monotonic() + _LAST_CALL_S
    while not _ending.isdisjoint(_loading) and time.monotonic() < deadline:
        time.sleep(0.01)


_closed_at_exit: WeakSet[Backend] = WeakSet()


def close_at_exit(backend: Backend) -> None:
    """Close a backend at the interpreter's end, before every exit handler that has been registered until now.

    A backend frees what it holds through another library, whose own exit handler would leave nothing to free it with.
    """
    _closed_at_exit.add(backend)
    # Python runs the handlers in reverse order: this one moves to the front.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    _end_daemon_threads()
    for backend in list(_closed_at_exit):
        # One whose call has not ended in time stays open: freeing what that call uses would crash.
        if backend._process.is_this and not backend._calls.are_in_progress():
            backend.close()


_Forms = tuple[tuple[str, np.dtype[Any], tuple[int | None, ...]], ...]


def _usual_forms(specs: tuple[TensorSpec, ...]) -> _Forms:
    """Return name, element type and shape without the batch of tensors whose batch is the first size."""
    return tuple((spec.name, np.dtype(spec.dtype), spec.shape[1:]) for spec in specs if spec.shape[:1] == (None,))


def _n_images(arrays: Mapping[str, NDArray[Any]], forms: _Forms, max_batch: int | None = None) -> int | None:
    """Return the batch of arrays that certainly match their specs; None: look closely.

    It does with less work what `check_feeds` and `check_outputs` do with messages.
    """
    if len(arrays) != len(forms):
        return None
    n_images: int | None = None
    for name, dtype, sizes in forms:
        array = arrays.get(name)
        if type(array) is not np.ndarray or array.dtype != dtype or not array.flags.c_contiguous:
            return None
        n_here, n_before = array.shape[0] if array.shape else 0, n_images
        if n_here < 1 or array.shape[1:] != sizes or (n_before is not None and n_before != n_here):
            return None
        n_images = n_here
    return n_images if n_images is None or max_batch is None or n_images <= max_batch else None


def check_feeds(feeds: Mapping[str, NDArray[Any]], specs: tuple[TensorSpec, ...], max_batch: int | None) -> None:
    """Check host arrays against input specs.

    Raises:
        InputError: with the actual and the expected value.
    """
    if set(feeds) != {spec.name for spec in specs}:
        raise InputError(f"the inputs are {sorted(feeds)}; expected {sorted(spec.name for spec in specs)}")
    for spec in specs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            expected is None or expected == size for expected, size in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(spec.dtype) or not fits:
            expected_shape, shape = _sizes(spec.shape), _sizes(array.shape)
            raise InputError(f"input {spec.name!r} is {array.dtype} {shape}; expected {spec.dtype} {expected_shape}")
        if array.shape[0] < 1 or (max_batch is not None and array.shape[0] > max_batch):
            limit = "1 or more" if max_batch is None else f"1 to {max_batch}"
            raise InputError(f"the batch has {count(array.shape[0], 'image')}; this model accepts {limit} at a time")
        if not array.flags.c_contiguous:
            raise InputError(f"input {spec.name!r} is not C-contiguous; pass numpy.ascontiguousarray of it")


def check_outputs(outputs: Tensors, specs: tuple[TensorSpec, ...], batch: int) -> None:
    """Check a model's outputs against the specs; takes a few microseconds.

    Raises:
        DeviceError: with the actual and the expected value.
    """
    for spec in specs:
        array = outputs.get(spec.name)
        expected = tuple(batch if size is None else size for size in spec.shape)
        if not isinstance(array, np.ndarray) or array.dtype != spec.dtype or array.shape != expected:
            came = f"{array.dtype} {_sizes(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise DeviceError(
                f"the model gave {came} as its output {spec.name!r}; expected {spec.dtype} {_sizes(expected)}: "
                "it is not a vae-edge model or is damaged; export the bundle again"
            )
    shared = _sharing_memory(outputs)
    if shared is not None:
        raise DeviceError(f"the outputs {shared[0]!r} and {shared[1]!r} share memory; export the bundle again")


def _sharing_memory(outputs: Tensors) -> tuple[str, str] | None:
    for one, other in combinations(outputs, 2):
        if np.may_share_memory(outputs[one], outputs[other]):
            return one, other
    return None


Signature = Mapping[str, tuple[str, tuple[int | None, ...]]]
"""The inputs or outputs that a loaded model declares: name to element type, such as `float32`, and shape; None for a
size that is not fixed."""


def check_signature(
    model: Path,
    found: tuple[Signature, Signature],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> None:
    """Check the inputs and outputs that a loaded model declares; an output's batch has to be the input's.

    Args:
        model: the file, for the message.
        found: the model's inputs and its outputs.
        inputs: what the manifest lists.
        outputs: the same for the outputs.

    Raises:
        BundleError: a name, element type, rank or fixed size differs.
    """
    batch: int | None = None
    for kind, declared, specs in (("input", found[0], inputs), ("output", found[1], outputs)):
        if set(declared) != {spec.name for spec in specs}:
            raise BundleError(
                f"{model} has the {kind}s {_quoted(declared)}; expected {_quoted(spec.name for spec in specs)}: "
                "it is not a vae-edge model; export the bundle again"
            )
        if kind == "input":
            batch = next((shape[0] for _, shape in declared.values() if shape), None)
        for spec in specs:
            dtype, shape = declared[spec.name]
            expected = tuple(batch if size is None else size for size in spec.shape)
            fits = len(shape) == len(expected) and all(
                size is None or size == wanted for size, wanted in zip(shape, expected, strict=True)
            )
            if dtype != spec.dtype or not fits:
                raise BundleError(
                    f"{model} has the {kind} {spec.name!r} as {dtype} {_sizes(shape)}; expected {spec.dtype} "
                    f"{_sizes(expected)}: it is not a vae-edge model; export the bundle again"
                )


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "x".join("N" if size is None else str(size) for size in shape) or "scalar"


def _quoted(names: Iterable[str]) -> str:
    """Return the first names, truncated and escaped: they come from an untrusted file."""
    shown = sorted(names)
    return ", ".join(repr(name[:80]) for name in shown[:5]) + (", ..." if len(shown) > 5 else "") or "(none)"


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
        BundleError: the runtime cannot load the model, or it has other inputs or outputs.
        DeviceError: the runtime is damaged or has no such device, or a device other than the processor cannot load it.
    """
    record = SUPPORTED[target]
    module_name, class_name = record.backend.split(":")
    if target is Target.TORCH:
        check_current_folder()
    try:
        backend_class: Any = getattr(import_module(module_name), class_name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "vae_edge":
            raise
        raise missing_runtime(target, error.name) from error
    except VaeEdgeError:
        raise
    except Exception as error:
        # The package is there and one of its libraries is not, is for another system or for another NumPy.
        raise DeviceError(
            f"the package for target {target} is installed but does not load ({said_by(error)}); "
            f'run: pip install --force-reinstall "vae-edge[{record.extra}]"'
        ) from error
    options = options or RuntimeOptions()
    if target in (Target.ONNX, Target.TORCH):
        _check_is_text(model)
    me = threading.get_ident()
    _loading.append(me)  # No lock, which a forked child would find locked.
    try:
        if me in _ending:
            raise SystemExit
        backend: Backend = backend_class(model, inputs, outputs, max_batch=max_batch, options=options)
    except (VaeEdgeError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # A panic in Rust is none of Exception.
        message = f"{model} cannot be loaded by the runtime of target {target}: {said_by(error)}"
        if isinstance(error, MemoryError):
            raise DeviceError(f"{message}; close other programs, or use a device with more memory") from error
        if options.device.strip().lower() not in ("auto", "cpu"):
            raise DeviceError(f"{message}; check the driver of {options.device}, or open with device='cpu'") from error
        raise BundleError(
            f"{message}; export the bundle again, or install the version of the runtime that its manifest names"
        ) from error
    finally:
        _loading.remove(me)
    return backend


def _check_is_text(model: Path) -> None:
    try:
        str(model).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"{model} has a name that is not UTF-8, which this runtime cannot open; rename that file or folder"
        ) from error


def missing_runtime(target: Target, package: str) -> MissingDependencyError:
    """Return the error for a target whose runtime is not installed, with the command that installs it."""
    command = install_command(SUPPORTED[target].extra)
    none = f"pip finds no wheel of it for {this_platform()}: use a bundle for another target"
    advice = none if command is None else f"run: {command}"
    return MissingDependencyError(f"target {target} needs the package {package!r}, which is not installed; {advice}")
