"""Which bundle the others are compared with, and how far their outputs are from its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vae_edge.agreement import Outputs as AgreementOutputs
from vae_edge.agreement import compare_outputs
from vae_edge.benchmarks.measure.measurer import Outputs
from vae_edge.benchmarks.measure.statistics import rank_correlation
from vae_edge.benchmarks.report.records.accuracy import EXPLAINED_MOVE, Comparison, Flip
from vae_edge.errors import InputError
from vae_edge.targets import Precision, Target


@dataclass(frozen=True)
class Candidate:
    """A bundle that ran."""

    name: str
    target: Target
    precision: Precision
    run_fingerprint: str
    may_be_reference: bool = True
    """False: it does not give its reference outputs here, or computed in less than its precision asks for."""


def choose_references(
    candidates: Sequence[Candidate], asked: str | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Choose a reference for every bundle that ran.

    Unless one is requested, every training run has its own, of those that give their reference outputs here: the torch
    bundle in FP32, or otherwise the first one in FP32. Bundles of another run come from another network: what separates
    them was not caused by the export.

    Args:
        candidates: the bundles that ran, in order.
        asked: name of the bundle to compare all others with.

    Returns:
        The reference's name by bundle (its own for the reference itself; no entry if there is none), and sentences that
        explain what was chosen and why.
    """
    if asked is not None:
        if asked not in [candidate.name for candidate in candidates]:
            return {}, (f"the requested reference, {asked}, could not run: nothing was compared",)
        return {candidate.name: asked for candidate in candidates}, (f"{asked} is the reference, as requested",)
    references: dict[str, str] = {}
    notes = []
    for run in dict.fromkeys(candidate.run_fingerprint for candidate in candidates):
        of_run = [candidate for candidate in candidates if candidate.run_fingerprint == run]
        full = [
            candidate for candidate in of_run if candidate.precision is Precision.FP32 and candidate.may_be_reference
        ]
        torch = [candidate for candidate in full if candidate.target is Target.TORCH]
        whose = f"of the training run {run[:8]}"
        if not full:
            names = ", ".join(candidate.name for candidate in of_run)
            notes.append(f"no sound bundle {whose} in FP32 could run: nothing to compare {names} with")
            continue
        chosen = (torch or full)[0]
        why = "the FP32 bundle of torch" if torch else "the first FP32 bundle, because no torch bundle could run"
        notes.append(f"{chosen.name} is the reference {whose}: {why}")
        references.update({candidate.name: chosen.name for candidate in of_run})
    return references, tuple(notes)


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
    found = compare_outputs(
        AgreementOutputs(reference.maps, reference.scores),
        AgreementOutputs(outputs.maps, outputs.scores),
        reference_verdicts=reference.verdicts,
        verdicts=outputs.verdicts,
    )
    if not found.scores.is_finite or (found.maps is not None and not found.maps.is_finite):
        raise InputError("a score or an anomaly map has a value that is not a finite number; export the bundle again")
    # In the scale of the good parts' scores, so that a bundle whose scores are all twice as large has not moved.
    before, after = reference.margins, outputs.margins
    flips = tuple(
        Flip(
            image=names[i],
            defect=None if defects is None else defects[i],
            is_anomalous=bool(outputs.verdicts[i]),
            reference_margin=float(before[i]),
            margin=float(after[i]),
            is_explained=bool(abs(after[i] - before[i]) < EXPLAINED_MOVE),
        )
        for i in found.flipped
    )
    maps = found.maps
    return Comparison(
        reference=reference_name,
        same_run=same_run,
        n_images=len(names),
        label_flips=len(flips),
        flips=flips,
        max_score_difference=found.scores.largest,
        mean_score_difference=found.scores.mean,
        reference_score_scale=found.scores.scale,
        max_map_difference=None if maps is None else maps.largest,
        mean_map_difference=None if maps is None else maps.mean,
        reference_map_scale=None if maps is None else maps.scale,
        score_rank_correlation=rank_correlation(reference.scores, outputs.scores),
    )
