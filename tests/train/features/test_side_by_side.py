"""Several trainings at once: the same networks as one after the other, progress, errors and interruptions."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_edge.errors import InputError
from vae_edge.train.features.settings import FeatureSettings, MapSource, PositionVae
from vae_edge.train.features.side_by_side import TrainedNetwork, Training, train_side_by_side
from vae_edge.train.features.table import FeatureTable, PatchTable
from vae_edge.train.features.training import residuals_of, train_on_table

SETTINGS = FeatureSettings(n_hidden=16, latent_vec_size=4, n_steps=30, batch_size=64).model_copy(
    update={"pixels": PositionVae(n_hidden=16, latent_vec_size=4, batch_size=64)}
)
ENDLESS = SETTINGS.model_copy(update={"n_steps": 10**7})


def features(n: int = 6) -> FeatureTable:
    return FeatureTable(np.random.default_rng(0).normal(size=(n, 6, 6, 10)).astype(np.float16))


def pixels(n: int = 6) -> PatchTable:
    return PatchTable(np.random.default_rng(1).normal(size=(n, 40, 40, 3)).astype(np.float16))


def plan() -> list[Training]:
    tables = ((MapSource.FEATURES, features()), (MapSource.PIXELS, pixels()))
    return [
        Training(source, table, [row for row in range(6) if row not in held_out], held_out, seed)
        for source, table in tables
        for seed, held_out in enumerate(([0, 1], [2, 3], []))
    ]


def tensors(networks: list[TrainedNetwork]) -> list[Tensor]:
    return [each for one in networks for each in (one.residuals, *one.model.state_dict().values())]


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_weights_and_residuals_are_the_same_for_any_number_at_once(in_bfloat16: bool) -> None:
    one, two, six = (
        tensors(train_side_by_side(plan(), SETTINGS, in_bfloat16=in_bfloat16, n_workers=n)) for n in (1, 2, 6)
    )
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, two, six, strict=True))


def test_they_are_those_of_single_trainings_in_the_order_of_the_plan() -> None:
    trainings = plan()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for training, trained in zip(trainings, train_side_by_side(trainings, SETTINGS, n_workers=3), strict=True):
        model = train_on_table(training.table, training.rows, SETTINGS, seed=training.seed)
        assert torch.equal(trained.residuals, residuals_of(model, training.table, training.held_out))
        assert len(trained.residuals) == len(training.held_out)
    torch.set_num_threads(before)


def test_torchs_random_numbers_and_threads_are_left_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    train_side_by_side(plan(), SETTINGS, n_workers=2)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == before


def test_progress_counts_all_steps_of_a_source_in_the_calling_thread() -> None:
    received: list[tuple[str, int, int, str]] = []
    threads = set()

    def listen(stage: str, done: int, total: int, note: str) -> None:
        received.append((stage, done, total, note))
        threads.add(threading.current_thread())

    train_side_by_side(plan(), SETTINGS, n_workers=2, progress=listen)
    assert received[-1] == ("training on pixels", 90, 90, "3 of 3 networks")
    assert threads == {threading.current_thread()}
    stages = [stage for stage, *_ in received]
    assert stages == sorted(stages)
    assert {total for _, _, total, _ in received} == {90}


def test_a_training_that_diverges_ends_the_others_with_its_message() -> None:
    broken = features()
    broken.values[0, 0, 0, 0] = np.inf
    trainings = [
        Training(MapSource.FEATURES, features(), [1, 2, 3], [0], 0),
        Training(MapSource.FEATURES, FeatureTable(broken.values), [0, 1, 2, 3], [], 0),
        Training(MapSource.FEATURES, features(), [1, 2, 3], [0], 0),
    ]
    with pytest.raises(InputError, match="the training on features diverged: its loss is nan after 10 steps"):
        train_side_by_side(trainings, ENDLESS, n_workers=2)


def test_an_interruption_ends_all_of_them() -> None:
    def interrupt(stage: str, done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        train_side_by_side(plan(), ENDLESS, n_workers=2, progress=interrupt)
    assert threading.active_count() == before
