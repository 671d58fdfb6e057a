"""What a self-check leaves: the record of its steps, `selfcheck.json` in the file that is sent."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vae_edge.records import Record
from vae_edge.text_enum import TextEnum

SCHEMA_VERSION = 1
"""Version of the layout of `selfcheck.json`. History: 1 (first)."""


class Verdict(TextEnum):
    """How a step ended."""

    OK = "ok"
    """It gave what is stored."""
    DIFFERS = "differs"
    """It ran, and gave something else."""
    FAILED = "failed"
    """It ended with an error or a crash, or took too long."""
    SKIPPED = "skipped"
    """There was nothing to run here, for the reason that is given."""
    RUNNING = "running"
    """It was begun and had not ended when the file was written: the device went down, or the program was stopped."""

    @property
    def is_problem(self) -> bool:
        """Whether the command ends with exit code 3 for it."""
        return self in (Verdict.DIFFERS, Verdict.FAILED)


class StepResult(Record):
    """What the process of a step writes."""

    verdict: Verdict
    reason: str | None = None
    """Why it differs, failed or was skipped, or what is remarkable, in a sentence."""
    lines: tuple[str, ...] = ()
    """What was found, for people."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """The same for programs: numbers, texts, lists and objects of them."""


class StepRecord(StepResult):
    """A step as it is sent."""

    key: str
    """Such as `bundle:onnx:cpu:tiles-onnx-fp32`."""
    title: str
    seconds: float | None = Field(default=None, ge=0)
    """From the start of its process to its end; None: it had none, or has not ended."""
    messages: str | None = None
    """The end of what its process wrote to standard error, where it failed."""


class SelfcheckRecord(Record):
    """Everything that a self-check found."""

    schema_version: int = Field(default=SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION)
    vae_edge: str
    """Its version."""
    started_utc: str
    seconds: float = Field(ge=0)
    """Until this was written."""
    is_complete: bool
    """Whether every step has ended."""
    steps: tuple[StepRecord, ...]

    @property
    def problems(self) -> tuple[StepRecord, ...]:
        """The steps that differ or failed."""
        return tuple(step for step in self.steps if step.verdict.is_problem)

    def count(self, verdict: Verdict) -> int:
        """Return how many steps ended so."""
        return sum(step.verdict is verdict for step in self.steps)
