"""Processes that work for one run: they get what the leader has, each piece of work is done once, and none hangs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.train.features.test_side_by_side import SETTINGS, plan, tensors
from tests.train.loop import together_work
from tests.train.loop.test_training import settings
from tests.train.random_backbones import random_weights
from tests.train.tiny_models import noise
from vae_edge.errors import InputError, UsageError
from vae_edge.train.features.backbone_weights import load_backbone
from vae_edge.train.features.graph import FeatureMaps
from vae_edge.train.features.table import make_table
from vae_edge.train.loop.batches import EpochSampler, FixedCrops, make_loader
from vae_edge.train.loop.launch import Place
from vae_edge.train.loop.starting import open_team
from vae_edge.train.loop.team import ALONE, Team
from vae_edge.train.loop.together import StepShares, check_shares
from vae_edge.train.loop.trainer_arguments import Attached
from vae_edge.train.loop.watcher import Watcher
from vae_edge.train.model.input_settings import Photometric, Tiling
from vae_edge.train.run.feature_team import compute_features, train_networks

TWO = settings().model_copy(update={"devices": 2, "accelerator": "cpu"})


# Before the tests that share a team, because a process has one at a time.
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "^the second process has had enough$"),
        ("in torch", "process 2 of 2 ended with status 9; start again with --resume"),
    ],
)
def test_a_process_that_fails_ends_the_others_with_its_reason(
    how: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match=message), open_team(TWO) as two:
        two.run(together_work.fail, how)
    assert not torch.distributed.is_initialized()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def team() -> Iterator[Team]:
    with open_team(TWO) as two:
        yield two
    assert not torch.distributed.is_initialized()


def test_every_process_gets_the_same_and_takes_its_pieces_of_work(team: Team) -> None:
    array = np.arange(6, dtype=np.float32)[::2]
    arrived = team.run(together_work.echo, array, "word")
    assert [each[1:] for each in arrived] == [(6.0, "float32", "word")] * 2
    assert len({each[0] for each in arrived}) == 2
    assert arrived[0][0] == os.getpid()
    found = team.run(together_work.squares, 5)
    assert [square for square, _ in found] == [0, 1, 4, 9, 16]
    assert {rank for _, rank in found} == {0, 1}
    with pytest.raises(UsageError, match="has connected processes by itself"), open_team(TWO):
        pass


def test_a_step_that_two_processes_share_has_the_gradient_of_the_whole_step(team: Team) -> None:
    images = noise(7)  # An odd number: the processes have 3 and 4.
    alone, shared = together_work.gradients(ALONE, images), team.run(together_work.gradients, images)
    for one, two in zip((*alone[0], *alone[1]), (*shared[0], *shared[1]), strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-13)


def test_the_loss_of_a_shared_step_is_that_over_all_pixels_that_count(team: Team) -> None:
    images, kept = noise(7), np.random.default_rng(1).random((7, 32, 32)) < np.linspace(0, 1, 7)[:, None, None]
    alone, shared = (together_work.masked_loss(ALONE, images, kept), team.run(together_work.masked_loss, images, kept))
    assert float(shared) == pytest.approx(float(alone), rel=1e-6)


def test_features_and_networks_on_them_are_those_of_one_process(team: Team, tmp_path: Path) -> None:
    save_file(random_weights("timm", 0), tmp_path / "backbone.safetensors")
    backbone = load_backbone(str(tmp_path / "backbone.safetensors")).module
    images = noise(50, 64, 64)
    maps = FeatureMaps(backbone, 64, 64, Photometric.NONE).eval()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        table = make_table(maps, images)
        shared = compute_features(team, maps, images, tmp_path, Watcher())
        networks = train_networks(ALONE, plan(), SETTINGS, Watcher(), in_bfloat16=False)
        trained = train_networks(team, plan(), SETTINGS, Watcher(), in_bfloat16=False)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(table.values, shared.values)
    assert all(torch.equal(one, two) for one, two in zip(tensors(networks), tensors(trained), strict=True))


def test_no_image_of_an_epoch_is_left_out_or_counted_twice() -> None:
    places = [Place(rank, 3, rank, 3) for rank in range(3)]
    sampler = EpochSampler(23, seed=1, per_image=2)
    whole = list(sampler)
    shares = [list(StepShares(sampler, 8, place)) for place in places]
    assert len({len(each) for each in shares}) == 1
    joined = [crop for step in zip(*shares, strict=True) for share in step for crop in share]
    assert joined == whole
    assert max(len(share) for each in shares for share in each) == 3
    assert sum(len(share) for each in shares for share in list(each)[:5]) == 40
    dropping = StepShares(sampler, 8, places[0], drop_last=True)
    assert len(dropping) == len(list(dropping)) == 5


def test_a_process_may_have_none_of_the_last_held_out_images() -> None:
    shares = StepShares(FixedCrops(9, Tiling.whole(32, 32), 1), 4, Place(0, 3, 0, 3))
    sizes = [tuple(batch.shape) for batch in make_loader(noise(9), (32, 32), 4, shares.sampler, shares=shares)]
    assert sizes == [(1, 32, 32, 3), (1, 32, 32, 3), (0, 32, 32, 3)]


def test_more_processes_than_images_in_a_step_are_refused() -> None:
    shares = StepShares(EpochSampler(4, seed=0), 2, Place(0, 3, 0, 3))
    with pytest.raises(UsageError, match="3 processes are to train together, but some step has only 2 images"):
        check_shares(shares)


@pytest.mark.parametrize(
    ("values", "jobs", "attached", "message"),
    [
        ({"num_nodes": 2}, None, Attached(), "the number of nodes is 2, but this is the only process; .*torchrun"),
        ({"devices": 2, "network": None}, None, Attached(), "devices is 2, but networks on features are trained on"),
        ({"devices": 2}, 2, Attached(), "2 jobs were given along with 2 processes"),
        ({"folds": 3}, 4, Attached(), "the number of jobs is 4, but there are 3 folds"),
        (
            {"devices": "0,1"},
            None,
            Attached(arguments={"plugins": [object()]}),
            "plugins cannot be passed on to the processes .* torchrun --nproc-per-node 2",
        ),
    ],
)
def test_a_team_that_cannot_work_is_refused_before_anything_is_started(
    values: dict[str, object], jobs: int | None, attached: Attached, message: str
) -> None:
    asked = settings().model_copy(update=values)
    with pytest.raises(UsageError, match=message), open_team(asked, attached, jobs):
        pass
