"""Measuring the candidates in turn, several times over.

Round-robin: whatever else the machine does for a while meets all of them, and none has the cool processor to itself.
Before the rounds each candidate runs once unmeasured and judges the labelled images, so that all caches (of the file
system, of compiled models, of Python's bytecode) are filled for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from vae_edge.benchmarks.peers.candidates import Candidate
from vae_edge.benchmarks.peers.measured_process import FIRST_RESULT
from vae_edge.benchmarks.peers.native_tools import (
    FIRST_INFERENCE,
    benchmark_app_command,
    read_benchmark_app,
    read_trtexec,
    trtexec_command,
)
from vae_edge.benchmarks.worker import high_water_mark
from vae_edge.errors import DeviceError

METRICS = ("files_per_s", "ready_per_s", "file_p50_ms", "engine_p50_ms", "first_result_s", "peak_bytes")
"""What a round gives, as far as the candidate's tool tells it."""

ISOLATED = "-I"
"""Neither the working folder nor the user's own packages: an environment is measured with what is in it."""

_SCRIPT = Path(__file__).with_name("measured_process.py").resolve()


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    files: tuple[str, ...]
    """Image files that every loop goes through."""
    judged: tuple[str, ...]
    """Image files to give scores for."""
    rounds: int
    seconds: float
    """Of each loop: there are four in a round."""
    n_start: int
    """Images after which the peak of memory is read."""
    timeout_s: float
    scratch: Path
    """Folder for what the tools keep: vae-edge's cache and anomalib's."""


@dataclass
class Measured:
    """What the rounds gave for one candidate."""

    candidate: Candidate
    samples: list[dict[str, float]] = field(default_factory=list)
    """One for each round, by metric."""
    scores: list[float] = field(default_factory=list)
    failed_because: str | None = None


def run_rounds(candidates: Sequence[Candidate], plan: Plan, tell: Callable[[str], None]) -> list[Measured]:
    """Measure all candidates; one that fails is left out from then on, with the reason."""
    measured = [Measured(candidate) for candidate in candidates]
    for number in range(plan.rounds + 1):
        # Each round begins with another one: nobody always follows the same neighbour's heat.
        shift = number % max(len(measured), 1)
        what = "filling caches and judging" if number == 0 else f"round {number} of {plan.rounds}"
        for position, entry in enumerate(measured[shift:] + measured[:shift]):
            if entry.failed_because is not None:
                continue
            tell(f"{what}, {position + 1} of {len(measured)}: {entry.candidate.name}")
            try:
                _measure_once(entry, plan, is_judging=number == 0)
            except DeviceError as error:
                entry.failed_because = str(error)
                tell(f"{entry.candidate.name} failed: {error}")
    return measured


def _measure_once(entry: Measured, plan: Plan, *, is_judging: bool) -> None:
    candidate = entry.candidate
    if candidate.kind == "process":
        result = _run_script(candidate, plan, is_judging=is_judging)
        if is_judging:
            entry.scores = list(result["scores"])
            return
        entry.samples.append({name: result[name] for name in METRICS if result.get(name) is not None})
    elif is_judging:
        _run_program(candidate, 1.0, plan.timeout_s)
    else:
        entry.samples.append(_run_program(candidate, plan.seconds, plan.timeout_s))


def _run_script(candidate: Candidate, plan: Plan, *, is_judging: bool) -> dict[str, Any]:
    assert candidate.environment is not None
    with tempfile.TemporaryDirectory(prefix="vae-edge-peers-") as name:
        job_file, result_file = Path(name) / "job.json", Path(name) / "result.json"
        job = {
            "tool": candidate.tool,
            "model": str(candidate.model),
            "options": candidate.options,
            "files": plan.files,
            "judged": plan.judged if is_judging else (),
            "n_start": plan.n_start,
            "seconds": plan.seconds,
        }
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [str(candidate.environment.python), ISOLATED, str(_SCRIPT), str(job_file), str(result_file)]
        watched = watch(command, FIRST_RESULT.__eq__, plan.timeout_s, plan.scratch)
        if not result_file.is_file():
            raise DeviceError("it left no result")
        result: dict[str, Any] = json.loads(result_file.read_text(encoding="utf-8"))
    return {**result, "first_result_s": watched.first_result_s}


def _run_program(candidate: Candidate, seconds: float, timeout_s: float) -> dict[str, float]:
    options = candidate.options
    if candidate.kind == "benchmark_app":
        assert candidate.environment is not None
        python = candidate.environment.python
        command = benchmark_app_command(
            python, candidate.model, candidate.shape, options["hint"], seconds, options["precision"]
        )
        read, hint = read_benchmark_app, options["hint"]
    else:
        command = trtexec_command(options["program"], candidate.model, candidate.shape, seconds)
        read, hint = read_trtexec, "both"
    watched = watch(command, lambda line: FIRST_INFERENCE.search(line) is not None, timeout_s, None)
    found = read(watched.output)
    sample: dict[str, float] = {}
    if hint != "throughput":
        sample["engine_p50_ms"] = found["p50_ms"]
        # At the first result and not at the last: loops over requests come after it.
        known = {"first_result_s": watched.first_result_s, "peak_bytes": watched.peak_bytes}
        sample |= {name: value for name, value in known.items() if value is not None}
    if hint != "latency":
        sample["ready_per_s"] = found["per_s"]
    return sample


@dataclass(frozen=True)
class Watched:
    """What was seen of a process from outside."""

    output: str
    first_result_s: float | None
    """From just before it was started until its line came."""
    peak_bytes: int | None
    """The most physical memory it held."""


def watch(
    command: Sequence[str], is_first_result: Callable[[str], bool], timeout_s: float, scratch: Path | None
) -> Watched:
    """Run a command, note when the line of its first result comes and how much memory it takes.

    Raises:
        DeviceError: it failed or took too long.
    """
    surroundings = dict(os.environ)
    if scratch is not None:
        surroundings["VAE_EDGE_CACHE"] = str(scratch / "vae-edge-cache")
    first_result_s: float | None = None
    lines: list[str] = []
    timed_out = threading.Event()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        begin = time.perf_counter()
        process = _start(command, log, surroundings, scratch)

        def stop() -> None:
            timed_out.set()
            process.kill()

        memory = _PeakMemory(process.pid)
        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.perf_counter()
                lines.append(line)
                if first_result_s is None and is_first_result(line.strip()):
                    first_result_s = now - begin
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            memory.stop()
        log.seek(0)
        complaints = [line.strip() for line in log.read().splitlines() if line.strip()]
    if timed_out.is_set():
        raise DeviceError(f"it was not done after {timeout_s:.0f} s and was stopped")
    if code != 0:
        last = complaints or [line.strip() for line in lines if line.strip()]
        raise DeviceError(f"it ended with status {code}{': ' + last[-1][:300] if last else ''}")
    return Watched("".join(lines), first_result_s, memory.peak_bytes)


def _start(
    command: Sequence[str], log: IO[str], surroundings: dict[str, str], folder: Path | None
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            env=surroundings,
            cwd=folder,
        )
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started ({error.strerror})") from error


class _PeakMemory:
    """Reads VmHWM of another process until it ends: the kernel's own maximum, so a rare look is enough."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes: int | None = None
        self._status = Path(f"/proc/{pid}/status")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(0.1):
            try:
                # A process that has just ended has a status without memory: the last look counts.
                self.peak_bytes = high_water_mark(self._status) or self.peak_bytes
            except OSError:
                return
