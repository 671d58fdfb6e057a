"""Cross-conformal calibration: thresholds from all good parts where too few could be held out.

The good parts are cut into K folds. For each fold a network is trained on the others, by the same recipe as the one
that is deployed, and scores the fold's images, which it has not seen. The n scores of all folds together are the
calibration scores, so the smallest rate they support is 1 / (n + 1), n being all good parts and not a held-out fifth.
See Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74, 2015; for anomaly
detectors Hennhoefer and Preisach, "Leave-one-out-, bootstrap- and cross-conformal anomaly detectors", 2024.

What is guaranteed, and what is not:

* No theorem covers what is deployed here: one network, trained on all good parts, compared with scores of K others. Its
  score of a new normal is not exchangeable with theirs.
* Had the K networks themselves judged a new image, each compared with its own fold's scores (CV+ in Barber, Candes,
  Ramdas and Tibshirani, "Predictive inference with the jackknife+", Annals of Statistics 49, 2021), the rate would be
  at most twice the one asked for, plus less than 2 K / n.
* In practice it errs on the safe side: the folds' networks saw fewer images, so their scores of unseen normals are
  higher, if anything, than the deployed network's, and the threshold is too. Nothing makes it so in every case: scores
  of different networks are in the units of different normals, and a training that went wrong in one fold widens them.

Whoever needs the proof takes `split`, with more good parts or a higher rate.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.decision import PixelTail, fit_thresholds_with_tail, normals_needed, smallest_false_alarm_rate
from vae_edge.errors import UsageError
from vae_edge.manifest import ThresholdMethod
from vae_edge.platform.machine import installed_version
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import Fold, Split, one_of_each_part, split_into_folds, split_normals
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, interrupted
from vae_edge.train.loop.settings import Calibration, TrainSettings
from vae_edge.train.loop.trainer_arguments import deciding
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, run_graph
from vae_edge.train.run.pixel_fitting import fit_graph
from vae_edge.train.run.records import CalibrationRecord, CalibrationScore

FitFold = Callable[[int, NDArray[np.uint8], NDArray[np.uint8]], DeployedGraph | None]
"""Makes the model of a fold, counted from 1, from images to fit on and images for the statistics, uint8 [n, H, W, 3]
each; None in a process that only helps."""


def divide(
    images: Sequence[ImageFile], settings: TrainSettings, group: Callable[[ImageFile], str] | None = None
) -> tuple[Split, tuple[Fold, ...]]:
    """Split good parts for the calibration that the settings ask for.

    Args:
        images: good parts.
        settings: of the training.
        group: gives equal keys to images that stay together; None: as `settings.split` says.

    Returns:
        The split for the network that is deployed, and the folds; no folds where the calibration is `split`.

    Raises:
        InputError: see `split_normals` and `split_into_folds`; or folds were requested along with a share to hold out.
    """
    share = settings.split.threshold_share
    if settings.calibration is Calibration.CROSS and share is not None:
        raise UsageError(
            f"a share of {share} was requested to be held out for the threshold, but cross-conformal calibration "
            "holds nothing out; leave out one of them"
        )
    if settings.calibration is not Calibration.CROSS:
        split = split_normals(images, settings.split, group)
        parts = {image.sha256 if group is None else group(image) for image in split.threshold}
        enough = len(parts) >= normals_needed(settings.false_alarm_rate)
        if enough or settings.calibration is Calibration.SPLIT or share is not None:
            return split, ()
    return split_into_folds(images, settings.folds, settings.split, group)


def announce(settings: TrainSettings, n_normals: int, n_folds: int) -> str:
    """Return the sentence that says, beforehand, that several trainings follow and why."""
    why = "cross-conformal calibration was requested"
    if settings.calibration is Calibration.AUTO:
        why = (
            f"a false-alarm rate of {settings.false_alarm_rate:.3g} needs {normals_needed(settings.false_alarm_rate)} "
            f"scores of normals that the network has not seen, more than can be held out of {n_normals} (all together "
            f"support {smallest_false_alarm_rate(n_normals):.3g})"
        )
    return (
        f"{n_folds + 1} trainings follow because {why}: one on all good parts, for the network that is deployed, and "
        f"one for each of {n_folds} folds of them, to score the good parts that it has not seen"
        + ("; --calibration split trains once" if settings.calibration is Calibration.AUTO else "")
    )


def cross_calibrate(
    settings: TrainSettings,
    deployed: DeployedGraph | None,
    folds: Sequence[Fold],
    files: Sequence[ImageFile],
    images: NDArray[np.uint8],
    fit_fold: FitFold,
    watcher: Watcher,
    *,
    part: Callable[[ImageFile], str] = lambda image: image.sha256,
) -> CalibrationRecord | None:
    """Fit the folds' models and score what they have not seen, and fit the thresholds on those scores.

    Args:
        settings: what to do.
        deployed: the model of all good parts; None in a process that only helps to train, which helps here too.
        folds: from `split_into_folds`.
        files: the good parts.
        images: uint8 [n, H, W, 3], the same, prepared.
        fit_fold: makes the folds' models, such as `PixelFolds`.
        watcher: receives progress.
        part: gives equal keys to pictures of the same part, of which one sets the image threshold.

    Returns:
        The calibration; None in a process that only helped.

    Raises:
        Exception: whatever `fit_fold` raises.
    """
    n_pixels = images[..., 0].size
    tail = PixelTail(n_pixels, settings.pixel_false_positive_rate, settings.kept)
    scores = score_out_of_fold(files, images, folds, fit_fold, tail, watcher)
    if deployed is None or scores is None:
        return None
    maps, final_scores = run_graph(
        deployed, images, progress=watcher.progress_of("scoring normals with the deployed network")
    )
    final_tail = PixelTail(n_pixels, settings.pixel_false_positive_rate, settings.kept)
    counted = one_of_each_part(files, part)
    final_tail.add(maps[list(counted)])  # Of the images that an export runs, to hold its own maps against.
    return cross_record(settings, folds, files, counted, scores, tail, final_scores, final_tail)


@dataclass(frozen=True)
class PixelFolds:
    """Trains the folds' networks on pixels, or continues with them: a `FitFold`."""

    settings: TrainSettings
    """Of the deployed network, with what was chosen for it."""
    n_folds: int
    out: Path
    """The run folder; `checkpoints/fold-1` and so on are made in it."""
    watcher: Watcher
    """Receives progress."""

    def __call__(self, number: int, fit: NDArray[np.uint8], statistics: NDArray[np.uint8]) -> AnomalyGraph | None:
        """Return the model of a fold; None in a process that only helped.

        Raises:
            InputError, BundleError, TrainingInterruptedError: see `fit_vae`. What is done is not done again.
        """
        settings = self.settings.model_copy(update={"trainer": deciding(self.settings.trainer)})
        folder = _fold_folder(self.out, number)
        stage = f"training fold {number} of {self.n_folds}"
        try:
            fitted = fit_graph(settings, fit, statistics, folder, self.watcher, stage=stage)
        except TrainingInterruptedError:
            what = f"the training of fold {number} of {self.n_folds}"
            raise TrainingInterruptedError(interrupted(self.out, training=folder, what=what)) from None
        if fitted is None:
            return None
        assert isinstance(fitted.graph, AnomalyGraph)
        return fitted.graph


def cross_record(
    settings: TrainSettings,
    folds: Sequence[Fold],
    files: Sequence[ImageFile],
    counted: Sequence[int],
    scores: NDArray[np.float32],
    tail: PixelTail,
    final_scores: NDArray[np.float32],
    final_tail: PixelTail,
) -> CalibrationRecord:
    """Fit the thresholds on out-of-fold scores.

    Args:
        settings: of the run.
        folds: each file is held out in one of them.
        files: the good parts.
        counted: indices of one picture of each part, which sets the image threshold.
        scores: float32 [n], of every file by its fold's network.
        tail: of those networks' maps.
        final_scores: float32 [n], by the network that is deployed.
        final_tail: of its maps of the counted files.
    """
    thresholds = fit_thresholds_with_tail(
        scores[list(counted)],
        tail,
        false_alarm_rate=settings.false_alarm_rate,
        scored_by=f"torch {installed_version('torch')}, fp32, CPU, by networks of {len(folds)} folds",
        method=ThresholdMethod.CROSS_CONFORMAL,
    )
    fold_of = {image: number for number, fold in enumerate(folds, 1) for image in fold.held_out}
    named = tuple(
        CalibrationScore(
            name=files[i].name,
            sha256=files[i].sha256,
            score=float(scores[i]),
            fold=fold_of[files[i]],
            final_score=float(final_scores[i]),
        )
        for i in counted
    )
    return CalibrationRecord(scores=named, thresholds=thresholds, final_pixel_threshold=final_tail.threshold())


def score_out_of_fold(
    files: Sequence[ImageFile],
    images: NDArray[np.uint8],
    folds: Sequence[Fold],
    fit_fold: FitFold,
    tail: PixelTail,
    watcher: Watcher,
) -> NDArray[np.float32] | None:
    """Score every image by the model of its fold.

    Args:
        files: the good parts.
        images: uint8 [n, H, W, 3], the same, prepared.
        folds: each of the files is held out in one of them.
        fit_fold: makes the models, one after the other; one is in memory at a time.
        tail: takes in the maps.
        watcher: receives progress.

    Returns:
        float32 [n], in the order of the files; None in a process that only helped to fit.
    """
    place = {file: i for i, file in enumerate(files)}
    scores = np.full(len(files), np.nan, dtype=np.float32)
    helped = False
    for number, fold in enumerate(folds, 1):
        fit, statistics, held_out = (
            [place[file] for file in part] for part in (fold.fit, fold.statistics, fold.held_out)
        )
        graph = fit_fold(number, images[fit], images[statistics])
        if graph is None:
            helped = True  # It continues, because the first process waits for it at the next training.
            continue
        progress = watcher.progress_of(f"scoring fold {number} of {len(folds)}")
        maps, scores[held_out] = run_graph(graph, images[held_out], progress=progress)
        tail.add(maps)
    return None if helped else scores


def forget_folds(out: Path) -> None:
    """Delete the folds' checkpoints, which are of no use once the run is complete; their logs stay."""
    for folder in (out / "checkpoints").glob("fold-*"):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _fold_folder(out: Path, number: int) -> Path:
    return out / "checkpoints" / f"fold-{number}"
