"""Resizing inside a graph gives the bytes that the host's resizing gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.train.tiny_models import noise
from vae_edge.image import Preparation, prepare
from vae_edge.train.model.input_layers import AreaResizing, resizing_matrix

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
