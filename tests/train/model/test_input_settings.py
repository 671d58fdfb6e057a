from __future__ import annotations

import math
from itertools import pairwise

import pytest

from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.model.input_settings import MOST_TILES, Tiling, starts


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize(("length", "tile"), [(64, 64), (65, 64), (96, 64), (127, 64), (128, 64), (333, 64), (640, 32)])
def test_tiles_reach_from_edge_to_edge_and_are_the_fewest_that_overlap_enough(
    length: int, tile: int, overlap: float
) -> None:
    begins = starts(length, tile, overlap)
    assert begins[0] == 0
    assert begins[-1] + tile == length
    steps = [after - before for before, after in pairwise(begins)]
    assert all(0 < step <= tile * (1 - overlap) for step in steps)
    if len(begins) > 2:
        fewer = (length - tile) / (len(begins) - 2)
        assert fewer > tile * (1 - overlap), "a tile less would do"


@pytest.mark.parametrize(("length", "tile"), [(333, 64), (200, 96), (1000, 128)])
def test_tiles_are_spread_evenly(length: int, tile: int) -> None:
    steps = [after - before for before, after in pairwise(starts(length, tile, 0.25))]
    assert max(steps) - min(steps) <= 1


def test_a_tile_as_large_as_the_image_is_the_image() -> None:
    assert starts(64, 64, 0.5) == (0,)
    whole = Tiling.whole(64, 96)
    assert whole.n_tiles == 1
    assert whole.describe() == "images of 64x96, without tiles"


def test_a_tiling_counts_its_tiles_and_says_so() -> None:
    tiling = Tiling(image_height=96, image_width=160, tile_height=64, tile_width=64)
    assert (tiling.rows, tiling.columns) == ((0, 32), (0, 48, 96))
    assert tiling.n_tiles == 6
    assert tiling.describe() == "images of 96x160, cut into 6 tiles of 64x64 (2 x 3)"


@pytest.mark.parametrize(
    ("image", "tile", "said"),
    [
        ((64, 64), (64, 96), "the tiles are 64x96 and the image is 64x64; expected tiles that are not larger"),
        ((96, 128), (60, 64), "the image size is 60x64, the network halves it"),
        ((2048, 2048), (32, 32), f"expected at most {MOST_TILES}: choose larger tiles"),
        ((96, 96), (16, 16), "tile_height is 16"),
    ],
)
def test_sizes_that_do_not_fit_together_are_told_in_a_sentence(
    image: tuple[int, int], tile: tuple[int, int], said: str
) -> None:
    values = {"image_height": image[0], "image_width": image[1], "tile_height": tile[0], "tile_width": tile[1]}
    with pytest.raises(UsageError, match=said) as caught:
        make_record(Tiling, values)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("overlap", [-0.1, 0.8, math.nan])
def test_an_overlap_that_leaves_no_way_forward_is_refused(overlap: float) -> None:
    values = {"image_height": 96, "image_width": 96, "tile_height": 32, "tile_width": 32, "overlap": overlap}
    with pytest.raises(UsageError, match="overlap"):
        make_record(Tiling, values)
