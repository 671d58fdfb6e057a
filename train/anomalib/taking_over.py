"""From a network that was trained elsewhere to a run folder, which exports like any other.

The given normals set what the scoring divides by and the thresholds. Those on which the network is known to have been
trained keep their role; if this is not known for any, they are divided as `vae-train` divides them, and the part that
would have trained the network calibrates an INT8 model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, DEFAULT_PIXEL_FALSE_POSITIVE_RATE
from vae_edge.errors import InputError, UsageError
from vae_edge.records import make_record
from vae_edge.train.anomalib.checkpoint import CheckpointNotes, TrainedElsewhere, TrainedFeatures
from vae_edge.train.data.grouping import Grouping
from vae_edge.train.data.inspection_set import ImageFile, InspectionSet, load_images
from vae_edge.train.data.report import check_inspection_set, look_at
from vae_edge.train.data.sources import DataSource
from vae_edge.train.data.split import Split, SplitSettings, split_normals
from vae_edge.train.features.graph import FeatureGraph, FeatureMaps, count_feature_flops
from vae_edge.train.features.settings import MapSource
from vae_edge.train.features.table import make_table
from vae_edge.train.features.training import fit_constants, residuals_of
from vae_edge.train.loop.batches import as_pixels
from vae_edge.train.loop.settings import DecidedSettings, TrainingOutcome
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.anomaly_graph import AnomalyGraph, Reconstruction, images_at_a_time
from vae_edge.train.model.input_settings import InputSettings
from vae_edge.train.model.network import Vae, count_flops, count_parameters
from vae_edge.train.model.presets import REFERENCE_RECIPE, Network
from vae_edge.train.model.scoring import DEFAULT_SCORING, ScoringSettings
from vae_edge.train.model.scoring_constants import fit_scoring_constants
from vae_edge.train.run.calibration import Division, calibrate, group_images
from vae_edge.train.run.finishing import finish_run, keep_references, learn_gate, measure
from vae_edge.train.run.folder import (
    SETTINGS_FILE,
    RunFolder,
    check_folder,
    claim_folder,
    forget_replaced,
    only_training,
    write_record,
)
from vae_edge.train.run.pixel_fitting import FittedGraph
from vae_edge.train.run.records import FeatureRecord, Role

_MOST_FOR_LOSS = 64


def take_over(
    trained: TrainedElsewhere,
    data: DataSource,
    out: str | Path,
    *,
    scoring: ScoringSettings | None = None,
    false_alarm_rate: float | None = None,
    seed: int = 0,
    watcher: Watcher | None = None,
) -> RunFolder:
    """Make a run folder around a network that was trained elsewhere.

    Args:
        trained: from `read_checkpoint`.
        data: normal images, and test images if there are any, in any layout of an inspection set.
        out: the run folder to make.
        scoring: how a residual becomes a score; its constants are then measured on the given normals. None: as the
            checkpoint says, with its constants unless its images were resized differently from a device, or otherwise
            the default.
        false_alarm_rate: None: as the checkpoint says, or 0.01.
        seed: of the division into roles.
        watcher: receives progress.

    Returns:
        The complete run.

    Raises:
        InputError: the images cannot be used or are too few, `out` is taken, all given normals trained the network, or
            the rate is invalid.
    """
    out, watcher = Path(out), watcher or Watcher()
    check_folder(out, overwrite=False)
    data = data.absolute()
    settings = _settings(trained, data, scoring, false_alarm_rate, seed)
    for sentence in trained.remarks:
        watcher.say(sentence)
    found = data.open(watcher.progress_of("finding images"), can_name_folders=False)
    images, report = check_inspection_set(found, watcher.progress_of("checking images"))
    for sentence in (*found.describe(), *report.sentences()):
        watcher.say(sentence)
    division = _divide(trained, images, settings.split, watcher)
    split, judges = division.split, division.judges
    preparation = settings.preparation
    statistics = load_images(split.statistics, preparation, watcher.progress_of("reading images"))
    fit = load_images(split.fit, preparation, watcher.progress_of("reading images"))
    held_out = load_images(judges, preparation, watcher.progress_of("reading held-out normals"))
    # Where only images are given that set the threshold, they are all that there is to take a loss over.
    unseen = statistics if len(statistics) else held_out
    if trained.feature is not None:
        fitted = _fitted_on_features(trained, trained.feature, settings, fit, unseen, watcher)
    else:
        fitted = _fitted_on_pixels(trained, settings, statistics, fit, unseen, watcher)
    calibration = calibrate(
        fitted.graph,
        judges,
        held_out,
        false_alarm_rate=settings.false_alarm_rate,
        pixel_false_positive_rate=settings.pixel_false_positive_rate,
        progress=watcher.progress_of("scoring held-out normals"),
    )
    if shortage := division.shortage(settings.false_alarm_rate):
        watcher.say(shortage)
    metrics = measure(settings, fitted.graph, images, calibration.thresholds, judges, watcher)
    references = keep_references(settings, fitted.graph, calibration.thresholds, judges, watcher)
    gate = learn_gate(settings, division.parts, is_aligned=_is_aligned(division.parts, settings), watcher=watcher)
    with only_training(out):
        claim_folder(out, overwrite=False)
        write_record(out / SETTINGS_FILE, settings)
        finish_run(
            out,
            settings,
            fitted,
            report,
            division.record(images.test),
            calibration,
            metrics,
            references,
            gate,
            taken_from=f"{trained.path.name}: {trained.description}",
        )
        forget_replaced(out)
    return RunFolder.open(out, check_files=False)


def _is_aligned(parts: tuple[ImageFile, ...], settings: DecidedSettings) -> bool:
    return len(parts) > 1 and look_at(parts, white_level=settings.white_level).is_aligned


def _settings(
    trained: TrainedElsewhere,
    data: DataSource,
    scoring: ScoringSettings | None,
    false_alarm_rate: float | None,
    seed: int,
) -> DecidedSettings:
    notes: CheckpointNotes | None = trained.notes
    recipe = REFERENCE_RECIPE
    if notes is not None:
        recipe = recipe.model_copy(update={"learning_rate": notes.learning_rate})
    if false_alarm_rate is None:
        false_alarm_rate = notes.false_alarm_rate if notes else DEFAULT_FALSE_ALARM_RATE
    if trained.feature is not None and scoring is not None:
        raise UsageError(
            f"the scoring is {scoring}, but the network of {trained.path} is on features, which has its own scoring; "
            "leave out --scoring"
        )
    values = {
        "source": data,
        "architecture": trained.architecture,
        "tiling": trained.input_settings.tiling,
        "photometric": trained.input_settings.photometric,
        "scoring": scoring or (notes.scoring if notes else DEFAULT_SCORING),
        "split": SplitSettings(seed=seed),
        "seed": seed,
        "epochs": trained.epochs,
        "batch_size": notes.batch_size if notes else 32,
        "recipe": recipe,
        "false_alarm_rate": false_alarm_rate,
        "pixel_false_positive_rate": (notes.pixel_false_positive_rate if notes else DEFAULT_PIXEL_FALSE_POSITIVE_RATE),
    }
    if trained.feature is not None:
        values |= {
            "network": Network.FEATURE,
            "feature": trained.feature.settings,
            "picture_size": trained.input_settings.image_size,
        }
    return make_record(DecidedSettings, values)


def _divide(
    trained: TrainedElsewhere,
    images: InspectionSet,
    settings: SplitSettings,
    watcher: Watcher,
) -> Division:
    notes = trained.notes
    roles: Mapping[str, Role] = notes.roles if notes else {}
    known = [image for image in images.train if image.sha256 in roles]
    # What trained the network was compared then; the rest of a set that it is known by is new, picture by picture.
    found = group_images(() if known else images.train, images.test, settings, watcher)
    grouping = Grouping({**(notes.groups if notes else {}), **found.groups})
    if not known:
        if not roles:
            watcher.say(
                f"{trained.path.name} does not say which images the network was trained on: its promised "
                "false-alarm rate holds only if it was trained on none of these"
            )
        split = split_normals(images.train, settings, grouping.part)
    else:
        new = [image for image in images.train if image.sha256 not in roles]

        def of(role: Role) -> tuple[ImageFile, ...]:
            return tuple(image for image in known if roles[image.sha256] == role)

        split = Split(of("fit"), of("statistics"), (*of("threshold"), *new))
        if not split.threshold:
            raise InputError(
                f"all {len(known)} given normal images trained the network of {trained.path.name}; expected "
                "some that it has not seen, to set the thresholds: add them, or give the folder that it was trained on"
            )
    watcher.say(
        f"of the normal images {len(split.threshold)} set the threshold, {len(split.statistics)} are for the scale of "
        f"the residual, and {len(split.fit)} {'trained the network' if known else 'are left for INT8 calibration'}"
    )
    return Division(split, grouping)


def _fitted_on_pixels(
    trained: TrainedElsewhere,
    settings: DecidedSettings,
    statistics: NDArray[np.uint8],
    fit: NDArray[np.uint8],
    unseen: NDArray[np.uint8],
    watcher: Watcher,
) -> FittedGraph:
    """Return the model with the checkpoint's constants, or new ones if a device would score differently."""
    vae, constants = trained.vae, trained.constants
    assert vae is not None
    if constants is None or not trained.scores_as_device(settings.scoring):
        constants = fit_scoring_constants(
            vae,
            settings.scoring,
            statistics,
            input_settings=trained.input_settings,
            fitted=fit,
            progress=watcher.progress_of("measuring normal residuals"),
        )
    graph = AnomalyGraph(vae, settings.scoring, constants, trained.input_settings)
    unseen_loss = _loss(vae, trained.input_settings, unseen)
    fit_loss = _loss(vae, trained.input_settings, fit) if len(fit) else unseen_loss
    flops = count_flops(vae) * trained.input_settings.tiling.n_tiles
    outcome = _outcome(trained, settings, unseen_loss, fit_loss, count_parameters(vae), flops)
    return FittedGraph(vae, graph, constants, outcome, settings, None)


def _fitted_on_features(
    trained: TrainedElsewhere,
    feature: TrainedFeatures,
    settings: DecidedSettings,
    fit: NDArray[np.uint8],
    unseen: NDArray[np.uint8],
    watcher: Watcher,
) -> FittedGraph:
    """Return the model on features, like `_fitted_on_pixels`."""
    height, width = settings.preparation.height, settings.preparation.width
    maps = FeatureMaps(feature.backbone, height, width, settings.photometric).eval()
    constants, progress = feature.constants, watcher.progress_of("measuring normal residuals")
    needs_all = constants is None or not trained.scores_as_device(settings.scoring)
    seen = unseen if needs_all else unseen[:_MOST_FOR_LOSS]
    table = make_table(maps, seen, progress=progress)
    residuals = residuals_of(feature.residual, table, range(len(table)))
    if constants is None or needs_all:
        if len(residuals) < 2:
            raise InputError(
                f"there are {len(residuals)} normal images to measure the residual on; expected 2 or more that the "
                "network was not trained on"
            )
        source = MapSource.FEATURES
        constants = fit_constants({source: residuals}, feature.settings, {source: feature.residual})
    graph = FeatureGraph(
        feature.backbone, feature.residual.vae, feature.settings, constants, (height, width), settings.photometric
    )
    unseen_loss = float(residuals.mean())
    fitted = make_table(maps, fit[:_MOST_FOR_LOSS])
    fit_loss = float(residuals_of(feature.residual, fitted, range(len(fitted))).mean()) if len(fit) else unseen_loss
    n_parameters = count_parameters(graph.residual)
    outcome = _outcome(trained, settings, unseen_loss, fit_loss, n_parameters, count_feature_flops(graph))
    record = FeatureRecord(
        height=height,
        width=width,
        settings=feature.settings,
        photometric=settings.photometric,
        backbone=feature.origin,
    )
    return FittedGraph(None, graph, None, outcome, settings, None, feature=record)


def _outcome(
    trained: TrainedElsewhere,
    settings: DecidedSettings,
    unseen_loss: float,
    fit_loss: float,
    n_parameters: int,
    flops: int,
) -> TrainingOutcome:
    return TrainingOutcome(
        epochs_run=trained.epochs,
        epochs_planned=trained.epochs,
        ended_by="epochs",
        best_epoch=trained.epochs,
        best_held_out_loss=unseen_loss,
        fit_loss=fit_loss,
        batch_size=settings.batch_size,
        seconds=0,
        images_per_s=0,
        n_parameters=n_parameters,
        flops=flops,
    )


def _loss(vae: Vae, input_settings: InputSettings, images: NDArray[np.uint8]) -> float:
    """Return the loss at z = mean over some of the images, uint8 [n, H, W, 3] with n of 1 or more, cut into tiles."""
    stage = Reconstruction(vae, input_settings)
    total, n, step = 0.0, 0, images_at_a_time(input_settings)
    some = images[:_MOST_FOR_LOSS]
    with torch.inference_mode():
        for start in range(0, len(some), step):
            pixels = stage.photometric(stage.range(as_pixels(torch.from_numpy(some[start : start + step]))))
            tiles = stage.tiles.cut(pixels)
            total += float(vae.loss(vae(tiles), tiles).total) * len(tiles)
            n += len(tiles)
    return total / n
