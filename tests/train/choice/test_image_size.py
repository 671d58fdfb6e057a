from __future__ import annotations

import pytest

from vae_edge.errors import UsageError
from vae_edge.records import make_record
from vae_edge.train.choice.image_size import (
    MOST_PIXELS,
    MOST_PIXELS_WHOLE,
    check_request,
    choose_image_size,
    choose_tiling,
    resolve_size,
)
from vae_edge.train.loop.settings import SizeRequest
from vae_edge.train.model.input_settings import Tiling
from vae_edge.train.model.presets import SMALLEST_SIDE, check_image_size

SIZES = [(64, 64), (100, 100), (200, 320), (256, 256), (700, 700), (900, 900), (1024, 1024), (480, 1920), (3000, 4000)]
STEP = 16


@pytest.mark.parametrize("typical", SIZES)
def test_the_aspect_is_kept_up_to_the_rounding_of_the_sides(typical: tuple[int, int]) -> None:
    height, width = choose_image_size(typical)
    scale = height / typical[0]
    # Half a step up or down on either side.
    assert abs(typical[1] * scale - width) <= STEP / 2 * (1 + typical[1] / typical[0])


@pytest.mark.parametrize("typical", SIZES)
def test_an_image_is_never_enlarged_and_keeps_to_the_budget(typical: tuple[int, int]) -> None:
    size = choose_image_size(typical)
    assert all(side % STEP == 0 for side in size)
    for side, given in zip(size, typical, strict=True):
        assert side <= given + STEP / 2
    assert (size[0] - STEP / 2) * (size[1] - STEP / 2) <= MOST_PIXELS
    if typical[0] * typical[1] <= MOST_PIXELS:
        assert size == tuple(round(side / STEP) * STEP for side in typical)


def test_a_large_image_uses_its_budget() -> None:
    height, width = choose_image_size((3000, 4000))
    assert height * width > 0.9 * MOST_PIXELS


@pytest.mark.parametrize("typical", [(8, 8), (10, 4000), (4000, 10)])
def test_a_tiny_or_a_narrow_image_still_fits_the_network(typical: tuple[int, int]) -> None:
    assert min(choose_image_size(typical)) == SMALLEST_SIDE


@pytest.mark.parametrize("typical", SIZES)
def test_the_tiles_fit_the_network_and_the_image(typical: tuple[int, int]) -> None:
    tiling = choose_tiling(choose_image_size(typical))
    check_image_size(tiling.tile_height, tiling.tile_width)
    assert (tiling.image_height, tiling.image_width) == choose_image_size(typical)


@pytest.mark.parametrize(("shorter", "tile"), [(96, 64), (256, 64), (352, 64), (368, 128), (512, 128), (1024, 256)])
def test_a_tile_is_about_a_quarter_of_the_shorter_side(shorter: int, tile: int) -> None:
    for size in ((shorter, shorter), (shorter, 2 * shorter), (2 * shorter, shorter)):
        tiling = choose_tiling(size)
        assert (tiling.tile_height, tiling.tile_width) == (tile, tile)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (64, 320), (80, 80)])
def test_an_image_that_would_leave_nothing_in_a_tile_is_not_cut(size: tuple[int, int]) -> None:
    assert choose_tiling(size).n_tiles == 1


def test_what_was_asked_for_is_taken() -> None:
    assert resolve_size(SizeRequest(image=(128, 96), tiles="none"), (500, 500), is_aligned=False) == Tiling.whole(
        128, 96
    )
    asked = resolve_size(SizeRequest(image=(128, 96), tiles=32, overlap=0.5), (500, 500), is_aligned=True)
    assert (asked.tile_height, asked.tile_width, asked.overlap) == (32, 32, 0.5)
    assert asked.columns == (0, 16, 32, 48, 64)
    chosen = resolve_size(SizeRequest(), (320, 320), is_aligned=False)
    assert (chosen.image_height, chosen.image_width, chosen.tile_height) == (320, 320, 64)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (SizeRequest(image=(60, 64), tiles="none"), "60x64, the network halves it"),
        (SizeRequest(image=(64, 64), tiles=128), "the tiles are 128x128 and the image is 64x64"),
        (SizeRequest(image=(128, 128), tiles=50), "the image size is 50x50"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_the_numbers(request_: SizeRequest, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_size(request_, (128, 128), is_aligned=False)


@pytest.mark.parametrize("typical", [(64, 64), (100, 100), (128, 128), (200, 320), (256, 256), (128, 500)])
def test_aligned_parts_are_left_whole_at_a_size_that_fits_the_network(typical: tuple[int, int]) -> None:
    tiling = resolve_size(SizeRequest(), typical, is_aligned=True)
    assert tiling.n_tiles == 1
    check_image_size(tiling.image_height, tiling.image_width)
    for side, given in zip((tiling.image_height, tiling.image_width), typical, strict=True):
        assert side <= given + STEP / 2
    assert tiling.image_height * tiling.image_width <= 1.1 * MOST_PIXELS_WHOLE


@pytest.mark.parametrize(("typical", "n_tiles"), [((256, 256), 1), ((128, 512), 1), ((272, 272), 36), ((900, 900), 16)])
def test_a_picture_that_would_have_to_be_shrunk_much_is_cut_even_where_parts_are_aligned(
    typical: tuple[int, int], n_tiles: int
) -> None:
    assert resolve_size(SizeRequest(), typical, is_aligned=True).n_tiles == n_tiles


def test_aligned_parts_are_cut_all_the_same_where_the_size_asked_for_does_not_fit_whole() -> None:
    asked = SizeRequest(image=(144, 144))
    assert resolve_size(asked, (500, 500), is_aligned=True).n_tiles > 1
    fits = SizeRequest(image=(128, 128))
    assert resolve_size(fits, (500, 500), is_aligned=True).n_tiles == 1
    assert resolve_size(fits, (500, 500), is_aligned=False).n_tiles > 1


def test_a_request_that_can_never_fit_is_refused_before_an_image_is_read() -> None:
    check_request(SizeRequest(image=(128, 128)))
    check_request(SizeRequest(tiles=64))
    with pytest.raises(UsageError, match="not larger"):
        check_request(SizeRequest(image=(64, 64), tiles=128))


@pytest.mark.parametrize("values", [{"tiles": "some"}, {"overlap": 0.9}, {"overlap": -0.1}])
def test_a_request_out_of_range_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        make_record(SizeRequest, values)
