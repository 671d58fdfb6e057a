"""Lightning's Trainer for one training: its callbacks, loggers, plugins and strategy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from vae_edge.errors import InputError
from vae_edge.train.loop.batches import Plan
from vae_edge.train.loop.checkpoints import (
    SETTLING_STEPS,
    EndedBy,
    PlainCheckpointIO,
    RoutedCheckpointIO,
    RunCheckpoint,
    Stopper,
)
from vae_edge.train.loop.launch import Place, first_device, launched, n_devices
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.team import Team
from vae_edge.train.loop.together import PlacedEnvironment
from vae_edge.train.loop.trainer_arguments import TOGETHER, Attached, check_timers, refused_by_trainer

StepNotes = Callable[[int, int, str], None]
"""Called with steps done, steps planned and a few words about the losses."""


def make_trainer(
    settings: TrainSettings,
    plan: Plan,
    keeper: RunCheckpoint,
    folder: Path | None,
    progress: StepNotes | None,
    attached: Attached,
    team: Team,
) -> Trainer:
    """Return Lightning's Trainer; without a folder it writes no logs, as in a process that helps."""
    check_timers(settings, attached)
    callbacks: list[Callback] = list(attached.callbacks)
    if settings.patience:
        callbacks.append(
            _SettledEarlyStopping("held_out_loss", patience=settings.patience, check_on_train_epoch_end=True)
        )
    if settings.max_time_minutes is not None:
        callbacks.append(_EpochTimer(settings.max_time_minutes))
    if progress is not None:
        callbacks.append(_ProgressCallback(progress, plan.steps_per_epoch))
    # Last, so that what it saves holds the others' state after this epoch, and it sees who wants to stop.
    callbacks.append(keeper)
    given: dict[str, Any] = {**settings.trainer, **attached.arguments}
    plugins = _plugins(given.pop("plugins", ()), keeper.path)
    arguments: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": first_device(settings.devices),
        "num_nodes": 1,
        # Lightning takes one of the two.
        "precision": None if any(isinstance(each, Precision) for each in plugins) else settings.precision,
        "enable_progress_bar": any(isinstance(each, ProgressBar) for each in attached.callbacks),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": plan.steps_per_epoch,
        "deterministic": True,
        **given,
    }
    arguments.pop("sync_batchnorm", None)  # It is so anyway.
    if team.shares_steps:
        n_devices_here = n_devices(settings.devices)
        plugins.append(PlacedEnvironment(team.place))
        arguments |= {
            "devices": team.place.local_size if n_devices_here is None else settings.devices,
            "num_nodes": team.place.n_nodes,
            "use_distributed_sampler": False,
        }
        if isinstance(arguments.get("strategy", "auto"), str):
            # Buffers are equal in all processes: see `SharedBatchNorm2d`.
            arguments["strategy"] = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    else:
        if arguments.get("strategy") in TOGETHER:
            arguments["strategy"] = "auto"  # One process: there is nothing to share.
        if launched() is not None:
            plugins.append(PlacedEnvironment(Place()))  # Lightning would look at the launcher's numbers.
    loggers = list(attached.loggers)
    try:
        # TensorBoard reads several event files of one folder as one run; a CSV file would be overwritten, so an
        # interrupted training leaves version_0, version_1 and so on.
        if attached.writes_logs and folder is not None:
            logs = folder / "logs"
            loggers += [CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard", version="")]
        trainer = Trainer(
            max_epochs=plan.epochs,
            callbacks=callbacks,
            plugins=plugins,
            logger=loggers,
            **arguments,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise refused_by_trainer(settings, attached, error) from error
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise InputError(
            f"the strategy is {type(trainer.strategy).__name__}, which distributes the weights over several devices; "
            "expected one that keeps all of them on each device, because the network is saved as one: use auto or ddp"
        )
    return trainer


def _plugins(given: Any, checkpoint: Path) -> list[Any]:
    """Return a user's plugins, and the one that writes the run's own checkpoint."""
    plugins = list(given) if isinstance(given, list | tuple) else [given]
    others = [each for each in plugins if isinstance(each, CheckpointIO)]
    own = RoutedCheckpointIO(checkpoint, others[0]) if others else PlainCheckpointIO()
    return [each for each in plugins if not isinstance(each, CheckpointIO)] + [own]


class _ProgressCallback(Callback):
    """Turns Lightning's hooks into calls of a plain function."""

    def __init__(self, report: StepNotes, n_steps: int) -> None:
        self.report = report
        self.n_steps = n_steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        epochs = trainer.max_epochs or 0
        note = f"epoch {trainer.current_epoch + 1} of {epochs}"
        held_out = trainer.callback_metrics.get("held_out_loss")
        if held_out is not None:
            note += f", held-out loss {float(held_out):.5f}"
        self.report(trainer.current_epoch * self.n_steps + batch_idx + 1, epochs * self.n_steps, note)


class _SettledEarlyStopping(Stopper, EarlyStopping):
    """Early stopping that waits until the held-out loss means something: see `SETTLING_STEPS`."""

    ends_by: ClassVar[EndedBy] = "patience"

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step >= SETTLING_STEPS:
            super().on_train_epoch_end(trainer, pl_module)

    def has_ended(self) -> bool:
        return self.stopped_epoch > 0


class _EpochTimer(Stopper, Timer):
    """A clock that ends a training at ends of epochs only: half an epoch could not be repeated exactly."""

    ends_by: ClassVar[EndedBy] = "time"

    def __init__(self, minutes: float) -> None:
        super().__init__(timedelta(minutes=minutes), interval="epoch")
        self.is_over = False

    @property
    def state_key(self) -> str:
        # Under which interrupted runs have it.
        return Timer.__qualname__

    def on_fit_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        super().on_fit_start(trainer, *args, **kwargs)
        self.is_over = trainer.should_stop

    def on_train_epoch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        others, trainer.should_stop = trainer.should_stop, False
        super().on_train_epoch_end(trainer, *args, **kwargs)
        self.is_over = trainer.should_stop
        trainer.should_stop = trainer.should_stop or others

    def has_ended(self) -> bool:
        return self.is_over
