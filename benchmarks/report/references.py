"""Which bundle the others are compared with.

How far a bundle's outputs are from the FP32 reference's on the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vae_edge.benchmarks.measure.measurer import Outputs
from vae_edge.benchmarks.measure.statistics import rank_correlation
from vae_edge.benchmarks.report.accuracy_records import EXPLAINED_MOVE, Comparison, Flip
from vae_edge.errors import InputError
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


_MAPS_AT_ONCE = 64


def compare(
    names: Sequence[str],
    reference_name: str,
    reference: Outputs,
    outputs: Outputs,
    *,
    same_run: bool,
    defects: Sequence[str | None] | None = None,
) -> Comparison:
    """Compare a bundle's outputs with the reference's.

    Args:
        names: what the images are called.
        reference_name: what the reference is called.
        reference: its outputs.
        outputs: the outputs of the bundle that is judged, for the same images.
        same_run: whether both come from one training run.
        defects: the defect class of each image, None for a good part; None: labels are not known.

    Raises:
        InputError: the outputs are not for the same number of images, there is none, or a score or map is not finite.
    """
    if not names or not len(names) == len(reference.scores) == len(outputs.scores):
        raise InputError(
            f"{len(names)} images, {len(reference.scores)} scores of the reference and {len(outputs.scores)} of the "
            "bundle cannot be compared; expected the same number of each, 1 or more"
        )
    for whose, scores in (("reference's", reference.scores), ("bundle's", outputs.scores)):
        if not np.isfinite(scores).all():
            raise InputError(f"one of the {whose} scores is not a finite number; export the bundle again")
    flips = _flips(names, reference, outputs, defects)
    moved = outputs.scores - reference.scores
    same_size = reference.maps.shape == outputs.maps.shape
    largest, mean = _map_differences(reference.maps, outputs.maps) if same_size else (None, None)
    return Comparison(
        reference=reference_name,
        same_run=same_run,
        n_images=len(names),
        label_flips=len(flips),
        flips=flips,
        max_score_difference=float(np.max(np.abs(moved))),
        mean_score_difference=float(np.mean(moved)),
        reference_score_scale=float(np.max(np.abs(reference.scores))),
        max_map_difference=largest,
        mean_map_difference=mean,
        reference_map_scale=_map_differences(reference.maps, None)[0] if same_size else None,
        score_rank_correlation=rank_correlation(reference.scores, outputs.scores),
    )


def _flips(
    names: Sequence[str], reference: Outputs, outputs: Outputs, defects: Sequence[str | None] | None
) -> tuple[Flip, ...]:
    # In the scale of the good parts' scores, so that a bundle whose scores are all twice as large has not moved.
    before, after = reference.margins, outputs.margins
    return tuple(
        Flip(
            image=names[i],
            defect=None if defects is None else defects[i],
            is_anomalous=bool(outputs.verdicts[i]),
            reference_margin=float(before[i]),
            margin=float(after[i]),
            is_explained=bool(abs(after[i] - before[i]) < EXPLAINED_MOVE),
        )
        for i in map(int, np.flatnonzero(reference.verdicts != outputs.verdicts))
    )


def _map_differences(first: NDArray[np.float32], second: NDArray[np.float32] | None) -> tuple[float, float]:
    """Return largest and mean |first - second|, or of |first|, a few maps at a time: they may lie on disk."""
    largest = total = 0.0
    for start in range(0, len(first), _MAPS_AT_ONCE):
        block = np.asarray(first[start : start + _MAPS_AT_ONCE])
        if second is not None:
            block = block - second[start : start + _MAPS_AT_ONCE]
        block = np.abs(block)
        largest = float(np.maximum(largest, np.max(block)))
        total += float(block.sum(dtype=np.float64))
        if not np.isfinite(largest):
            raise InputError("an anomaly map holds a value that is not a finite number; export the bundle again")
    return largest, total / first.size
