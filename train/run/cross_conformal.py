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
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.decision import PixelTail, fit_thresholds_with_tail, normals_needed, smallest_false_alarm_rate
from vae_edge.errors import UsageError
from vae_edge.manifest import ThresholdMethod
from vae_edge.platform.atomic import write_bytes
from vae_edge.platform.machine import installed_version
from vae_edge.train.data.inspection_set import ImageFile
from vae_edge.train.data.split import Fold, Split, one_of_each_part, split_into_folds, split_normals
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, interrupted
from vae_edge.train.loop.launch import own_device
from vae_edge.train.loop.settings import Calibration, TrainSettings
from vae_edge.train.loop.starting import trains_on_gpu
from vae_edge.train.loop.team import ALONE, Team
from vae_edge.train.loop.trainer_arguments import deciding
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph, run_graph
from vae_edge.train.run.pixel_fitting import fit_graph
from vae_edge.train.run.records import CalibrationRecord, CalibrationScore

FitFold = Callable[[int, NDArray[np.uint8], NDArray[np.uint8], Watcher], DeployedGraph]
"""Makes the model of a fold, counted from 1, from images to fit on and images for the statistics, uint8 [n, H, W, 3]
each."""


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
    deployed: DeployedGraph,
    folds: Sequence[Fold],
    files: Sequence[ImageFile],
    images: NDArray[np.uint8],
    fit_fold: FitFold,
    watcher: Watcher,
    *,
    part: Callable[[ImageFile], str] = lambda image: image.sha256,
    team: Team = ALONE,
) -> CalibrationRecord:
    """Fit the folds' models and score what they have not seen, and fit the thresholds on those scores.

    Args:
        settings: what to do.
        deployed: the model of all good parts.
        folds: from `split_into_folds`.
        files: the good parts.
        images: uint8 [n, H, W, 3], the same, prepared.
        fit_fold: makes the folds' models, such as `PixelFolds`.
        watcher: receives progress.
        part: gives equal keys to pictures of the same part, of which one sets the image threshold.
        team: processes of which each makes the model of a fold at a time.

    Raises:
        Exception: whatever `fit_fold` raises.
    """
    n_pixels = images[..., 0].size
    tail = PixelTail(n_pixels, settings.pixel_false_positive_rate, settings.kept)
    scores = score_out_of_fold(files, images, folds, fit_fold, tail, watcher, team)
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

    def __call__(
        self, number: int, fit: NDArray[np.uint8], statistics: NDArray[np.uint8], watcher: Watcher
    ) -> AnomalyGraph:
        """Return the model of a fold.

        Raises:
            InputError, BundleError, TrainingInterruptedError: see `fit_vae`. What is done is not done again.
        """
        settings = self.settings.model_copy(update={"trainer": deciding(self.settings.trainer)})
        folder = self._folder(number)
        stage = f"training fold {number} of {self.n_folds}"
        try:
            fitted = fit_graph(settings, fit, statistics, folder, watcher, stage=stage)
        except TrainingInterruptedError:
            what = f"the training of fold {number} of {self.n_folds}"
            raise TrainingInterruptedError(interrupted(self.out, training=folder, what=what)) from None
        assert isinstance(fitted.graph, AnomalyGraph)
        return fitted.graph

    def files(self, number: int | None = None) -> dict[str, bytes]:
        """Return what the training of a fold has left, or of all: contents by names relative to `out`."""
        folders = [self._folder(each) for each in range(1, self.n_folds + 1) if number in (None, each)]
        paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in paths}

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write what the training of a fold left elsewhere.

        Raises:
            InputError: the folder cannot be written.
        """
        for name, content in files.items():
            write_bytes(self.out / name, content)

    def _folder(self, number: int) -> Path:
        return self.out / "checkpoints" / f"fold-{number}"


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
    team: Team = ALONE,
) -> NDArray[np.float32]:
    """Score every image by the model of its fold.

    Args:
        files: the good parts.
        images: uint8 [n, H, W, 3], the same, prepared.
        folds: each of the files is held out in one of them.
        fit_fold: makes the models; each process has one in memory at a time.
        tail: takes in the maps.
        watcher: receives progress.
        team: processes that make them.

    Returns:
        float32 [n], in the order of the files.
    """
    place = {file: i for i, file in enumerate(files)}
    rows: list[_Rows] = [
        (
            [place[file] for file in fold.fit],
            [place[file] for file in fold.statistics],
            [place[f] for f in fold.held_out],
        )
        for fold in folds
    ]
    begun = fit_fold.files() if team.place.launcher is not None and isinstance(fit_fold, PixelFolds) else {}
    found = team.run(_score_folds, images, rows, fit_fold, begun, tail.empty(), here={"watcher": watcher})
    scores = np.full(len(files), np.nan, dtype=np.float32)
    for (_, _, held_out), one in zip(rows, found, strict=True):
        scores[held_out] = one.scores
        tail.take_in(one.tail)
        if isinstance(fit_fold, PixelFolds):
            fit_fold.put(one.files)
    return scores


_Rows = tuple[list[int], list[int], list[int]]
"""Indices of the images that fit, set the statistics and are held out."""


@dataclass(frozen=True)
class _ScoredFold:
    """What a fold's model says of the images that it has not seen."""

    scores: NDArray[np.float32]
    tail: PixelTail
    files: dict[str, bytes]
    """What its training left in a process that does not see the run folder."""


def _score_folds(
    team: Team,
    images: NDArray[np.uint8],
    rows: Sequence[_Rows],
    fit_fold: FitFold,
    begun: Mapping[str, bytes],
    tail: PixelTail,
    *,
    watcher: Watcher | None = None,
) -> list[_ScoredFold]:
    """Fit and score folds, each process the next one that is left: work of a team.

    Args:
        team: whose work it is.
        images: as for `score_out_of_fold`.
        rows: of each fold.
        fit_fold: as for `score_out_of_fold`.
        begun: files of folds that were begun, for processes that do not see the run folder.
        tail: an empty one.
        watcher: the leader's.

    Returns:
        Of each fold, in the leader.
    """
    shown = team.watcher(watcher)
    if isinstance(fit_fold, PixelFolds) and team.shares_steps and trains_on_gpu(fit_fold.settings):
        own = own_device(fit_fold.settings.devices, team.place)
        fit_fold = replace(fit_fold, settings=fit_fold.settings.model_copy(update={"devices": own}))
    with ExitStack() as stack:
        is_elsewhere = not team.sees_the_run
        if is_elsewhere and isinstance(fit_fold, PixelFolds):
            fit_fold = replace(fit_fold, out=Path(stack.enter_context(tempfile.TemporaryDirectory())))
            fit_fold.put(begun)

        def score(fold: int) -> _ScoredFold:
            fit, statistics, held_out = rows[fold]
            graph = fit_fold(fold + 1, images[fit], images[statistics], shown)
            progress = shown.progress_of(f"scoring fold {fold + 1} of {len(rows)}")
            maps, scores = run_graph(graph, images[held_out], progress=progress)
            part = tail.empty()
            part.add(maps)
            left = fit_fold.files(fold + 1) if is_elsewhere and isinstance(fit_fold, PixelFolds) else {}
            return _ScoredFold(scores, part, left)

        return team.each(len(rows), score, watcher or Watcher())


def forget_folds(out: Path) -> None:
    """Delete the folds' checkpoints, which are of no use once the run is complete; their logs stay."""
    for folder in (out / "checkpoints").glob("fold-*"):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
