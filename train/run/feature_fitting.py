"""From pictures to a model on features: one pass of the backbone, networks on what it saw, constants, thresholds.

The backbone takes most of the work and is frozen, so it sees every picture once. Networks on its features are trained
in seconds: the deployed one on all good parts that set no threshold, and one for each fold of them, which measures the
residual of the good parts that it was not trained on. Mean and deviation of those residuals are the deployed network's
constants: they always come from other parts than those that trained, and still from all of them.

Cross-conformal calibration brings its own folds, and the same networks give its scores: a good part's score is by the
network that has not seen it, in units of the other folds' good parts.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.decision import PixelTail
from vae_edge.train.choice.candidates import ChoiceRecord
from vae_edge.train.choice.network_choice import choose_network
from vae_edge.train.choice.scoring_choice import FEWEST_NORMALS, paste_on
from vae_edge.train.data.inspection_set import ImageFile, resize_all, spread_places
from vae_edge.train.data.split import one_of_each_part, rank_of
from vae_edge.train.features.backbone_weights import load_backbone
from vae_edge.train.features.graph import (
    FeatureGraph,
    FeatureMaps,
    FeatureResidual,
    FusedGraph,
    FusionConstants,
    count_feature_flops,
)
from vae_edge.train.features.table import TABLE_FILE, make_table
from vae_edge.train.features.training import fit_constants, residuals_of, train_on_features
from vae_edge.train.loop.settings import TrainingOutcome, TrainSettings
from vae_edge.train.loop.trainer_arguments import Attached
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import AnomalyGraph, DeployedGraph
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.network import count_parameters
from vae_edge.train.model.presets import Network
from vae_edge.train.model.scoring import DEFAULT_SCORING
from vae_edge.train.model.scoring_constants import center_and_unit
from vae_edge.train.run.calibration import Division, calibrate
from vae_edge.train.run.cross_conformal import PixelFolds, cross_calibrate, cross_record
from vae_edge.train.run.graph_fitting import FittedGraph, fit_graph
from vae_edge.train.run.records import CalibrationRecord, FeatureRecord

_MOST_FOR_LOSS = 64
"""Good parts that the deployed network's own loss is measured on, at most."""


@dataclass(frozen=True)
class FeatureModels:
    """The networks of a run on features."""

    graph: FeatureGraph
    """The one that is deployed."""
    folds: tuple[FeatureGraph, ...]
    """Each trained without its fold, its constants from the other folds."""
    residuals: Tensor
    """float32 [n, 1, h, w], squared, of each good part by the network that has not seen it."""
    scores: NDArray[np.float32]
    """float32 [n], likewise, in units of the other folds' good parts."""
    held_out_loss: float
    """Mean squared residual of the good parts by those networks, in the channels' units."""
    fit_loss: float
    """The same by the deployed network, which was trained on them."""
    seconds: float
    """Spent on the training of all networks."""


def fit_with_features(
    settings: TrainSettings,
    division: Division,
    files: Sequence[ImageFile],
    images: NDArray[np.uint8],
    out: Path,
    watcher: Watcher,
    attached: Attached,
) -> tuple[FittedGraph, CalibrationRecord] | None:
    """Fit a model on features, or on features and pixels, and its thresholds.

    Args:
        settings: what to do; `network` is `FEATURE`, `BOTH` or None, and the sizes are decided.
        division: what each good part is used for.
        files: the good parts: those that train, those that set the scale, and the judges.
        images: uint8 [n, H, W, 3], the same, prepared.
        out: the run folder.
        watcher: receives progress and what was decided.
        attached: a user's loggers and callbacks, for the network on pixels.

    Returns:
        The model and its calibration. None: the network on pixels is the better choice, and is to be fitted alone.

    Raises:
        MissingDependencyError, InputError: see `load_backbone`.
        InputError, TrainingInterruptedError: see `fit_vae`.
    """
    fitting = None
    try:
        fitting = _Fitting(settings, division, files, images, out, watcher)
        network, choice = settings.network, None
        if network is None:
            network, choice = fitting.choose()
        if network is Network.PIXEL:
            return None
        if network is Network.FEATURE:
            return fitting.alone(choice)
        return fitting.with_pixels(choice, attached)
    finally:
        # Windows deletes no file that is mapped. What an exception still holds there, the next training replaces.
        del fitting
        gc.collect()
        with suppress(PermissionError):
            (out / "checkpoints" / TABLE_FILE).unlink(missing_ok=True)


class _Fitting:
    """The networks on features of one run, and what is made of them; arguments as for `fit_with_features`."""

    def __init__(
        self,
        settings: TrainSettings,
        division: Division,
        files: Sequence[ImageFile],
        images: NDArray[np.uint8],
        out: Path,
        watcher: Watcher,
    ) -> None:
        self.settings, self.division, self.out, self.watcher = settings, division, out, watcher
        self.files, self.images = files, images
        self.n_fit = len(division.split.fit)
        self.n_used = self.n_fit + len(division.split.statistics)
        self.light = _light(settings)
        loaded = load_backbone(settings.backbone_weights)
        height, width = int(images.shape[1]), int(images.shape[2])
        self.record = FeatureRecord(
            height=height, width=width, settings=settings.feature, photometric=self.light, backbone=loaded.origin
        )
        self.maps = FeatureMaps(loaded.module, height, width, self.light).eval()
        used = images[: self.n_used]
        self.table = make_table(self.maps, used, out / "checkpoints", watcher.progress_of("computing features"))
        self.fold_of = _folds(settings, division, files[: self.n_used])
        self.models = self._fit_models()

    def _fit_models(self) -> FeatureModels:
        watcher, table = self.watcher, self.table
        begun = time.monotonic()
        n_folds = int(self.fold_of.max()) + 1
        residuals = torch.empty(len(table), 1, *table.size)
        found: list[FeatureResidual] = []
        for fold in range(n_folds):
            stage = f"training on features {fold + 1} of {n_folds + 1}"
            found.append(self._train(np.flatnonzero(self.fold_of != fold), fold + 1, stage))
            held_out = np.flatnonzero(self.fold_of == fold)
            residuals[held_out] = residuals_of(found[-1], table, held_out.tolist())
        deployed = self._train(np.arange(len(table)), 0, f"training on features {n_folds + 1} of {n_folds + 1}")
        seconds = time.monotonic() - begun
        folds = tuple(
            self._graph(model, residuals[np.flatnonzero(self.fold_of != fold)]) for fold, model in enumerate(found)
        )
        graph = self._graph(deployed, residuals)
        scores = np.empty(len(table), np.float32)
        with torch.inference_mode():
            for fold, each in enumerate(folds):
                held_out = np.flatnonzero(self.fold_of == fold)
                scores[held_out] = each.score(residuals[held_out])[1].numpy()
        fit_loss = float(residuals_of(deployed, table, spread_places(len(table), _MOST_FOR_LOSS)).mean())
        watcher.say(
            f"networks on features: mean squared residual {float(residuals.mean()):.3f} on good parts that they were "
            f"not trained on, {fit_loss:.3f} on others"
        )
        return FeatureModels(graph, folds, residuals, scores, float(residuals.mean()), fit_loss, seconds)

    def _train(self, rows: NDArray[np.int64], number: int, stage: str) -> FeatureResidual:
        return train_on_features(
            self.table,
            rows.tolist(),
            self.settings.feature,
            seed=(self.settings.seed * 1009 + number) % 2**32,
            progress=self.watcher.progress_of(stage),
        )

    def _graph(self, model: FeatureResidual, residuals: Tensor) -> FeatureGraph:
        """Return the whole model around a network, with the constants that held-out normals give."""
        feature, size = self.settings.feature, (self.record.height, self.record.width)
        constants = fit_constants(residuals, feature, model)
        return FeatureGraph(self.maps.backbone, model.vae, feature, constants, size, self.light)

    def choose(self) -> tuple[Network, ChoiceRecord]:
        """Choose the kind of network on synthetic defects."""
        fit, statistics = self.images[: self.n_fit], self.images[self.n_fit : self.n_used]
        if len(statistics) < FEWEST_NORMALS:
            reason = (
                f"the network is on features: {len(statistics)} held-out normals are too few to choose by; expected "
                f"{FEWEST_NORMALS} or more"
            )
            self.watcher.say(reason)
            return Network.FEATURE, ChoiceRecord(judged_on="nothing", because=(reason,))
        choice_set = paste_on(statistics, seed=self.settings.seed)
        size = self.settings.tiling_in_force
        small = size.image_height, size.image_width
        ranking = choose_network(
            self.settings,
            self._judge(),
            resize_all(fit, small),
            resize_all(statistics, small),
            choice_set,
            self.light,
            self.out,
            self.watcher,
        )
        self.watcher.say(ranking.sentence())
        record = ChoiceRecord(
            judged_on=choice_set.description, network=ranking.records(), because=(ranking.sentence(),)
        )
        return ranking.chosen, record

    def _judge(self) -> FeatureGraph:
        """Return a model that was trained without the statistics normals and knows nothing of them."""
        statistics = set(range(self.n_fit, self.n_used))
        for fold, graph in enumerate(self.models.folds):
            if set(np.flatnonzero(self.fold_of == fold).tolist()) == statistics:
                return graph
        model = self._train(np.arange(self.n_fit), len(self.models.folds) + 1, "training on features, to choose")
        return self._graph(model, self.models.residuals[: self.n_fit])

    def alone(self, choice: ChoiceRecord | None) -> tuple[FittedGraph, CalibrationRecord]:
        """Return the model on features and its calibration."""
        models, settings = self.models, self.settings
        decided = settings.model_copy(update={"network": Network.FEATURE}).decide(self.light, DEFAULT_SCORING)
        fitted = FittedGraph(
            None, models.graph, None, self._outcome(), decided, choice, feature=self.record, fusion=None
        )
        if not self.division.folds:
            return fitted, self._calibrate(models.graph)
        tail, final_tail = (
            PixelTail(self.images[: self.n_used, :, :, 0].size, settings.pixel_false_positive_rate) for _ in range(2)
        )
        counted = one_of_each_part(self.files, self.division.grouping.part)
        final_scores = np.empty(self.n_used, np.float32)
        progress = self.watcher.progress_of("scoring normals with the deployed network")
        deployed = residuals_of(models.graph.residual, self.table, range(self.n_used), progress)
        with torch.inference_mode():
            for i in range(self.n_used):
                fold = models.folds[self.fold_of[i]]
                tail.add(fold.score(models.residuals[i : i + 1])[0].numpy())
                anomaly_map, score = models.graph.score(deployed[i : i + 1])
                final_scores[i] = float(score)
                if i in counted:
                    final_tail.add(anomaly_map.numpy())
        record = cross_record(
            settings, self.division.folds, self.files, counted, models.scores, tail, final_scores, final_tail
        )
        return fitted, record

    def with_pixels(self, choice: ChoiceRecord | None, attached: Attached) -> tuple[FittedGraph, CalibrationRecord]:
        """Return the model on features and pixels and its calibration."""
        tiling = self.settings.tiling_in_force
        size = tiling.image_height, tiling.image_width
        fit, statistics = self.images[: self.n_fit], self.images[self.n_fit : self.n_used]
        asked = self.settings.model_copy(
            update={
                "network": Network.BOTH,
                "photometric": self.settings.photometric or self.light,
                "scoring": self.settings.scoring or DEFAULT_SCORING,
            }
        )
        pixel = fit_graph(
            asked, resize_all(fit, size), resize_all(statistics, size), self.out, self.watcher, attached=attached
        )
        if pixel is None:
            if self.division.folds:
                self._cross_calibrate(asked, None, size)
            raise SystemExit(0)  # One of several processes that train together; the first one finishes the run.
        graph, fusion = self._fuse(self.models.graph, pixel.graph, statistics)
        outcome = self._outcome(pixel.outcome)
        fitted = FittedGraph(
            pixel.vae, graph, pixel.constants, outcome, pixel.settings, choice, feature=self.record, fusion=fusion
        )
        if not self.division.folds:
            return fitted, self._calibrate(graph)
        calibration = self._cross_calibrate(pixel.settings, graph, size)
        if calibration is None:
            raise SystemExit(0)
        return fitted, calibration

    def _fuse(
        self, feature: FeatureGraph, pixel: DeployedGraph, statistics: NDArray[np.uint8]
    ) -> tuple[FusedGraph, FusionConstants]:
        """Put two networks into one graph, in units of good parts that neither was trained on.

        Args:
            feature: on features.
            pixel: on pixels.
            statistics: uint8 [n, H, W, 3], good parts that the network on pixels was not trained on. Their scores by
                features are those of the folds' networks.
        """
        assert isinstance(pixel, AnomalyGraph)
        neutral = FusionConstants(0.0, 1.0, 0.0, 1.0)
        seen = FusedGraph(feature, pixel, neutral)
        step = 8
        scores: list[NDArray[np.float32]] = []
        with torch.inference_mode():
            for start in range(0, len(statistics), step):
                batch = torch.from_numpy(statistics[start : start + step])
                scores.append(seen.pixel_outputs(batch)[1].numpy())
        pixel_center, pixel_unit = center_and_unit(np.concatenate(scores))
        feature_center, feature_unit = center_and_unit(self.models.scores)
        constants = FusionConstants(pixel_center, pixel_unit, feature_center, feature_unit)
        return FusedGraph(feature, pixel, constants), constants

    def _cross_calibrate(
        self, settings: TrainSettings, deployed: FusedGraph | None, pixel_size: tuple[int, int]
    ) -> CalibrationRecord | None:
        """Calibrate a model on features and pixels across the folds; None in a process that only helped to train."""
        folds = self.division.folds
        fit_pixels = PixelFolds(settings, len(folds), self.out, self.watcher)

        def fit_fold(number: int, fit: NDArray[np.uint8], statistics: NDArray[np.uint8]) -> FusedGraph | None:
            pixel = fit_pixels(number, resize_all(fit, pixel_size), resize_all(statistics, pixel_size))
            return None if pixel is None else self._fuse(self.models.folds[number - 1], pixel, statistics)[0]

        part = self.division.grouping.part
        return cross_calibrate(settings, deployed, folds, self.files, self.images, fit_fold, self.watcher, part=part)

    def _calibrate(self, graph: DeployedGraph) -> CalibrationRecord:
        return calibrate(
            graph,
            self.division.judges,
            self.images[self.n_used :],
            false_alarm_rate=self.settings.false_alarm_rate,
            pixel_false_positive_rate=self.settings.pixel_false_positive_rate,
            progress=self.watcher.progress_of("scoring held-out normals"),
        )

    def _outcome(self, pixel: TrainingOutcome | None = None) -> TrainingOutcome:
        """Say how the training went; of two networks what both took, and the epochs of the one on pixels."""
        feature, models = self.settings.feature, self.models
        n_positions = self.n_used * self.table.size[0] * self.table.size[1]
        epochs = max(1, round(feature.n_steps * feature.batch_size / n_positions))
        n_parameters, flops = count_parameters(models.graph.residual), count_feature_flops(models.graph)
        if pixel is not None:
            return pixel.model_copy(
                update={
                    "seconds": pixel.seconds + models.seconds,
                    "n_parameters": pixel.n_parameters + n_parameters,
                    "flops": pixel.flops * self.settings.tiling_in_force.n_tiles + flops,
                }
            )
        n_trained = len(models.folds) + 1
        return TrainingOutcome(
            epochs_run=epochs,
            epochs_planned=epochs,
            ended_by="epochs",
            best_epoch=epochs,
            best_held_out_loss=models.held_out_loss,
            fit_loss=models.fit_loss,
            batch_size=feature.batch_size,
            seconds=models.seconds,
            images_per_s=n_trained * epochs * self.n_used / max(models.seconds, 1e-3),
            n_parameters=n_parameters,
            flops=flops,
        )


def _light(settings: TrainSettings) -> Photometric:
    """Return how light is evened out for features: by the picture's own brightness where that differs between parts."""
    if settings.photometric is not None:
        return settings.photometric
    steady = settings.traits is None or settings.traits.has_steady_light
    return Photometric.NONE if steady else Photometric.IMAGE


def _folds(settings: TrainSettings, division: Division, files: Sequence[ImageFile]) -> NDArray[np.int64]:
    """Return the fold of each good part that trains: those of the calibration, or the statistics normals and others.

    Pictures of one part are in one fold.
    """
    if division.folds:
        own = {file: number for number, fold in enumerate(division.folds) for file in fold.held_out}
        return np.array([own[file] for file in files])
    n_fit, part = len(division.split.fit), division.grouping.part
    ordered = sorted({part(file) for file in files[:n_fit]}, key=lambda key: rank_of(key, settings.split.seed))
    n_folds = min(settings.feature.n_folds - 1, len(ordered))
    fold_of = {key: 1 + i % n_folds for i, key in enumerate(ordered)}
    return np.array([fold_of[part(file)] for file in files[:n_fit]] + [0] * (len(files) - n_fit))
