"""Training from a program: `vae_edge.train.fit`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.choice.image_size import check_request
from vae_edge.train.data.sources import DataSource, source_of
from vae_edge.train.loop.settings import SizeRequest, TrainSettings
from vae_edge.train.loop.trainer_arguments import FIELDS, TrainerArguments, sort_arguments
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.presets import (
    DEFAULT_PRESET,
    PIXEL_PRESET,
    Network,
    make_architecture,
    preset_named,
)
from vae_edge.train.model.scoring import AUTO, parse_scoring
from vae_edge.train.run.fitting import fit_run
from vae_edge.train.run.folder import RunFolder

SETTINGS = tuple(
    name
    for name in TrainSettings.model_fields
    if name not in {"schema_version", "source", "tiling", "picture_size", "ignored", "traits", "trainer", "attached"}
)
"""Settings that `fit` takes by name."""


ON_PIXELS = frozenset({"architecture", "epochs", "batch_size", "recipe", "patience", "scoring", "choose_on_labels"})
"""Settings that only networks on pixels have; without a preset they choose one."""


def fit(
    data: Any,
    out: str | Path,
    *,
    settings: TrainSettings | None = None,
    preset: str | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    logger: Logger | Iterable[Logger] | bool | None = None,
    callbacks: Callback | Iterable[Callback] | None = None,
    jobs: int | None = None,
    **arguments: Any,
) -> RunFolder:
    """Train a detector on images of good parts; `vae-train` for programs, with the same defaults.

    Args:
        data: a folder, `"sample"` or `"sample:PRODUCT"`; a `DataSource`; or an anomalib data module, whose files are
            read as they are on disk (`vae_edge.train.data.sources` says which become what).
        out: the run folder to make.
        settings: everything about the training but the data; None: what `preset` and `arguments` say.
        preset: what kind of network, and its size and recipe: `auto`, `feature`, `both`, `nano`, `edge` or `reference`;
            None: `auto`, which means `nano` where anything is given that only networks on pixels have: loggers,
            callbacks, arguments of the Trainer, `architecture`, `recipe`, `epochs`, `scoring` and so on.
        overwrite: replace a run of that name, once the new one is complete.
        watcher: receives progress.
        logger: loggers of Lightning that log what the run's own logs hold; they come first, so that a callback finds
            the user's as `trainer.logger`. None or True: the run's own only; False: no log at all.
        callbacks: of Lightning. They see the module's `fit_loss` and `held_out_loss` once an epoch, and a
            `ModelCheckpoint` without a folder writes beside the first logger's files. One that stops the training ends
            it after the validation that follows, and the run records `ended_by="callback"`; the weights with the
            smallest held-out loss so far are kept. What its `state_dict` returns is in the run's checkpoint, and has to
            be numbers, strings, tensors and containers of them. What Lightning logs at level INFO, as a callback's
            `verbose` makes it do, stays silent.
        jobs: networks that train at the same time: those of cross-conformal folds, each in a process of its own, or
            those on features. The result is the same. None: one on pixels, one on features for each core.
        **arguments: fields of `TrainSettings` by name (`epochs=40`, `seed=1`, `size={"image": (256, 256)}`,
            `scoring="auto"`), unless `settings` is given; and arguments of Lightning's Trainer:

            - `max_epochs`, `max_time`, `accelerator`, `devices`, `num_nodes` and `precision` are settings: they replace
              `epochs`, `max_time_minutes` and so on, also those in `settings`, and are recorded. `max_time` ends each
              training with the first epoch after it. With several `devices`, as many processes share each step of a
              training; `batch_size` is that of all. They run no code of the calling program, so callbacks and other
              objects need torchrun, which starts the program in each: all but the first end here, in `fit`.
            - Other numbers, words and switches replace what this program gives the Trainer; they are recorded and hold
              again after an interruption. Those that decide the weights (`gradient_clip_val`,
              `accumulate_grad_batches`, `limit_train_batches`, `strategy`, ...) hold for every network of the run;
              those that show something (`enable_progress_bar`, `log_every_n_steps`, `profiler`, ...) for the deployed
              one.
            - Objects (`plugins`, a `strategy` or a `profiler` of your own) are for the deployed network, like loggers
              and callbacks, and not for those of cross-conformal folds and short comparisons. To stop all of them
              early give `patience`, not a callback. After an interruption `resume_run` needs them again. A
              `CheckpointIO` among the plugins writes all checkpoints but the run's own.
            - Refused, with the reason, is what leaves no network to deploy or makes a run that cannot be repeated or
              continue: `fast_dev_run`, `barebones`, `max_steps`, `overfit_batches`, `max_epochs=-1`,
              `enable_checkpointing=False`, `deterministic=False`, `benchmark=True`, another `check_val_every_n_epoch`
              or `val_check_interval`, limits of 0, strategies other than `auto` and `ddp`, and callbacks that change
              the weights, the learning rate or the batch size by themselves (`StochasticWeightAveraging`,
              `WeightAveraging`, `ModelPruning`, `LearningRateFinder`, `BatchSizeFinder`).

    Returns:
        The complete run; `vae-export` takes its `folder`. Loggers and callbacks that only watch change no bit of it.

    Raises:
        InputError: the data, a setting or an argument cannot be used, `out` is taken, or the training diverged.
        TrainingInterruptedError: Ctrl-C; `resume_run` continues.
        Exception: whatever a callback, a logger or the data module raises; a run that was begun is then unfinished, and
            `resume_run` continues with it.
    """
    given = sort_arguments(
        logger,
        callbacks,
        {name: value for name, value in arguments.items() if name not in SETTINGS or name in FIELDS},
        other_names=SETTINGS,
    )
    fields = {name: value for name, value in arguments.items() if name in SETTINGS and name not in FIELDS}
    twice = sorted(fields.keys() & given.fields.keys())
    if twice:
        raise UsageError(f"{twice[0]} and the Trainer's name for it were both given; leave out one of them")
    if settings is None:
        asked = _by_preset(source_of(data), _preset_in_force(preset, fields, given), fields, given)
    elif fields or preset is not None:
        extra = ", ".join([*fields, *(["preset"] if preset is not None else [])])
        raise UsageError(
            f"settings and {extra} were both given; expected one of them: use settings.model_copy(update=...)"
        )
    else:
        asked = {name: getattr(settings, name) for name in TrainSettings.model_fields} | {"source": source_of(data)}
        asked |= given.apply_to(settings)
    asked["attached"] = given.attached.names()
    return fit_run(
        make_record(TrainSettings, asked),
        out=out,
        overwrite=overwrite,
        watcher=watcher,
        attached=given.attached,
        jobs=jobs,
    )


def _preset_in_force(preset: str | None, fields: dict[str, Any], given: TrainerArguments) -> str:
    """Return the preset, or the one that arguments ask for which only networks on pixels have.

    Raises:
        UsageError: such an argument was given along with a preset that has no such network.
    """
    on_pixels = [
        *sorted((fields.keys() & ON_PIXELS) | (given.fields.keys() - {"precision"}) | given.values.keys()),
        *given.attached.names(),
    ]
    if preset is None:
        return PIXEL_PRESET if on_pixels else DEFAULT_PRESET
    if on_pixels and preset_named(preset).network in (Network.FEATURE, Network.BOTH):
        raise UsageError(
            f"{', '.join(on_pixels)}: for networks that reconstruct whole pictures, and the preset {preset!r} trains "
            "none; leave it out, or take the preset 'nano'"
        )
    return preset


def _by_preset(source: DataSource, preset: str, fields: dict[str, Any], given: TrainerArguments) -> dict[str, Any]:
    """Return the settings of a preset with some replaced, as `vae-train` has them."""
    chosen = preset_named(preset)
    size = SizeRequest() if chosen.chooses_size else SizeRequest(image=(256, 256), tiles="none")
    values: dict[str, Any] = {
        "source": source,
        "network": chosen.network,
        "architecture": make_architecture(preset),
        # An architecture that was given says itself how large its images are.
        "size": None if "architecture" in fields else size,
        "recipe": chosen.recipe,
        "photometric": None,
        "scoring": None,
        "accelerator": "auto",
        "precision": chosen.precision,
        **fields,
        **given.fields,
        "trainer": given.values,
    }
    if values["photometric"] == AUTO:
        values["photometric"] = None
    if isinstance(values["scoring"], str):
        values["scoring"] = parse_scoring(values["scoring"])
    if values["size"] is not None:
        values["size"] = make_record(SizeRequest, dict(values["size"]))
        check_request(values["size"])
    return values
