"""Which kind of network finds defects best, on features, on pixels or both: decided without labels.

Held-out normals get synthetic defects, as for the choice of a scoring (`vae_edge.train.choice.scoring_choice`), and are
scored by a network on features that has not seen them, by a short training of one on pixels, and by the mean of both in
units of the normals. A network on features found more on every surface that nobody had tuned on, so it stays unless
another choice is better by more than chance and by more than a little (`benchmarks/DETECTION.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.train.choice.candidates import Ranked
from vae_edge.train.choice.photometric_choice import fit_pilot
from vae_edge.train.choice.scoring_choice import ChoiceSet, choose_row, fused_scores, rank, stratum_aurocs
from vae_edge.train.features.graph import FeatureGraph
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import run_graph
from vae_edge.train.model.input_settings import InputSettings, Photometric
from vae_edge.train.model.presets import Network
from vae_edge.train.model.scoring import DEFAULT_SCORING
from vae_edge.train.model.scoring_constants import center_and_unit

LEAST_GAIN = 0.02
"""AUROC by which another network has to be better than the one on features alone: it costs time on the device."""

_ORDER = (Network.FEATURE, Network.BOTH, Network.PIXEL)


@dataclass(frozen=True)
class NetworkRanking:
    """What the kinds of networks reached."""

    aurocs: NDArray[np.float64]
    """float64 [kinds, strata], in the order feature, both, pixel."""
    by_normal: NDArray[np.float64]
    """float64 [kinds, normals], as in `ScoringRanking`."""

    @property
    def chosen(self) -> Network:
        """The best one, or `FEATURE` where it is not clearly better."""
        means = self.aurocs.mean(axis=1)
        row = choose_row(self.aurocs, self.by_normal, 0)
        return _ORDER[row] if means[row] >= means[0] + LEAST_GAIN else Network.FEATURE

    def records(self) -> tuple[Ranked, ...]:
        """Return all, best first."""
        return rank([str(kind) for kind in _ORDER], self.aurocs, self.by_normal)

    def sentence(self) -> str:
        """Say what was chosen and why."""
        reached = ", ".join(f"{kind} {row.mean():.3f}" for kind, row in zip(_ORDER, self.aurocs, strict=True))
        return f"network: {self.chosen}; AUROC on synthetic defects: {reached}"


def choose_network(
    settings: TrainSettings,
    judge: FeatureGraph,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    choice_set: ChoiceSet,
    light: Photometric,
    folder: Path,
    watcher: Watcher,
) -> NetworkRanking:
    """Compare a network on features with a short training of one on pixels, and with both.

    Args:
        settings: of the training that follows.
        judge: a model on features that was trained without the `statistics_images` and knows nothing of them.
        fit_images: uint8 [n, h, w, 3], of the size that the network on pixels sees.
        statistics_images: uint8 [m, h, w, 3], likewise.
        choice_set: what they are judged on, of the size that the network on features sees.
        light: how light is evened out for the network on pixels.
        folder: the run's; an interrupted choice goes on from what is in it.
        watcher: receives progress.

    Raises:
        InputError, BundleError, TrainingInterruptedError: see `fit_vae`.
    """
    is_normal = np.array([stratum is None for stratum in choice_set.strata])
    progress = watcher.progress_of("judging the network on features")
    _, found = run_graph(judge, choice_set.images, progress=progress)
    feature = in_units(found.astype(np.float64), is_normal)
    input_settings = InputSettings(settings.tiling_in_force, light)
    vae = fit_pilot(
        settings, input_settings, fit_images, statistics_images, folder, "trying a network on pixels", watcher
    )
    small = choice_set.resized(input_settings.image_size)
    scored = fused_scores(
        vae,
        input_settings,
        small,
        settings.scoring or DEFAULT_SCORING,
        fitted=fit_images,
        progress=watcher.progress_of("judging the network on pixels"),
    )
    pixel = in_units(scored, is_normal)
    rows = [stratum_aurocs(scores, choice_set) for scores in (feature, (feature + pixel) / 2, pixel)]
    return NetworkRanking(np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows]))


def in_units(scores: NDArray[np.float64], is_normal: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Bring scores, float64 [n], to the scale on which the median of the normals is 0 and their 0.9-quantile 1."""
    center, unit = center_and_unit(scores[is_normal])
    return (scores - center) / unit
