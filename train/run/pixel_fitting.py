"""A model on pixels, from images to the whole graph: choose, train a network, measure its residual on other normals.

Every training of a run goes through `fit_graph`, those of folds too: a network whose scores stand in for another's must
have been made in the same way. What is chosen is chosen once, by the network that is deployed: `FittedGraph.settings`
holds it, and the folds are fitted with these.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.train.choice.candidates import CANDIDATES, ChoiceRecord, Ranked
from vae_edge.train.choice.photometric_choice import choose_photometric
from vae_edge.train.choice.scoring_choice import (
    FEWEST_NORMALS,
    ChoiceSet,
    Effort,
    labelled_set,
    paste_on,
    rank_scorings,
)
from vae_edge.train.features.graph import FeatureGraph
from vae_edge.train.loop.settings import DecidedSettings, TrainingOutcome, TrainSettings
from vae_edge.train.loop.team import ALONE, Team
from vae_edge.train.loop.trainer_arguments import NOTHING_ATTACHED, Attached
from vae_edge.train.loop.training import fit_vae, plan_of
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, ScoringConstants
from vae_edge.train.model.input_settings import InputSettings, Photometric
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import DEFAULT_SCORING, ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.run.records import FeatureRecord


@dataclass(frozen=True)
class LabelledImages:
    """Labelled images to choose by; they are not tested on."""

    images: NDArray[np.uint8]
    """uint8 [n, H, W, 3]."""
    defects: tuple[str | None, ...]
    """Their classes; None: a normal image."""


@dataclass(frozen=True)
class FittedGraph:
    """A trained network and the graph that scores with it."""

    vae: Vae | None
    """On pixels, where there is one."""
    graph: DeployedGraph
    constants: ScoringConstants | None
    """Of the network on pixels."""
    outcome: TrainingOutcome
    settings: DecidedSettings
    """The settings it was fitted with."""
    choice: ChoiceRecord | None
    """What was chosen and why; None: nothing was."""
    feature: FeatureRecord | None = None
    """Of a network on features, where there is one."""

    def weights(self) -> dict[str, Tensor]:
        """Return the networks' weights by name, as they are saved."""
        tensors = {} if self.vae is None else dict(self.vae.state_dict())
        if isinstance(self.graph, FeatureGraph):
            tensors |= {f"backbone.{name}": each for name, each in self.graph.features.backbone.state_dict().items()}
            tensors |= {f"feature.{name}": each for name, each in self.graph.residual.vae.state_dict().items()}
            if self.graph.pixels is not None:
                tensors |= {f"pixels.{name}": each for name, each in self.graph.pixels.vae.state_dict().items()}
        return tensors

    def scoring_tensors(self) -> dict[str, Tensor]:
        """Return what held-out normals say by name, as it is saved."""
        tensors = {} if self.constants is None else self.constants.tensors()
        return tensors | (self.graph.constants.tensors() if isinstance(self.graph, FeatureGraph) else {})


def fit_graph(
    settings: TrainSettings,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    folder: Path,
    watcher: Watcher,
    *,
    stage: str = "training",
    labelled: LabelledImages | None = None,
    attached: Attached = NOTHING_ATTACHED,
    team: Team = ALONE,
) -> FittedGraph:
    """Choose what is left to be chosen, train and fit the scoring, or continue where `folder` holds a checkpoint.

    Args:
        settings: what to do.
        fit_images: uint8 [n, H, W, 3], the normals to train on.
        statistics_images: uint8 [m, H, W, 3], other normals; they choose the epoch, the light and the scoring, and set
            the scale of the residual.
        folder: gets `checkpoints/` and `logs/`.
        watcher: receives progress.
        stage: what the training is called there.
        labelled: to choose by; None: synthetic defects on the `statistics_images`.
        attached: a user's loggers, callbacks and other objects for the training, not for what is tried beforehand.
        team: processes that share the steps of the training, not of what is tried beforehand.

    Raises:
        InputError, BundleError, TrainingInterruptedError: see `fit_vae`.
    """
    choice_set = _choice_set(settings, len(fit_images), statistics_images, labelled)
    light = _choose_light(settings, fit_images, statistics_images, choice_set, folder, watcher)
    input_settings = InputSettings(settings.tiling_in_force, light.value, ignored=settings.ignored)
    vae, outcome = fit_vae(
        settings,
        fit_images,
        statistics_images,
        folder,
        lambda done, total, note: watcher.progress(stage, done, total, note),
        input_settings=input_settings,
        attached=attached,
        team=team,
    )
    scoring = _choose_scoring(settings, vae, input_settings, fit_images, statistics_images, choice_set, watcher)
    constants = fit_scoring_constants(
        vae,
        scoring.value,
        statistics_images,
        input_settings=input_settings,
        fitted=fit_images,
        progress=watcher.progress_of("measuring normal residuals"),
    )
    graph = AnomalyGraph(vae, scoring.value, constants, input_settings)
    decided = settings.decide(light.value, scoring.value)
    return FittedGraph(vae, graph, constants, outcome, decided, _record(choice_set, light, scoring))


_T = TypeVar("_T")


@dataclass(frozen=True)
class _Decision(Generic[_T]):
    """What is used, and how it came about."""

    value: _T
    because: tuple[str, ...] = ()
    """A sentence; none where it was requested."""
    ranked: tuple[Ranked, ...] = ()
    """What was compared, best first."""


def _choose_light(
    settings: TrainSettings,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    choice_set: ChoiceSet | None,
    folder: Path,
    watcher: Watcher,
) -> _Decision[Photometric]:
    if settings.photometric is not None:
        return _Decision(settings.photometric)
    if settings.traits is not None and settings.traits.has_steady_light:
        reason = f"no light correction: the light hardly differs ({settings.traits.light_spread:.2f})"
        decision = _Decision(Photometric.NONE, (reason,))
    elif choice_set is None:
        decision = _Decision(Photometric.NONE, (_too_few("no light correction", len(statistics_images)),))
    else:
        ranking = choose_photometric(settings, fit_images, statistics_images, choice_set, folder, watcher)
        decision = _Decision(ranking.chosen, (ranking.sentence(),), ranking.records())
    for sentence in decision.because:
        watcher.say(sentence)
    return decision


def _choose_scoring(
    settings: TrainSettings,
    vae: Vae,
    input_settings: InputSettings,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    choice_set: ChoiceSet | None,
    watcher: Watcher,
) -> _Decision[ScoringSettings]:
    if settings.scoring is not None:
        return _Decision(settings.scoring)
    if choice_set is None:
        reason = _too_few("the default scoring is used", len(statistics_images))
        decision = _Decision(DEFAULT_SCORING, (reason,))
    else:
        progress = watcher.progress_of("comparing scorings")
        found = rank_scorings(vae, input_settings, choice_set, fitted=fit_images, progress=progress)
        decision = _Decision(found.chosen, (found.sentence(),), found.records())
    for sentence in decision.because:
        watcher.say(sentence)
    return decision


def _record(
    choice_set: ChoiceSet | None, light: _Decision[Photometric], scoring: _Decision[ScoringSettings]
) -> ChoiceRecord | None:
    because = (*light.because, *scoring.because)
    if not because:
        return None
    return ChoiceRecord(
        judged_on="nothing" if choice_set is None else choice_set.description,
        photometric=light.ranked,
        scoring=scoring.ranked,
        n_compositions=len(CANDIDATES) if scoring.ranked else 0,
        because=because,
    )


def _choice_set(
    settings: TrainSettings, n_fit: int, statistics_images: NDArray[np.uint8], labelled: LabelledImages | None
) -> ChoiceSet | None:
    if settings.scoring is not None and settings.photometric is not None:
        return None
    plan = plan_of(settings, n_fit)
    n_windows = plan.epochs * plan.images_per_epoch
    effort = Effort.within(n_windows, settings.tiling_in_force.n_tiles, len(statistics_images))
    if labelled is not None:
        return labelled_set(statistics_images, labelled.images, labelled.defects, n_fitted=effort.n_fitted)
    if len(statistics_images) < FEWEST_NORMALS:
        return None
    return paste_on(statistics_images, seed=settings.seed, ignored=settings.ignored, effort=effort)


def _too_few(what: str, n: int) -> str:
    return f"{what}: {n} held-out normals are too few to choose with; expected {FEWEST_NORMALS} or more"
