"""Trainings of several networks at once, one on each core: the folds' networks do not depend on each other.

Each training has its own thread, in which torch computes with one: for networks this small the cores wait for each
other longer than they compute if they share every operation. Torch leaves Python free while it computes, and threads
share the tables, of which processes would need copies. Results do not depend on how many trainings run at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_edge.train.features.settings import FeatureSettings, MapSource
from vae_edge.train.features.training import Residual, Table, residuals_of, train_on_table
from vae_edge.train.model.cores import one_thread_for_each_operation

_LOOK_EVERY_S = 0.2
"""How often progress is reported, and the most that Ctrl-C waits for the thread that waits for the others."""

NotedProgress = Callable[[str, int, int, str], None]
"""Called with what is being done, how much of it is done, how much there is, and a note."""


@dataclass(frozen=True)
class Training:
    """What one network is trained on and measured on."""

    source: MapSource
    """What the table holds."""
    table: Table
    rows: Sequence[int]
    """Pictures that train it."""
    held_out: Sequence[int]
    """Pictures whose residual is measured; none is fine."""
    seed: int


@dataclass(frozen=True)
class TrainedNetwork:
    """The network of a training."""

    model: Residual
    residuals: Tensor
    """Squared residuals of the pictures that were held out, float32 [n, 1, h, w]."""


class _StoppedError(Exception):
    """Another training failed, or the user interrupted."""


def train_side_by_side(
    trainings: Sequence[Training],
    settings: FeatureSettings,
    *,
    in_bfloat16: bool = False,
    progress: NotedProgress | None = None,
    n_workers: int | None = None,
) -> list[TrainedNetwork]:
    """Train networks, several at once, and measure the residual of the pictures that each has not seen.

    Args:
        trainings: what to train, in the order in which they start.
        settings: of the networks and their training.
        in_bfloat16: as for `train_on_table`.
        progress: receives the steps done of all trainings on a source, in the calling thread; the note counts networks.
        n_workers: trainings at once; None: as many as torch has threads, which are all cores unless it was told
            otherwise. Weights and residuals are the same for any number.

    Returns:
        The networks, in the order of the trainings.

    Raises:
        InputError: a training diverged; the others end too.
        Exception: whatever `progress` raises, KeyboardInterrupt for example; the trainings end within a step.
    """
    n_steps = [0] * len(trainings)
    stopped = threading.Event()

    def work(number: int) -> TrainedNetwork:
        def look(done: int, total: int) -> None:
            if stopped.is_set():
                raise _StoppedError

        def count(done: int, total: int) -> None:
            n_steps[number] = done
            look(done, total)

        training = trainings[number]
        model = train_on_table(
            training.table, training.rows, settings, seed=training.seed, in_bfloat16=in_bfloat16, progress=count
        )
        return TrainedNetwork(model, residuals_of(model, training.table, training.held_out, look))

    n_workers = min(n_workers or torch.get_num_threads(), len(trainings))
    with one_thread_for_each_operation(), ThreadPoolExecutor(n_workers) as pool:
        futures = [pool.submit(work, number) for number in range(len(trainings))]
        left = set(futures)
        try:
            while left:
                ended, left = wait(left, _LOOK_EVERY_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                if progress is not None:
                    _report(trainings, n_steps, settings.n_steps, progress)
        finally:
            # Without an error there is nothing left to stop.
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return [future.result() for future in futures]


def _report(trainings: Sequence[Training], n_steps: Sequence[int], n_each: int, progress: NotedProgress) -> None:
    """Report on the first source that is not done, so that a bar does not jump between two."""
    done: dict[MapSource, list[int]] = {}
    for training, count in zip(trainings, n_steps, strict=True):
        done.setdefault(training.source, []).append(count)
    for number, (source, counts) in enumerate(done.items(), 1):
        n_ended = sum(count == n_each for count in counts)
        if n_ended < len(counts) or number == len(done):
            progress(f"training on {source}", sum(counts), n_each * len(counts), f"{n_ended} of {len(counts)} networks")
            return
