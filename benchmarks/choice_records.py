"""Which bundle to ship and why, as the report writes it."""

from __future__ import annotations

from typing import Literal

from vae_edge.records import Record

Operator = Literal[">=", "<=", ">", "<"]


class Requirement(Record):
    """A limit that a bundle has to keep, such as p99_ms <= 40."""

    metric: str
    operator: Operator
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.limit:g}"


class Objective(Record):
    """What the best of the bundles that fit is the best in."""

    metric: str
    direction: Literal["minimize", "maximize"]

    def __str__(self) -> str:
        return f"{self.direction} {self.metric}"


class Judgement(Record):
    """What is said of one bundle."""

    bundle: str
    fits: bool
    """Whether it keeps every requirement."""
    objective_value: float | None = None
    reasons: tuple[str, ...] = ()
    """Why it does not fit, or why another one is better."""
    caveats: tuple[str, ...] = ()
    """Limits that it keeps or misses by less than the measurement's uncertainty."""


class Recommendation(Record):
    """The verdict of the benchmark."""

    chosen: str | None = None
    """Name of the bundle; None: none fits."""
    rule: str
    """How it was chosen, in words."""
    is_default_rule: bool
    """Whether nobody asked for requirements or an objective."""
    requirements: tuple[Requirement, ...] = ()
    objective: Objective
    why: str
    """One or two sentences."""
    judgements: tuple[Judgement, ...]
    """Of every bundle, in the order of the report."""
