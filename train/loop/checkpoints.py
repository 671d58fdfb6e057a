"""Checkpoints that hold all of a training's state in one file, are never half-written and run no code when read.

Lightning's own input and output was not enough. It reads with `weights_only=None` (before 2.6 with False), which leaves
it to torch or to an environment variable whether a file may run code while it is unpickled; and it writes through
fsspec, which may put its temporary file on another file system. Read here with `weights_only=True`, torch's restricted
unpickler makes tensors, numbers, strings and containers only; Lightning's state of this training holds nothing else,
and what the callbacks of a user add is held to the same when it is written, not when it is needed.

Around them: Ctrl-C becomes a sentence that says how to resume, chatter is silenced, torch's global switches are put
back.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # Only the name of the error that torch raises.
from types import FrameType
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities import rank_zero_only
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.rank_zero import rank_zero_only as utilities_rank_zero_only
from torch import Tensor

from vae_edge.errors import BundleError, InputError, VaeEdgeError
from vae_edge.platform.atomic import new_file
from vae_edge.wording import count

LAST_CHECKPOINT = "last.ckpt"

SETTLING_STEPS = 100
"""Before this many steps the held-out loss means little, and the latest weights count as the best. Batch norm's
running averages, which evaluation uses, start far off and have a memory of 10 steps: the loss first rises while the
network learns, and a grey image from the first epoch would win."""

_MOST_OF_THE_TIME = 0.05  # Share of the time that saving may take: with short epochs not every one is saved.

EndedBy = Literal["epochs", "patience", "time", "callback"]
"""Why a training ended: its epochs are done, nothing got better, its time was over, or a user's callback said so."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
_LIGHTNINGS_OWN = {"state_dict", "optimizer_states", "lr_schedulers", "loops"}


class PlainCheckpointIO(CheckpointIO):
    """Writes under a temporary name and renames; reads plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint, completely or not at all.

        Raises:
            InputError: the folder cannot be written, the disk is full, or a callback's state holds more than plain
                values.
        """
        content = {
            name: value if name in _LIGHTNINGS_OWN else plain_state(value, name) for name, value in checkpoint.items()
        }
        try:
            with new_file(Path(path)) as temporary, temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            # What a full disk is to torch's zip writer, whose words for it are about positions in the file.
            raise InputError(
                f"{path} could not be written, most likely because the disk is full ({error}); make room and "
                "continue with --resume, or choose another place"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; `weights_only` is there because Lightning passes it, and is always True."""
        return load_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


class RoutedCheckpointIO(PlainCheckpointIO):
    """Sends the run's own checkpoint the plain way, and all others through a plugin that a user chose.

    Args:
        own: path of the run's checkpoint.
        others: writes, reads and removes every other one.
    """

    def __init__(self, own: Path, others: CheckpointIO) -> None:
        self.own = own
        self.others = others
        # A plugin that wraps another one, such as Lightning's for writing in the background, and was given none.
        if getattr(others, "checkpoint_io", others) is None:
            others.checkpoint_io = PlainCheckpointIO()  # type: ignore[attr-defined]  # just seen to be there

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; of the run's own the errors are those of `PlainCheckpointIO`."""
        if Path(path) == self.own:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            self.others.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint."""
        if Path(path) == self.own:
            return super().load_checkpoint(path, map_location, weights_only)
        # Plugins of Lightning before 2.6 have no third argument.
        return self.others.load_checkpoint(path, map_location, *(() if weights_only is None else (weights_only,)))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, unless it is the run's own."""
        if Path(path) != self.own:
            self.others.remove_checkpoint(path)

    def teardown(self) -> None:
        """Let the plugin end what it began."""
        self.others.teardown()


def plain_state(value: Any, place: str) -> Any:
    """Return a state that `load_checkpoint` will read: NumPy's numbers become Python's, all else stays as it is.

    Args:
        value: None, a number, a string, bytes, a tensor; or a dict, list, tuple or set of such.
        place: where it is in the checkpoint, for the message.

    Raises:
        InputError: it is, or holds, something else, whose pickle could run code when it is read.
    """
    if isinstance(value, np.generic) and type(value.item()) in _PLAIN:
        return value.item()
    kind = type(value)
    if kind in _PLAIN or isinstance(value, torch.Tensor):
        return value
    if kind in (dict, OrderedDict):
        return kind((plain_state(key, place), plain_state(each, f"{place}.{key}")) for key, each in value.items())
    if kind in (list, tuple, set):
        return kind(plain_state(each, place) for each in value)
    raise InputError(
        f"{place} was given for the checkpoint but is a {kind.__module__}.{kind.__qualname__}; expected numbers, "
        "strings, tensors, and dicts, lists, tuples and sets of them, because reading a checkpoint must not execute "
        "code: return such values from the callback's state_dict"
    )


def load_checkpoint(path: Path, map_location: Any | None = None) -> dict[str, Any]:
    """Read a checkpoint without running anything that is in it.

    Raises:
        BundleError: there is none, it is damaged, or it holds more than plain values.
    """
    try:
        # Anything but a zip archive would go to torch's reader of old files, whose errors are of every kind.
        if not zipfile.is_zipfile(path):
            raise UnpicklingError("it is incomplete")
        content = torch.load(path, map_location=map_location or "cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{path} is not a checkpoint of this program ({reason}); start the training again") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise BundleError(f"{path} is not a checkpoint of this program; start the training again")
    return content


def read_state(path: Path) -> dict[str, Any]:
    """Return what `RunCheckpoint` put into a checkpoint.

    Raises:
        BundleError: see `load_checkpoint`.
    """
    state = load_checkpoint(path).get("callbacks", {}).get(RunCheckpoint.__qualname__)
    if not isinstance(state, dict):
        raise BundleError(f"{path} is a checkpoint of another program; start the training again")
    return state


class Stopper(ABC):
    """A callback of this package that may end a training; mixed into one of Lightning's."""

    ends_by: ClassVar[EndedBy]

    @abstractmethod
    def has_ended(self) -> bool:
        """Return whether it has."""


class RunCheckpoint(Checkpoint):
    """Keeps the weights with the best held-out loss and saves all state at ends of epochs.

    The best weights are part of the one checkpoint, so that the two never disagree, whenever the power goes.

    Args:
        path: where the checkpoint goes.
        kept: returns the weights that count out of the module that is trained.
    """

    def __init__(self, path: Path, kept: Callable[[LightningModule], dict[str, Tensor]]) -> None:
        self.path = path
        self.kept = kept
        self.best_loss = float("inf")
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.fit_loss = float("nan")
        self.epochs_run = 0
        self.seconds = 0.0
        self.ended_by: EndedBy | None = None
        self._resumed_at = 0.0
        self._saved_at = -float("inf")
        self._save_took = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint holds of this; the names are those of `load_state_dict`."""
        names = ("best_loss", "best_epoch", "best_weights", "fit_loss", "epochs_run", "seconds", "ended_by")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an interrupted training."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._resumed_at = time.perf_counter() - self.seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, keep, save. Lightning calls checkpoint callbacks last, so whether this is the end is known."""
        self.epochs_run = trainer.current_epoch + 1
        self.seconds = time.perf_counter() - self._resumed_at
        self.fit_loss = float(trainer.callback_metrics["fit_loss"])
        loss = float(trainer.callback_metrics["held_out_loss"])
        if not (loss < float("inf") and self.fit_loss < float("inf")):
            raise InputError(
                f"the loss is not a finite number after epoch {self.epochs_run} (training {self.fit_loss}, "
                f"held out {loss}): the training diverged; train again with a smaller learning rate"
            )
        if loss < self.best_loss or trainer.global_step < SETTLING_STEPS:
            self.best_loss, self.best_epoch = loss, self.epochs_run
            self.best_weights = {
                name: value.detach().to("cpu", copy=True) for name, value in self.kept(pl_module).items()
            }
        self.ended_by = self._end(trainer)
        now = time.perf_counter()
        due = now - self._saved_at >= self._save_took / _MOST_OF_THE_TIME
        # All processes must save together, and their clocks differ: the first one decides.
        if trainer.strategy.broadcast(due or self.ended_by is not None):
            trainer.save_checkpoint(self.path)
            self._saved_at = time.perf_counter()
            self._save_took = self._saved_at - now

    def _end(self, trainer: Trainer) -> EndedBy | None:
        if self.epochs_run >= (trainer.max_epochs or 0):
            return "epochs"
        # Lightning continues until then, even if a callback wants to stop.
        too_early = self.epochs_run < (trainer.min_epochs or 0) or trainer.global_step < (trainer.min_steps or 0)
        return stopped_by(trainer) if trainer.should_stop and not too_early else None


def stopped_by(trainer: Trainer) -> EndedBy:
    """Return who stopped a training before its last epoch."""
    own = [callback for callback in trainer.callbacks if isinstance(callback, Stopper)]  # type: ignore[attr-defined]  # not declared
    return next((callback.ends_by for callback in own if callback.has_ended()), "callback")


class TrainingInterruptedError(VaeEdgeError, RuntimeError):
    """Ctrl-C or a termination signal stopped a training that can be resumed later."""

    exit_code = 130
    """What a shell reports for a program that Ctrl-C ended: 128 + SIGINT."""


@contextmanager
def repeatable() -> Iterator[None]:
    """Put torch's switch for deterministic algorithms, which Lightning turns on, back afterwards."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def as_the_first() -> Iterator[None]:
    """Let Lightning write logs in a process that trains by itself, though it was not the first in a training before."""
    switches = (rank_zero_only, utilities_rank_zero_only)
    before = [getattr(each, "rank", 0) for each in switches]
    for each in switches:
        each.rank = 0  # type: ignore[attr-defined]  # Lightning keeps it there
    try:
        yield
    finally:
        for each, rank in zip(switches, before, strict=True):
            each.rank = rank  # type: ignore[attr-defined]  # as above


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning says about things that are as they should be; other warnings pass."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for message in _CHATTER:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_CHATTER = (
    r".*does not have many workers.*",
    r".*is smaller than the logging interval.*",
    r".*GPU available but not used.*",
    r".*recommended to use `self\.log.*sync_dist=True.*",  # By one process of several, alone: there is nothing to sync.
    r".*`broadcast_buffers` is deprecated.*",  # Its successor is not in the oldest torch that is supported.
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)


@contextmanager
def interruptible(folder: Path, needs: Sequence[str] = ()) -> Iterator[None]:
    """Turn Ctrl-C and a termination signal into an error that says how to resume; `needs` as in `interrupted`.

    Lightning would catch KeyboardInterrupt itself, ignore further ones and end the process.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except _Stopped:
        raise TrainingInterruptedError(interrupted(folder, needs=needs)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(
    folder: Path, *, training: Path | None = None, what: str = "the training", needs: Sequence[str] = ()
) -> str:
    """Return the sentence for an interrupted run.

    Args:
        folder: the run's.
        training: of several trainings in it, the folder of the one.
        what: was interrupted.
        needs: arguments of `resume_run` that have to be given again, which the command line cannot.
    """
    path = (training or folder) / "checkpoints" / LAST_CHECKPOINT
    epochs = int(read_state(path)["epochs_run"]) if path.is_file() else 0
    kept = f"{count(epochs, 'epoch is', 'epochs are')} kept" if epochs else "nothing of it is kept"
    # Networks on features have no checkpoints: they are trained in a minute, and again. Of several trainings, such as
    # those of folds, others may have.
    is_begun = any((folder / "checkpoints").rglob(LAST_CHECKPOINT))
    what_for = "to continue" if is_begun else "to begin again, with the same settings"
    how = f"vae-train --resume {folder}"
    if needs:
        how = f"vae_edge.train.resume_run({str(folder)!r}, {', '.join(f'{name}=...' for name in needs)})"
    return f"{what} was interrupted, {kept}; {what_for}: {how}"


class _Stopped(BaseException):
    """Raised where the signal arrives; no `except Exception` on the way may swallow it."""
