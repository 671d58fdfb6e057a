"""From images to the whole model: train a network, measure its residual on other normals, put both into one graph.

Every training of a run goes through `fit_graph`, those of folds too: a network whose scores stand in for another's must
have been made in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.train.anomaly_graph import AnomalyGraph, fit_scoring_constants
from vae_edge.train.loop import fit_vae
from vae_edge.train.network import Vae
from vae_edge.train.run_records import TrainingOutcome, TrainSettings
from vae_edge.train.watcher import Watcher


@dataclass(frozen=True)
class FittedGraph:
    """A trained network and the graph that scores with it."""

    vae: Vae
    graph: AnomalyGraph
    outcome: TrainingOutcome


def fit_graph(
    settings: TrainSettings,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    folder: Path,
    watcher: Watcher,
    *,
    stage: str = "training",
) -> FittedGraph | None:
    """Train a network and fit its scoring, or go on where `folder` holds a checkpoint.

    Args:
        settings: what to do.
        fit_images: uint8 [n, H, W, 3], the normals to train on.
        statistics_images: uint8 [m, H, W, 3], other normals; they choose the epoch and set the scale of the residual.
        folder: gets `checkpoints/` and `logs/`.
        watcher: is told how it goes.
        stage: what the training is called there.

    Returns:
        The model; None in a process that only helped another one to train.

    Raises:
        InputError, BundleError, TrainingInterruptedError: see `fit_vae`.
    """
    fitted = fit_vae(settings, fit_images, statistics_images, folder, lambda d, t, n: watcher.progress(stage, d, t, n))
    if fitted is None:
        return None
    vae, outcome = fitted
    constants = fit_scoring_constants(
        vae, settings.scoring, statistics_images, progress=watcher.progress_of("measuring normal residuals")
    )
    return FittedGraph(vae, AnomalyGraph(vae, settings.scoring, constants), outcome)
