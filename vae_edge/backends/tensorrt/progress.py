"""TensorRT's progress passed on, and Ctrl-C heard, while an engine is built."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeVar

from vae_edge.platform.work import StepProgress, result_of

_Built = TypeVar("_Built")

Activate = Callable[[], AbstractContextManager[None]]
"""Makes a GPU current on the calling thread for the length of a `with` block."""


class BuildMonitor:
    """Passes TensorRT's progress on. TensorRT calls it from its own threads, and no exception may reach it."""

    def __init__(self, progress: StepProgress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._steps: dict[str, int] = {}
        self._kept: BaseException | None = None

    def start(self, phase: str, n_steps: int) -> None:
        """Begin a phase."""
        with self._lock:
            self._steps[phase] = n_steps
            self._tell(phase, 0)

    def step(self, phase: str, step: int) -> bool:
        """Finish a step, counted from 0; False asks TensorRT to stop the build."""
        with self._lock:
            self._tell(phase, step + 1)
            return self._kept is None

    def finish(self, phase: str) -> None:
        """End a phase."""
        with self._lock:
            self._tell(phase, self._steps.get(phase, 0))

    def stop(self, reason: BaseException) -> None:
        """End the build at its next step."""
        if self._kept is None:
            self._kept = reason

    def raise_kept(self) -> None:
        """Raise what ended the build, if something did."""
        if self._kept is not None:
            raise self._kept

    def attach(self, api: Any, config: Any) -> Any:
        """Listen to a build, where this TensorRT has progress monitors, and return the listener.

        The caller has to hold it until the build is over: TensorRT does not, and calls into one that no longer exists
        crash.
        """
        if not hasattr(api, "IProgressMonitor"):
            return None
        monitor = self

        def phase_start(self: Any, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.start(phase_name, num_steps)

        def step_complete(self: Any, phase_name: str, step: int) -> bool:
            return monitor.step(phase_name, step)

        def phase_finish(self: Any, phase_name: str) -> None:
            monitor.finish(phase_name)

        # The base class is known only at run time, hence no class statement.
        listener = type(
            "ProgressListener",
            (api.IProgressMonitor,),
            {"phase_start": phase_start, "step_complete": step_complete, "phase_finish": phase_finish},
        )()
        config.progress_monitor = listener
        return listener

    def _tell(self, phase: str, done: int) -> None:
        if self._progress is None or self._kept is not None:
            return
        try:
            self._progress(phase, done, self._steps.get(phase, 0))
        except BaseException as error:  # noqa: BLE001 - kept, and raised again once TensorRT has returned
            self._kept = error


def build_apart(build: Callable[[], _Built], monitor: BuildMonitor, activate: Activate) -> _Built:
    """Run a build in its own thread, so that Ctrl-C ends it.

    Python raises KeyboardInterrupt in the main thread, in whatever code it runs there next. During a build that is a
    callback of TensorRT's, which swallows it. Here the main thread only waits, and asks the build to stop.

    Args:
        build: what to run; it raises `monitor.raise_kept()` when TensorRT has returned.
        monitor: the build's.
        activate: makes the device current on a thread.
    """

    def work() -> _Built:
        with activate():
            return build()

    pool = ThreadPoolExecutor(1, thread_name_prefix="vae-edge-build")
    future = pool.submit(work)
    pool.shutdown(wait=False)
    try:
        return result_of(future)
    except BaseException as error:
        monitor.stop(error)
        while not future.done():
            # Python cannot end while TensorRT is at work, so pressing Ctrl-C again must not get past this.
            with suppress(KeyboardInterrupt):
                wait([future])
        raise
