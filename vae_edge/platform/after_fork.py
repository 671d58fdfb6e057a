"""What a fork does to a loaded model: its threads stay behind, so that a child can neither use nor free it.

A Detector that was opened before a fork raises an error in the child. What it holds is never freed there: runtimes
would wait at the child's end for threads that it does not have.
"""

from __future__ import annotations

import ctypes
import os
import sys
from weakref import WeakSet

from vae_edge.errors import DeviceError

_RUNTIMES = ("torch", "openvino", "onnxruntime", "tensorrt")

_kept: WeakSet[object] = WeakSet()
_loaded_before: frozenset[str] = frozenset()


class Process:
    """The process that something was made in."""

    def __init__(self, what: str) -> None:
        """Remember it.

        Args:
            what: `this detector`.
        """
        self._what = what
        self._pid = os.getpid()

    @property
    def is_this(self) -> bool:
        """Whether this is it, and not a child that was forked since."""
        return os.getpid() == self._pid

    def check(self) -> None:
        """Refuse to continue in a forked child.

        Raises:
            DeviceError: this is one.
        """
        if os.getpid() != self._pid:
            raise DeviceError(
                f"{self._what} was opened before the fork, and its threads did not survive the fork; open it in the "
                "worker: call Detector.open there, or start workers with the method spawn"
            )


def never_free_in_children(thing: object) -> None:
    """Keep something in children that are forked from now on, as long as this process has it then."""
    _kept.add(thing)


def was_loaded_before_fork(runtime: str) -> bool:
    """Return whether this is a forked child whose parent had loaded a runtime: its thread pools do not work here."""
    return runtime in _loaded_before


def _in_child() -> None:
    global _loaded_before
    _loaded_before |= {name for name in _RUNTIMES if name in sys.modules}
    for thing in list(_kept):
        # One reference more than anybody will give back.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
