"""Resizing inside a graph as `vae_edge.image.prepare` does it on the host, for images of any size.

A side that shrinks is averaged by area, a side that grows is interpolated linearly, and the result is rounded to whole
grey values, as OpenCV does on bytes. Each axis is one product with a matrix whose values are computed from the image's
size: nothing branches on a size, so a graph may leave it open.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AreaResizing(nn.Module):
    """Resizes float32 [N, 3, h, w] of 0 to 1, in steps of 1 / 255, to [N, 3, height, width] of the same.

    Where one side shrinks and the other grows the host rounds twice and this module once: a value may differ by 1 / 255
    there. Elsewhere the two agree but for values that lie half way between two.

    Args:
        height: of the result.
        width: of the result.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height = height
        self.width = width

    def forward(self, image: Tensor) -> Tensor:
        """Resize a batch."""
        levels = torch.round(image * 255)
        down, by_two_down = resizing_matrix(levels[0, 0, :, 0], self.height)
        across, by_two_across = resizing_matrix(levels[0, 0, 0, :], self.width)
        resized = down @ levels @ across.transpose(0, 1)
        # OpenCV rounds halves to even, but upwards where both sides shrink to half.
        rounded = torch.where(by_two_down & by_two_across, torch.floor(resized + 0.5), torch.round(resized))
        return rounded.clamp(0, 255) / 255


def resizing_matrix(along: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the matrix that resizes one axis, float32 [size, n], and whether it shrinks to half, bool [].

    Args:
        along: float32 [n], any values along the axis: only its length counts.
        size: of the result.
    """
    ones = torch.ones_like(along)
    n = ones.sum()
    step = n / size
    source = (torch.cumsum(ones, 0) - 1)[None, :]
    target = torch.arange(size, dtype=torch.float32, device=along.device)[:, None]
    # Area: how much of the source's pixel lies below the target's.
    common = torch.minimum((target + 1) * step, source + 1) - torch.maximum(target * step, source)
    area = common.clamp(min=0) / step
    # Linear: between the centres of two pixels of the source.
    center = ((target + 0.5) * step - 0.5).clamp(min=0)
    linear = (1 - (torch.minimum(center, n - 1) - source).abs()).clamp(min=0)
    return torch.where(step >= 1, area, linear), step == 2
