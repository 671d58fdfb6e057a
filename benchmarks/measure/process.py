"""Start a program, watch it from outside and read its result: the one place that launches measured processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.measure.instruments import EVENT_PREFIX, high_water_mark
from vae_edge.errors import DeviceError
from vae_edge.platform import windows
from vae_edge.platform.windows import exit_code_text

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True)
class Finished:
    """What was observed of a process from outside."""

    status: int
    """The exit status: 0 or what it failed with; negative: the signal that ended it."""
    output: str
    first_result_ns: int | None
    """From just before it was started until the line of its first result arrived."""
    peak_bytes: int | None
    """The most physical memory it held; None unless it was requested and the system provides it."""
    complaint: str
    """The last line that it wrote to standard error, or else to standard output."""

    @property
    def ending(self) -> str:
        """How it ended, in words, with its last message."""
        if self.status >= 0:
            how = f"ended with status {exit_code_text(self.status)}"
        else:
            names = {each.value: each.name for each in signal.Signals}
            how = f"was ended by {names.get(-self.status, f'signal {-self.status}')}"
        return f"{how}: {self.complaint}" if self.complaint else how


def run_process(
    command: Sequence[str],
    timeout_s: float,
    *,
    is_first_result: Callable[[str], bool] = lambda line: False,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    watch_memory: bool = False,
    cancel: threading.Event | None = None,
    log: Path | None = None,
    must_succeed: bool = True,
) -> Finished:
    """Run a program and wait until it ends; it is killed if this function raises.

    Args:
        command: program and arguments.
        timeout_s: it is killed after this time; infinity only together with `cancel`.
        is_first_result: called with every line of its output, stripped; tells whether the first result is there.
        variables: added to the environment.
        folder: its working folder; None: this process's own.
        watch_memory: read its peak memory from outside, every 0.1 s.
        cancel: it is killed once this is set.
        log: file for its standard error; None: only the last line is kept.
        must_succeed: raise if it ends with a status other than 0.

    Raises:
        DeviceError: it could not be started, failed, took too long or was cancelled.
    """
    first_result_ns = None
    lines: list[str] = []
    with (log.open if log is not None else tempfile.TemporaryFile)("w+", encoding="utf-8", errors="replace") as errors:
        begin = time.perf_counter_ns()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, "PYTHONIOENCODING": "utf-8", **(variables or {})},
                cwd=folder,
            )
        except OSError as error:
            raise DeviceError(f"{command[0]} cannot be started ({error.strerror})") from error
        watch = _Watch(process, timeout_s, cancel, watch_memory=watch_memory)
        with process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    now = time.perf_counter_ns()
                    lines.append(line)
                    if is_first_result(line.strip()) and first_result_ns is None:
                        first_result_ns = now - begin
                status = process.wait()
            finally:
                # Also when the user interrupts: no process must go on measuring behind the prompt.
                process.kill()
                watch.end()
        errors.seek(0)
        complaint = _last_line(errors.read().splitlines()) or _last_line(lines)
    if watch.killed_because is not None:
        raise DeviceError(f"it {watch.killed_because}")
    finished = Finished(status, "".join(lines), first_result_ns, watch.peak_bytes, complaint)
    if must_succeed and status != 0:
        raise DeviceError(f"it {finished.ending}")
    return finished


class _Watch:
    """A thread that watches a process until it has ended, and kills it when it takes too long or is cancelled."""

    def __init__(
        self, process: subprocess.Popen[str], timeout_s: float, cancel: threading.Event | None, *, watch_memory: bool
    ) -> None:
        self.peak_bytes: int | None = None
        self.killed_because: str | None = None
        """What follows `it`; None: it was not killed."""
        self._process = process
        self._timeout_s = timeout_s
        self._cancel = cancel
        self._watch_memory = watch_memory
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="vae-edge-watch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop watching: the process has ended."""
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        end = time.monotonic() + self._timeout_s
        # A process whose latency is measured is not looked at meanwhile.
        step_s = _LOOK_EVERY_S if self._watch_memory or self._cancel is not None else self._timeout_s
        while not self._done.wait(min(step_s, max(end - time.monotonic(), 0.0))):
            if self._watch_memory:
                with suppress(OSError):
                    # One that has just ended has a status without memory: the last look counts.
                    self.peak_bytes = self._peak_bytes() or self.peak_bytes
            if time.monotonic() >= end:
                self.killed_because = f"had not finished after {self._timeout_s:.0f} s and was stopped; allow more time"
            elif self._cancel is not None and self._cancel.is_set():
                self.killed_because = "was cancelled"
            if self.killed_because is not None:
                self._process.kill()
                return

    def _peak_bytes(self) -> int | None:
        if sys.platform == "win32":
            return windows.peak_memory_bytes(self._process.pid)
        return high_water_mark(Path(f"/proc/{self._process.pid}/status"))


class JobResult(dict[str, Any]):
    """What a measured process wrote."""

    first_result_ns: int | None = None
    """From just before it was started until its first result was known here, by this process's clock."""


def run_job(
    program: Sequence[str],
    job: Mapping[str, Any],
    timeout_s: float,
    *,
    variables: Mapping[str, str] | None = None,
    folder: Path | None = None,
    cancel: threading.Event | None = None,
    log: Path | None = None,
    hear: Callable[[str], None] = lambda sentence: None,
) -> JobResult:
    """Run a job in its own process, see `vae_edge.benchmarks.measure.instruments.serve`, and return its result.

    Args:
        program: what to start; the files of job and result are added.
        job: ready for JSON.
        timeout_s: see `run_process`.
        variables: see `run_process`.
        folder: see there.
        cancel: see there.
        log: see there.
        hear: receives the sentences of the job's `note` events while it works: its progress.

    Raises:
        DeviceError: the job failed; the message is the reason in the process's words, or how it ended.
    """

    def is_first_result(line: str) -> bool:
        if not line.startswith(EVENT_PREFIX):
            return False
        values = json.loads(line[len(EVENT_PREFIX) :])
        if values["event"] == "note":
            hear(values["sentence"])
        return bool(values["event"] == "first_result")

    with tempfile.TemporaryDirectory(prefix="vae-bench-") as name:
        job_file, result_file = Path(name, "job.json"), Path(name, "result.json")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        finished = run_process(
            [*program, str(job_file), str(result_file)],
            timeout_s,
            is_first_result=is_first_result,
            variables=variables,
            folder=folder,
            cancel=cancel,
            log=log,
            must_succeed=False,
        )
        if not result_file.is_file():
            raise DeviceError(f"its process {finished.ending}")
        result = JobResult(json.loads(result_file.read_text(encoding="utf-8")))
    error = result.pop("error")
    if error is not None:
        raise DeviceError(error)
    result.first_result_ns = finished.first_result_ns
    return result


def python_module(module: str) -> list[str]:
    """Return the command that runs a module of this package with this Python."""
    return [sys.executable, "-m", module]


def _last_line(lines: Sequence[str]) -> str:
    """Return the line with the reason: pip's own ERROR line if there is one, otherwise the last line."""
    written = [line.strip() for line in lines if line.strip()]
    return ([line for line in written if line.startswith("ERROR")] or written or [""])[-1][:300]
