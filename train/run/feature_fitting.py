"""From pictures to a model on features: one pass of the backbone, networks on what it saw, constants, thresholds.

The backbone takes most of the work and is frozen, so it sees every picture once. Networks on its features, and on
patches of pixels, are trained in seconds: the deployed ones on all good parts that set no threshold, and some for each
fold of them, which measure the residual of the good parts that they were not trained on.
Mean and deviation of those residuals are the deployed networks'
constants: they always come from other parts than those that trained, and still from all of them.

Cross-conformal calibration brings its own folds, and the same networks give its scores: a good part's score is by the
network that has not seen it, in units of the other folds' good parts.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vae_edge.decision import PixelTail
from vae_edge.train.choice.candidates import ChoiceRecord
from vae_edge.train.choice.network_choice import choose_network
from vae_edge.train.choice.scoring_choice import FEWEST_NORMALS, paste_on
from vae_edge.train.data.inspection_set import ImageFile, spread_places
from vae_edge.train.data.split import one_of_each_part, rank_of
from vae_edge.train.features.backbone_weights import load_backbone
from vae_edge.train.features.graph import FeatureGraph, FeatureMaps, count_feature_flops
from vae_edge.train.features.place_fitting import fit_places
from vae_edge.train.features.places import PlaceDistance
from vae_edge.train.features.settings import FeatureSettings, MapSource
from vae_edge.train.features.side_by_side import Training
from vae_edge.train.features.table import TABLE_FILES, FeatureTable, make_patch_table
from vae_edge.train.features.training import Measure, Table, fit_constants, residuals_of
from vae_edge.train.loop.settings import TrainingOutcome, TrainSettings
from vae_edge.train.loop.team import ALONE, Team
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.cores import on_each_core
from vae_edge.train.model.input_settings import Photometric
from vae_edge.train.model.network import count_parameters
from vae_edge.train.model.presets import Network, is_bfloat16
from vae_edge.train.model.scoring import DEFAULT_SCORING
from vae_edge.train.run.calibration import Division, calibrate
from vae_edge.train.run.cross_conformal import cross_record
from vae_edge.train.run.feature_team import compute_features, train_networks
from vae_edge.train.run.pixel_fitting import FittedGraph
from vae_edge.train.run.records import CalibrationRecord, FeatureRecord

_MOST_FOR_LOSS = 64
"""Good parts that the deployed network's own loss is measured on, at most."""

_SEEDS_APART = 500
"""From the seeds of the networks on features to those on pixels; there are fewer folds."""


@dataclass(frozen=True)
class _Trained:
    """What measures each source: one for each fold, trained without it, and the one that is deployed."""

    folds: tuple[dict[MapSource, Measure], ...]
    deployed: dict[MapSource, Measure]
    residuals: dict[MapSource, Tensor]
    """float32 [n, 1, h, w], squared, of each good part by what has not seen it."""
    fit_loss: float
    """Mean squared residual of features that the deployed network was trained on, in the channels' units."""
    seconds: float
    """Spent on the training."""


@dataclass(frozen=True)
class FeatureModels:
    """The whole models around the networks of a run."""

    graph: FeatureGraph
    """The one that is deployed."""
    folds: tuple[FeatureGraph, ...]
    """Each trained without its fold, its constants from the other folds."""
    scores: NDArray[np.float32]
    """float32 [n], of each good part by the model that has not seen it, in units of the other folds' good parts."""


def fit_with_features(
    settings: TrainSettings,
    division: Division,
    files: Sequence[ImageFile],
    images: NDArray[np.uint8],
    out: Path,
    watcher: Watcher,
    *,
    team: Team = ALONE,
    jobs: int | None = None,
) -> tuple[FittedGraph, CalibrationRecord]:
    """Fit a model on features, or on features and patches of pixels, and its thresholds.

    Args:
        settings: what to do; `network` is `FEATURE`, `BOTH` or None, and the sizes are decided.
        division: what each good part is used for.
        files: the good parts: those that train, those that set the scale, and the judges.
        images: uint8 [n, H, W, 3], the same, prepared.
        out: the run folder.
        watcher: receives progress and what was decided.
        team: processes that compute the features and train the networks.
        jobs: networks that train at the same time in a process; None: one for each of torch's threads.

    Returns:
        The model and its calibration.

    Raises:
        MissingDependencyError, InputError: see `load_backbone`.
        InputError: the training diverged.
    """
    fitting = None
    try:
        fitting = _Fitting(settings, division, files, images, out, watcher, team, jobs)
        network, feature, choice = settings.network, fitting.feature, None
        if network is None:
            network, feature, choice = fitting.choose()
        return fitting.finish(network, feature, choice)
    finally:
        # Windows deletes no file that is mapped. What an exception still holds there, the next training replaces.
        del fitting
        gc.collect()
        for name in TABLE_FILES:
            with suppress(PermissionError):
                (out / "checkpoints" / name).unlink(missing_ok=True)


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
        team: Team,
        jobs: int | None,
    ) -> None:
        self.settings, self.division, self.watcher = settings, division, watcher
        self.team, self.jobs = team, jobs
        self.files, self.images = files, images
        self.n_used = len(division.split.fit) + len(division.split.statistics)
        self.light = _light(settings)
        loaded = load_backbone(settings.backbone_weights)
        self.origin = loaded.origin
        height, width = int(images.shape[1]), int(images.shape[2])
        self.maps = FeatureMaps(loaded.module, height, width, self.light, settings.ignored).eval()
        alone = settings.network is Network.FEATURE
        self.feature = settings.feature.without_pixels() if alone else settings.feature.with_pixels()
        if settings.traits is not None and settings.traits.is_aligned:
            self.feature = self.feature.with_places()
        used = images[: self.n_used]
        self.tables: dict[MapSource, Table] = {
            MapSource.FEATURES: compute_features(team, self.maps, used, out / "checkpoints", watcher)
        }
        if self.feature.pixels is not None:
            self.tables[MapSource.PIXELS] = make_patch_table(self.maps.photometric, used, out / "checkpoints")
        self.fold_of = _folds(settings, division, files[: self.n_used])
        self.trained = self._train_all()

    def _train_all(self) -> _Trained:
        begun = time.monotonic()
        n_folds = int(self.fold_of.max()) + 1
        everything = np.arange(self.n_used)
        none = everything[:0]
        held_out = [none, *(np.flatnonzero(self.fold_of == fold) for fold in range(n_folds))]
        trainings = [
            self._training(source, number, np.setdiff1d(everything, rows), rows)
            for source in self.tables
            for number, rows in enumerate(held_out)
        ]
        trained = train_networks(
            self.team,
            trainings,
            self.feature,
            self.watcher,
            in_bfloat16=is_bfloat16(self.settings.precision),
            jobs=self.jobs,
        )
        folds: list[dict[MapSource, Measure]] = [{} for _ in range(n_folds)]
        deployed: dict[MapSource, Measure] = {}
        residuals = {source: torch.empty(self.n_used, 1, *table.size) for source, table in self.tables.items()}
        for (source, number), network in zip(product(self.tables, range(n_folds + 1)), trained, strict=True):
            (folds[number - 1] if number else deployed)[source] = network.model
            residuals[source][held_out[number]] = network.residuals
        if self.feature.places is not None:
            self._measure_places(self.feature.places, folds, deployed, residuals)
        seconds = time.monotonic() - begun
        rows = spread_places(self.n_used, _MOST_FOR_LOSS)
        on_features = MapSource.FEATURES
        fit_loss = float(residuals_of(deployed[on_features], self.tables[on_features], rows).mean())
        self.watcher.say(
            f"networks on features: mean squared residual {float(residuals[on_features].mean()):.3f} on good parts "
            f"that they were not trained on, {fit_loss:.3f} on others"
        )
        return _Trained(tuple(folds), deployed, residuals, fit_loss, seconds)

    def _table_of(self, source: MapSource) -> Table:
        return self.tables[MapSource.FEATURES if source is MapSource.PLACES else source]

    def _measure_places(
        self,
        n_directions: int,
        folds: list[dict[MapSource, Measure]],
        deployed: dict[MapSource, Measure],
        residuals: dict[MapSource, Tensor],
    ) -> None:
        table, source = self.tables[MapSource.FEATURES], MapSource.PLACES
        assert isinstance(table, FeatureTable)
        residuals[source] = torch.empty(self.n_used, 1, *table.size)
        progress = self.watcher.progress_of("measuring features at each place")

        def measure(fold: int) -> tuple[PlaceDistance, NDArray[np.int64], Tensor]:
            """Measure without a fold, and the fold by that; -1 is none."""
            held_out = np.flatnonzero(self.fold_of == fold)
            places = fit_places(table, np.flatnonzero(self.fold_of != fold).tolist(), n_directions)
            return places, held_out, residuals_of(places, table, held_out.tolist())

        everything = [*folds, deployed]
        numbers = [*range(len(folds)), -1]
        for done, (measures, found) in enumerate(zip(everything, on_each_core(measure, numbers), strict=True), 1):
            measures[source], held_out, residuals[source][held_out] = found
            progress(done, len(everything))

    def _training(
        self, source: MapSource, number: int, rows: NDArray[np.int64], held_out: NDArray[np.int64]
    ) -> Training:
        seed = self.settings.seed * 1009 + number + (0 if source is MapSource.FEATURES else _SEEDS_APART)
        return Training(source, self.tables[source], rows.tolist(), held_out.tolist(), seed % 2**32)

    def _models(self, feature: FeatureSettings) -> FeatureModels:
        """Return the models of a scoring, with the constants that good parts of other folds give."""
        trained = self.trained
        folds, scores = [], np.empty(self.n_used, np.float32)
        for fold, networks in enumerate(trained.folds):
            graph = self._graph(feature, networks, np.flatnonzero(self.fold_of != fold))
            held_out = np.flatnonzero(self.fold_of == fold)
            with torch.inference_mode():
                scores[held_out] = graph.score(_rows(trained.residuals, held_out))[1].numpy()
            folds.append(graph)
        graph = self._graph(feature, trained.deployed, np.arange(self.n_used))
        return FeatureModels(graph, tuple(folds), scores)

    def _graph(
        self, feature: FeatureSettings, networks: Mapping[MapSource, Measure], normals: NDArray[np.int64]
    ) -> FeatureGraph:
        """Return the whole model around networks, with the constants that the residuals of normals give."""
        constants = fit_constants(_rows(self.trained.residuals, normals), feature, networks, self.settings.ignored)
        on_features, on_pixels = networks[MapSource.FEATURES], networks.get(MapSource.PIXELS)
        assert not isinstance(on_features, PlaceDistance)
        assert not isinstance(on_pixels, PlaceDistance)
        return FeatureGraph(
            self.maps.backbone,
            on_features.vae,
            feature,
            constants,
            (self.images.shape[1], self.images.shape[2]),
            self.light,
            None if feature.pixels is None or on_pixels is None else on_pixels.vae,
            self.settings.ignored,
        )

    def choose(self) -> tuple[Network, FeatureSettings, ChoiceRecord]:
        """Choose the kind of network on synthetic defects, by the networks of a fold on the parts that it held out."""
        fold = 0  # Without folds for the calibration these are the statistics normals: see `_folds`.
        held_out = np.flatnonzero(self.fold_of == fold)
        if len(held_out) < FEWEST_NORMALS:
            reason = (
                f"the network is on features: {len(held_out)} held-out normals are too few to choose by; expected "
                f"{FEWEST_NORMALS} or more"
            )
            self.watcher.say(reason)
            record = ChoiceRecord(judged_on="nothing", because=(reason,))
            return Network.FEATURE, self.feature.without_pixels(), record
        choice_set = paste_on(self.images[held_out], seed=self.settings.seed, ignored=self.settings.ignored)
        networks, normals = self.trained.folds[fold], np.flatnonzero(self.fold_of != fold)
        ranking = choose_network(self._graph(self.feature, networks, normals), choice_set, self.watcher)
        self.watcher.say(ranking.sentence())
        record = ChoiceRecord(
            judged_on=choice_set.description, network=ranking.records(), because=(ranking.sentence(),)
        )
        feature = self.feature if ranking.chosen is Network.BOTH else self.feature.without_pixels()
        return ranking.chosen, feature if ranking.by_place else feature.without_places(), record

    def finish(
        self, network: Network, feature: FeatureSettings, choice: ChoiceRecord | None
    ) -> tuple[FittedGraph, CalibrationRecord]:
        """Return the model of a kind and its calibration."""
        settings, division = self.settings, self.division
        models = self._models(feature)
        decided = settings.model_copy(update={"network": network}).decide(self.light, DEFAULT_SCORING)
        record = FeatureRecord(
            height=self.images.shape[1],
            width=self.images.shape[2],
            settings=feature,
            photometric=self.light,
            backbone=self.origin,
        )
        fitted = FittedGraph(None, models.graph, None, self._outcome(models.graph), decided, choice, feature=record)
        if division.folds:
            return fitted, self._cross_calibrate(models)
        calibration = calibrate(
            models.graph,
            division.judges,
            self.images[self.n_used :],
            false_alarm_rate=settings.false_alarm_rate,
            pixel_false_positive_rate=settings.pixel_false_positive_rate,
            progress=self.watcher.progress_of("scoring held-out normals"),
        )
        return fitted, calibration

    def _cross_calibrate(self, models: FeatureModels) -> CalibrationRecord:
        """Calibrate across the folds, whose residuals are there already."""
        settings, trained = self.settings, self.trained
        n_pixels = self.images[: self.n_used, :, :, 0].size
        tail, final_tail = (PixelTail(n_pixels, settings.pixel_false_positive_rate, settings.kept) for _ in range(2))
        counted = one_of_each_part(self.files, self.division.grouping.part)
        is_counted = np.isin(np.arange(self.n_used), counted)
        final_scores = np.empty(self.n_used, np.float32)
        progress = self.watcher.progress_of("scoring normals with the deployed network")

        @torch.inference_mode()
        def score(i: int) -> tuple[Tensor, Tensor, float]:
            """Return the map of a good part by the fold's network, and map and score by the deployed one."""
            by_fold, _ = models.folds[self.fold_of[i]].score(_rows(trained.residuals, np.array([i])))
            seen = {
                source: residuals_of(trained.deployed[source], self._table_of(source), [i])
                for source in models.graph.settings.sources
            }
            anomaly_map, value = models.graph.score(seen)
            return by_fold, anomaly_map, float(value)

        for i, (by_fold, anomaly_map, value) in enumerate(on_each_core(score, range(self.n_used))):
            tail.add(by_fold.numpy())
            final_scores[i] = value
            if is_counted[i]:
                final_tail.add(anomaly_map.numpy())
            progress(i + 1, self.n_used)
        return cross_record(
            settings, self.division.folds, self.files, counted, models.scores, tail, final_scores, final_tail
        )

    def _outcome(self, graph: FeatureGraph) -> TrainingOutcome:
        feature, trained = self.feature, self.trained
        n_positions = self.n_used * math.prod(self.tables[MapSource.FEATURES].size)
        epochs = max(1, round(feature.n_steps * feature.batch_size / n_positions))
        n_trained = len(trained.folds) + 1
        networks = [graph.residual, *([] if graph.pixels is None else [graph.pixels])]
        return TrainingOutcome(
            epochs_run=epochs,
            epochs_planned=epochs,
            ended_by="epochs",
            best_epoch=epochs,
            best_held_out_loss=float(trained.residuals[MapSource.FEATURES].mean()),
            fit_loss=trained.fit_loss,
            batch_size=feature.batch_size,
            seconds=trained.seconds,
            images_per_s=n_trained * epochs * self.n_used / max(trained.seconds, 1e-3),
            n_parameters=sum(count_parameters(network) for network in networks),
            flops=count_feature_flops(graph),
        )


def _rows(residuals: Mapping[MapSource, Tensor], rows: NDArray[np.int64]) -> dict[MapSource, Tensor]:
    return {source: values[rows] for source, values in residuals.items()}


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
