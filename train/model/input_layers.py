"""Layers between the image and the network, all inside the graph: resizing, range, evening out of light, tiles.

`vae_edge.train.model.input_settings` says which of them a model has. Resizing is for images of any size
(`AreaResizing`), as `vae_edge.image.prepare` does it on the host. A side that shrinks is averaged by area, a side that
grows is interpolated linearly, and the result is rounded to whole grey values, as OpenCV does on bytes. Each axis is
one product with a matrix whose values are computed from the image's size: nothing branches on a size, so a graph may
leave it open.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_edge.ignored_region import IgnoredRegion
from vae_edge.train.model.input_settings import SYMMETRIC, InputRange, Photometric, Tiling
from vae_edge.train.model.kept import Painting
from vae_edge.train.model.residuals import Smoothing


class RangeOfInput(nn.Module):
    """Brings values of -1 to 1 to the range that the network was trained with."""

    scale: Tensor
    shift: Tensor

    def __init__(self, wanted: InputRange) -> None:
        super().__init__()
        self.is_needed = wanted != SYMMETRIC
        if self.is_needed:
            mean, deviation = torch.tensor(wanted.mean), torch.tensor(wanted.deviation)
            # (x - mean) / deviation, where x = (value + 1) / 2 is what 0 to 255 is as 0 to 1.
            self.register_buffer("scale", (0.5 / deviation).reshape(1, -1, 1, 1))
            self.register_buffer("shift", ((0.5 - mean) / deviation).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 [N, C, H, W]."""
        return pixels * self.scale + self.shift if self.is_needed else pixels


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
        ignored: is painted over first; None: nothing is.
    """

    def __init__(self, kind: Photometric, height: int, width: int, ignored: IgnoredRegion | None = None) -> None:
        super().__init__()
        self.ignored = ignored
        self.paint = None if ignored is None else Painting(ignored)
        self.kind = kind
        sigma = SURROUNDINGS_SIGMA * min(height, width)
        self.around = Smoothing(sigma, height, width) if kind is Photometric.LOCAL else None

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn float32 [N, C, H, W], -1 to 1, into the same, clipped to -1 to 1."""
        if self.paint is not None:
            pixels = self.paint(pixels)
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


def blending_weights(length: int, tile: int, begins: Sequence[int]) -> Tensor:
    """Return each tile's share in the image's pixels along one axis, float32 [tiles, tile].

    A tile's weight falls linearly towards an edge that lies inside the image, over what it has in common with its
    neighbour; the shares of all tiles at a pixel sum to 1.
    """
    place = torch.arange(tile, dtype=torch.float64) + 0.5
    raw = torch.ones(len(begins), tile, dtype=torch.float64)
    for i, begin in enumerate(begins):
        if i > 0 and (common := begins[i - 1] + tile - begin) > 0:
            raw[i] *= (place / common).clamp(max=1)
        if i + 1 < len(begins) and (common := begin + tile - begins[i + 1]) > 0:
            raw[i] *= ((tile - place) / common).clamp(max=1)
    total = torch.zeros(length, dtype=torch.float64)
    for i, begin in enumerate(begins):
        total[begin : begin + tile] += raw[i]
    return torch.stack([raw[i] / total[begin : begin + tile] for i, begin in enumerate(begins)]).float()


class Tiles(nn.Module):
    """Cuts and stitches with operations that every runtime has: slices, one product with constants, sums, Concat."""

    weights: Tensor

    def __init__(self, tiling: Tiling) -> None:
        super().__init__()
        self.tiling = tiling
        self.rows, self.columns = tiling.rows, tiling.columns
        down = blending_weights(tiling.image_height, tiling.tile_height, self.rows)
        across = blending_weights(tiling.image_width, tiling.tile_width, self.columns)
        shares = down[:, None, :, None] * across[None, :, None, :]
        self.register_buffer("weights", shares[:, :, None, None])

    def cut(self, images: Tensor) -> Tensor:
        """Cut float32 [N, C, H, W] into [T * N, C, tile height, tile width], one tile of all images after the other."""
        if self.tiling.n_tiles == 1:
            return images
        height, width = self.tiling.tile_height, self.tiling.tile_width
        return torch.cat([images[:, :, y : y + height, x : x + width] for y in self.rows for x in self.columns])

    def stitch(self, tiles: Tensor) -> Tensor:
        """Blend float32 [T * N, C, tile height, tile width] into [N, C, H, W]."""
        if self.tiling.n_tiles == 1:
            return tiles
        grid = tiles.reshape(len(self.rows), len(self.columns), -1, *tiles.shape[1:]) * self.weights
        strips = _joined([grid[:, i] for i in range(len(self.columns))], self.columns, dim=-1)
        return _joined([strips[i] for i in range(len(self.rows))], self.rows, dim=-2)

    def spread(self, values: Tensor) -> Tensor:
        """Spread one value a tile, float32 [T * N], over the tiles' pixels: blended [N, 1, H, W]."""
        tile = (self.tiling.tile_height, self.tiling.tile_width)
        return self.stitch(values.reshape(-1, 1, 1, 1).expand(-1, 1, *tile))


def _joined(pieces: Sequence[Tensor], begins: Sequence[int], dim: int) -> Tensor:
    """Add pieces of one axis where they overlap, and put them side by side elsewhere."""
    length = pieces[0].shape[dim]
    edges = sorted({*begins, *(begin + length for begin in begins)})
    parts = []
    for low, high in pairwise(edges):
        here = [
            piece.narrow(dim, low - begin, high - low)
            for piece, begin in zip(pieces, begins, strict=True)
            if begin <= low and high <= begin + length
        ]
        part = here[0]
        for other in here[1:]:
            part = part + other
        parts.append(part)
    return torch.cat(parts, dim)


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
