from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from tests.train.tiny_models import noise
from vae_edge.train.loop.batches import (
    Crop,
    EpochSampler,
    FixedCrops,
    as_pixels,
    crops_per_image,
    default_epochs,
    make_loader,
    make_plan,
    seed_of,
)
from vae_edge.train.model.input_settings import Tiling

TILING = Tiling(image_height=48, image_width=80, tile_height=32, tile_width=32)
ROOM = (16, 48)


def crops_of(epoch: int, seed: int = 0, n: int = 10, per_image: int = 3) -> list[Crop]:
    sampler = EpochSampler(n, seed, per_image, ROOM)
    sampler.set_epoch(epoch)
    assert len(sampler) == n * per_image
    return list(sampler)


@pytest.mark.parametrize("n", [1, 7, 32, 33, 47, 65, 100, 993, 1000])
@pytest.mark.parametrize("per_image", [1, 4])
def test_batches_are_nearly_equal_and_none_is_tiny(n: int, per_image: int) -> None:
    plan = make_plan(n, 32, None, per_image)
    assert plan.batch_size <= 32
    last = plan.images_per_epoch - (plan.steps_per_epoch - 1) * plan.batch_size
    assert plan.batch_size / 2 <= last <= plan.batch_size
    assert plan.images_per_epoch > 0.95 * n * per_image


def test_small_sets_get_more_epochs() -> None:
    assert default_epochs(40, 20) == 300
    assert default_epochs(320, 32) == 200
    assert default_epochs(1_000_000, 32) == 20


def test_an_image_of_which_an_epoch_shows_several_windows_needs_fewer_epochs() -> None:
    assert default_epochs(4_000_000, 32, 4) == 5
    assert make_plan(80, 32, None, 4).steps_per_epoch == 10
    assert make_plan(80, 32, None, 4).epochs == 200
    assert make_plan(80, 32, 7, 4).epochs == 7
    assert make_plan(80, 32, None, 4, steps=700).epochs == 70


def test_every_epoch_has_its_own_windows_that_follow_from_the_seed_and_the_epoch_alone() -> None:
    first, second = crops_of(0), crops_of(1)
    assert first != second
    assert crops_of(0) == first
    assert crops_of(0, seed=1) != first
    sampler = EpochSampler(10, 0, 3, ROOM)
    sampler.set_epoch(5)
    list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) == second, "what was drawn before does not matter"
    torch.manual_seed(99)
    assert list(sampler) == second, "nor does what others have drawn"


def test_every_image_has_as_many_windows_in_an_epoch_and_their_order_is_mixed() -> None:
    crops = crops_of(0)
    assert set(Counter(crop.image for crop in crops).values()) == {3}
    assert [crop.image for crop in crops] != sorted(crop.image for crop in crops)


def test_windows_lie_inside_the_image_and_in_time_reach_every_place() -> None:
    seen = np.zeros((48, 80), dtype=np.bool_)
    tops, lefts = set(), set()
    # A corner is in few of the windows, so it takes a while.
    for epoch in range(60):
        for crop in crops_of(epoch, n=50):
            assert 0 <= crop.top <= ROOM[0]
            assert 0 <= crop.left <= ROOM[1]
            seen[crop.top : crop.top + 32, crop.left : crop.left + 32] = True
            tops.add(crop.top)
            lefts.add(crop.left)
    assert seen.all()
    assert tops == set(range(ROOM[0] + 1))
    assert lefts == set(range(ROOM[1] + 1))


def test_a_whole_image_has_one_window() -> None:
    sampler = EpochSampler(50, seed=3)
    assert sorted(sampler) == [Crop(i, 0, 0) for i in range(50)]
    assert crops_per_image(Tiling.whole(64, 64)) == 1
    assert crops_per_image(Tiling(image_height=64, image_width=32, tile_height=32, tile_width=32, overlap=0)) == 2
    assert crops_per_image(Tiling(image_height=320, image_width=320, tile_height=64, tile_width=64)) == 4


def test_held_out_windows_are_tiles_of_the_grid_the_same_each_time_and_together_all_of_them() -> None:
    sampler = FixedCrops(12, TILING, 4)
    places = {(crop.top, crop.left) for crop in sampler}
    assert places == {(top, left) for top in TILING.rows for left in TILING.columns}
    assert len(sampler) == len(list(sampler)) == 48
    assert list(sampler) == list(sampler)
    for image in range(12):
        own = [(crop.top, crop.left) for crop in sampler if crop.image == image]
        assert len(own) == len(set(own)) == 4


def test_a_batch_holds_the_windows_that_were_asked_for() -> None:
    images = noise(4, 48, 80)
    crops = [Crop(2, 3, 17), Crop(0, 16, 48), Crop(3, 0, 0), Crop(2, 3, 18)]
    batches = list(make_loader(images, (32, 32), 3, crops))  # type: ignore[arg-type]  # a list is as good
    assert [len(batch) for batch in batches] == [3, 1]
    for crop, window in zip(crops, torch.cat(batches), strict=True):
        expected = images[crop.image, crop.top : crop.top + 32, crop.left : crop.left + 32]
        np.testing.assert_array_equal(window.numpy(), expected)


def test_whole_images_are_batched_in_the_samplers_order() -> None:
    images = noise(5)
    sampler = EpochSampler(5, seed=1)
    (batch,) = make_loader(images, (32, 32), 8, sampler)
    np.testing.assert_array_equal(batch.numpy(), images[[crop.image for crop in sampler]])
    assert len(list(make_loader(images, (32, 32), 2, sampler, drop_last=True))) == 2


def test_a_seed_of_several_numbers_is_its_own() -> None:
    seeds = {seed_of(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert seed_of(1, 2) != seed_of(1, 2, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, 4) == seed_of(3, 4)


def test_pixels_are_minus_one_to_one_in_the_graphs_arithmetic() -> None:
    images = torch.from_numpy(noise(2))
    pixels = as_pixels(images)
    assert pixels.shape == (2, 3, 32, 32)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pixels, (images.permute(0, 3, 1, 2).double() / 127.5 - 1).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("room", [7, 64, 288])
def test_the_border_is_not_left_to_chance(room: int) -> None:
    crops = list(EpochSampler(4000, 0, 1, (room, 0)))
    at_border = np.mean([crop.top in (0, room) for crop in crops])
    assert {crop.left for crop in crops} == {0}
    expected = (2 * (room // 8) + 2) / (room + 1 + 2 * (room // 8))
    assert at_border == pytest.approx(expected, abs=0.03)
    inside = [crop.top for crop in crops if 0 < crop.top < room]
    assert np.mean(inside) == pytest.approx(room / 2, rel=0.05), "elsewhere all places are drawn alike"
