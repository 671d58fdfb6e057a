"""The training loop: Lightning around the network, made repeatable and quiet.

Everything random follows from the seed and the epoch's number alone, so an interrupted training that goes on from its
checkpoint ends with the same weights, bit for bit, as one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vae_edge.errors import BundleError, InputError, VaeEdgeError
from vae_edge.train.checkpoints import LAST_CHECKPOINT, EndedBy, PlainCheckpointIO, RunCheckpoint, load_checkpoint
from vae_edge.train.network import Vae, count_flops, count_parameters
from vae_edge.train.run_records import TrainingOutcome, TrainSettings

Progress = Callable[[int, int, str], None]
"""Called with steps done, steps planned and a few words about the losses."""

_DEFAULT_STEPS = 2000
_FEWEST_EPOCHS, _MOST_EPOCHS = 20, 300


class TrainingInterruptedError(VaeEdgeError, RuntimeError):
    """Ctrl-C or a termination signal stopped a training that can go on later."""

    exit_code = 130
    """What a shell reports for a program that Ctrl-C ended: 128 + SIGINT."""


def default_epochs(n_images: int, batch_size: int) -> int:
    """Return how many epochs make about 2000 steps, at least 20 and at most 300."""
    steps = math.ceil(n_images / batch_size)
    return min(max(math.ceil(_DEFAULT_STEPS / steps), _FEWEST_EPOCHS), _MOST_EPOCHS)


def even_batch_size(n_images: int, largest: int) -> int:
    """Return a batch size of at most `largest` that divides n images into nearly equal batches.

    47 images in batches of up to 32 become 24 and 23: with 32 and 15 a third of them would weigh twice as much.
    """
    return math.ceil(n_images / math.ceil(n_images / largest))


class ImageBatches(Dataset[Tensor]):
    """Prepared images, uint8 [n, H, W, 3], read in batches; they stay in memory as bytes, a quarter of float32."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = torch.from_numpy(images)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        """Return a batch at once, which spares stacking single images."""
        return self.images[torch.as_tensor(indices)]


class EpochSampler(Sampler[int]):
    """An order of the images that follows from the seed and the epoch; Lightning calls `set_epoch`."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_seed_of(self.seed, self.epoch))
        return iter(torch.randperm(self.n, generator=generator).tolist())


class VaeTraining(LightningModule):
    """The network with its loss and optimizer; batches are uint8 [N, H, W, 3] and become float on the device."""

    def __init__(self, vae: Vae, learning_rate: float, seed: int) -> None:
        super().__init__()
        self.vae = vae
        self.learning_rate = learning_rate
        self.seed = seed

    def training_step(self, batch: Tensor, batch_index: int) -> Tensor:
        """Return the loss of a batch with random latents."""
        # Here and not once an epoch: in between, a data loader draws a number, at another time after an interruption.
        torch.manual_seed(_seed_of(self.seed, self.current_epoch, batch_index, self.global_rank))
        pixels = _as_pixels(batch)
        loss = self.vae.loss(self.vae(pixels), pixels)
        values = {"fit_loss": loss.total, "fit_reconstruction": loss.reconstruction, "fit_kl": loss.kl}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        return loss.total

    def validation_step(self, batch: Tensor, batch_index: int) -> None:
        """Log the loss of held-out normals with z = mean."""
        pixels = _as_pixels(batch)
        loss = self.vae.loss(self.vae(pixels), pixels)
        values = {"held_out_loss": loss.total, "held_out_reconstruction": loss.reconstruction, "held_out_kl": loss.kl}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with its usual betas."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def fit_vae(
    settings: TrainSettings,
    fit_images: NDArray[np.uint8],
    held_out_images: NDArray[np.uint8],
    folder: Path,
    progress: Progress | None = None,
) -> tuple[Vae, TrainingOutcome] | None:
    """Train a network, or go on with its training where `folder` holds a checkpoint.

    Args:
        settings: what to do.
        fit_images: uint8 [n, H, W, 3], the normals to train on.
        held_out_images: uint8 [m, H, W, 3], other normals; the weights with the smallest loss on them are kept. They
            may scale the residual later, but must not set a threshold: a choice made on them flatters their scores.
        folder: gets `checkpoints/` and `logs/`.
        progress: called after each step.

    Returns:
        The network with the best weights, in evaluation mode on the CPU, and what happened; None in a process that
        only helped another one to train.

    Raises:
        InputError: the settings do not suit this machine, or the training diverged.
        BundleError: the checkpoint is damaged.
        TrainingInterruptedError: Ctrl-C or a termination signal; the message says how to go on.
    """
    path = folder / "checkpoints" / LAST_CHECKPOINT
    batch_size = even_batch_size(len(fit_images), settings.batch_size)
    epochs = settings.epochs or default_epochs(len(fit_images), batch_size)
    # A last batch of less than half the size would pull as hard as a whole one.
    rest = len(fit_images) % batch_size
    drop_last = len(fit_images) > batch_size and 0 < rest < batch_size / 2
    n_steps = len(fit_images) // batch_size if drop_last else math.ceil(len(fit_images) / batch_size)
    keeper = RunCheckpoint(path.parent, n_steps * batch_size if drop_last else len(fit_images))
    if path.is_file():
        keeper.load_state_dict(_state_of_keeper(load_checkpoint(path), path))
    if keeper.ended_by is None:
        with torch.random.fork_rng(devices=[]), _repeatable(), _quiet(), _interruptible(folder):
            torch.manual_seed(settings.seed)
            module = VaeTraining(Vae.from_architecture(settings.architecture), settings.learning_rate, settings.seed)
            trainer = _trainer(settings, epochs, keeper, folder, progress, n_steps)
            sampler = EpochSampler(len(fit_images), settings.seed)
            trainer.fit(
                module,
                _loader(fit_images, batch_size, sampler, drop_last),
                _loader(held_out_images, settings.batch_size, None, False),
                ckpt_path=path if path.is_file() else None,
            )
            if trainer.global_rank != 0:
                return None
        # From the file, not from memory: where the training ran in other processes, this one's copy is stale.
        keeper.load_state_dict(_state_of_keeper(load_checkpoint(path), path))
    vae = Vae.from_architecture(settings.architecture)
    prefix = "vae."
    vae.load_state_dict({name.removeprefix(prefix): value for name, value in keeper.best_weights.items()})
    vae.eval().requires_grad_(False)
    return vae, TrainingOutcome(
        epochs_run=keeper.epochs_run,
        epochs_planned=epochs,
        ended_by=cast(EndedBy, keeper.ended_by),
        best_epoch=keeper.best_epoch,
        best_held_out_loss=keeper.best_loss,
        fit_loss=keeper.fit_loss,
        batch_size=batch_size,
        seconds=keeper.seconds,
        images_per_s=keeper.n_images * keeper.epochs_run / max(keeper.seconds, 1e-9),
        n_parameters=count_parameters(vae),
        flops=count_flops(vae),
    )


def epochs_in_checkpoint(folder: Path) -> int:
    """Return the number of epochs that the run in `folder` will not have to repeat.

    Raises:
        BundleError: the checkpoint is damaged.
    """
    path = folder / "checkpoints" / LAST_CHECKPOINT
    return int(_state_of_keeper(load_checkpoint(path), path)["epochs_run"]) if path.is_file() else 0


class _ProgressCallback(Callback):
    """Turns Lightning's hooks into calls of a plain function."""

    def __init__(self, report: Progress, n_steps: int) -> None:
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


def _trainer(
    settings: TrainSettings, epochs: int, keeper: RunCheckpoint, folder: Path, progress: Progress | None, n_steps: int
) -> Trainer:
    callbacks: list[Callback] = [keeper]
    if settings.patience:
        callbacks.append(EarlyStopping("held_out_loss", patience=settings.patience, check_on_train_epoch_end=True))
    if settings.max_time_minutes is not None:
        # At ends of epochs only: half an epoch could not be repeated exactly.
        callbacks.append(Timer(timedelta(minutes=settings.max_time_minutes), interval="epoch"))
    if progress is not None:
        callbacks.append(_ProgressCallback(progress, n_steps))
    logs = folder / "logs"
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            precision=cast(Any, settings.precision),
            max_epochs=epochs,
            callbacks=callbacks,
            plugins=[PlainCheckpointIO()],
            # TensorBoard reads several event files of one folder as one run; a CSV file would be overwritten, so an
            # interrupted training leaves version_0, version_1 and so on.
            logger=[CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard", version="")],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=max(n_steps, 1),
            deterministic=True,
        )
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        # Lightning's own exception for a missing accelerator or a wrong precision is one of these.
        raise InputError(
            f"accelerator {settings.accelerator!r}, devices {settings.devices!r}, nodes {settings.num_nodes} and "
            f"precision {settings.precision!r} do not work here: {error}"
        ) from error


def _seed_of(*numbers: int) -> int:
    """Return a seed, 0 to 2 ** 63 - 1, that no other few numbers are likely to give."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:8], "big") >> 1


def _loader(
    images: NDArray[np.uint8], batch_size: int, sampler: EpochSampler | None, drop_last: bool
) -> DataLoader[Tensor]:
    # Without workers: the images are in memory, and copying them to another process costs more than picking them.
    return DataLoader(
        ImageBatches(images), batch_size, sampler=sampler, shuffle=False, drop_last=drop_last, collate_fn=_as_it_is
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def _as_pixels(images: Tensor) -> Tensor:
    """Turn uint8 [N, H, W, 3] into float32 [N, 3, H, W], -1 to 1: the same arithmetic as in the anomaly graph."""
    return (images.to(torch.float32) / 127.5 - 1.0).permute(0, 3, 1, 2).contiguous()


def _state_of_keeper(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    for key, state in checkpoint.get("callbacks", {}).items():
        if key == RunCheckpoint.__qualname__:
            return cast("dict[str, Any]", state)
    raise BundleError(f"{path} is a checkpoint of another program; start the training again")


@contextmanager
def _repeatable() -> Iterator[None]:
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
def _quiet() -> Iterator[None]:
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
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C and a termination signal into an error that says how to go on.

    Lightning would catch KeyboardInterrupt itself, ignore further ones and end the process.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Stopped:
        raise TrainingInterruptedError(interrupted(folder)) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted(folder: Path) -> str:
    """Return the sentence for an interrupted run."""
    epochs = epochs_in_checkpoint(folder)
    kept = f"{epochs} epochs are kept" if epochs != 1 else "1 epoch is kept"
    return f"the training was interrupted, {kept}; to go on: vae-train --resume {folder}"


class _Stopped(BaseException):
    """Raised where the signal arrives; no `except Exception` on the way may swallow it."""
