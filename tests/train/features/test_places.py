"""Features compared with those of good parts at the same place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_edge.train.features.place_fitting import fit_places
from vae_edge.train.features.places import PlaceDistance
from vae_edge.train.features.table import FeatureTable

N_CHANNELS, HEIGHT, WIDTH = 6, 3, 4


def make_parts(n: int, seed: int) -> np.ndarray:
    """Return features, float16 [n, h, w, C], whose left half has one mean and whose right half has another."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(n, HEIGHT, WIDTH, N_CHANNELS)) @ np.diag([0.2, 0.5, 1.0, 0.3, 0.1, 0.4])
    values[:, :, : WIDTH // 2, 0] += 3
    values[:, :, WIDTH // 2 :, 1] += 3
    return values.astype(np.float16)


@pytest.fixture(scope="module")
def table() -> FeatureTable:
    return FeatureTable(make_parts(400, 0))


@pytest.fixture(scope="module")
def places(table: FeatureTable) -> PlaceDistance:
    return fit_places(table, range(len(table)), N_CHANNELS)


def as_batch(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2)


def test_with_all_directions_it_is_the_mahalanobis_distance_of_the_position(table: FeatureTable) -> None:
    places = fit_places(table, range(len(table)), N_CHANNELS)
    parts = make_parts(5, 1)
    found = places(as_batch(parts)).numpy()
    share = N_CHANNELS / (N_CHANNELS + len(table))
    values = table.values.astype(np.float64)
    covariances = np.stack(
        [np.cov(values[:, i // WIDTH, i % WIDTH].T, bias=True) for i in range(HEIGHT * WIDTH)]
    )  # The constant 1e-3 on the diagonal, in other units, is what remains of a difference.
    mixed = (1 - share) * covariances + share * covariances.mean(axis=0)
    for i in range(HEIGHT * WIDTH):
        row, column = divmod(i, WIDTH)
        difference = parts[:, row, column].astype(np.float64) - values[:, row, column].mean(axis=0)
        expected = np.einsum("ni,ij,nj->n", difference, np.linalg.inv(mixed[i]), difference) / N_CHANNELS
        assert np.allclose(found[:, 0, row, column], expected, rtol=0.1, atol=0.02)


def test_good_parts_are_at_a_distance_of_one(places: PlaceDistance) -> None:
    distances = places(as_batch(make_parts(400, 2)))
    assert distances.shape == (400, 1, HEIGHT, WIDTH)
    assert float(distances.mean()) == pytest.approx(1, abs=0.08)


def test_what_is_normal_elsewhere_is_far_from_what_is_normal_here(places: PlaceDistance) -> None:
    part = make_parts(1, 3)
    swapped = part.copy()
    swapped[0, 1, 0] = part[0, 1, WIDTH - 1]
    before, after = places(as_batch(part))[0, 0], places(as_batch(swapped))[0, 0]
    assert float(after[1, 0]) > 10 * float(before[1, 0])
    others = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    others[1, 0] = False
    assert torch.equal(before[others], after[others])


def test_fewer_parts_than_directions_give_a_finite_distance(table: FeatureTable) -> None:
    distances = fit_places(table, [0, 1, 2], N_CHANNELS)(as_batch(make_parts(20, 4)))
    assert torch.isfinite(distances).all()


def test_a_gross_defect_stays_in_the_range_of_half_precision(places: PlaceDistance) -> None:
    distances = places(as_batch(np.full((1, HEIGHT, WIDTH, N_CHANNELS), 6e4, np.float16)))
    assert float(distances.max()) < 65504


def test_constants_come_back_as_they_were(places: PlaceDistance) -> None:
    again = PlaceDistance(places.constants, places.channel_mean, 1 / places.channel_unit)
    parts = as_batch(make_parts(3, 5))
    assert torch.allclose(again(parts), places(parts))
