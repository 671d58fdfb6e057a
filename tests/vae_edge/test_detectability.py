from __future__ import annotations

import pytest

from vae_edge.detectability import CONTRASTS, Contrast, Detectability, FoundByKind, FoundBySize, found_text

SIZES = (0.01, 0.04, 0.16)


def table(**found: tuple[int, int, int]) -> Detectability:
    """A table of which so many of 10 are found at each of the three sizes, by contrast; none where nothing is given."""
    return Detectability(
        height=256,
        width=320,
        threshold=1.0,
        normals="good parts that set the threshold",
        n_normals=24,
        n_false_alarms=1,
        by_size=tuple(
            FoundBySize(size=size, contrast=contrast, n=10, n_found=n_found)
            for contrast in CONTRASTS
            for size, n_found in zip(SIZES, found.get(contrast, (0, 0, 0)), strict=True)
        ),
        by_kind=(FoundByKind(kind="blob", size=0.04, n=4, n_found=3),),
    )


@pytest.mark.parametrize(
    ("found", "seen"),
    [
        ((9, 9, 9), 0.01),
        ((4, 5, 9), 0.04),
        ((9, 4, 9), 0.16),  # A smaller size that happens to be found proves nothing beside a larger one that is not.
        ((9, 9, 4), None),
    ],
)
def test_a_size_is_seen_where_half_of_it_and_of_every_larger_one_is_found(
    found: tuple[int, int, int], seen: float | None
) -> None:
    for contrast in CONTRASTS:
        assert table(**{contrast: found}).seen_from(contrast) == seen


def test_a_model_is_blind_where_it_misses_what_is_plain_and_not_small_and_says_from_where_on_it_sees() -> None:
    assert table(high=(0, 9, 9)).blindness() is None
    large = table(high=(0, 4, 9)).blindness()
    assert large is not None
    assert "defects below 16 % (41 px) of the shorter side are invisible" in large
    none = table(high=(9, 9, 0)).blindness()
    assert none is not None
    assert "even defects of 16 % (41 px)" in none


def test_a_table_says_in_a_sentence_what_is_found() -> None:
    found = table(high=(6, 9, 10), medium=(0, 5, 9))
    assert found.headline() == (
        "at least half of the pasted defects are found from 1 % (3 px) on at high contrast, from 4 % (10 px) on at "
        "medium contrast, at no size at low contrast; sizes of the shorter side"
    )
    assert found_text(found.at(0.04, "medium")) == "50 % (5/10)"
    assert found_text(found.of_kind("blob", 0.04)) == "75 % (3/4)"
    assert found_text(found.of_kind("blob", 0.16)) == "-"
    assert (found.n, found.n_found, found.sizes, found.kinds) == (90, 39, SIZES, ("blob",))


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_more_found_than_there_are_is_refused(contrast: Contrast) -> None:
    with pytest.raises(ValueError, match="more defects are found than there are"):
        table(**{contrast: (11, 0, 0)})


def test_a_table_survives_its_json() -> None:
    found = table(high=(1, 2, 3))
    assert Detectability.model_validate_json(found.model_dump_json()) == found
