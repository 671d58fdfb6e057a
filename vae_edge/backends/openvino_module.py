"""Holds OpenVINO's core."""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from weakref import WeakSet

from vae_edge.errors import DeviceError
from vae_edge.platform.after_fork import never_free_in_children
from vae_edge.platform.telemetry import import_openvino


@cache
def openvino_core() -> Any:
    """Return the process's one `openvino.Core`, which is never freed.

    The CPU plugin gives the thread that loads it a stack for signals of its own (room for wide registers), and takes it
    back when it is freed. With two cores that are not freed in the reverse order, a thread is left with a stack that is
    no longer mapped, and the next signal, such as Ctrl-C, ends the process with a segmentation fault (seen with
    OpenVINO 2026.4.1). One core serves all threads and models.

    Raises:
        ModuleNotFoundError: openvino is not installed.
    """
    core = import_openvino().Core()
    never_free_in_children(core)
    return core


_n_begun = 0
_there: WeakSet[object] = WeakSet()
_cannot_load = False


def check_can_load() -> None:
    """Say that a model is to be loaded, by a backend or by other code, and refuse if that would hang.

    OpenVINO keeps the threads of a model that was freed for the next one. In a forked child they are missing, and the
    next one waits for them (seen with OpenVINO 2026.4.1). Threads of models that are still there are not taken.

    Raises:
        DeviceError: this process was forked after a model had been freed.
    """
    global _n_begun
    if _cannot_load:
        raise DeviceError(
            "OpenVINO loaded and freed a model before this process was forked, and cannot load one in the child; start "
            "workers with the method spawn or forkserver, or load the first model in the worker"
        )
    _n_begun += 1


def model_is_there(model: object) -> None:
    """Say that what `check_can_load` announced has been loaded."""
    _there.add(model)


def model_is_freed(model: object) -> None:
    """Say that it was freed."""
    _there.discard(model)


def _in_child() -> None:
    global _cannot_load
    _cannot_load = _cannot_load or _n_begun > len(_there)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def version_of(openvino: Any) -> str:
    """Return OpenVINO's version without the build: `2026.4.1`."""
    return str(openvino.__version__).split("-")[0]
