"""Runs the steps one after the other, each in its own process, and keeps the file up to date.

The file is written before a step and after it, and during a soak. So a device that goes down leaves everything that was
found until then, with the step that was running.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from vae_edge import __version__
from vae_edge.platform.windows import exit_code_text
from vae_edge.selfcheck.file import write_file
from vae_edge.selfcheck.privacy import Redactor
from vae_edge.selfcheck.record import SelfcheckRecord, StepRecord, StepResult, Verdict
from vae_edge.selfcheck.steps import BundleToCheck, Plan, Step, first_steps

TOTAL_S = 600.0
"""All steps but a soak end within it: those that would begin later are skipped, and the last gets less time."""

_LEAST_S = 5.0
"""A step is not begun with less."""

_LOOK_EVERY_S = 2.0
"""How often a soak's samples are looked for."""

_MESSAGES = 4000
"""Characters of what a process wrote to standard error that are kept, from its end."""

WORKER = (sys.executable, "-X", "faulthandler", "-m", "vae_edge.selfcheck.worker")
"""The program of a step; it writes where a crash happened to standard error."""

OnStep = Callable[[StepRecord], None]


class Runner:
    """One self-check.

    Args:
        out: the file to write, ending in `.zip`.
        redactor: what every text passes before it is written.
        on_step: called with the record of every step that has ended.
        worker: the program of a step; the files of job and result are added.
        total_s: see `TOTAL_S`.
        limit_s: the most that any step gets; None: each has its own limit.
    """

    def __init__(
        self,
        out: Path,
        redactor: Redactor,
        *,
        on_step: OnStep,
        worker: Sequence[str] = WORKER,
        total_s: float = TOTAL_S,
        limit_s: float | None = None,
    ) -> None:
        self._out, self._redactor, self._on_step = out, redactor, on_step
        self._worker, self._total_s, self._limit_s = tuple(worker), total_s, limit_s
        self._started = time.monotonic()
        self._started_utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._records: list[StepRecord] = []

    def run(self, bundles: Sequence[BundleToCheck], scratch: Path, *, soak_minutes: float = 0.0) -> SelfcheckRecord:
        """Run all steps and return the record, which is also in the file.

        Args:
            bundles: to check.
            scratch: an empty folder for the steps.
            soak_minutes: 0: no soak.

        Raises:
            InputError: the file cannot be written.
            BundleError: what came with this package is damaged.
        """
        return self.run_steps(self._all_steps(bundles, scratch, soak_minutes), scratch)

    def run_steps(self, steps: Iterable[Step], scratch: Path) -> SelfcheckRecord:
        """Run these steps; what a step finds may decide which come after it.

        Args:
            steps: asked for one at a time, each after the one before has ended.
            scratch: an empty folder for them.

        Raises:
            InputError: the file cannot be written.
        """
        for step in steps:
            self._records.append(StepRecord(key=step.key, title=step.title, verdict=Verdict.RUNNING))
            if step.skipped_because is None:
                self._write()
            ended = self._run(step, scratch)
            self._records[-1] = ended
            self._on_step(ended)
        return self._write(is_complete=True)

    def _all_steps(self, bundles: Sequence[BundleToCheck], scratch: Path, soak_minutes: float) -> Iterator[Step]:
        yield from first_steps()
        yield from Plan(self._records, bundles, scratch, soak_minutes).steps()

    def _run(self, step: Step, scratch: Path) -> StepRecord:
        if step.skipped_because is not None:
            return self._record(step, StepResult(verdict=Verdict.SKIPPED, reason=step.skipped_because))
        limit_s = step.limit_s if self._limit_s is None else min(step.limit_s, self._limit_s)
        if not step.is_soak:
            left_s = self._total_s - (time.monotonic() - self._started)
            if left_s < min(_LEAST_S, limit_s):
                reason = f"the {self._total_s / 60:.0f} minutes were over"
                return self._record(step, StepResult(verdict=Verdict.SKIPPED, reason=reason))
            limit_s = min(limit_s, left_s)
        return _Process(self._worker, step, scratch, limit_s, self._record, self._update).run()

    def _update(self, record: StepRecord) -> None:
        """Write what a step that is still running has found."""
        self._records[-1] = record
        self._write()

    def _record(
        self, step: Step, result: StepResult, seconds: float | None = None, messages: str | None = None
    ) -> StepRecord:
        """Return a step's record, without anything private."""
        content = result.model_dump(mode="json") | {"key": step.key, "title": step.title, "messages": messages}
        return StepRecord.model_validate({**self._redactor.value(content), "seconds": seconds})

    def _write(self, *, is_complete: bool = False) -> SelfcheckRecord:
        record = SelfcheckRecord(
            vae_edge=__version__,
            started_utc=self._started_utc,
            seconds=time.monotonic() - self._started,
            is_complete=is_complete,
            steps=tuple(self._records),
        )
        write_file(self._out, record)
        return record


class _Process:
    """One step's process, from its start to its record."""

    def __init__(
        self,
        worker: Sequence[str],
        step: Step,
        scratch: Path,
        limit_s: float,
        record: Callable[[Step, StepResult, float | None, str | None], StepRecord],
        update: Callable[[StepRecord], None],
    ) -> None:
        self._worker, self._step, self._limit_s = worker, step, limit_s
        self._record, self._update = record, update
        self._job, self._result, self._errors = (scratch / name for name in ("job.json", "result.json", "errors.txt"))

    def run(self) -> StepRecord:
        """Run it and say how it ended."""
        step = self._step
        self._result.unlink(missing_ok=True)
        self._job.write_text(json.dumps({"kind": step.kind, "arguments": step.arguments}), encoding="utf-8")
        started = time.perf_counter()
        with self._errors.open("wb") as errors:
            process = subprocess.Popen(
                [*self._worker, str(self._job), str(self._result)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=_environment(step.variables),
            )
            try:
                status = self._wait(process)
            finally:
                # Also when the user interrupts: nothing must go on behind the prompt.
                process.kill()
                process.wait()
        seconds = time.perf_counter() - started
        result = self._judge(status)
        is_silent = result.verdict in (Verdict.OK, Verdict.SKIPPED)
        return self._record(step, result, seconds, None if is_silent else self._messages())

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """Return the process's exit status; None: it took too long."""
        end = time.monotonic() + self._limit_s
        seen = None
        while (left_s := end - time.monotonic()) > 0:
            try:
                return process.wait(min(left_s, _LOOK_EVERY_S))
            except subprocess.TimeoutExpired:
                found = self._read()
                if found is not None and found.verdict is Verdict.RUNNING and found != seen:
                    seen = found
                    self._update(self._record(self._step, found, None, None))
        return None

    def _judge(self, status: int | None) -> StepResult:
        found = self._read()
        if status is None:
            reason = f"it had not ended after {self._limit_s:.0f} s and was stopped"
            return _failed(found, reason)
        if found is None or found.verdict is Verdict.RUNNING:
            return _failed(found, f"its process {_ending(status)} without a result")
        if status != 0:
            return _failed(found, f"its process {_ending(status)} after its result")
        return found

    def _read(self) -> StepResult | None:
        try:
            return StepResult.model_validate_json(self._result.read_bytes())
        except (OSError, ValueError):
            return None

    def _messages(self) -> str | None:
        text = self._errors.read_text(encoding="utf-8", errors="replace").strip()
        return text[-_MESSAGES:] or None


def _failed(found: StepResult | None, reason: str) -> StepResult:
    """Return a failure with what was found before it."""
    if found is None:
        return StepResult(verdict=Verdict.FAILED, reason=reason)
    return StepResult(verdict=Verdict.FAILED, reason=reason, lines=found.lines, facts=found.facts)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **variables}


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {exit_code_text(status)}"
    names = {each.value: each.name for each in signal.Signals}
    return f"was ended by {names.get(-status, f'signal {-status}')}"
