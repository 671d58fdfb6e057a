from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vae_edge.train.smoothing import Smoothing, gaussian_kernel, smoothing_matrix


@pytest.mark.parametrize("size", [(32, 48), (33, 32), (7, 64)])
@pytest.mark.parametrize("sigma", [0.25, 1.0, 2.6, 7.0, 30.0])
def test_smoothing_is_scipys_gaussian_with_the_border_repeated(size: tuple[int, int], sigma: float) -> None:
    values = torch.randn(2, 1, *size)
    smoothed = Smoothing(sigma, *size)(values)
    reach = math.ceil(3 * sigma)
    expected = [gaussian_filter(each[0].double().numpy(), sigma, mode="nearest", radius=reach) for each in values]
    np.testing.assert_allclose(smoothed[:, 0].numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sigma", "size"), [(0.0, 1), (0.3, 3), (1.0, 7), (2.5, 17)])
def test_the_gaussian_reaches_three_sigma_and_sums_to_one(sigma: float, size: int) -> None:
    kernel = gaussian_kernel(sigma)
    assert kernel.numel() == size
    assert float(kernel.sum()) == pytest.approx(1)


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
