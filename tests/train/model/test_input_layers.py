"""Resizing, evening out of light and tiles, inside the graph: as the host does it, and on every image alike."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tests.train.tiny_models import noise
from vae_edge.image import Preparation, prepare
from vae_edge.train.model.input_layers import (
    _FLOOR,
    _SPREAD,
    SURROUNDINGS_SIGMA,
    AreaResizing,
    PhotometricNormalization,
    Tiles,
    blending_weights,
    resizing_matrix,
)
from vae_edge.train.model.input_settings import Photometric, Tiling, starts

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


H, W = 48, 64


def pictures(n: int = 3) -> Tensor:
    """Colourful texture within -0.5 to 0.5, so that brighter and darker versions stay in range."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, H, W, generator=generator) - 0.5


def normalized(kind: Photometric, pixels: Tensor) -> Tensor:
    result: Tensor = PhotometricNormalization(kind, H, W)(pixels)
    return result


def around(values: NDArray[np.float64]) -> NDArray[np.float64]:
    sigma = SURROUNDINGS_SIGMA * min(H, W)
    return np.stack([gaussian_filter(each, sigma, mode="nearest", radius=math.ceil(3 * sigma)) for each in values])


def test_no_normalization_leaves_the_pixels_alone() -> None:
    pixels = pictures()
    assert normalized(Photometric.NONE, pixels) is pixels


def test_by_the_image_it_is_the_formula_on_the_mean_of_the_colours() -> None:
    pixels = pictures().double().numpy()
    grey = pixels.mean(axis=1, keepdims=True)
    mean, deviation = grey.mean(axis=(2, 3), keepdims=True), grey.std(axis=(2, 3), keepdims=True)
    expected = np.clip((pixels - mean) / (_SPREAD * deviation + _FLOOR), -1, 1)
    result = normalized(Photometric.IMAGE, pictures())
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_by_the_surroundings_it_is_the_formula_with_scipys_gaussian() -> None:
    pixels = pictures().double().numpy()
    grey = pixels.mean(axis=1)
    mean = around(grey)
    deviation = np.sqrt(around((grey - mean) ** 2))
    deviation = 0.5 * (deviation + deviation.mean(axis=(1, 2), keepdims=True))
    expected = np.clip((pixels - mean[:, None]) / (_SPREAD * deviation[:, None] + _FLOOR), -1, 1)
    result = normalized(Photometric.LOCAL, pictures())
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.3), (1.0, -0.4), (1.6, 0.0), (0.7, 0.2)])
def test_light_and_contrast_of_the_whole_image_do_not_matter(kind: Photometric, gain: float, offset: float) -> None:
    pixels = pictures()
    change = (normalized(kind, gain * pixels + offset) - normalized(kind, pixels)).abs()
    # What is added to the contrast, so that an even surface is not divided by nothing, is all that remains.
    assert float(change.max()) < 0.03
    assert float((gain * pixels + offset - pixels).abs().max()) > 0.1


def test_a_slow_gradient_of_light_goes_with_the_surroundings_alone() -> None:
    pixels = pictures()
    ramp = torch.linspace(-0.4, 0.4, W)[None, None, None] * torch.linspace(0.5, 1, H)[None, None, :, None]
    change = {kind: (normalized(kind, pixels + ramp) - normalized(kind, pixels)).abs() for kind in Photometric}
    reach = math.ceil(SURROUNDINGS_SIGMA * H)
    inside = {kind: float(each[..., reach:-reach, reach:-reach].mean()) for kind, each in change.items()}
    assert inside[Photometric.LOCAL] < 0.03
    assert inside[Photometric.IMAGE] > 5 * inside[Photometric.LOCAL]


@pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
def test_an_even_surface_becomes_grey_and_not_noise(kind: Photometric) -> None:
    even = torch.full((1, 3, H, W), 0.7)
    assert float(normalized(kind, even).abs().max()) < 1e-3
    speckled = even + torch.randn(1, 1, H, W, generator=torch.Generator().manual_seed(0)) / 127.5 / 4
    assert float(normalized(kind, speckled).abs().max()) < 0.5


@pytest.mark.parametrize("kind", [Photometric.IMAGE, Photometric.LOCAL])
def test_colours_keep_their_order_and_grey_stays_grey(kind: Photometric) -> None:
    pixels = 0.2 * pictures()
    result = normalized(kind, pixels)
    inside = (result.abs() < 1).all(dim=1)
    assert float(inside.float().mean()) > 0.5
    differs = (pixels[:, 0] - pixels[:, 1]).abs() > 1e-3
    same = (pixels[:, 0] > pixels[:, 1]) == (result[:, 0] > result[:, 1])
    assert bool(same[inside & differs].all())
    grey = normalized(kind, pixels.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1))
    assert torch.equal(grey[:, 0], grey[:, 2])


@pytest.mark.parametrize("kind", list(Photometric))
def test_the_result_is_in_the_networks_range_and_the_kind_has_words(kind: Photometric) -> None:
    spot = torch.zeros(1, 3, H, W)
    spot[..., 20:23, 30:33] = 1.0
    assert float(normalized(kind, spot).abs().max()) <= 1.0
    assert "brightness" in kind.describe()
    assert str(kind) == kind.value


SIZE = (48, 64)

SHRINKING = [(49, 65), (100, 200), (120, 90), (111, 64), (48, 131), (240, 320), (97, 128), (480, 643)]

MIXED = [(100, 40), (30, 200), (96, 33)]


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """Float32 [N, 3, H, W] of 0 to 1, as a decoder gives it."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def differences(made: Tensor, images: NDArray[np.uint8], size: tuple[int, int] = SIZE) -> NDArray[np.int64]:
    """Return how many grey values lie between the module's result, which are to be whole, and the host's."""
    levels = made.permute(0, 2, 3, 1).numpy() * 255
    np.testing.assert_allclose(levels, np.rint(levels), rtol=0, atol=1e-3)
    expected = np.stack([prepare(image, Preparation(height=size[0], width=size[1])) for image in images])
    assert levels.shape == expected.shape
    return np.asarray(np.abs(np.rint(levels).astype(np.int64) - expected.astype(np.int64)))


def areas(n: int, size: int) -> NDArray[np.float64]:
    """Return which share of each of `size` pixels lies on each of n: float64 [size, n]."""
    edges = np.arange(size + 1) * n / size
    low, high = np.maximum(edges[:-1, None], np.arange(n)), np.minimum(edges[1:, None], np.arange(1, n + 1))
    return np.asarray(np.clip(high - low, 0, None) * size / n)


@pytest.mark.parametrize("shape", SHRINKING)
def test_shrinking_is_the_hosts_but_for_values_half_way_between_two(shape: tuple[int, int]) -> None:
    images = noise(3, *shape, seed=sum(shape))
    off = differences(AreaResizing(*SIZE)(as_input(images)), images)
    assert off.max() <= 1
    assert (off > 0).mean() <= 0.005
    down, across = areas(shape[0], SIZE[0]), areas(shape[1], SIZE[1])
    exact = np.einsum("ij,njkc,lk->nilc", down, images.astype(np.float64), across, optimize=True)
    np.testing.assert_allclose((exact % 1)[off > 0], 0.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_by_a_whole_number_is_the_hosts_to_the_bit(factor: int) -> None:
    images = noise(4, SIZE[0] * factor, SIZE[1] * factor, seed=factor)
    assert not differences(AreaResizing(*SIZE)(as_input(images)), images).any()


@pytest.mark.parametrize("shape", [(40, 50), (24, 32), (33, 64), (48, 45), (7, 9)])
def test_growing_is_the_hosts_within_one_grey_value(shape: tuple[int, int]) -> None:
    images = noise(3, *shape, seed=sum(shape))
    assert differences(AreaResizing(*SIZE)(as_input(images)), images).max() <= 1


@pytest.mark.parametrize("shape", MIXED)
def test_where_one_side_grows_and_the_other_shrinks_it_is_the_hosts_within_one_grey_value(
    shape: tuple[int, int],
) -> None:
    images = noise(3, *shape, seed=sum(shape))
    assert differences(AreaResizing(*SIZE)(as_input(images)), images).max() <= 1


def test_an_image_of_that_size_already_is_left_as_it_is() -> None:
    images = noise(2, *SIZE)
    torch.testing.assert_close(AreaResizing(*SIZE)(as_input(images)), as_input(images), rtol=0, atol=1e-7)


def test_flat_white_stays_white_at_the_edges() -> None:
    for shape in (*SHRINKING, *MIXED, (20, 20)):
        assert torch.equal(AreaResizing(*SIZE)(torch.ones(1, 3, *shape)), torch.ones(1, 3, *SIZE))


@pytest.mark.parametrize("n", [1, 7, 31, 32, 33, 64, 501])
def test_every_row_of_the_matrix_is_an_average(n: int) -> None:
    matrix, is_half = resizing_matrix(torch.rand(n), 32)
    assert matrix.shape == (32, n)
    assert matrix.min() >= 0
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(32), rtol=0, atol=2e-5)
    assert bool(is_half) == (n == 64)


@pytest.fixture(scope="module")
def traced() -> torch.nn.Module:
    """The module as a program that leaves batch, height and width open."""
    n, height, width = (torch.export.Dim(name, min=1, max=4096) for name in ("n", "height", "width"))
    program = torch.export.export(
        AreaResizing(*SIZE), (torch.rand(2, 3, 70, 90),), dynamic_shapes={"image": {0: n, 2: height, 3: width}}
    )
    return program.module()


@pytest.mark.parametrize("shape", [(120, 90), (96, 128), (40, 50), (100, 40), SIZE])
def test_a_program_with_open_sides_computes_the_same(traced: torch.nn.Module, shape: tuple[int, int]) -> None:
    image = as_input(noise(3, *shape, seed=1))
    torch.testing.assert_close(traced(image), AreaResizing(*SIZE)(image), rtol=0, atol=1e-7)
