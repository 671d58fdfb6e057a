"""`vae-train`: train a detector on images of good parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vae_edge.cli.console import print_warning
from vae_edge.cli.options import given_options, idle, in_words, refuse_idle, refuse_others, with_option_groups
from vae_edge.errors import UsageError
from vae_edge.ignored_region import parse_polygon
from vae_edge.records import make_record
from vae_edge.train.choice.image_size import parse_size
from vae_edge.train.loop.launch import end_silently, launched
from vae_edge.train.loop.settings import SizeRequest, TrainSettings
from vae_edge.train.loop.watcher import TerminalWatcher
from vae_edge.train.model.input_settings import parse_photometric
from vae_edge.train.model.presets import (
    PIXEL_PRESET,
    Augmentation,
    Preset,
    Recipe,
    make_architecture,
    preset_named,
)
from vae_edge.train.model.scoring import AUTO, parse_scoring
from vae_edge.train.options import (
    NEW,
    ON_PIXELS,
    RESUMED,
    SOURCE_KINDS,
    CommonOptions,
    DataOptions,
    LightningOptions,
    NetworkOptions,
    ScoringOptions,
    ThresholdOptions,
    TrainingOptions,
    kind_of,
    needs_of_data,
    needs_of_options,
)
from vae_edge.train.summary import print_result

if TYPE_CHECKING:
    from vae_edge.train.run.folder import RunFolder


@with_option_groups
def train(
    context: typer.Context,
    common: CommonOptions,
    data: DataOptions,
    threshold: ThresholdOptions,
    scoring: ScoringOptions,
    network: NetworkOptions,
    training: TrainingOptions,
    lightning: LightningOptions,
) -> None:
    """Train a detector on pictures of good parts.

    --data and --out are all it needs. Defective parts are used only to measure it.

        vae-train --data pictures --out runs/part   your own pictures
        vae-train --data sample --out runs/first    drawn ones, to try it out
        vae-train --resume runs/part                continue after Ctrl-C
    """
    if (place := launched()) is not None and place.rank > 0:
        end_silently()
        from vae_edge.train.loop.starting import lead_or_help

        lead_or_help()  # Does not return: the first process looks at the options.
    if common.resume is not None:
        refuse_others(context, common.resume, RESUMED, (NEW, RESUMED))
        print_result(_resume(common.resume, common.data, lightning.jobs))
        return
    if common.out is None:
        raise UsageError("no folder was given for the run; expected --out RUN, such as --out runs/first")
    if (common.data is None) == (common.normal is None):
        raise UsageError("expected either --data or --normal; for a first try: --data sample")
    out, asked = common.out, common.preset
    refuse_others(context, common.data or common.normal, kind_of(common), SOURCE_KINDS)
    preset = preset_named(common.preset)
    flags = [flag for name, flag in given_options(context).items() if name in ON_PIXELS]
    if preset.network is None and flags:
        common = replace(common, preset=PIXEL_PRESET)
        preset = preset_named(PIXEL_PRESET)
    size = parse_size(
        common.image_size or (AUTO if preset.chooses_size else "256"),
        network.tile_size or (AUTO if preset.chooses_size else "none"),
        network.tile_overlap,
    )
    refuse_idle(context, needs_of_options(common, data, threshold, scoring, network, size))
    settings = _settings(common, data, threshold, scoring, network, training, lightning, size=size)
    if common.preset != asked:
        print_warning(
            f"{in_words(flags)}: for networks on pixels only, so one of those is trained, {PIXEL_PRESET}; name it with "
            "--preset"
        )
    from vae_edge.train.run.fitting import fit_run

    with TerminalWatcher() as watcher:
        run = fit_run(settings, out=out, overwrite=common.overwrite, watcher=watcher, jobs=lightning.jobs)
    for reason in idle(context, needs_of_data(run)):
        print_warning(f"{reason}: no effect")
    print_result(run)


def _settings(
    common: CommonOptions,
    data: DataOptions,
    threshold: ThresholdOptions,
    scoring: ScoringOptions,
    network: NetworkOptions,
    training: TrainingOptions,
    lightning: LightningOptions,
    *,
    size: SizeRequest,
) -> TrainSettings:
    """Return the settings that the options describe.

    Raises:
        UsageError: a value is invalid.
    """
    preset = preset_named(common.preset)
    return make_record(
        TrainSettings,
        {
            "source": _source(common, data),
            "architecture": make_architecture(
                common.preset,
                n_features=network.n_features,
                latent_vec_size=network.latent_vec_size,
                kl_weight=network.kl_weight,
                max_features=network.max_features,
            ),
            "network": preset.network,
            "backbone_weights": None if network.backbone_weights is None else str(network.backbone_weights),
            "size": size,
            "ignore_mask": None if data.ignore is None else str(data.ignore.absolute()),
            "ignore_polygons": tuple(parse_polygon(text) for text in data.ignore_polygon or ()),
            "white_level": data.white_level,
            "photometric": parse_photometric(scoring.photometric),
            "scoring": parse_scoring(scoring.scoring),
            "choose_on_labels": scoring.choose_on_labels,
            "split": {"threshold_share": threshold.held_out, "group_by": data.group_by, "seed": training.seed},
            "strict": data.strict,
            "epochs": training.epochs,
            "batch_size": training.batch_size,
            "recipe": _recipe(training, preset),
            "patience": training.patience,
            "max_time_minutes": common.max_time,
            "seed": training.seed,
            "false_alarm_rate": common.false_alarm_rate,
            "calibration": threshold.calibration,
            "folds": threshold.folds,
            "accelerator": lightning.accelerator,
            "devices": lightning.devices,
            "num_nodes": lightning.num_nodes,
            "precision": lightning.precision or preset.precision,
        },
    )


def _resume(run: Path, data: str | None, jobs: int | None) -> RunFolder:
    from vae_edge.train.run.fitting import resume_run

    with TerminalWatcher() as watcher:
        return resume_run(run, data=data, watcher=watcher, jobs=jobs)


def _source(common: CommonOptions, data: DataOptions) -> dict[str, str | None]:
    folders = {
        "normal": common.normal,
        "normal_test": data.normal_test,
        "abnormal": common.abnormal,
        "masks": data.masks,
        "more_normals": data.more_normals,
    }
    return {"root": common.data, **{name: None if path is None else str(path) for name, path in folders.items()}}


def _recipe(training: TrainingOptions, preset: Preset) -> Recipe:
    usual = preset.recipe
    return make_record(
        Recipe,
        {
            "learning_rate": usual.learning_rate if training.learning_rate is None else training.learning_rate,
            "schedule": usual.schedule if training.schedule is None else training.schedule,
            "kl_warmup": training.kl_warmup,
            "averaging": training.averaging,
            "augmentation": tuple(kind for kind in training.augment or () if kind is not Augmentation.NONE),
        },
    )
