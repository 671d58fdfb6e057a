from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vae_edge.train.model.residuals import (
    Enlarging,
    LevelNormalization,
    ResidualMap,
    Smoothing,
    enlarging_matrix,
    mahalanobis_whitening,
    smoothing_matrix,
)
from vae_edge.train.model.scoring import LOCAL_SIGMA, SSIM_SIGMA, Level, Residual

H, W = 40, 64

Array = NDArray[np.float64]


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A picture with some structure and a reconstruction that is near it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, 3, 5, 8, generator=generator) * 1.6 - 0.8
    pixels = torch.nn.functional.interpolate(coarse, size=(H, W), mode="bilinear")
    return pixels, (pixels + 0.1 * torch.randn(pixels.shape, generator=generator)).clamp(-1, 1)


def residual(kind: Residual, pixels: Tensor, reconstruction: Tensor) -> NDArray[np.float32]:
    result: Tensor = ResidualMap(kind, H, W)(pixels, reconstruction)
    assert result.shape == (len(pixels), 1, H, W)
    return np.asarray(result[:, 0].numpy())


def smoothed(values: Array, sigma: float) -> Array:
    reach = math.ceil(3 * sigma)
    return np.stack([gaussian_filter(each, sigma, mode="nearest", radius=reach) for each in values])


def structural_dissimilarity(x: Array, y: Array) -> Array:
    """1 - SSIM (Wang et al. 2004), in float64, with the variances of what differs from the moving mean."""
    sigma = SSIM_SIGMA * min(H, W)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_x, mean_y = smoothed(x, sigma), smoothed(y, sigma)
    # Deviations are from the mean around each pixel, not from that of the window: see the module.
    off_x, off_y = x - mean_x, y - mean_y
    variance_x, variance_y = smoothed(off_x**2, sigma), smoothed(off_y**2, sigma)
    covariance = smoothed(off_x * off_y, sigma)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return np.asarray(np.maximum(1 - luminance * structure, 0))


def expected(kind: Residual, pixels: Tensor, reconstruction: Tensor) -> Array:
    x, y = pixels.double().numpy(), reconstruction.double().numpy()
    if kind is Residual.L1:
        return np.asarray(np.abs(x - y).mean(axis=1))
    if kind is Residual.L2:
        return np.asarray(((x - y) ** 2).mean(axis=1))
    if kind is Residual.SSIM:
        return structural_dissimilarity(x.mean(axis=1), y.mean(axis=1))
    assert kind is Residual.GRADIENT
    grey = (x - y).mean(axis=1)
    down, across = np.zeros_like(grey), np.zeros_like(grey)
    down[:, :-1], across[:, :, :-1] = np.diff(grey, axis=1), np.diff(grey, axis=2)
    return np.asarray(np.hypot(down, across))


@pytest.mark.parametrize("kind", list(Residual))
def test_every_residual_is_its_formula(kind: Residual) -> None:
    pixels, reconstruction = pair()
    result = residual(kind, pixels, reconstruction)
    assert result.max() > 0.01
    np.testing.assert_allclose(result, expected(kind, pixels, reconstruction), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", list(Residual))
def test_a_perfect_reconstruction_has_none_anywhere(kind: Residual) -> None:
    pixels, _ = pair()
    assert residual(kind, pixels, pixels).max() < 1e-5


@pytest.mark.parametrize("kind", list(Residual))
def test_a_spot_is_largest_where_it_is(kind: Residual) -> None:
    pixels, _ = pair()
    spotted = pixels.clone()
    spotted[:, :, 18:23, 30:35] += 0.5
    row, column = np.unravel_index(residual(kind, spotted, pixels)[0].argmax(), (H, W))
    assert 16 <= row <= 24
    assert 28 <= column <= 36


def test_a_change_of_light_is_no_gradient() -> None:
    pixels, _ = pair()
    assert residual(Residual.GRADIENT, pixels + 0.3, pixels).max() < 1e-5
    assert residual(Residual.L1, pixels + 0.3, pixels).min() == pytest.approx(0.3, abs=1e-5)


class TestTheLevel:
    @staticmethod
    def divided(level: Level, values: Tensor) -> Tensor:
        result: Tensor = LevelNormalization(level, H, W)(values)
        return result

    def test_none_changes_nothing(self) -> None:
        values = torch.rand(2, 1, H, W)
        assert self.divided(Level.NONE, values) is values

    def test_by_the_image_its_mean_is_one(self) -> None:
        divided = self.divided(Level.IMAGE, torch.rand(3, 1, H, W) * torch.tensor([0.1, 1.0, 9.0])[:, None, None, None])
        torch.testing.assert_close(divided.mean(dim=(1, 2, 3)), torch.ones(3), rtol=1e-3, atol=1e-3)

    def test_by_the_surroundings_it_is_the_formula(self) -> None:
        values = torch.rand(2, 1, H, W) + 0.1
        grey = values[:, 0].double().numpy()
        base = 0.5 * (grey.mean(axis=(1, 2), keepdims=True) + smoothed(grey, LOCAL_SIGMA * min(H, W)))
        np.testing.assert_allclose(self.divided(Level.LOCAL, values)[:, 0].numpy(), grey / base, rtol=1e-3)

    @pytest.mark.parametrize("level", [Level.IMAGE, Level.LOCAL])
    def test_a_rougher_image_has_the_same_map(self, level: Level) -> None:
        values = torch.rand(1, 1, H, W) + 0.1
        torch.testing.assert_close(self.divided(level, 5 * values), self.divided(level, values), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("level", [Level.IMAGE, Level.LOCAL])
    def test_no_residual_at_all_is_no_division_by_nothing(self, level: Level) -> None:
        assert float(self.divided(level, torch.zeros(1, 1, H, W)).abs().max()) == 0


class TestTheDistanceOfLatents:
    @pytest.mark.parametrize("n", [200, 5])
    def test_it_is_mahalanobis_with_a_shrunk_covariance_also_where_latents_outnumber_the_normals(self, n: int) -> None:
        random = np.random.default_rng(0)
        latents = random.normal(size=(n, 8)) @ random.normal(size=(8, 8)) + 3
        mean, whitening = mahalanobis_whitening(torch.from_numpy(latents.astype(np.float32)))
        covariance = np.cov(latents, rowvar=False)
        share = 8 / (n + 8)
        covariance = (1 - share) * covariance + share * np.trace(covariance) / 8 * np.eye(8)
        others = random.normal(size=(4, 8)) * 5
        off = others - latents.mean(axis=0)
        expected = np.sqrt(np.einsum("ni,ij,nj->n", off, np.linalg.inv(covariance), off))
        found = np.linalg.norm((others - mean.numpy()) @ whitening.numpy(), axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-3)

    def test_latents_that_never_moved_give_a_finite_distance(self) -> None:
        _, whitening = mahalanobis_whitening(torch.ones(3, 4))
        assert bool(torch.isfinite(whitening).all())


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
