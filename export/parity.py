"""Does an exported model give the trained model's verdict? Measured on real images, written into the bundle.

Does a network that was trained in anomalib give the verdict that anomalib itself gives? Asked where anomalib is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_edge.agreement import Outputs, compare_outputs
from vae_edge.errors import MissingDependencyError, ParityError
from vae_edge.export.reference import MAX_TEST_IMAGES
from vae_edge.manifest import ParityRecord
from vae_edge.progress import Progress
from vae_edge.train.anomalib.checkpoint import TrainedElsewhere
from vae_edge.train.data.inspection_set import ImageFile, load_images, spread
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.run.folder import RunFolder

FP32_TOLERANCE = 1e-3
"""Largest difference allowed between FP32 models in maps and scores, as a share of the reference's largest value.

Rounding in another order moves them by about 1e-5 of it; ten times that is a mistake."""


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

    A flip is an image that one calls anomalous and the other does not, each by its own threshold.

    Args:
        reference: outputs of the trained model.
        reference_threshold: its image threshold.
        outputs: outputs of the exported model for the same images.
        threshold: its image threshold.
        names: what the images are called, to name the flipped ones.
        images: what the images are, in words, for the record.
        tolerance: for the record.

    Raises:
        ParityError: an output is not finite, or the maps are of another size.
    """
    found = compare_outputs(
        reference,
        outputs,
        reference_verdicts=reference.verdicts(reference_threshold),
        verdicts=outputs.verdicts(threshold),
    )
    if found.maps is None or not (found.scores.is_finite and found.maps.is_finite):
        raise ParityError(
            "the model gives maps of another size, or a value that is not a finite number: the bundle was not written"
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
    """Refuse an FP32 model that is not the trained model: rounding in another order flips nothing and moves little.

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
            f"{record.label_flips} of {record.n_images} images get another verdict than from the trained model "
            f"({', '.join(record.flipped_images[:5])}{', ...' if record.label_flips > 5 else ''}): "
            "the bundle was not written"
        )


def compare_with_anomalib(run: RunFolder, trained: TrainedElsewhere, watcher: Watcher) -> ParityRecord:
    """Hold the run's model against anomalib's prediction of the same files: the run's held-out normals and test images.

    anomalib reads, prepares and scores the files by itself, with the model that it restores from the checkpoint; both
    sides are compared before scores are brought to 0 to 1.

    Args:
        run: made by `take_over`.
        trained: what it was made of, a checkpoint of `vae_edge.anomalib.Vae` that scores as a device does.
        watcher: is told how it goes.

    Returns:
        The differences.

    Raises:
        MissingDependencyError: anomalib is not installed.
        ParityError: a verdict differs, or a score or a map by more than rounding explains.
    """
    files = (*run.find_calibration_images(), *spread(run.find_images(("test",)), MAX_TEST_IMAGES))
    theirs = predict_with_anomalib(trained.path, files, watcher.progress_of("predicting with anomalib"))
    images = load_images(files, run.record.preparation)
    ours = Outputs(*run_graph(run.load_graph(), images, progress=watcher.progress_of("scoring with torch")))
    threshold = run.thresholds.image_threshold
    parity = measure_parity(
        theirs,
        threshold,
        ours,
        threshold,
        names=[file.name for file in files],
        images=f"{len(files)} images of the run, against anomalib's own prediction",
        tolerance=FP32_TOLERANCE,
    )
    check_parity(parity)
    return parity


def predict_with_anomalib(checkpoint: Path, files: Sequence[ImageFile], progress: Progress | None = None) -> Outputs:
    """Let anomalib read, prepare and score files with the model of a checkpoint of `vae_edge.anomalib.Vae`.

    Returns:
        Maps and scores as the model gives them, before post-processing.

    Raises:
        MissingDependencyError: anomalib is not installed.
    """
    try:
        from anomalib.data.utils import read_image

        from vae_edge.anomalib import Vae
    except MissingDependencyError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"anomalib is not installed ({error}); install it with: pip install 'vae-edge[anomalib]'"
        ) from error
    model: Any = Vae.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    maps, scores = [], []
    with torch.inference_mode():
        for done, file in enumerate(files, 1):
            image = model.pre_processor.transform(read_image(file.path, as_tensor=True)[None])
            predicted = model.model(image)
            maps.append(predicted.anomaly_map[0, 0].numpy())
            scores.append(float(predicted.pred_score[0]))
            if progress is not None:
                progress(done, len(files))
    return Outputs(np.stack(maps), np.array(scores, dtype=np.float32))
