"""Children that a test forks."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable

LIMIT_S = 120.0


def fork(work: Callable[[], object]) -> int:
    """Run something in a forked child, which ends with 0, or with 1 if it raised; returns the child's id.

    No garbage is collected in it: earlier tests may have left cycles that hold a model, and freeing one of OpenVINO's
    waits for ever for threads that are in the parent alone.
    """
    assert sys.platform != "win32"
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        gc.disable()
        work()
        code = 0
    finally:
        os._exit(code)


def end_of(child: int) -> int:
    """Wait for a child, and return its exit code, or minus the signal that ended it."""
    assert sys.platform != "win32"
    deadline_s = time.monotonic() + LIMIT_S
    try:
        while time.monotonic() < deadline_s:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
    except BaseException:  # as pytest's own limit
        _kill(child)
        raise
    _kill(child)
    raise AssertionError(f"the forked child was killed after {LIMIT_S:.0f} s")


def _kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
