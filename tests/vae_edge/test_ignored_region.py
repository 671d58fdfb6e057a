from __future__ import annotations

import numpy as np
import pytest

from vae_edge.errors import UsageError
from vae_edge.ignored_region import IgnoredRegion, draw_region, kept_places, parse_polygon


def test_a_record_gives_its_mask_back_and_says_where_it_is() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random((7, 9)) < random.random()
        if 0 < mask.sum() < mask.size:
            region = IgnoredRegion.model_validate_json(IgnoredRegion.of_mask(mask).model_dump_json())
            np.testing.assert_array_equal(region.mask, mask)
            np.testing.assert_array_equal(region.kept, ~mask)
            assert region.share == pytest.approx(mask.mean())
    mask = np.zeros((10, 20), dtype=bool)
    mask[2:4, 5:15] = True
    assert IgnoredRegion.of_mask(mask).describe() == (
        "10.0% of the picture, within x 5 to 14 and y 2 to 3 of 20x10 (width x height)"
    )


def test_a_region_of_everything_or_nothing_and_a_record_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing is ignored"):
        IgnoredRegion.of_mask(np.zeros((4, 4), dtype=bool))
    with pytest.raises(UsageError, match="the whole picture is ignored"):
        IgnoredRegion.of_mask(np.ones((4, 4), dtype=bool))
    with pytest.raises(UsageError, match="expected at most 20000: smooth it"):
        IgnoredRegion.of_mask(np.indices((200, 200)).sum(axis=0) % 2 == 0)
    for runs in ((3, 4), (0, 16), (4, 0, 12), (-1, 17)):
        with pytest.raises(ValueError, match="ignored region"):
            IgnoredRegion(height=4, width=4, runs=runs)


def test_what_is_covered_by_more_than_half_is_ignored() -> None:
    # The edge lies at 0.4 of pixel 3 and at 0.6 of pixel 5.
    drawn = draw_region(8, 10, [((0.34, 0), (0.56, 0), (0.56, 1), (0.34, 1))])
    np.testing.assert_array_equal(drawn, np.tile(np.isin(np.arange(10), (3, 4, 5)), (8, 1)))
    mask = np.zeros((80, 100), dtype=bool)
    mask[:, 34:56] = True
    np.testing.assert_array_equal(draw_region(8, 10, (), mask), drawn)
    region = IgnoredRegion.of_mask(np.arange(64).reshape(8, 8) % 8 < 3)
    # Of a position of 4 pixels two columns of three, then none; half of it, of 2 pixels, is kept.
    np.testing.assert_array_equal(kept_places(region, 2, 2)[0], [False, True])
    np.testing.assert_array_equal(kept_places(region, 4, 4)[0], [False, True, True, True])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0,0 1,1", "has 2 points; expected 3 or more"),
        ("", "has 0 points"),
        ("0,0 1.2,0 1,1", "the point '1.2,0'; expected x,y"),
        ("0,0 -0.1,0 1,1", "the point '-0.1,0'"),
        ("0,0 a,b 1,1", "the point 'a,b'"),
        ("0,0 1 1,1", "the point '1'"),
        ("0,0 nan,1 1,1", "the point 'nan,1'"),
    ],
)
def test_a_polygon_that_is_none_is_refused_with_the_point(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_polygon(text)


def test_a_polygon_is_read_from_words() -> None:
    assert parse_polygon(" 0.1,0.2  0.4,0.2 0.4,0.6 ") == ((0.1, 0.2), (0.4, 0.2), (0.4, 0.6))
