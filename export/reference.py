"""The trained model, and what it says about the images that every bundle is held against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.agreement import Outputs
from vae_edge.errors import InputError
from vae_edge.export.threshold_rule import ThresholdRule
from vae_edge.manifest import Thresholds
from vae_edge.progress import StepProgress
from vae_edge.train.data.inspection_set import load_images, spread
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.scoring import ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.run.folder import RunFolder

MAX_TEST_IMAGES = 200
"""Test images that parity is measured on, spread evenly over the test set, beside all normals of the thresholds."""


@dataclass(frozen=True)
class Reference:
    """The trained model and its outputs in FP32."""

    run: RunFolder
    graph: AnomalyGraph
    fingerprint: str
    """SHA-256 over the weights, the scoring and its constants."""
    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3]."""
    names: tuple[str, ...]
    n_normals: int
    """The first so many images are the normals that the thresholds are fitted on: held out from the training, or in a
    cross-conformal run all that there were."""
    outputs: Outputs
    rule: ThresholdRule
    """How thresholds follow from a model's outputs for the normals."""
    thresholds: Thresholds
    description: str
    """What the images are, in words."""


def measure_reference(
    run: RunFolder,
    *,
    scoring: ScoringSettings | None,
    data_root: Path | None,
    false_alarm_rate: float | None,
    progress: StepProgress,
) -> Reference:
    """Run the trained model over the normals of its thresholds and some test images.

    Args:
        run: the trained model.
        scoring: to use in place of the run's own; its constants are then measured anew on the normals that the run kept
            for that. None: the run's own.
        data_root: where the run's images are now; None: where they were.
        false_alarm_rate: None: the run's own.
        progress: is told of every step.

    Raises:
        InputError: the run's images are not to be found; or another scoring was asked for, and the run is
            cross-conformal.
        BundleError: the weights do not belong to the run.
    """
    rule = ThresholdRule.of_run(run.calibration, false_alarm_rate)
    graph, fingerprint = run.load_graph(), run.fingerprint
    preparation = run.record.preparation
    if scoring is not None and scoring != run.record.scoring:
        if not rule.is_split:
            raise InputError(
                f"the thresholds of the run {run.folder} come from networks of folds, which are gone, by the scoring "
                f"that it was trained with ({run.record.scoring.describe()}); to score otherwise, train with that "
                "--scoring, or with --calibration split"
            )
        statistics = load_images(run.find_images(("statistics",), data_root), preparation)
        constants = fit_scoring_constants(
            run.load_vae(),
            scoring,
            statistics,
            frame=run.record.frame,
            fitted=load_images(run.find_images(("fit",), data_root), preparation),
            progress=lambda done, total: progress("measuring normal residuals", done, total),
        )
        graph = AnomalyGraph(run.load_vae(), scoring, constants, run.record.frame)
        fingerprint = hashlib.sha256(f"{fingerprint} {scoring.model_dump_json()}".encode()).hexdigest()
    normals = run.find_calibration_images(data_root)
    tests = spread(run.find_images(("test",), data_root), MAX_TEST_IMAGES)
    files = (*normals, *tests)
    images = load_images(files, preparation, lambda done, total: progress("reading images", done, total))
    maps, scores = run_graph(graph, images, progress=lambda done, total: progress("scoring with torch", done, total))
    outputs = Outputs(maps, scores)
    thresholds = rule.fit(outputs.take(slice(len(normals))), scored_by=f"torch {torch.__version__} (the trained model)")
    return Reference(
        run=run,
        graph=graph,
        fingerprint=fingerprint,
        images=images,
        names=tuple(file.name for file in files),
        n_normals=len(normals),
        outputs=outputs,
        rule=rule,
        thresholds=thresholds,
        description=rule.describe_normals() + (f" and {len(tests)} test images" if tests else ""),
    )
