"""Check that an exported model gives the trained model's verdicts, on real images; the result goes into the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vae_edge.agreement import Outputs, compare_outputs
from vae_edge.errors import ParityError
from vae_edge.manifest import FP32_TOLERANCE, ParityRecord
from vae_edge.wording import verb

ROUNDING = 3e-5
"""Share of the largest score that another order of additions in float32 moves one by, at most. Bundles of whole
networks measured 2e-7 to 7e-7; where deviations of few normals divide the residual it was 1.3e-5."""


def measure_parity(
    reference: Outputs,
    reference_threshold: float,
    outputs: Outputs,
    threshold: float,
    *,
    names: Sequence[str],
    images: str,
    tolerance: float | None = None,
) -> ParityRecord:
    """Compare an exported model's outputs with the FP32 torch reference's.

    A flip is an image that one model calls anomalous and the other does not, each by its own threshold. The normal that
    a threshold was taken from has just that score, and rounding decides on which side of it: where both scores equal
    their thresholds but for `ROUNDING`, nothing flipped.

    Args:
        reference: outputs of the trained model.
        reference_threshold: its image threshold.
        outputs: outputs of the exported model for the same images.
        threshold: its image threshold.
        names: what the images are called, to name the flipped ones.
        images: what the images are, in words, for the record.
        tolerance: for the record.

    Raises:
        ParityError: an output is not finite, or the maps differ in size.
    """
    found = compare_outputs(
        reference,
        outputs,
        reference_verdicts=reference.verdicts(reference_threshold),
        verdicts=outputs.verdicts(threshold),
    )
    limit = ROUNDING * found.scores.scale
    found = replace(
        found,
        flipped=tuple(
            place
            for place in found.flipped
            if abs(float(reference.scores[place]) - reference_threshold) > limit
            or abs(float(outputs.scores[place]) - threshold) > limit
        ),
    )
    if found.maps is None or not (found.scores.is_finite and found.maps.is_finite):
        raise ParityError(
            "the model gives maps of a different size, or a value that is not a finite number: the bundle was not "
            "written"
        )
    return ParityRecord(
        reference="torch fp32",
        images=images,
        n_images=len(names),
        max_score_difference=found.scores.largest,
        max_map_difference=found.maps.largest,
        reference_score_scale=found.scores.scale,
        reference_map_scale=found.maps.scale,
        label_flips=len(found.flipped),
        flipped_images=found.names(names),
        tolerance=tolerance,
    )


def check_parity(record: ParityRecord) -> None:
    """Refuse an FP32 model that differs from the trained one: another order of rounding flips nothing and moves little.

    Raises:
        ParityError: a label flips, or a difference is beyond the tolerance.
    """
    tolerance = record.tolerance or FP32_TOLERANCE
    for what, difference, scale in (
        ("score", record.max_score_difference, record.reference_score_scale),
        ("anomaly map", record.max_map_difference, record.reference_map_scale),
    ):
        if difference > tolerance * scale:
            raise ParityError(
                f"the {what} differs from the trained model's by up to {difference:.3g}, which is "
                f"{difference / max(scale, 1e-30):.2%} of its largest value; at most {tolerance:.2%} is "
                "allowed: the bundle was not written"
            )
    if record.label_flips:
        raise ParityError(
            f"{record.label_flips} of {record.n_images} images "
            f"{verb(record.label_flips, 'gets', 'get')} a different verdict from the trained model's "
            f"({', '.join(record.flipped_images[:5])}{', ...' if record.label_flips > 5 else ''}): "
            "the bundle was not written"
        )
