"""Gaussian smoothing as part of the graph, with the image's border repeated outwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Smoothing(nn.Module):
    """Blurs float32 [N, 1, H, W] by a Gaussian that is cut at 3 standard deviations.

    A product with a banded matrix along each axis, whatever the width. Two convolutions of one channel, which would
    take fewer multiplications, were slower on every runtime tried: of 256 x 320 pixels on one core, with a deviation of
    4 pixels, 1.4 to 3.0 ms against 0.6 to 0.9 ms, and many times slower with wider ones. Products are what they are
    fast at.

    Args:
        sigma: standard deviation in pixels, 0 or more; 0 changes nothing.
        height: H.
        width: W.
    """

    down: Tensor
    across: Tensor

    def __init__(self, sigma: float, height: int, width: int) -> None:
        super().__init__()
        self.is_identity = sigma <= 0
        if not self.is_identity:
            self.register_buffer("down", smoothing_matrix(sigma, height))
            self.register_buffer("across", smoothing_matrix(sigma, width).T.contiguous())

    def forward(self, values: Tensor) -> Tensor:
        """Blur float32 [N, 1, H, W]."""
        if self.is_identity:
            return values
        return self.down @ (values @ self.across)


def smoothing_matrix(sigma: float, length: int) -> Tensor:
    """Return the matrix, float32 [length, length], that smooths a column of that length; its rows sum to 1."""
    kernel = gaussian_kernel(sigma).double()
    reach = kernel.numel() // 2
    # Beyond the border the border's own value counts.
    columns = torch.arange(length)[:, None] + torch.arange(-reach, reach + 1)[None]
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, columns.clamp(0, length - 1), kernel.expand(length, -1).contiguous())
    return matrix.float()


def gaussian_kernel(sigma: float) -> Tensor:
    """Return a normalized Gaussian, float32 [2 r + 1], cut at r = 3 sigma pixels; [1] for sigma 0."""
    reach = int(np.ceil(3 * sigma)) if sigma > 0 else 0
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (distance / max(sigma, 1e-9)) ** 2)
    return (weights / weights.sum()).to(torch.float32)
