"""Starting a worker, listening to it and taking its result: the parent's side of `vae_edge.benchmarks.jobs`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.jobs import EVENT_PREFIX, Job, write_job
from vae_edge.errors import DeviceError

Listener = Callable[[dict[str, Any]], None]


class WorkerResult(dict[str, Any]):
    """What the worker wrote, and when it told of its first result."""

    first_result_ns: int | None = None
    """From just before the process was started until its first result was known here; the parent's clock."""


def run_worker(
    job: Job, timeout_s: float, listener: Listener | None = None, *, cache_folder: Path | None = None
) -> WorkerResult:
    """Run a job in a process of its own and wait for its result.

    Args:
        job: what to do.
        timeout_s: the process is killed after that long.
        listener: called with every event that the worker tells.
        cache_folder: where the process keeps what it compiles; None: the user's own cache.

    Raises:
        DeviceError: the job failed; the message is the reason in the worker's words, or how its process ended.
    """
    with tempfile.TemporaryDirectory(prefix="vae-bench-") as name:
        job_file, result_file, log_file = (Path(name, file) for file in ("job.json", "result.json", "stderr.txt"))
        write_job(job_file, job)
        command = [sys.executable, "-m", "vae_edge.benchmarks.worker", str(job_file), str(result_file)]
        with log_file.open("wb") as log:
            first_result_ns, timed_out, code = _run(command, log, timeout_s, listener, cache_folder)
        if timed_out:
            raise DeviceError(
                f"it was not done after {timeout_s:.0f} s and was stopped; allow more time, or a smaller model"
            )
        if not result_file.is_file():
            raise DeviceError(f"its process {_ending(code)}{_last_line(log_file)}")
        result = WorkerResult(json.loads(result_file.read_text(encoding="utf-8")))
    if result["error"] is not None:
        raise DeviceError(result["error"])
    result.first_result_ns = first_result_ns
    return result


def _run(
    command: list[str], log: Any, timeout_s: float, listener: Listener | None, cache_folder: Path | None
) -> tuple[int | None, bool, int]:
    """Run the command; return the first result's time in ns, whether it was killed for time, and its exit status."""
    first_result_ns: int | None = None
    timed_out = threading.Event()
    environment = None if cache_folder is None else {**os.environ, "VAE_EDGE_CACHE": str(cache_folder)}
    begin = time.perf_counter_ns()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        errors="replace",
        env=environment,
    ) as process:

        def stop() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.perf_counter_ns()
                if not line.startswith(EVENT_PREFIX):
                    continue
                event = json.loads(line[len(EVENT_PREFIX) :])
                if event["event"] == "first_result":
                    first_result_ns = now - begin
                if listener is not None:
                    listener(event)
            code = process.wait()
        finally:
            timer.cancel()
            # Also when the user interrupts: no process must go on measuring behind the prompt.
            process.kill()
    return first_result_ns, timed_out.is_set(), code


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""
