"""Training on a table of features, and what it says about pictures that were not trained on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.random_backbones import random_weights
from vae_edge.errors import InputError
from vae_edge.platform import file_system
from vae_edge.train.features import table as table_module
from vae_edge.train.features.backbone_weights import backbone_from
from vae_edge.train.features.graph import FeatureMaps
from vae_edge.train.features.settings import FeatureSettings, choose_feature_size
from vae_edge.train.features.table import FEATURES_FILE, FeatureTable, make_table
from vae_edge.train.features.training import mean_and_deviation, residuals_of, train_on_table

SETTINGS = FeatureSettings(n_hidden=32, latent_vec_size=4, n_steps=60, batch_size=256)


def drawn_table(n: int = 12) -> FeatureTable:
    """Features that lie on a plane of three dimensions in twenty, with little noise."""
    random = np.random.default_rng(0)
    plane = random.normal(size=(3, 20))
    values = random.normal(size=(n, 6, 6, 3)) @ plane + 0.01 * random.normal(size=(n, 6, 6, 20)) + 5
    return FeatureTable(values.astype(np.float16))


def test_channel_statistics_are_those_of_the_chosen_pictures() -> None:
    table = drawn_table()
    mean, deviation = table.channel_statistics([1, 4])
    chosen = table.values[[1, 4]].astype(np.float64).reshape(-1, 20)
    assert np.allclose(mean.flatten(), chosen.mean(axis=0), atol=1e-4)
    assert np.allclose(deviation.flatten(), chosen.std(axis=0), rtol=1e-3)


def test_a_network_finds_what_leaves_the_features_of_its_pictures() -> None:
    table = drawn_table()
    table.values[11, 2:4, 2:4] += np.random.default_rng(1).normal(scale=4, size=20).astype(np.float16)
    table = FeatureTable(table.values)
    model = train_on_table(table, range(8), SETTINGS, seed=0)
    normal, strange = residuals_of(model, table, [8, 9, 10]), residuals_of(model, table, [11])
    assert strange[0, 0, 2:4, 2:4].mean() > 3 * normal.mean()


def test_the_same_seed_gives_the_same_network_and_leaves_torchs_own_random_numbers_alone() -> None:
    table = drawn_table()
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    first = train_on_table(table, range(8), SETTINGS, seed=3)
    assert torch.equal(torch.rand(2), expected)
    second = train_on_table(table, range(8), SETTINGS, seed=3)
    other = train_on_table(table, range(8), SETTINGS, seed=4)
    rows = [9, 10]
    assert torch.equal(residuals_of(first, table, rows), residuals_of(second, table, rows))
    assert not torch.equal(residuals_of(first, table, rows), residuals_of(other, table, rows))


def test_in_bfloat16_the_network_is_as_good_and_its_weights_stay_in_float32() -> None:
    table = drawn_table()
    single, mixed, again = (
        train_on_table(table, range(8), SETTINGS, seed=3, in_bfloat16=kind) for kind in (False, True, True)
    )
    rows = [8, 9, 10]
    residuals = [residuals_of(model, table, rows) for model in (single, mixed, again)]
    assert not torch.equal(residuals[0], residuals[1])
    assert torch.equal(residuals[1], residuals[2])
    assert float(residuals[1].mean()) == pytest.approx(float(residuals[0].mean()), rel=0.1)
    assert {each.dtype for each in (*mixed.state_dict().values(), *residuals)} == {torch.float32}


def test_positions_are_drawn_from_the_chosen_pictures_in_units() -> None:
    table = drawn_table()
    mean, deviation = table.channel_statistics([2, 5])
    x, target = table.draw([2, 5], 500, torch.Generator().manual_seed(0), mean, deviation)
    assert torch.equal(x, target)
    chosen = torch.from_numpy(table.values[[2, 5]].astype(np.float32)).reshape(-1, 20)
    expected = (chosen - mean.flatten()) / deviation.flatten()
    assert torch.cdist(x, expected).min(dim=1).values.max() < 0.1
    assert set(torch.cdist(x, expected).argmin(dim=1).tolist()) == set(range(len(expected)))


def test_a_loss_that_is_not_finite_is_an_error_that_says_after_how_many_steps() -> None:
    table = drawn_table()
    table.values[0, 0, 0, 0] = np.inf
    with pytest.raises(InputError, match=r"diverged: its loss is nan after \d+ steps"):
        train_on_table(FeatureTable(table.values), range(4), SETTINGS, seed=0)


def test_a_large_table_is_a_file_and_holds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = FeatureMaps(backbone_from(random_weights("package", 0), "random"), 32, 48).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    in_memory = make_table(maps, images, tmp_path)
    assert not (tmp_path / FEATURES_FILE).exists()
    monkeypatch.setattr(table_module, "MOST_BYTES_IN_MEMORY", 1000)
    on_disk = make_table(maps, images, tmp_path)
    assert (tmp_path / FEATURES_FILE).stat().st_size == on_disk.values.nbytes
    assert np.array_equal(in_memory.values, on_disk.values)


def test_a_disk_without_room_for_a_large_table_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int, n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    maps = FeatureMaps(backbone_from(random_weights("package", 0), "random"), 32, 48).eval()
    monkeypatch.setattr(table_module, "MOST_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(file_system, "_allocate", fail)
    with pytest.raises(InputError, match=r"No space left on device.*features of 5 pictures need .* GiB.*--out"):
        make_table(maps, np.zeros((5, 32, 48, 3), dtype=np.uint8), tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_the_median_deviation_is_added_to_every_position() -> None:
    random = torch.Generator().manual_seed(0)
    residuals = torch.randn(4000, 1, 8, 8, generator=random)
    residuals[:, 0, 4, 4] *= 5
    mean, deviation = mean_and_deviation(residuals, 0.5)
    assert mean.abs().max() < 0.3
    assert deviation[0, 0, 0, 0] == pytest.approx(1.5, abs=0.1)
    assert deviation.argmax() == 4 * 8 + 4


def test_a_position_that_never_moves_has_a_deviation_above_zero() -> None:
    _, deviation = mean_and_deviation(torch.ones(10, 1, 8, 8), 0.5)
    assert deviation.min() > 0


@pytest.mark.parametrize(
    ("typical", "size"),
    [((1024, 1024), (256, 256)), ((400, 1600), (160, 640)), ((336, 288), (288, 256)), ((100, 100), (256, 256))],
)
def test_the_size_keeps_the_aspect(typical: tuple[int, int], size: tuple[int, int]) -> None:
    assert choose_feature_size(typical) == size
