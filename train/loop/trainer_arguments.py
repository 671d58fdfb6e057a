"""What a user may give of the arguments of Lightning's Trainer, and where each of them goes.

Three kinds, by where they are kept:

- Those that are settings of a training anyway (`FIELDS`) replace the setting, so that the run records them.
- Numbers, words and switches go into `TrainSettings.trainer`; a resumed run gets them again. Those that decide
  the weights (`deciding`) hold for every network that is trained, those of folds and short comparisons too: a network
  whose scores stand in for another's must have been made in the same way.
- Objects, loggers and callbacks cannot be recorded. They are attached to the training of the network that is deployed
  and to no other; the run records what they were, and they must be passed again to resume it.

`check_trainer` refuses what cannot work: see `_ONLY` for what and why.
"""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, get_args

import numpy as np
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, callbacks
from lightning.pytorch.callbacks import BatchSizeFinder, GradientAccumulationScheduler, LearningRateFinder, Timer
from lightning.pytorch.loggers import Logger

from vae_edge.errors import InputError, UsageError
from vae_edge.train.loop.batches import Plan
from vae_edge.train.loop.settings import TrainerValue, TrainSettings
from vae_edge.wording import count

FIELDS = {
    "max_epochs": "epochs",
    "max_time": "max_time_minutes",
    "accelerator": "accelerator",
    "devices": "devices",
    "num_nodes": "num_nodes",
    "precision": "precision",
}
"""Arguments that are fields of `TrainSettings`, some under another name or in another unit."""

_DECIDING = {
    "accumulate_grad_batches",
    "deterministic",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_val_batches",
    "min_epochs",
    "min_steps",
    "strategy",
    "sync_batchnorm",
    "use_distributed_sampler",
}

_ONLY: dict[str, tuple[str, str]] = {
    "fast_dev_run": ("off", "a few batches do not train a detector: use max_epochs=1 and limit_train_batches"),
    "barebones": ("off", "without checkpoints and a held-out loss there is nothing to deploy: leave it out"),
    "max_steps": ("-1", "a training consists of epochs, after which it can resume: use max_epochs"),
    "overfit_batches": ("0", "the epoch must be chosen on other images: use limit_train_batches"),
    "enable_checkpointing": ("on", "without its checkpoint a run cannot be finished: leave it out"),
    "check_val_every_n_epoch": ("1", "the epoch is chosen by its held-out loss, so each needs one: leave it out"),
    "val_check_interval": ("1.0", "the held-out loss is computed at the end of an epoch: leave it out"),
    "limit_val_batches": ("more than 0", "the epoch is chosen by its held-out loss: use a larger share or number"),
    "limit_train_batches": ("more than 0", "nothing would be trained: use a larger share or number"),
    "deterministic": ("on or 'warn'", "the same seed must give the same weights: leave it out"),
    "benchmark": ("off", "the same seed must give the same weights: leave it out"),
    "use_distributed_sampler": ("off", "each process gets its own part of every step's images anyway: leave it out"),
    "strategy": (
        "auto or ddp",
        "vae-train itself starts the processes of one machine, torchrun or SLURM those of several, and each holds all "
        "weights: give devices alone",
    ),
}
"""Arguments of which not every value can work: what can, and why nothing else."""

TOGETHER = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")
"""Strategies of several processes, by name. All their networks' parameters are used, so that they are one."""

_OFF = ("fast_dev_run", "barebones", "overfit_batches", "benchmark")

_UNSUITABLE: dict[str, str] = {
    "StochasticWeightAveraging": "it changes the weights after the last epoch: set averaging in the recipe instead",
    "WeightAveraging": "the evaluated weights would not be the saved ones: set averaging in the recipe instead",
    "ModelPruning": "it replaces the network's weights by its own",
    BatchSizeFinder.__name__: "the batch size is a setting: use batch_size",
    LearningRateFinder.__name__: "the learning rate is a setting: set learning_rate in the recipe",
}
"""Lightning's callbacks that cannot work here, and why."""


@dataclass(frozen=True)
class Attached:
    """What is attached to one training and lives in this process only."""

    loggers: tuple[Logger, ...] = ()
    """They come before the run's own, so that a callback's `trainer.logger` is the user's."""
    callbacks: tuple[Callback, ...] = ()
    """They are called before the run's own."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of the Trainer, such as `plugins`."""
    writes_logs: bool = True
    """Whether the run's own logs are written."""
    answered: frozenset[str] = frozenset()
    """Names of arguments that were given at all, be it as nothing."""

    def names(self) -> dict[str, str]:
        """Return what a record can hold of this: `TrainSettings.attached`."""
        given = {"logger": self.loggers, "callbacks": self.callbacks, **self.arguments}
        return {name: _class_names(value) for name, value in given.items() if value not in ((), [], None)}

    @property
    def needed(self) -> tuple[str, ...]:
        """Arguments that have to be given again after an interruption; loggers only watch."""
        return tuple(name for name in self.names() if name != "logger")


NOTHING_ATTACHED = Attached()


@dataclass(frozen=True)
class TrainerArguments:
    """A user's arguments, sorted by where they go."""

    fields: dict[str, Any]
    """Fields of `TrainSettings`."""
    values: dict[str, TrainerValue]
    """`TrainSettings.trainer`."""
    attached: Attached

    def apply_to(self, settings: TrainSettings) -> dict[str, Any]:
        """Return the fields of settings in which these arguments replace what was there."""
        return {
            **self.fields,
            "trainer": {**settings.trainer, **self.values},
            "attached": {**settings.attached, **self.attached.names()},
        }


def sort_arguments(
    logger: Logger | Iterable[Logger] | bool | None,
    callbacks: Callback | Iterable[Callback] | None,
    arguments: Mapping[str, Any],
    *,
    other_names: Iterable[str] = (),
) -> TrainerArguments:
    """Sort what a user gave by where it goes, and refuse what cannot work.

    Args:
        logger: None or True: the run's own only; loggers: these too; False: none, the run's own neither.
        callbacks: one or several; None: not given.
        arguments: further arguments of the Trainer by name; None counts as not given.
        other_names: what else the caller accepts, for the message about an unknown name.

    Raises:
        UsageError: a name that is not an argument, or a value that cannot work.
    """
    known = [name for name in inspect.signature(Trainer).parameters if name not in ("logger", "callbacks")]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *other_names], 1)
            raise UsageError(
                f"the argument {name!r} does not exist; expected a setting of the training or an argument of "
                f"Lightning's Trainer{f', such as {near[0]}' if near else ''}: check the name"
            )
    fields: dict[str, Any] = {}
    values: dict[str, TrainerValue] = {}
    objects: dict[str, Any] = {}
    for name, value in arguments.items():
        if value is None:
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        elif isinstance(value, np.generic):
            value = value.item()
        simple = _as_setting(name, value) if name in FIELDS else value
        if not isinstance(simple, get_args(TrainerValue)):
            objects[name] = value
        elif name in FIELDS:
            fields[FIELDS[name]] = simple
        else:
            values[name] = simple
    check_trainer(values)
    answered = frozenset(arguments) | ({"callbacks"} if callbacks is not None else set())
    loggers, chosen = _loggers(logger), _callbacks(callbacks)
    return TrainerArguments(fields, values, Attached(loggers, chosen, objects, logger is not False, answered))


def check_trainer(values: Mapping[str, TrainerValue]) -> None:
    """Refuse what cannot work of the arguments that a record can hold.

    Raises:
        UsageError: with the value, what was expected, and what to do.
    """
    for name, value in values.items():
        works = {
            "max_steps": value == -1,
            "enable_checkpointing": bool(value),
            "check_val_every_n_epoch": value == 1,
            "val_check_interval": isinstance(value, float) and value == 1,
            "limit_val_batches": bool(value),
            "limit_train_batches": bool(value),
            "deterministic": bool(value),
            "use_distributed_sampler": not value,
            "strategy": value in TOGETHER,
        }.get(name, not value if name in _OFF else True)
        if not works:
            expected, reason = _ONLY[name]
            raise UsageError(f"{name} is {value!r}; expected {expected}, because {reason}")


def deciding(values: Mapping[str, TrainerValue]) -> dict[str, TrainerValue]:
    """Return the arguments that decide the weights, without those that only show how a training goes."""
    return {name: value for name, value in values.items() if name in _DECIDING}


def check_timers(settings: TrainSettings, attached: Attached) -> None:
    """Refuse two clocks in one training, which Lightning cannot keep apart in a checkpoint.

    Raises:
        UsageError: a Timer is among the callbacks and the settings have a time, too.
    """
    if settings.max_time_minutes is not None and any(isinstance(each, Timer) for each in attached.callbacks):
        raise UsageError(
            f"there is a Timer among the callbacks, and the settings end the training after "
            f"{count(settings.max_time_minutes, 'minute')}; expected one of the two: leave out the Timer or max_time"
        )


def take_up(settings: TrainSettings, given: TrainerArguments, *, is_trained: bool) -> TrainSettings:
    """Return an interrupted run's settings with what was passed to resume it.

    Args:
        settings: the run's.
        given: the arguments. What decides the weights has to be as it was; what only shows may be another.
        is_trained: whether the deployed network needs no more training, so that what was attached is not missed.

    Raises:
        UsageError: something else decides the weights than did before, or what was attached is not given again.
    """
    begun = {**{name: getattr(settings, name) for name in FIELDS.values()}, **deciding(settings.trainer)}
    for name, value in {**given.fields, **deciding(given.values)}.items():
        if begun.get(name) != value:
            raise UsageError(
                f"{name} is {value!r}, but the run was started with {begun.get(name)!r}; expected the same, because "
                "a run resumes with its own settings: leave it out, or train a new run"
            )
    missing = [name for name in settings.attached if name != "logger" and name not in given.attached.answered]
    if missing and not is_trained:
        told = ", ".join(f"{name} ({settings.attached[name]})" for name in missing)
        nothing = "[]" if missing[0] == "callbacks" else "None"
        raise UsageError(
            f"the run was started with {told}, which cannot be recorded; resume it with vae_edge.train.resume_run(run, "
            f"{missing[0]}=...), or with {missing[0]}={nothing} to resume without it"
        )
    return settings.model_copy(update={name: given.apply_to(settings)[name] for name in ("trainer", "attached")})


def limited(plan: Plan, trainer: Mapping[str, TrainerValue]) -> Plan:
    """Return a plan cut down to `limit_train_batches`: a number of batches, or a share of them as a float.

    Raises:
        UsageError: the share is less than one batch.
    """
    limit = trainer.get("limit_train_batches")
    if not isinstance(limit, int | float):
        return plan
    steps = min(limit, plan.steps_per_epoch) if isinstance(limit, int) else int(limit * plan.steps_per_epoch)
    if steps < 1:
        raise UsageError(
            f"limit_train_batches is {limit!r} of the "
            f"{count(plan.steps_per_epoch, 'batch', 'batches')} of an epoch, less than one; "
            "expected one or more: use a larger share, or a number of batches"
        )
    return replace(plan, steps_per_epoch=steps, images_per_epoch=min(plan.images_per_epoch, steps * plan.batch_size))


def count_optimizer_steps(plan: Plan, trainer: Mapping[str, TrainerValue], attached: Attached) -> int:
    """Return how often the weights will change, which the learning rate's schedule goes by."""
    schedulers = [each for each in attached.callbacks if isinstance(each, GradientAccumulationScheduler)]
    always = int(trainer.get("accumulate_grad_batches", 1))
    return sum(
        math.ceil(plan.steps_per_epoch / (schedulers[0].get_accumulate_grad_batches(epoch) if schedulers else always))
        for epoch in range(plan.epochs)
    )


def _as_setting(name: str, value: Any) -> Any:
    """Return an argument as the field of `TrainSettings` takes it; an object stays what it is."""
    if name == "max_time":
        try:
            # Lightning's own reading of a string, a timedelta or a dict.
            seconds = Timer(value).time_remaining()
        except (MisconfigurationException, TypeError, AttributeError) as error:
            raise UsageError(
                f"max_time is {value!r}; expected a timedelta, a dict such as {{'minutes': 30}}, or a string "
                f"DD:HH:MM:SS: {error}"
            ) from error
        return timedelta(seconds=seconds or 0) / timedelta(minutes=1)
    if name == "max_epochs" and value == -1:
        raise UsageError(
            "max_epochs is -1; expected a number of epochs, because the learning rate depends on it: set one and "
            "stop earlier with max_time or a callback"
        )
    if name == "devices" and isinstance(value, list | tuple):
        # The comma tells a list of one, such as the second device, from a number of devices.
        return ",".join(map(str, value)) + ("," if len(value) == 1 else "")
    if name == "precision":
        return str(value)
    return value


def _loggers(logger: Logger | Iterable[Logger] | bool | None) -> tuple[Logger, ...]:
    if logger is None or isinstance(logger, bool):
        return ()
    given = (logger,) if isinstance(logger, Logger) or not isinstance(logger, Iterable) else tuple(logger)
    for each in given:
        if not isinstance(each, Logger):
            raise UsageError(_foreign("logger", each, "Logger"))
    return given


def _callbacks(given: Callback | Iterable[Callback] | None) -> tuple[Callback, ...]:
    if given is None:
        return ()
    chosen = (given,) if isinstance(given, Callback) or not isinstance(given, Iterable) else tuple(given)
    for each in chosen:
        if not isinstance(each, Callback):
            raise UsageError(_foreign("callback", each, "Callback"))
        for name, reason in _UNSUITABLE.items():
            unsuitable = getattr(callbacks, name, None)  # Not every one is in every version.
            if unsuitable is not None and isinstance(each, unsuitable):
                raise UsageError(f"{type(each).__name__} is among the callbacks and cannot work here: {reason}")
    return chosen


def _foreign(what: str, given: object, kind: str) -> str:
    name = f"{type(given).__module__}.{type(given).__qualname__}"
    advice = f"import it from lightning.pytorch instead of {name.split('.')[0]}"
    return f"the {what} is a {name}; expected a lightning.pytorch {kind}: {advice}"


def _class_names(value: Any) -> str:
    several = value if isinstance(value, list | tuple) else (value,)
    return ", ".join(type(each).__name__ for each in several)


def refused_by_trainer(settings: TrainSettings, attached: Attached, error: Exception) -> InputError:
    """Return the error for a Trainer that Lightning would not make."""
    asked = f"accelerator {settings.accelerator!r}, devices {settings.devices!r}, nodes {settings.num_nodes}"
    given = ", ".join([*(f"{name} {value!r}" for name, value in settings.trainer.items()), *attached.names().values()])
    more = f" (with {given})" if given else ""
    return InputError(f"{asked} and precision {settings.precision!r}{more} do not work on this machine: {error}")
