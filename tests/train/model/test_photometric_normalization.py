from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vae_edge.train.model.input_layers import _FLOOR, _SPREAD, SURROUNDINGS_SIGMA, PhotometricNormalization
from vae_edge.train.model.input_settings import Photometric

H, W = 48, 64


def pictures(n: int = 3) -> Tensor:
    """Colourful texture within -0.5 to 0.5, so that brighter and darker versions stay in range."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, H, W, generator=generator) - 0.5


def normalized(kind: Photometric, pixels: Tensor) -> Tensor:
    result: Tensor = PhotometricNormalization(kind, H, W)(pixels)
    return result


def around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    sigma = SURROUNDINGS_SIGMA * min(H, W)
    return np.stack([gaussian_filter(each, sigma, mode="nearest", radius=math.ceil(3 * sigma)) for each in values])


def test_no_normalization_leaves_the_pixels_alone() -> None:
    pixels = pictures()
    assert normalized(Photometric.NONE, pixels) is pixels


def test_by_the_image_it_is_the_formula_on_the_mean_of_the_colours() -> None:
    pixels = pictures().double().numpy()
    grey = pixels.mean(axis=1, keepdims=True)
    mean, deviation = grey.mean(axis=(2, 3), keepdims=True), grey.std(axis=(2, 3), keepdims=True)
    expected = np.clip((pixels - mean) / (_SPREAD * deviation + _FLOOR), -1, 1)
    result = normalized(Photometric.IMAGE, pictures())
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_by_the_surroundings_it_is_the_formula_with_scipys_gaussian() -> None:
    pixels = pictures().double().numpy()
    grey = pixels.mean(axis=1)
    mean = around(grey)
    deviation = np.sqrt(around((grey - mean) ** 2))
    deviation = 0.5 * (deviation + deviation.mean(axis=(1, 2), keepdims=True))
    expected = np.clip((pixels - mean[:, None]) / (_SPREAD * deviation[:, None] + _FLOOR), -1, 1)
    result = normalized(Photometric.LOCAL, pictures())
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.3), (1.0, -0.4), (1.6, 0.0), (0.7, 0.2)])
def test_light_and_contrast_of_the_whole_image_do_not_matter(kind: Photometric, gain: float, offset: float) -> None:
    pixels = pictures()
    change = (normalized(kind, gain * pixels + offset) - normalized(kind, pixels)).abs()
    # What is added to the contrast, so that an even surface is not divided by nothing, is all that remains.
    assert float(change.max()) < 0.03
    assert float((gain * pixels + offset - pixels).abs().max()) > 0.1


def test_a_slow_gradient_of_light_goes_with_the_surroundings_alone() -> None:
    pixels = pictures()
    ramp = torch.linspace(-0.4, 0.4, W)[None, None, None] * torch.linspace(0.5, 1, H)[None, None, :, None]
    change = {kind: (normalized(kind, pixels + ramp) - normalized(kind, pixels)).abs() for kind in Photometric}
    reach = math.ceil(SURROUNDINGS_SIGMA * H)
    inside = {kind: float(each[..., reach:-reach, reach:-reach].mean()) for kind, each in change.items()}
    assert inside[Photometric.LOCAL] < 0.03
    assert inside[Photometric.IMAGE] > 5 * inside[Photometric.LOCAL]


@pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
def test_an_even_surface_becomes_grey_and_not_noise(kind: Photometric) -> None:
    even = torch.full((1, 3, H, W), 0.7)
    assert float(normalized(kind, even).abs().max()) < 1e-3
    speckled = even + torch.randn(1, 1, H, W, generator=torch.Generator().manual_seed(0)) / 127.5 / 4
    assert float(normalized(kind, speckled).abs().max()) < 0.5


@pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
def test_colours_keep_their_order_and_grey_stays_grey(kind: Photometric) -> None:
    pixels = 0.2 * pictures()
    result = normalized(kind, pixels)
    inside = (result.abs() < 1).all(dim=1)
    assert float(inside.float().mean()) > 0.5
    differs = (pixels[:, 0] - pixels[:, 1]).abs() > 1e-3
    same = (pixels[:, 0] > pixels[:, 1]) == (result[:, 0] > result[:, 1])
    assert bool(same[inside & differs].all())
    grey = normalized(kind, pixels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1))
    assert torch.equal(grey[:, 0], grey[:, 2])


@pytest.mark.parametrize("kind", list(Photometric))
def test_the_result_is_in_the_networks_range_and_the_kind_has_words(kind: Photometric) -> None:
    spot = torch.zeros(1, 3, H, W)
    spot[..., 20:23, 30:33] = 1.0
    assert float(normalized(kind, spot).abs().max()) <= 1.0
    assert "brightness" in kind.describe()
    assert str(kind) == kind.value
