"""Finds TensorRT or TensorRT-RTX, checks its version, forwards its log, and reads the header of a plan file.

Both flavours have one Python API. `tensorrt` is NVIDIA's full library (JetPack on Jetson, data-center and desktop
GPUs); `tensorrt_rtx` is the one for RTX desktops, whose engines are built without a GPU. An engine runs only with the
flavour and version that built it.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.errors import DeviceError, MissingDependencyError
from vae_edge.platform.machine import look_at_machine
from vae_edge.platform.wheels import install_command, tensorrt_from_jetpack, this_platform

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavour:
    """One of the two libraries."""

    module: str
    """What is imported, and what a bundle's manifest calls it."""
    title: str
    extra: str
    """The extra of this package that installs it."""
    magic: bytes
    """The first four bytes of its plan files."""
    minimum: tuple[int, int]
    majors: range
    """Major versions that a plan's header can plausibly hold."""


FLAVOURS = {
    "tensorrt": Flavour("tensorrt", "TensorRT", "tensorrt", b"ftrt", (10, 3), range(10, 20)),
    "tensorrt_rtx": Flavour("tensorrt_rtx", "TensorRT-RTX", "tensorrt-rtx", b"vtrt", (1, 2), range(1, 10)),
}


class ErrorLog:
    """The latest errors that TensorRT logged, so that an exception can carry what the library only logs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: deque[tuple[int, str]] = deque(maxlen=32)
        self._count = 0

    def add(self, message: str) -> None:
        """Keep one error; called by TensorRT's own threads too."""
        with self._lock:
            self._count += 1
            self._errors.append((self._count, message))

    def mark(self) -> int:
        """Return a mark for `since`."""
        return self._count

    def since(self, mark: int) -> str:
        """Return the errors after a mark in one line; `no reason was logged` if there are none."""
        with self._lock:
            messages = [message for number, message in self._errors if number > mark]
        return "; ".join(dict.fromkeys(messages)) or "no reason was logged"


@dataclass(frozen=True)
class TensorRtModule:
    """An imported TensorRT, its version and its log."""

    api: Any
    """The module `tensorrt` or `tensorrt_rtx`."""
    flavour: Flavour
    version: str
    logger: Any
    """The process's one `ILogger` of this flavour: TensorRT keeps the first it was given and ignores later ones."""
    errors: ErrorLog

    def __str__(self) -> str:
        return f"{self.flavour.title} {self.version}"


@dataclass(frozen=True)
class PlanHeader:
    """What the first bytes of a plan file tell."""

    flavour: Flavour
    version: tuple[int, ...] | None
    """Major, minor, patch, build; None where those bytes hold no version that can be."""

    def __str__(self) -> str:
        version = "of unknown version" if self.version is None else ".".join(map(str, self.version))
        return f"{self.flavour.title} {version}"


class MisfitError(Exception):
    """An engine cannot be used on this device; the message is to be read after `the engine`."""


_found: dict[str, TensorRtModule] = {}
_finding = threading.Lock()


def find_tensorrt(flavour: str | None = None) -> TensorRtModule:
    """Import TensorRT once per process.

    Args:
        flavour: `tensorrt` or `tensorrt_rtx`; None: the first of them that is installed.

    Raises:
        MissingDependencyError: it is not installed or does not load; the message says what to run.
        DeviceError: it is too old.
    """
    names = list(FLAVOURS) if flavour is None else [flavour]
    reasons = []
    for name in names:
        with _finding:
            if name not in _found:
                try:
                    api = importlib.import_module(name)
                except (ImportError, OSError) as error:
                    # OSError: the bindings are there and NVIDIA's shared libraries are not.
                    reasons.append(str(error))
                    continue
                _found[name] = wrap_tensorrt(api, FLAVOURS[name])
            return _found[name]
    titles = " or ".join(FLAVOURS[name].title for name in names)
    raise MissingDependencyError(f"{titles} is not installed ({'; '.join(reasons)}); {_how_to_get(names)}")


def _how_to_get(names: Iterable[str]) -> str:
    """Return how to get one of the flavours, or to install it again, on this machine."""
    machine = look_at_machine()
    if (fix := tensorrt_from_jetpack(machine)) is not None:
        return f"on a Jetson it is a part of JetPack: {fix}"
    commands = [command for name in names if (command := install_command(FLAVOURS[name].extra, machine=machine))]
    if not commands:
        return f"there is none for {this_platform()}: use an onnx or openvino bundle"
    return f"run: {' or '.join(commands)}"


def wrap_tensorrt(api: Any, flavour: Flavour) -> TensorRtModule:
    """Check an imported module's version and give it a logger.

    Raises:
        MissingDependencyError: the module is something else of that name.
        DeviceError: its version is below the floor.
    """
    version = str(getattr(api, "__version__", ""))
    numbers = version_numbers(version)
    if not numbers or not hasattr(api, "Builder"):
        raise MissingDependencyError(
            f"the installed module {flavour.module!r} is not {flavour.title} or is damaged; uninstall it, then "
            f"{_how_to_get([flavour.module])}"
        )
    if numbers[:2] < flavour.minimum:
        floor = ".".join(map(str, flavour.minimum))
        jetson = "; on a Jetson that means JetPack 6.1 or newer" if flavour.module == "tensorrt" else ""
        raise DeviceError(f"{flavour.title} {version} is too old: vae-edge needs {floor} or newer{jetson}")
    errors = ErrorLog()
    return TensorRtModule(api, flavour, version, _forwarding_logger(api, errors), errors)


def read_plan_header(plan: Path) -> PlanHeader:
    """Read which flavour and version built a plan file.

    Both flavours begin with a magic word and hold the version, one byte each of major, minor, patch and build, at
    bytes 24 to 28: seen in full TensorRT's headers from 10.0 to 11.1 and in plans of TensorRT-RTX 1.7.

    Raises:
        DeviceError: the file cannot be read or is not a plan.
    """
    try:
        with plan.open("rb") as file:
            head = file.read(28)
    except OSError as error:
        raise DeviceError(f"the engine {plan} cannot be read ({error.strerror}); {REBUILD}") from error
    flavour = next((one for one in FLAVOURS.values() if head.startswith(one.magic)), None)
    if flavour is None or len(head) < 28:
        raise DeviceError(f"{plan} is not a TensorRT engine, or is damaged; {REBUILD}")
    version = tuple(head[24:28])
    return PlanHeader(flavour, version if version[0] in flavour.majors else None)


def judge_plan(
    plan: Path, find_module: Callable[[str | None], TensorRtModule] = find_tensorrt
) -> tuple[TensorRtModule, str | None]:
    """Return the installed TensorRT for a plan file, and why it cannot load it as far as the plan's header tells.

    A version is compared as far as the patch number: the build number is left to TensorRT itself to judge, and so is
    a header that holds no version, for its layout is not documented.

    Returns:
        The TensorRT of the plan's flavour, else the other one; and what is wrong with the plan, to be read after `the
        engine`, or None.

    Raises:
        DeviceError: TensorRT is too old.
        MissingDependencyError: no TensorRT is installed.
    """
    try:
        header = read_plan_header(plan)
    except DeviceError:
        return find_module(None), "is not a TensorRT engine, or is damaged"
    try:
        module = find_module(header.flavour.module)
    except MissingDependencyError as missing:
        other = next(name for name in FLAVOURS if name != header.flavour.module)
        try:
            module = find_module(other)
        except MissingDependencyError:
            raise missing from None
        return module, f"is for {header}, but {module} is installed"
    if header.version is not None and header.version[:3] != version_numbers(module.version)[:3]:
        return module, f"is for {header}, but {module} is installed"
    return module, None


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of `10.3.0`, `10.13.0.35` or `10.16.1.11.post1`, at most four."""
    match = re.match(r"\d+(?:\.\d+){0,3}", version)
    return tuple(int(number) for number in match.group().split(".")) if match else ()


REBUILD = "rebuild it on this device from its ONNX file: vae-export BUNDLE --target tensorrt --out DIR"
"""The way out of every unfit engine."""


_INT8_NOTE = "(foreignNode) Converting conv "
"""Begins what TensorRT-RTX 1.7 warns of twice for every INT8 convolution with FP16 scales: that it holds the scales in
FP32. The result's type is the same, and nobody can do or need do anything about it."""


def _forwarding_logger(api: Any, errors: ErrorLog) -> Any:
    """Make an `ILogger` that passes TensorRT's messages to `logging` and its errors to `errors` as well."""
    levels = {
        api.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        api.ILogger.Severity.ERROR: logging.ERROR,
        api.ILogger.Severity.WARNING: logging.WARNING,
        # What TensorRT calls information is for those who debug TensorRT.
        api.ILogger.Severity.INFO: logging.DEBUG,
        api.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    def log(self: Any, severity: Any, msg: str) -> None:
        level = levels.get(severity, logging.DEBUG)
        if level == logging.WARNING and _INT8_NOTE in msg:
            level = logging.DEBUG
        if level == logging.ERROR:
            errors.add(msg)
        if _log.isEnabledFor(level):
            _log.log(level, "%s", msg)

    # The base class is known only at run time, hence no class statement.
    return type("ForwardingLogger", (api.ILogger,), {"log": log})()
