"""Measuring the candidates in turn, several times.

Round-robin: other load on the machine affects all of them, and no candidate alone runs on the cool processor.
Before the rounds each candidate runs once unmeasured and judges the labelled images, so that all caches (of the file
system, of compiled models, of Python's bytecode) are filled for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_edge.benchmarks.measure.process import run_job, run_process
from vae_edge.benchmarks.studies.peers import measured_process
from vae_edge.benchmarks.studies.peers.candidates import Candidate
from vae_edge.errors import DeviceError

_FIRST_INFERENCE = re.compile(r"First inference took")
"""The line of benchmark_app that reports the first result; trtexec has none."""

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    files: tuple[str, ...]
    """Image files that every loop goes through."""
    judged: tuple[str, ...]
    """Image files to give scores for."""
    rounds: int
    seconds: float
    """Duration of each loop; there are four in a round."""
    n_start: int
    """Images after which the peak of memory is read."""
    timeout_s: float
    scratch: Path
    """Folder for the tools' caches: those of vae-edge and anomalib."""


@dataclass
class Measured:
    """The results of the rounds for one candidate."""

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


def run_candidate(candidate: Candidate, plan: Plan, **changes: Any) -> dict[str, Any]:
    """Run the measured process of a candidate once and return its result, with `first_result_s`.

    Args:
        candidate: of kind `process`.
        plan: how to measure.
        changes: of the job, see `measured_process`.
    """
    assert candidate.environment is not None
    job: dict[str, Any] = {
        "tool": candidate.tool,
        "model": str(candidate.model),
        "options": candidate.options,
        "files": plan.files,
        "n_start": plan.n_start,
        "seconds": plan.seconds,
        "judged": (),
        "wanted": candidate.wanted,
        "beside": candidate.beside,
        "memory_counts": (),
    }
    script = Path(measured_process.__file__).resolve()
    result = run_job(
        [*candidate.environment.command, str(script)],
        {**job, **changes},
        plan.timeout_s,
        variables={"VAE_EDGE_CACHE": str(plan.scratch / "vae-edge-cache")},
        folder=plan.scratch,
    )
    assert result.first_result_ns is not None
    return {**result, "first_result_s": result.first_result_ns / 1e9}


def _measure_once(entry: Measured, plan: Plan, *, is_judging: bool) -> None:
    candidate = entry.candidate
    if candidate.kind != "process":
        sample = _run_program(candidate, 1.0 if is_judging else plan.seconds, plan.timeout_s)
        entry.samples += [] if is_judging else [sample]
    elif is_judging:
        result = run_candidate(candidate, plan, judged=plan.judged, wanted=(), beside=None)
        entry.scores = list(result.get("scores", ()))
    else:
        result = run_candidate(candidate, plan)
        entry.samples.append({name: value for name, value in result.items() if value is not None})


def _run_program(candidate: Candidate, seconds: float, timeout_s: float) -> dict[str, float]:
    """Run a runtime's own benchmark program; it times the engine alone, on random pixels."""
    read = read_benchmark_app if candidate.kind == "benchmark_app" else read_trtexec
    seen = run_process(
        candidate.command(seconds),
        timeout_s,
        is_first_result=lambda line: _FIRST_INFERENCE.search(line) is not None,
        watch_memory=True,
    )
    found = read(seen.output)
    hint = candidate.options.get("hint", "both")
    sample: dict[str, float] = {}
    if hint != "throughput":
        sample["engine_p50_ms"] = found["p50_ms"]
        if seen.first_result_ns is not None:
            sample["first_result_s"] = seen.first_result_ns / 1e9
        if seen.peak_bytes is not None:
            sample["peak_bytes"] = seen.peak_bytes
    if hint != "latency":
        sample["ready_per_s"] = found["per_s"]
    return sample


def read_benchmark_app(output: str) -> dict[str, float]:
    """Return `p50_ms` and `per_s` of the output of OpenVINO's benchmark_app.

    Raises:
        DeviceError: it does not have them.
    """
    median, rate = r"Median:\s+([\d.]+)\s*(us|ms|s)\b", r"Throughput:\s+([\d.]+)\s*FPS"
    return _read(output, median, rate, "benchmark_app")


def read_trtexec(output: str) -> dict[str, float]:
    """Return `p50_ms` (copies included) and `per_s` of the output of TensorRT's trtexec.

    Raises:
        DeviceError: it does not have them.
    """
    return _read(output, r"\] Latency:.*?median = ([\d.]+) (us|ms|s)\b", r"Throughput: ([\d.]+) qps", "trtexec")


def _read(output: str, median: str, rate: str, tool: str) -> dict[str, float]:
    p50, per_s = re.search(median, output), re.search(rate, output)
    if p50 is None or per_s is None:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise DeviceError(f"{tool} did not print what was expected; its last line: {lines[-1][:200] if lines else ''}")
    return {"p50_ms": float(p50[1]) * _UNITS_MS[p50[2]], "per_s": float(per_s[1])}
