from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from vae_edge.train.model.input_layers import Tiles, blending_weights
from vae_edge.train.model.input_settings import Tiling, starts

GRIDS = [
    ((32, 32), (32, 32), 0.25),
    ((33, 32), (32, 32), 0.0),
    ((48, 80), (32, 32), 0.25),
    ((96, 96), (32, 32), 0.0),
    ((70, 101), (32, 40), 0.5),
    ((64, 200), (64, 32), 0.75),
    ((63, 47), (32, 32), 0.1),
]


def tiling_of(image: tuple[int, int], tile: tuple[int, int], overlap: float) -> Tiling:
    return Tiling(image_height=image[0], image_width=image[1], tile_height=tile[0], tile_width=tile[1], overlap=overlap)


@pytest.mark.parametrize(("image", "tile", "overlap"), GRIDS)
@pytest.mark.parametrize("n", [1, 3])
def test_what_is_cut_and_stitched_is_what_it_was(
    n: int, image: tuple[int, int], tile: tuple[int, int], overlap: float
) -> None:
    tiles = Tiles(tiling_of(image, tile, overlap))
    images = torch.randn(n, 3, *image)
    cut = tiles.cut(images)
    assert cut.shape == (n * tiles.tiling.n_tiles, 3, *tile)
    torch.testing.assert_close(tiles.stitch(cut), images, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("image", "tile", "overlap"), GRIDS)
def test_stitching_is_the_weighted_sum_at_each_tiles_place(
    image: tuple[int, int], tile: tuple[int, int], overlap: float
) -> None:
    tiling = tiling_of(image, tile, overlap)
    made = torch.randn(2 * tiling.n_tiles, 1, *tile)
    expected = np.zeros((2, 1, *image))
    down = blending_weights(image[0], tile[0], tiling.rows).numpy()
    across = blending_weights(image[1], tile[1], tiling.columns).numpy()
    for number, (i, j) in enumerate((i, j) for i in range(len(tiling.rows)) for j in range(len(tiling.columns))):
        top, left = tiling.rows[i], tiling.columns[j]
        part = made[2 * number : 2 * number + 2].numpy() * np.outer(down[i], across[j])
        expected[:, :, top : top + tile[0], left : left + tile[1]] += part
    np.testing.assert_allclose(Tiles(tiling).stitch(made).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(32, 32, 0.3), (33, 32, 0), (100, 32, 0.25), (101, 40, 0.75)])
def test_the_shares_of_all_tiles_sum_to_one_at_every_pixel(length: int, tile: int, overlap: float) -> None:
    begins = starts(length, tile, overlap)
    shares = blending_weights(length, tile, begins).double()
    total = torch.zeros(length, dtype=torch.float64)
    for begin, share in zip(begins, shares, strict=True):
        total[begin : begin + tile] += share
    assert float(shares.min()) > 0
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_a_share_falls_towards_a_seam_and_not_towards_the_images_edge() -> None:
    first, last = blending_weights(48, 32, (0, 16))
    assert first[:16].tolist() == [1.0] * 16
    assert all(after < before for before, after in pairwise(first[16:].tolist()))
    torch.testing.assert_close(last, first.flip(0))


def test_tiles_are_in_the_order_of_rows_then_columns_then_images() -> None:
    tiles = Tiles(tiling_of((48, 80), (32, 32), 0.25))
    images = torch.randn(2, 3, 48, 80)
    cut = tiles.cut(images)
    number = len(tiles.columns) + 1  # Second row, second column.
    top, left = tiles.rows[1], tiles.columns[1]
    assert torch.equal(cut[2 * number : 2 * number + 2], images[:, :, top : top + 32, left : left + 32])


def test_an_image_that_is_not_cut_is_passed_on() -> None:
    tiles = Tiles(Tiling.whole(32, 48))
    images = torch.randn(2, 3, 32, 48)
    assert tiles.cut(images) is images
    assert tiles.stitch(images) is images


def test_a_value_is_spread_over_its_tile_and_blended_where_tiles_meet() -> None:
    tiles = Tiles(tiling_of((32, 56), (32, 32), 0.25))
    assert tiles.columns == (0, 24)
    # Tile by tile: 1 and 2 of two images at the left, 5 and 6 at the right.
    spread = tiles.spread(torch.tensor([1.0, 2.0, 5.0, 6.0]))
    assert spread.shape == (2, 1, 32, 56)
    torch.testing.assert_close(spread[:, 0, :, :24], torch.tensor([1.0, 2.0])[:, None, None].expand(2, 32, 24))
    torch.testing.assert_close(spread[:, 0, :, 32:], torch.tensor([5.0, 6.0])[:, None, None].expand(2, 32, 24))
    between = spread[0, 0, 0, 24:32].tolist()
    assert 1 < between[0] < between[-1] < 5
    assert between == sorted(between)
