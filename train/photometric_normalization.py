"""Evens out light and contrast inside the graph: see `vae_edge.train.photometric` for the kinds."""

from __future__ import annotations

from torch import Tensor, nn

from vae_edge.train.photometric import Photometric
from vae_edge.train.smoothing import Smoothing

SURROUNDINGS_SIGMA = 0.1
"""Standard deviation of the Gaussian that says what a pixel's surroundings are, as a share of the shorter side."""

_SPREAD = 3.0
"""Standard deviations of brightness that fill the range from 0 to 1."""

_FLOOR = 0.02
"""Least contrast, of 2 from black to white: a uniform image must not become noise."""


class PhotometricNormalization(nn.Module):
    """Evens out light and contrast; colours keep their differences.

    Args:
        kind: how.
        height: of the image.
        width: of the image.
    """

    def __init__(self, kind: Photometric, height: int, width: int) -> None:
        super().__init__()
        self.kind = kind
        sigma = SURROUNDINGS_SIGMA * min(height, width)
        self.around = Smoothing(sigma, height, width) if kind is Photometric.LOCAL else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn float32 [N, C, H, W], -1 to 1, into the same, clipped to -1 to 1."""
        if self.kind is Photometric.NONE:
            return pixels
        grey = pixels.mean(dim=1, keepdim=True)
        # Means over an axis at a time: ONNX Runtime adds up one number after the other in float32, and over a whole
        # image that was off by 0.001 of a dark picture's evened brightness.
        if self.around is None:
            mean = grey.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
            off = grey - mean
            deviation = (off * off).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True).sqrt()
        else:
            mean = self.around(grey)
            off = grey - mean
            around = self.around(off * off).clamp(min=0).sqrt()
            deviation = 0.5 * (around + around.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True))
        return ((pixels - mean) / (_SPREAD * deviation + _FLOOR)).clamp(-1.0, 1.0)
