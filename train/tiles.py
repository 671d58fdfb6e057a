"""Cuts images into the tiles of `vae_edge.train.tiling` and blends them back together, inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vae_edge.train.tiling import Tiling


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
