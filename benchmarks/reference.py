"""Which bundle the others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vae_edge.targets import Precision, Target


@dataclass(frozen=True)
class Candidate:
    """A bundle that ran."""

    name: str
    target: Target
    precision: Precision
    run_fingerprint: str


def choose_references(
    candidates: Sequence[Candidate], asked: str | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Choose a reference for every bundle that ran.

    Unless one is asked for, every training run has its own: the torch bundle in FP32, or else the first in FP32.
    Bundles of another run come from another network: their differences would not be the export's.

    Args:
        candidates: the bundles that ran, in order.
        asked: name of the bundle to compare all others with.

    Returns:
        The reference's name by bundle (its own for the reference itself; no entry where there is none), and sentences
        that say what was chosen and why.
    """
    if asked is not None:
        if asked not in [candidate.name for candidate in candidates]:
            return {}, (f"the reference asked for, {asked}, could not run: nothing was compared",)
        return {candidate.name: asked for candidate in candidates}, (f"{asked} is the reference, as asked for",)
    references: dict[str, str] = {}
    notes = []
    for run in dict.fromkeys(candidate.run_fingerprint for candidate in candidates):
        of_run = [candidate for candidate in candidates if candidate.run_fingerprint == run]
        full = [candidate for candidate in of_run if candidate.precision is Precision.FP32]
        torch = [candidate for candidate in full if candidate.target is Target.TORCH]
        whose = f"of the training run {run[:8]}"
        if not full:
            names = ", ".join(candidate.name for candidate in of_run)
            notes.append(f"no bundle {whose} in FP32 could run: nothing to compare {names} with")
            continue
        chosen = (torch or full)[0]
        why = "the FP32 bundle of torch" if torch else "the first FP32 bundle; there is none of torch that could run"
        notes.append(f"{chosen.name} is the reference {whose}: {why}")
        references.update({candidate.name: chosen.name for candidate in of_run})
    return references, tuple(notes)
