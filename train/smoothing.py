"""Gaussian smoothing as part of the graph, with the image's border repeated outwards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Smoothing(nn.Module):
    """Blurs float32 [N, 1, H, W] by a Gaussian that is cut at 3 standard deviations.

    A product with a banded matrix along each axis, whatever the width. Two convolutions of one channel, which would
    take fewer multiplications, were slower on every runtime tried: of 256 x 320 pixels on one core, with a deviation of
    4 pixels, 1.4 to 3.0 ms against 0.6 to 0.9 ms, and many times slower with wider ones. Products are what they are
    fast at.

    With `step` the result is given at every so many pixels only, at the centres of blocks of that size: what a wide
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
