"""What differs between an image and its reconstruction, and its smoothing by a Gaussian, as layers of the graph.

`vae_edge.train.model.scoring.Residual` says what the kinds are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_edge.train.model.kept import KeptPlaces
from vae_edge.train.model.scoring import LOCAL_SIGMA, SSIM_SIGMA, Level, Residual


class Smoothing(nn.Module):
    """Blurs float32 [N, 1, H, W] by a Gaussian that is cut at 3 standard deviations.

    A product with a banded matrix along each axis, whatever the width. Two convolutions of one channel, which would
    take fewer multiplications, were slower on every runtime tried: of 256 x 320 pixels on one core, with a deviation of
    4 pixels, 1.4 to 3.0 ms against 0.6 to 0.9 ms, and many times slower with wider ones. Products are what they are
    fast at.

    With `step` the result is given at every this many pixels only, at the centres of blocks of that size: what a wide
    Gaussian leaves holds no finer detail, and everything that follows has a fraction of the work.

    Args:
        sigma: standard deviation in pixels, 0 or more; 0, with a step of 1, changes nothing.
        height: H, a multiple of the step.
        width: W, a multiple of the step.
        step: 1 or more.
    """

    down: Tensor
    across: Tensor

    def __init__(self, sigma: float, height: int, width: int, step: int = 1) -> None:
        super().__init__()
        self.is_identity = sigma <= 0 and step == 1
        if not self.is_identity:
            self.register_buffer("down", smoothing_matrix(sigma, height, step))
            self.register_buffer("across", smoothing_matrix(sigma, width, step).T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """Blur float32 [N, 1, H, W] to [N, 1, H / step, W / step]."""
        if self.is_identity:
            return values
        return self.down @ (values @ self.across)


class Enlarging(nn.Module):
    """Blurs float32 [N, 1, H / step, W / step], given at the centres of blocks, to all pixels, [N, 1, H, W].

    Args:
        sigma: standard deviation of the Gaussian in pixels of the result, above 0.
        height: H, a multiple of the step.
        width: W, a multiple of the step.
        step: side of a block.
    """

    down: Tensor
    across: Tensor

    def __init__(self, sigma: float, height: int, width: int, step: int) -> None:
        super().__init__()
        self.register_buffer("down", enlarging_matrix(sigma, height, step))
        self.register_buffer("across", enlarging_matrix(sigma, width, step).T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """Enlarge a batch."""
        return self.down @ (values @ self.across)


def smoothing_matrix(sigma: float, length: int, step: int = 1) -> Tensor:
    """Return the matrix, float32 [length / step, length], that smooths a column; its rows sum to 1.

    Beyond the border the border's own value counts.
    """
    return _gaussian_rows(_centres(length, step), sigma, length).float()


def enlarging_matrix(sigma: float, length: int, step: int) -> Tensor:
    """Return the matrix, float32 [length, length / step], that smooths values given at the centres of blocks."""
    places = (torch.arange(length, dtype=torch.float64) + 0.5) / step - 0.5
    return _gaussian_rows(places, sigma / step, length // step).float()


def _centres(length: int, step: int) -> Tensor:
    return (torch.arange(length // step, dtype=torch.float64) + 0.5) * step - 0.5


def _gaussian_rows(places: Tensor, sigma: float, length: int) -> Tensor:
    """Return float64 [places, length]: in each row a Gaussian around a place, cut at 3 standard deviations."""
    reach = math.ceil(3 * sigma)
    columns = places.floor().long()[:, None] + torch.arange(-reach, reach + 2)[None]
    distance = columns.double() - places[:, None]
    weights = torch.exp(-0.5 * (distance / max(sigma, 1e-9)) ** 2) * (distance.abs() <= max(reach, 0.5))
    matrix = torch.zeros(len(places), length, dtype=torch.float64)
    matrix.scatter_add_(1, columns.clamp(0, length - 1), weights / weights.sum(dim=1, keepdim=True))
    return matrix


# (0.01 L)^2 and (0.03 L)^2 for a range of L = 2 from -1 to 1, as in Wang et al. 2004.
_SSIM_LUMINANCE, _SSIM_CONTRAST = (0.01 * 2) ** 2, (0.03 * 2) ** 2

_SMALLEST = 1e-6
"""Added to what is divided by: a perfect reconstruction has no residual."""


def _absolute(difference: Tensor) -> Tensor:
    return difference.abs().mean(dim=1, keepdim=True)


def _squared(difference: Tensor) -> Tensor:
    return (difference * difference).mean(dim=1, keepdim=True)


def _gradient(difference: Tensor) -> Tensor:
    grey = difference.mean(dim=1, keepdim=True)
    # Forward differences; the last row and column have none.
    across = functional.pad(grey[..., 1:] - grey[..., :-1], (0, 1, 0, 0))
    down = functional.pad(grey[..., 1:, :] - grey[..., :-1, :], (0, 0, 0, 1))
    return torch.sqrt(across * across + down * down)


OF_DIFFERENCE: dict[Residual, Callable[[Tensor], Tensor]] = {
    Residual.L1: _absolute,
    Residual.L2: _squared,
    Residual.GRADIENT: _gradient,
}
"""Formulas of the residuals that follow from the difference alone: float32 [N, C, H, W] to [N, 1, H, W], 0 or more."""


class ResidualMap(nn.Module):
    """Compares images and reconstructions.

    Args:
        kind: what is compared.
        height: of the image; the window of the structural similarity grows with the shorter side.
        width: of the image.
    """

    def __init__(self, kind: Residual, height: int, width: int) -> None:
        super().__init__()
        self.window = Smoothing(SSIM_SIGMA * min(height, width), height, width) if kind is Residual.SSIM else None
        self.of_difference = None if self.window is not None else OF_DIFFERENCE[kind]

    def forward(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return float32 [N, 1, H, W], 0 or more, for two float32 [N, C, H, W] of -1 to 1."""
        if self.of_difference is not None:
            return self.of_difference(pixels - reconstruction)
        assert self.window is not None
        return self._dissimilarity(self.window, pixels, reconstruction)

    def _dissimilarity(self, window: Smoothing, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        x, y = pixels.mean(dim=1, keepdim=True), reconstruction.mean(dim=1, keepdim=True)
        mean_x, mean_y = window(x), window(y)
        # From the squares of differences, not as differences of squares, which cancel in float32.
        off_x, off_y = x - mean_x, y - mean_y
        variances = window(off_x * off_x + off_y * off_y)
        covariance = window(off_x * off_y)
        product = mean_x * mean_y
        squares = mean_x * mean_x + mean_y * mean_y
        similarity = (2 * product + _SSIM_LUMINANCE) * (2 * covariance + _SSIM_CONTRAST)
        similarity = similarity / ((squares + _SSIM_LUMINANCE) * (variances + _SSIM_CONTRAST))
        return torch.clamp(1 - similarity, min=0)


class LevelNormalization(nn.Module):
    """Divides a smoothed residual by what of it the image, or a pixel's surroundings, have anyway.

    Args:
        level: by what.
        height: of the image.
        width: of the image.
        kept: the positions that the image has; None: all.
    """

    def __init__(self, level: Level, height: int, width: int, kept: KeptPlaces | None = None) -> None:
        super().__init__()
        self.kept = kept
        self.level = level
        self.around = Smoothing(LOCAL_SIGMA * min(height, width), height, width) if level is Level.LOCAL else None

    def forward(self, residual: Tensor) -> Tensor:
        """Divide float32 [N, 1, H, W]."""
        if self.level is Level.NONE:
            return residual
        if self.kept is None:
            base = residual.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
        else:
            base = self.kept.mean(residual)
        if self.around is not None:
            base = 0.5 * (base + self.around(residual))
        return residual / (base + _SMALLEST)


def mahalanobis_whitening(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean, float32 [1, L], and W, float32 [L, L], such that |(z - mean) W|^2 is the Mahalanobis distance.

    The covariance is shrunk towards a multiple of the identity by L / (n + L), since latents may outnumber the normals
    (Ledoit and Wolf 2004 on why; their share is estimated from the data).

    Args:
        latents: float32 [n, L], of normals.
    """
    values = latents.double()
    mean = values.mean(dim=0, keepdim=True)
    off = values - mean
    covariance = off.T @ off / max(len(values) - 1, 1)
    size = covariance.shape[0]
    level = covariance.diagonal().mean().clamp_min(1e-9)
    share = size / (len(values) + size)
    covariance = (1 - share) * covariance + share * level * torch.eye(size, dtype=torch.float64)
    whitening = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return mean.float(), whitening.float().contiguous()
