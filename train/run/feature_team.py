"""Networks on features by a team: each process sees a share of the pictures and trains a share of the networks.

Both are independent pieces of work, each done as one process would do it, so the number of processes decides nothing
but the time. On one machine threads do the same without copies of the tables; several machines are what this is for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vae_edge.train.features.graph import FeatureMaps
from vae_edge.train.features.settings import FeatureSettings
from vae_edge.train.features.side_by_side import TrainedNetwork, Training, train_side_by_side
from vae_edge.train.features.table import FeatureTable, features_of, fill_table
from vae_edge.train.loop.team import Team
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.cores import on_each_core

_STAGE = "computing features"
_BATCHES_AT_A_TIME = 32
"""That each of several processes computes before the leader takes them, so that it holds few and waits seldom."""


def compute_features(
    team: Team, maps: FeatureMaps, images: NDArray[np.uint8], folder: Path, watcher: Watcher
) -> FeatureTable:
    """Run the backbone over pictures, each process over its share of the batches.

    Args:
        team: the processes.
        maps: the backbone and what follows it.
        images: uint8 [n, H, W, 3].
        folder: as for `make_table`.
        watcher: receives progress.
    """

    def compute(batches: list[NDArray[np.uint8]], take: Callable[[int, NDArray[np.float16]], None]) -> None:
        team.run(_compute, maps, batches, here={"take": take})

    return fill_table(maps, images, compute, folder, watcher.progress_of(_STAGE))


def _compute(
    team: Team,
    maps: FeatureMaps,
    batches: Sequence[NDArray[np.uint8]],
    *,
    take: Callable[[int, NDArray[np.float16]], None] | None = None,
) -> None:
    n_of_round = team.size * _BATCHES_AT_A_TIME if team.size > 1 else max(len(batches), 1)
    for first in range(0, len(batches), n_of_round):
        own = range(first + team.place.rank, min(first + n_of_round, len(batches)), team.size)
        found = zip(own, on_each_core(partial(features_of, maps), (batches[number] for number in own)), strict=True)
        for part in [found] if team.size == 1 else team.collect(list(found)):
            for number, features in part:
                if take is not None:
                    take(number, features)


def train_networks(
    team: Team,
    trainings: Sequence[Training],
    settings: FeatureSettings,
    watcher: Watcher,
    *,
    in_bfloat16: bool,
    jobs: int | None = None,
) -> list[TrainedNetwork]:
    """Train networks on tables, each process a share of them; see `train_side_by_side`.

    Args:
        team: the processes.
        trainings: what to train.
        settings: of the networks and their training.
        watcher: receives progress.
        in_bfloat16: as for `train_on_table`.
        jobs: trainings at once in a process; None: one for each of torch's threads.

    Returns:
        The networks, in the order of the trainings.
    """
    parts = team.run(_train, list(trainings), settings, in_bfloat16, jobs, here={"watcher": watcher})
    trained: list[TrainedNetwork | None] = [None] * len(trainings)
    for rank, part in enumerate(parts):
        trained[rank :: team.size] = part
    return [each for each in trained if each is not None]


def _train(
    team: Team,
    trainings: Sequence[Training],
    settings: FeatureSettings,
    in_bfloat16: bool,
    jobs: int | None,
    *,
    watcher: Watcher | None = None,
) -> list[list[TrainedNetwork]]:
    own = trainings[team.place.rank :: team.size]
    trained: list[TrainedNetwork] = []
    if own:
        shown = team.watcher(watcher)
        trained = train_side_by_side(own, settings, in_bfloat16=in_bfloat16, progress=shown.progress, n_workers=jobs)
    return team.collect(trained, watcher)
