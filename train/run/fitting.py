"""A whole run, begun (`fit_run`) or resumed (`resume_run`): from settings to a complete run folder.

Data, roles and sizes are decided here. The model and its thresholds come from `pixel_fitting` (with `cross_conformal`
where good parts are few) or from `feature_fitting`; metrics and files from `finishing`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from vae_edge.decision import check_n_normals
from vae_edge.errors import InputError, MissingDependencyError, UsageError
from vae_edge.records import make_record
from vae_edge.train.choice.image_size import resolve_size
from vae_edge.train.choice.photometric_choice import forget_pilots
from vae_edge.train.data.grouping import Grouping
from vae_edge.train.data.inspection_set import ImageFile, InspectionSet, load_images
from vae_edge.train.data.regions import find_ignored, read_ignore_mask
from vae_edge.train.data.report import DataReport, check_inspection_set, look_at
from vae_edge.train.data.sources import source_of
from vae_edge.train.data.split import GROUP_AUTOMATICALLY, split_labelled
from vae_edge.train.features.backbone import check_size
from vae_edge.train.features.backbone_weights import find_backbone, load_backbone, missing_backbone
from vae_edge.train.features.settings import choose_feature_size
from vae_edge.train.loop.checkpoints import TrainingInterruptedError, interrupted, read_state
from vae_edge.train.loop.settings import SizeRequest, TrainSettings
from vae_edge.train.loop.starting import lead_or_help, open_team
from vae_edge.train.loop.team import Team
from vae_edge.train.loop.trainer_arguments import (
    NOTHING_ATTACHED,
    Attached,
    TrainerArguments,
    check_timers,
    check_trainer,
    sort_arguments,
    take_up,
)
from vae_edge.train.loop.watcher import Stopwatch, Watcher
from vae_edge.train.model.input_settings import Tiling
from vae_edge.train.model.network import Vae, count_flops, count_parameters
from vae_edge.train.model.presets import Architecture, Network, check_position_precision, resolve_precision
from vae_edge.train.run.calibration import Division, calibrate, group_images
from vae_edge.train.run.cross_conformal import PixelFolds, announce, cross_calibrate, divide, forget_folds
from vae_edge.train.run.feature_fitting import fit_with_features
from vae_edge.train.run.finishing import finish_run, keep_references, learn_gate, measure
from vae_edge.train.run.folder import (
    CHECKPOINT,
    SETTINGS_FILE,
    SPLIT_FILE,
    RunFolder,
    check_folder,
    claim_folder,
    forget_replaced,
    only_training,
    read_settings,
    read_split,
    write_record,
)
from vae_edge.train.run.pixel_fitting import FittedGraph, LabelledImages, fit_graph
from vae_edge.train.run.records import CalibrationRecord, SplitRecord
from vae_edge.wording import count, verb

_UNEQUAL_ASPECTS = 1.2
"""Ratio of aspects from which it is said that pictures are stretched."""


@dataclass(frozen=True)
class _Data:
    """The checked data of a run, and what each good part is used for."""

    images: InspectionSet
    report: DataReport
    division: Division
    choice: tuple[ImageFile, ...] = ()
    """Labelled images to choose by, which are not test images."""

    def record(self) -> SplitRecord:
        """Return what `split.json` says."""
        return self.division.record(self.images.test, self.choice)


def fit_run(
    settings: TrainSettings,
    *,
    out: str | Path,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    attached: Attached = NOTHING_ATTACHED,
    jobs: int | None = None,
) -> RunFolder:
    """Train a detector and write its run folder; `vae_edge.train.fit` is the same with arguments by name.

    Args:
        settings: what to do.
        out: the run folder to make.
        overwrite: replace a run of that name. It is deleted when the new one is complete, not before.
        watcher: receives progress.
        attached: a user's loggers, callbacks and other objects, for the network that is deployed.
        jobs: networks that train at the same time: those of folds, or those on features. None: one on pixels, one on
            features for each of torch's threads.

    Returns:
        The complete run. Where several processes were started together, in the first of them; in the others the
        program ends here.

    Raises:
        InputError: the data or the settings cannot be used, `out` is taken, or the training diverged.
        TrainingInterruptedError: Ctrl-C; the message says how to resume.
        Exception: whatever a user's callback or logger raises; the run is then unfinished and can be resumed.
    """
    lead_or_help(attached)
    check_trainer(settings.trainer)
    check_timers(settings, attached)
    if settings.ignore_mask is not None:
        read_ignore_mask(settings.ignore_mask)  # What is wrong with it, before the pictures are read.
    out = Path(out)
    watcher = Stopwatch(watcher or Watcher())
    settings = _with_backbone(settings.model_copy(update={"source": settings.source.absolute()}), watcher)
    settings = _with_precision(settings)
    with ExitStack() as claims:
        check_folder(out, overwrite=overwrite)
        claims.enter_context(only_training(out))
        check_folder(out, overwrite=overwrite)
        team = claims.enter_context(open_team(settings, attached, jobs))
        data = _open_data(settings, watcher)
        settings = _with_ignored(_with_sizes(settings, data, watcher), data, watcher)
        if claim_folder(out, overwrite=overwrite):
            claims.enter_context(only_training(out))
        write_record(out / SPLIT_FILE, data.record())
        write_record(out / SETTINGS_FILE, settings)
        run = _fit_and_finish(settings, data, out, watcher, _Means(attached, team, jobs))
    watcher.say(watcher.sentence())
    return run


def resume_run(
    run: str | Path,
    *,
    data: Any = None,
    watcher: Watcher | None = None,
    logger: Logger | Iterable[Logger] | bool | None = None,
    callbacks: Callback | Iterable[Callback] | None = None,
    jobs: int | None = None,
    **trainer_arguments: Any,
) -> RunFolder:
    """Go on with an interrupted run, with its own settings; the result is the one it would have had.

    Args:
        run: the run folder.
        data: where the same images are now, if they were moved: a folder, or a data module that names them; None:
            where they were.
        watcher: receives progress.
        logger: as for `vae_edge.train.fit`; loggers are not called for, for they only watch.
        callbacks: as for `vae_edge.train.fit`. A run that was begun with callbacks needs them again, with the state
            that they had; `[]` continues without them, and may end with other weights.
        jobs: as for `vae_edge.train.fit`; the run does not know it.
        **trainer_arguments: as for `vae_edge.train.fit`. Numbers and words are in the run and need not be given; what
            decides the weights cannot be changed. Objects such as `plugins` have to be given again.

    Raises:
        InputError: the run is complete, the images are not the ones it was started with, or the arguments are not.
        BundleError: there is no run, or its records or its checkpoint are damaged.
        TrainingInterruptedError: Ctrl-C; the message says how to resume.
    """
    run = Path(run)
    watcher = Stopwatch(watcher or Watcher())
    given = sort_arguments(logger, callbacks, trainer_arguments)
    lead_or_help(given.attached)
    with only_training(run), open_team(read_settings(run), given.attached, jobs) as team:
        resumed = _resume(run, data, watcher, given, team, jobs)
    watcher.say(watcher.sentence())
    return resumed


def _resume(run: Path, data: Any, watcher: Watcher, given: TrainerArguments, team: Team, jobs: int | None) -> RunFolder:
    begun = read_settings(run)
    checkpoint = run / CHECKPOINT
    is_trained = checkpoint.is_file() and read_state(checkpoint).get("ended_by") is not None
    settings = take_up(begun, given, is_trained=is_trained)
    check_timers(settings, given.attached)
    if data is not None:
        moved = begun.source.moved_to(data) if isinstance(data, str | Path) else source_of(data)
        settings = settings.model_copy(update={"source": moved.absolute()})
    recorded = read_split(run)
    opened = _open_data(settings, watcher, recorded)
    if [(i.sha256, i.role) for i in recorded.images] != [(i.sha256, i.role) for i in opened.record().images]:
        raise InputError(
            f"the images in {opened.images.root} are not the ones that the run {run} was started with; expected the "
            "same files: put them back, pass their folder with --data, or train again with --out"
        )
    if (settings.trainer, settings.attached) != (begun.trainer, begun.attached):
        # For the next time it is resumed.
        write_record(run / SETTINGS_FILE, settings.model_copy(update={"source": begun.source}))
    return _fit_and_finish(settings, opened, run, watcher, _Means(given.attached, team, jobs))


@dataclass(frozen=True)
class _Means:
    """What is at hand in this process to train with, and is no part of a run's settings."""

    attached: Attached
    team: Team
    jobs: int | None


def _fit_and_finish(settings: TrainSettings, data: _Data, out: Path, watcher: Watcher, means: _Means) -> RunFolder:
    attached = means.attached
    if data.division.folds and (attached.callbacks or attached.arguments):
        watcher.say(
            f"{', '.join(attached.names().values())}: used for the training of the deployed network, not of the folds"
        )
    try:
        return _fit(settings, data, out, watcher, means)
    except KeyboardInterrupt:
        # Outside the training loop, which has its own way: while images are read, or scored afterwards.
        raise TrainingInterruptedError(interrupted(out, needs=attached.needed)) from None


def _fit(settings: TrainSettings, data: _Data, out: Path, watcher: Watcher, means: _Means) -> RunFolder:
    if settings.network is Network.PIXEL:
        fitted, calibration = _fit_on_pixels(settings, data, out, watcher, means)
    else:
        files = data.division.files
        images = load_images(files, settings.preparation, watcher.progress_of("reading images"))
        fitted, calibration = fit_with_features(
            settings, data.division, files, images, out, watcher, team=means.team, jobs=means.jobs
        )
        del images
    settings = settings.model_copy(update={"network": fitted.settings.network})
    normals = data.division.judges or data.division.setting_thresholds
    metrics = measure(settings, fitted.graph, data.images, calibration.thresholds, normals, watcher)
    references = keep_references(settings, fitted.graph, calibration.thresholds, normals, watcher)
    is_aligned = settings.traits is not None and settings.traits.is_aligned
    gate = learn_gate(settings, data.division.parts, is_aligned=is_aligned, watcher=watcher)
    finish_run(out, settings, fitted, data.report, data.record(), calibration, metrics, references, gate)
    forget_folds(out)
    forget_pilots(out)
    forget_replaced(out)
    return RunFolder.open(out, check_files=False)


def _fit_on_pixels(
    settings: TrainSettings, data: _Data, out: Path, watcher: Watcher, means: _Means
) -> tuple[FittedGraph, CalibrationRecord]:
    division, team = data.division, means.team
    if team.shares_steps:
        machines = f" on {team.place.n_nodes} machines" if team.place.n_nodes > 1 else ""
        folds = "; each trains a fold of the calibration at a time" if division.folds else ""
        watcher.say(
            f"{team.size} processes{machines} train together, and share the images of each step: the batch size, "
            f"{settings.batch_size} at most, is that of all{folds}"
        )
    n_fit, n_statistics = len(division.split.fit), len(division.split.statistics)
    files = division.files
    images = load_images(files, settings.preparation, watcher.progress_of("reading images"))
    fitted = fit_graph(
        settings,
        images[:n_fit],
        images[n_fit : n_fit + n_statistics],
        out,
        watcher,
        labelled=_load_labelled(settings, data.choice, watcher),
        attached=means.attached,
        team=team,
    )
    if division.folds:
        # After the deployed network, whose checkpoint is what tells that a run has something to lose.
        calibration = cross_calibrate(
            fitted.settings,
            fitted.graph,
            division.folds,
            files,
            images,
            PixelFolds(fitted.settings, len(division.folds), out),
            watcher,
            part=division.grouping.part,
            team=team,
        )
    else:
        calibration = calibrate(
            fitted.graph,
            division.judges,
            images[n_fit + n_statistics :],
            false_alarm_rate=settings.false_alarm_rate,
            pixel_false_positive_rate=settings.pixel_false_positive_rate,
            progress=watcher.progress_of("scoring held-out normals"),
        )
    return fitted, calibration


def _with_backbone(settings: TrainSettings, watcher: Watcher) -> TrainSettings:
    """Find the backbone's weights before anything else is done; without them a choice falls on the network on pixels.

    Raises:
        MissingDependencyError: a network on features was asked for, and there are no weights.
        InputError: the weights that were given cannot be used; see `load_backbone`.
    """
    if settings.network is Network.PIXEL:
        return settings
    if settings.backbone_weights is not None:
        settings = settings.model_copy(update={"backbone_weights": str(Path(settings.backbone_weights).absolute())})
        load_backbone(settings.backbone_weights)  # What is wrong with them, before the pictures are read.
        return settings
    if find_backbone() is not None:
        return settings
    if settings.network is not None:
        raise MissingDependencyError(missing_backbone())
    watcher.say(
        f"a network on pixels is trained: {missing_backbone()}. On most surfaces a network on features finds more, in "
        "a fraction of the time"
    )
    return settings.model_copy(update={"network": Network.PIXEL})


def _with_precision(settings: TrainSettings) -> TrainSettings:
    """Decide what is computed in; networks on features are trained on the processor whatever else there is.

    Raises:
        UsageError: see `check_position_precision`.
    """
    on_pixels = settings.network is Network.PIXEL
    if not on_pixels:
        check_position_precision(settings.precision)
    resolved = resolve_precision(settings.precision, settings.accelerator if on_pixels else "cpu")
    return settings.model_copy(update={"precision": resolved})


def _open_data(settings: TrainSettings, watcher: Watcher, recorded: SplitRecord | None = None) -> _Data:
    found = settings.source.open(watcher.progress_of("finding images"))
    checked_set, report = check_inspection_set(found, watcher.progress_of("checking images"), strict=settings.strict)
    remarks = settings.source.listed.remarks if settings.source.listed is not None else ()
    for sentence in (*found.describe(), *report.sentences(white_level=settings.white_level), *remarks):
        watcher.say(sentence)
    grouping = _group(settings, checked_set, watcher, recorded)
    choice: tuple[ImageFile, ...] = ()
    if settings.choose_on_labels:
        choice, test = split_labelled(checked_set.test, settings.split.seed, grouping.part)
        checked_set = replace(checked_set, test=test)
        watcher.say(
            f"{len(choice)} of the labelled images are used to choose light and scoring, the other {len(test)} for "
            "the test"
        )
    division = _divide(settings, checked_set, grouping, watcher)
    folds = division.folds
    data = _Data(checked_set, report, division, choice)
    counts = data.record().counts()
    set_threshold = counts["threshold"] or f"all {counts['fit'] + counts['statistics']}"
    watcher.say(
        f"of the normal images {counts['fit']} train the network, {counts['statistics']} set the scale of its residual "
        f"and {set_threshold} set the threshold"
    )
    if folds:
        watcher.say(announce(settings, len(checked_set.train), len(folds)))
    check_n_normals(division.n_parts)
    if shortage := division.shortage(settings.false_alarm_rate):
        watcher.say(shortage)
    return data


def _divide(settings: TrainSettings, images: InspectionSet, grouping: Grouping, watcher: Watcher) -> Division:
    """Give every good part its role; those that were kept on a device only train the network.

    They were chosen by their scores, so they must not set a threshold; and none may show a held-out part.

    Raises:
        UsageError: there are such ones, and all others are needed to set the thresholds.
        InputError: see `divide`.
    """
    usual = [image for image in images.train if image.sha256 not in images.more_normals]
    split, folds = divide(usual, settings, grouping.part)
    more = [image for image in images.train if image.sha256 in images.more_normals]
    if not more:
        return Division(split, grouping, folds)
    if folds:
        raise UsageError(
            f"pictures of {settings.source.more_normals} were given with too few other good parts, {len(usual)}, to "
            "hold some out for the threshold; expected more good parts (--data), or --calibration split"
        )
    held_out = {grouping.part(image) for image in (*split.statistics, *split.threshold)}
    taken = sorted((image for image in more if grouping.part(image) not in held_out), key=lambda image: image.sha256)
    left_out = f"; {len(more) - len(taken)} show held-out parts and are left out" if len(taken) < len(more) else ""
    watcher.say(
        f"of {settings.source.more_normals} {count(len(taken), 'picture')} labelled as normal "
        f"{verb(len(taken), 'trains', 'train')} the network, too, without setting a threshold{left_out}"
    )
    return Division(replace(split, fit=(*split.fit, *taken)), grouping, folds)


def _group(settings: TrainSettings, images: InspectionSet, watcher: Watcher, recorded: SplitRecord | None) -> Grouping:
    """Return which good parts belong together, those among the test images included."""
    if recorded is not None and settings.split.group_by == GROUP_AUTOMATICALLY:
        # Not looked for again: another version of the decoder might see one pixel otherwise.
        return Grouping({image.sha256: image.group for image in recorded.images if image.group is not None})
    return group_images(images.train, images.test, settings.split, watcher, white_level=settings.white_level)


def _with_sizes(settings: TrainSettings, data: _Data, watcher: Watcher) -> TrainSettings:
    """Look at the images, decide the sizes of image and tiles, and say what the network and an image cost."""
    architecture, report = settings.architecture, data.report
    # The normals that set thresholds are not examined, here as everywhere.
    split = data.division.split
    seen = (*split.fit, *split.statistics)
    traits = look_at(seen, white_level=settings.white_level, progress=watcher.progress_of("looking at images"))
    settings = settings.model_copy(update={"traits": traits})
    if settings.network is not Network.PIXEL:
        return _with_picture_size(settings, report.typical_size, watcher)
    if settings.size is not None:
        tiling = resolve_size(settings.size, report.typical_size, is_aligned=traits.is_aligned)
        sides = {"height": tiling.tile_height, "width": tiling.tile_width}
        architecture = make_record(Architecture, architecture.model_dump() | sides)
        settings = settings.model_copy(update={"tiling": tiling, "architecture": architecture})
    tiling = settings.tiling_in_force
    with torch.device("meta"):  # Its shape is enough to count.
        vae = Vae.from_architecture(architecture)
    height, width = report.typical_size
    watcher.say(
        f"the pictures are typically {height}x{width} (height x width); the model takes {tiling.describe()}; the "
        f"network has {count_parameters(vae) / 1e6:.3g} M parameters and an image takes "
        f"{count_flops(vae) * tiling.n_tiles / 1e9:.3g} GFLOP"
    )
    where = "at the same place" if traits.is_aligned else "anywhere"
    light = "is the same" if traits.has_steady_light else "differs"
    watcher.say(
        f"the parts in the pictures lie {where} (alignment {traits.alignment:.2f}), and their light {light} "
        f"({traits.light_spread:.2f})"
    )
    if report.aspect_spread > _UNEQUAL_ASPECTS:
        watcher.say(
            f"the aspect ratios of the pictures differ by a factor of {report.aspect_spread:.1f}; all are stretched to "
            f"{tiling.image_height}x{tiling.image_width}"
        )
    return settings


def _with_picture_size(settings: TrainSettings, typical: tuple[int, int], watcher: Watcher) -> TrainSettings:
    """Decide the size at which the backbone sees the pictures."""
    request = settings.size or SizeRequest()
    picture = request.image or choose_feature_size(typical)
    check_size(*picture)
    settings = settings.model_copy(update={"picture_size": picture})
    watcher.say(
        f"the pictures are typically {typical[0]}x{typical[1]} (height x width); a network on features sees them at "
        f"{picture[0]}x{picture[1]}"
    )
    tiling = Tiling(image_height=picture[0], image_width=picture[1], tile_height=picture[0], tile_width=picture[1])
    return settings.model_copy(update={"tiling": tiling})


def _with_ignored(settings: TrainSettings, data: _Data, watcher: Watcher) -> TrainSettings:
    """Decide what is ignored at the model's size, and say so."""
    size = settings.preparation.height, settings.preparation.width
    region = find_ignored(settings.ignore_mask, settings.ignore_polygons, size, data.report.typical_size)
    if region is None:
        return settings
    watcher.say(f"ignored in training, calibration and on the device: {region.describe()}")
    if settings.traits is not None and not settings.traits.is_aligned:
        watcher.say(
            f"the parts do not lie at the same place in all pictures (alignment {settings.traits.alignment:.2f}), but "
            "the ignored region does: what it hides differs from picture to picture"
        )
    return settings.model_copy(update={"ignored": region})


def _load_labelled(settings: TrainSettings, files: Sequence[ImageFile], watcher: Watcher) -> LabelledImages | None:
    if not files:
        return None
    images = load_images(files, settings.preparation, watcher.progress_of("reading labelled images"))
    return LabelledImages(images, tuple(file.defect for file in files))
