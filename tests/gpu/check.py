"""Runs the steps of `check.sh`, each in its own process with a time limit, and keeps the summary up to date.

It imports nothing but Python's own library: a package that is missing or broken on that machine is a finding, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]

RAN, FAILED, NOT_RUN = "ran", "failed", "not run"
EXIT_NOTHING_RAN, EXIT_FAILED = 1, 3

SUMMARY, LOG = "summary.md", "log.txt"
PROGRAM = (sys.executable, "-X", "faulthandler", "-m", "tests.gpu.steps")
"""The program of a step; its name, the file for its result and the folder for files are added."""

_LEAST_S = 3.0
"""A step is not begun with less."""
_TAIL = 15
"""Lines of what a failed step wrote that are in the summary."""


@dataclass(frozen=True)
class Step:
    """One thing to find out; `tests/gpu/steps.py` has a function for each."""

    name: str
    title: str
    limit_s: float


STEPS = (
    Step("machine", "the machine and its GPU", 30),
    Step("tests", "`pytest -m gpu`", 120),
    Step("cuda-driver", "GPU memory through the driver", 30),
    Step("cuda-driver-copies", "GPU memory through the driver, with copies", 30),
    Step("cuda-pycuda", "GPU memory through pycuda", 30),
    Step("cuda-cuda-bindings", "GPU memory through cuda-bindings", 30),
    Step("torch", "torch on CUDA: the CPU's scores", 60),
    Step("training", "training on CUDA, export, references", 120),
    Step("training-speed", "training on CUDA: images/s", 90),
    Step("onnxruntime", "ONNX Runtime on CUDA", 60),
    Step("tensorrt", "TensorRT: shipped bundles", 120),
    Step("tensorrt-rtx", "TensorRT-RTX: shipped bundles", 120),
    Step("selfcheck", "`vae-edge selfcheck`", 240),
)
"""In this order: if time runs out, the last ones are not run."""


@dataclass(frozen=True)
class Result:
    """How a step ended."""

    step: Step
    outcome: str
    """`ran`, `failed` or `not run`."""
    reason: str
    """Why it failed or was not run; empty: it ran."""
    lines: tuple[str, ...] = ()
    """What was found, in Markdown."""
    seconds: float | None = None
    """None: it had no process."""


class Check:
    """One check of a machine.

    Args:
        out: the folder for the summary, the log and other files; it is made.
        steps: to run; the first one is `machine`, without which no other one has a GPU.
        limit_s: all of them end within it.
        program: see `PROGRAM`.
    """

    def __init__(self, out: Path, steps: Sequence[Step], limit_s: float, program: Sequence[str] = PROGRAM) -> None:
        self._out, self._steps, self._limit_s, self._program = out, steps, limit_s, tuple(program)
        self._started = time.monotonic()
        self._began = datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC")
        self._results: list[Result] = []

    def run(self) -> int:
        """Run the steps and return the exit code."""
        self._out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as scratch, self._log() as log:
            for step in self._steps:
                if self._results and self._results[0].outcome == NOT_RUN:
                    result = Result(step, NOT_RUN, "there is no NVIDIA GPU")
                else:
                    result = self._step(step, Path(scratch), log)
                self._results.append(result)
                _say(f"{result.outcome:8}{_seconds(result):>7}  {step.title}{_because(result)}")
                self._write()
        outcomes = {result.outcome for result in self._results}
        _say(f"{self._out / SUMMARY} has the summary, {self._out / LOG} the output.")
        if FAILED in outcomes:
            return EXIT_FAILED
        # That there is a GPU is no check of anything.
        return 0 if any(each.outcome == RAN for each in self._results[1:]) else EXIT_NOTHING_RAN

    def _log(self) -> TextIO:
        return (self._out / LOG).open("w", encoding="utf-8", errors="replace")

    def _step(self, step: Step, scratch: Path, log: TextIO) -> Result:
        left_s = self._limit_s - (time.monotonic() - self._started)
        limit_s = min(step.limit_s, left_s)
        if limit_s < min(_LEAST_S, step.limit_s):
            return Result(step, NOT_RUN, f"the {self._limit_s:.0f} s for all steps were over")
        log.write(f"==> {step.name}\n")
        log.flush()
        begin = log.tell()
        answer = scratch / f"{step.name}.json"
        started = time.perf_counter()
        status = self._process(step, answer, scratch, limit_s, log)
        seconds = time.perf_counter() - started
        log.seek(0, os.SEEK_END)
        return self._judge(step, status, answer, seconds, limit_s, begin)

    def _process(self, step: Step, answer: Path, scratch: Path, limit_s: float, log: TextIO) -> int | None:
        """Run a step's process to its end, or to the limit: then return None, and neither it nor its children live."""
        environment = {**os.environ, "VAE_EDGE_CACHE": str(scratch / "cache"), "PYTHONFAULTHANDLER": "1"}
        process = subprocess.Popen(
            [*self._program, step.name, str(answer), str(self._out)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _judge(
        self, step: Step, status: int | None, answer: Path, seconds: float, limit_s: float, begin: int
    ) -> Result:
        try:
            found = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {"outcome": FAILED, "reason": "it ended without a result", "lines": []}
        outcome, reason, lines = found["outcome"], found["reason"], tuple(found["lines"])
        if status is None:
            outcome, reason = FAILED, f"it had not ended after {limit_s:.0f} s and was stopped"
        elif status < 0:
            outcome, reason = FAILED, f"its process was ended by {signal.Signals(-status).name}"
        elif status > 0:
            outcome, reason = FAILED, f"its process ended with exit code {status}"
        if outcome == FAILED:
            lines = (*lines, *self._tail(begin))
        return Result(step, outcome, reason, lines, seconds)

    def _tail(self, begin: int) -> list[str]:
        """Return the last lines that a step wrote."""
        with (self._out / LOG).open(encoding="utf-8", errors="replace") as log:
            log.seek(begin)
            written = log.read().splitlines()[-_TAIL:]
        return ["```", *written, "```"] if written else []

    def _write(self) -> None:
        """Write the summary, so that it is whole whenever this is stopped."""
        new = self._out / f".{SUMMARY}.new"
        new.write_text(self._summary(), encoding="utf-8")
        new.replace(self._out / SUMMARY)

    def _summary(self) -> str:
        counts = ", ".join(
            f"{n} {outcome}"
            for outcome in (RAN, FAILED, NOT_RUN)
            if (n := sum(r.outcome == outcome for r in self._results))
        )
        left = len(self._steps) - len(self._results)
        python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
        text = [
            "## On an NVIDIA GPU",
            "",
            f"`bash tests/gpu/check.sh` on {self._began}{_commit()}; {python}: {counts}"
            + (f"; interrupted {left} before the end." if left else "."),
            "",
            "| step | result | s |",
            "|---|---|---:|",
        ]
        for each in self._results:
            result = each.outcome + (f": {each.reason}" if each.reason else "")
            text.append(f"| {each.step.title} | {result.replace('|', '/')} | {_seconds(each)} |")
        for each in self._results:
            if each.lines:
                text += ["", f"**{each.step.title}**", "", *_listed(each.lines)]
        return "\n".join(text) + "\n"


def _listed(lines: Sequence[str]) -> list[str]:
    """Return lines as a list; what is a table, or in a block of code, stays as it is."""
    is_code = False
    text: list[str] = []
    for line in lines:
        is_fence = line == "```"
        plain = is_code or is_fence or line.startswith("|")
        if (is_fence and not is_code) or (line.startswith("|") and text and not text[-1].startswith("|")):
            text.append("")
        is_code ^= is_fence
        text.append(line if plain else f"* {line}")
    return text


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" at {done.stdout.strip()}"


def _seconds(result: Result) -> str:
    return "" if result.seconds is None else f"{result.seconds:.1f}"


def _because(result: Result) -> str:
    return f": {result.reason}" if result.reason else ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Run the check and return the exit code."""
    parser = argparse.ArgumentParser(prog="tests/gpu/check.sh")
    parser.add_argument("steps", nargs="*", metavar="STEP", choices=[[], *(step.name for step in STEPS)])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=480.0)
    asked = parser.parse_args(arguments)
    steps = [step for step in STEPS if not asked.steps or step.name in (*asked.steps, "machine")]
    return Check(asked.out, steps, asked.limit, program).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
