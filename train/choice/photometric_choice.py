"""Which way of evening out light to train with: short trainings, judged like the scoring.

A network has to be trained for each of them, and what a hundred or two steps show of their order holds for the whole
training (`benchmarks/DETECTION.md`). A few dozen images leave much to chance, and one set must not be treated one way
under one random seed and another way under the next: so what the exposures speak for (`VERY_UNEQUAL_LIGHT`) stays
unless another way is clearly better.

Evening it out by the surroundings is compared only where labelled images judge. It takes away what is large and faint,
uneven light on a part for one, and synthetic defects, most of which are not, made it look better than it is: on the
magnetic tiles it came first by 0.07 and found fewer real defects.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.train.choice.candidates import Ranked
from vae_edge.train.choice.scoring_choice import ChoiceSet, choose_row, rank, rank_scorings
from vae_edge.train.data.report import VERY_UNEQUAL_LIGHT
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, interrupted
from vae_edge.train.loop.launch import first_device
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.trainer_arguments import deciding
from vae_edge.train.loop.training import fit_vae, plan_of
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.input_settings import InputSettings, Photometric
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import DEFAULT_SCORING, ScoringSettings

_PILOT_STEPS = 200
_SHARE_OF_TRAINING = 0.6
"""Of the steps of the training, those of all pilots together at most: with what judges them, they are not to take
longer than it."""

_PILOTS = "pilots"


@dataclass(frozen=True)
class PhotometricRanking:
    """What the ways of evening out light reached."""

    aurocs: NDArray[np.float64]
    """float64 [kinds, strata]."""
    by_normal: NDArray[np.float64]
    """float64 [kinds, normals], as in `ScoringRanking`."""
    kinds: tuple[Photometric, ...]
    default: Photometric = Photometric.NONE
    """What stays unless another way is clearly better."""

    @property
    def chosen(self) -> Photometric:
        """The best one, or the default where it is not clearly better."""
        return self.kinds[choose_row(self.aurocs, self.by_normal, self.kinds.index(self.default))]

    def records(self) -> tuple[Ranked, ...]:
        """Return all, best first."""
        return rank([str(kind) for kind in self.kinds], self.aurocs, self.by_normal)

    def sentence(self) -> str:
        """Say what was chosen and why."""
        reached = {kind: float(row.mean()) for kind, row in zip(self.kinds, self.aurocs, strict=True)}
        others = ", ".join(f"{kind} {reached[kind]:.3f}" for kind in self.kinds if kind is not self.chosen)
        return f"light: {self.chosen.describe()}, AUROC {reached[self.chosen]:.3f} after a short training ({others})"


def choose_photometric(
    settings: TrainSettings,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    choice_set: ChoiceSet,
    folder: Path,
    watcher: Watcher,
) -> PhotometricRanking:
    """Train briefly with each way of evening out light and compare what the networks find.

    Args:
        settings: of the training that follows.
        fit_images: uint8 [n, H, W, 3].
        statistics_images: uint8 [m, H, W, 3].
        choice_set: what they are judged on.
        folder: the run's; an interrupted choice continues from what is in it.
        watcher: receives progress.

    Raises:
        InputError, BundleError, TrainingInterruptedError: see `fit_vae`.
    """
    kinds = tuple(Photometric) if settings.choose_on_labels else (Photometric.NONE, Photometric.IMAGE)
    scoring: ScoringSettings = settings.scoring or DEFAULT_SCORING
    rows, by_normal = [], []
    for number, kind in enumerate(kinds, 1):
        stage = f"trying light {number} of {len(kinds)} ({kind})"
        input_settings = InputSettings(settings.tiling_in_force, kind, ignored=settings.ignored)
        pilot = pilot_settings(settings, len(fit_images), len(kinds))
        vae = fit_pilot(pilot, input_settings, fit_images, statistics_images, folder, stage, watcher)
        ranking = rank_scorings(
            vae,
            input_settings,
            choice_set,
            candidates=(scoring,),
            default=scoring,
            fitted=fit_images,
            progress=watcher.progress_of(f"judging light {number} of {len(kinds)}"),
        )
        rows.append(ranking.aurocs[0])
        by_normal.append(ranking.by_normal[0])
    traits = settings.traits
    very_unequal = traits is not None and traits.light_spread >= VERY_UNEQUAL_LIGHT
    default = Photometric.IMAGE if very_unequal else Photometric.NONE
    return PhotometricRanking(np.stack(rows), np.stack(by_normal), kinds, default)


def fit_pilot(
    settings: TrainSettings,
    input_settings: InputSettings,
    fit_images: NDArray[np.uint8],
    statistics_images: NDArray[np.uint8],
    folder: Path,
    stage: str,
    watcher: Watcher,
) -> Vae:
    """Train a network on pixels briefly.

    Args:
        settings: of this training.
        input_settings: how an image becomes its input.
        fit_images: uint8 [n, H, W, 3].
        statistics_images: uint8 [m, H, W, 3].
        folder: the run's; an interrupted training goes on from what is in it.
        stage: what the watcher calls it.
        watcher: receives progress.

    Raises:
        InputError, BundleError, TrainingInterruptedError: see `fit_vae`.
    """
    pilot = _pilot_folder(folder, input_settings.photometric)
    try:
        fitted = fit_vae(
            settings,
            fit_images,
            statistics_images,
            pilot,
            lambda done, total, note: watcher.progress(stage, done, total, note),
            input_settings=input_settings,
        )
    except TrainingInterruptedError:
        raise TrainingInterruptedError(interrupted(folder, training=pilot, what=stage)) from None
    return fitted[0]


def forget_pilots(folder: Path) -> None:
    """Delete what the short trainings left, once the run is complete."""
    shutil.rmtree(_pilot_folder(folder, Photometric.NONE).parent, ignore_errors=True)


def _pilot_folder(folder: Path, kind: Photometric) -> Path:
    return folder / "checkpoints" / _PILOTS / kind.value


def pilot_settings(settings: TrainSettings, n_images: int, n_pilots: int) -> TrainSettings:
    """Return the settings of a short training: about 200 steps, one process, no logs to keep.

    Args:
        settings: of the training that follows.
        n_images: that it is trained on.
        n_pilots: short trainings; all together have six tenths of its steps at most, but an epoch each.
    """
    plan = plan_of(settings, n_images)
    most = int(_SHARE_OF_TRAINING * plan.epochs / n_pilots)
    epochs = max(1, min(round(_PILOT_STEPS / plan.steps_per_epoch), most))
    trainer = {name: value for name, value in deciding(settings.trainer).items() if name != "strategy"}
    return settings.model_copy(
        update={
            "epochs": epochs,
            "patience": 0,
            "devices": first_device(settings.devices),
            "num_nodes": 1,
            "max_time_minutes": None,
            "trainer": trainer,
        }
    )
