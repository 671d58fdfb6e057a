"""Gaussian smoothing as part of the graph, with the image's border repeated outwards."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_LONGEST_KERNEL = 31
"""Taps up to which two convolutions are used; above, products with thin matrices are many times faster."""

_DROPPED = 1e-5
"""Singular values below this share of the largest are dropped: far below what 8-bit images resolve."""


class Smoothing(nn.Module):
    """Blurs float32 [N, 1, H, W] by a Gaussian that is cut at 3 standard deviations.

    A narrow one is two convolutions. A wide one is a product with a banded matrix along each axis, and such a matrix
    has a low rank: a Gaussian passes no high frequencies. Its factors, from the singular value decomposition, make four
    thin matrix products, whose cost falls with the width of the Gaussian.

    Args:
        sigma: standard deviation in pixels, 0 or more; 0 changes nothing.
        height: H.
        width: W.
    """

    kernel: Tensor
    down: Tensor
    up: Tensor
    down_across: Tensor
    up_across: Tensor

    def __init__(self, sigma: float, height: int, width: int) -> None:
        super().__init__()
        kernel = gaussian_kernel(sigma)
        self.reach = kernel.numel() // 2
        self.is_wide = kernel.numel() > _LONGEST_KERNEL
        if self.is_wide:
            up, down = _factors(kernel, height)
            self.register_buffer("up", up)
            self.register_buffer("down", down)
            up, down = _factors(kernel, width)
            self.register_buffer("up_across", up.T.contiguous())
            self.register_buffer("down_across", down.T.contiguous())
        else:
            self.register_buffer("kernel", kernel)

    def forward(self, values: Tensor) -> Tensor:
        """Blur float32 [N, 1, H, W]."""
        if self.reach == 0:
            return values
        if self.is_wide:
            return self.up @ ((self.down @ values) @ self.down_across) @ self.up_across
        values = functional.pad(values, (self.reach,) * 4, mode="replicate")
        values = functional.conv2d(values, self.kernel.view(1, 1, -1, 1))
        return functional.conv2d(values, self.kernel.view(1, 1, 1, -1))


def gaussian_kernel(sigma: float) -> Tensor:
    """Return a normalized Gaussian, float32 [2 r + 1], cut at r = 3 sigma pixels; [1] for sigma 0."""
    reach = int(np.ceil(3 * sigma)) if sigma > 0 else 0
    distance = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (distance / max(sigma, 1e-9)) ** 2)
    return (weights / weights.sum()).to(torch.float32)


def _factors(kernel: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Return float32 [length, r] and [r, length], whose product smooths a column of that length."""
    reach = kernel.numel() // 2
    rows = torch.arange(length)[:, None]
    # Beyond the border the border's own value counts.
    columns = (rows + torch.arange(-reach, reach + 1)[None]).clamp(0, length - 1)
    matrix = torch.zeros(length, length, dtype=torch.float64)
    matrix.scatter_add_(1, columns, kernel.double().expand(length, -1).contiguous())
    left, values, right = torch.linalg.svd(matrix)
    rank = int((values > _DROPPED * values[0]).sum())
    return (left[:, :rank] * values[:rank]).float().contiguous(), right[:rank].float().contiguous()
