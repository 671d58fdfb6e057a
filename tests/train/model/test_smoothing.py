from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from vae_edge.train.model.residuals import Enlarging, Smoothing, enlarging_matrix, smoothing_matrix


@pytest.mark.parametrize("size", [(32, 48), (33, 32), (7, 64)])
@pytest.mark.parametrize("sigma", [0.25, 1.0, 2.6, 7.0, 30.0])
def test_smoothing_is_scipys_gaussian_with_the_border_repeated(size: tuple[int, int], sigma: float) -> None:
    values = torch.randn(2, 1, *size)
    smoothed = Smoothing(sigma, *size)(values)
    reach = math.ceil(3 * sigma)
    expected = [gaussian_filter(each[0].double().numpy(), sigma, mode="nearest", radius=reach) for each in values]
    np.testing.assert_allclose(smoothed[:, 0].numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)


def gaussian_at(values: NDArray[np.float64], place: float, sigma: float) -> float:
    """The smoothed value at a place between the pixels of a row, the border repeated."""
    near = np.arange(math.floor(place) - 200, math.floor(place) + 201)
    weights = np.exp(-0.5 * ((near - place) / sigma) ** 2) * (np.abs(near - place) <= math.ceil(3 * sigma))
    return float((weights * values[near.clip(0, len(values) - 1)]).sum() / weights.sum())


@pytest.mark.parametrize("sigma", [2.0, 4.6])
def test_with_a_step_the_values_are_those_at_the_centres_of_blocks(sigma: float) -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = smoothing_matrix(sigma, 40, 2).double().numpy() @ values
    assert found == pytest.approx([gaussian_at(values, 2 * i + 0.5, sigma) for i in range(20)], abs=1e-5)


def test_what_a_step_left_out_was_not_there_any_more() -> None:
    values = torch.randn(1, 1, 48, 64)
    wide = Smoothing(2.0, 48, 64)(values)
    between = Enlarging(3.0, 48, 64, 2)(Smoothing(2.0, 48, 64, 2)(values))
    assert between.shape == wide.shape
    again = Smoothing(3.0, 48, 64)(wide)
    inside = (..., slice(9, -9), slice(9, -9))  # At the border the last value is repeated, and it is not the same one.
    assert float((between - again)[inside].abs().max()) < 0.01 * float(again.abs().max())


def test_enlarging_smooths_between_the_centres_of_blocks() -> None:
    values = np.random.default_rng(1).normal(size=20)
    found = enlarging_matrix(5.0, 40, 2).double().numpy() @ values
    # The value of block j lies at pixel 2 j + 0.5: in units of blocks, pixel i lies at (i + 0.5) / 2 - 0.5.
    assert found == pytest.approx([gaussian_at(values, (i + 0.5) / 2 - 0.5, 2.5) for i in range(40)], abs=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 4.0, 100.0])
def test_an_even_surface_stays_as_it_is_up_to_its_border(sigma: float) -> None:
    torch.testing.assert_close(smoothing_matrix(sigma, 20).sum(dim=1), torch.ones(20))
    torch.testing.assert_close(
        Smoothing(sigma, 20, 30)(torch.full((1, 1, 20, 30), 3.0)), torch.full((1, 1, 20, 30), 3.0)
    )


def test_no_width_changes_nothing_and_needs_no_constants() -> None:
    smoothing = Smoothing(0.0, 16, 16)
    values = torch.randn(1, 1, 16, 16)
    assert smoothing(values) is values
    assert not smoothing.state_dict()
