"""Around the training loop: Ctrl-C becomes a sentence, chatter is silenced, torch's global switches are put back."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from vae_edge.errors import VaeEdgeError
from vae_edge.train.checkpoints import LAST_CHECKPOINT, read_state


class TrainingInterruptedError(VaeEdgeError, RuntimeError):
    """Ctrl-C or a termination signal stopped a training that can go on later."""

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
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)


@contextmanager
def interruptible(folder: Path, needs: Sequence[str] = ()) -> Iterator[None]:
    """Turn Ctrl-C and a termination signal into an error that says how to go on; `needs` as in `interrupted`.

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
    kept = f"{epochs} epochs are kept" if epochs != 1 else "1 epoch is kept"
    how = f"vae-train --resume {folder}"
    if needs:
        how = f"vae_edge.train.resume_run({str(folder)!r}, {', '.join(f'{name}=...' for name in needs)})"
    return f"{what} was interrupted, {kept}; to go on: {how}"


class _Stopped(BaseException):
    """Raised where the signal arrives; no `except Exception` on the way may swallow it."""
