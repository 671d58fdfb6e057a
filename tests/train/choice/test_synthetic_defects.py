from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.train.choice.structural_defects import STRUCTURAL
from vae_edge.train.choice.synthetic_defects import (
    _LEAST_CHANGE,
    CONTRASTS,
    KINDS,
    SIZES,
    Pasted,
    paste_defect,
    paste_defects,
    turn,
)

N_VARIANTS = 22
"""On 12 pictures: each combination of kind, size and contrast twice."""


def textured(n: int, size: int = 64) -> NDArray[np.uint8]:
    """Smooth pictures that differ, with a fine grain, uint8 [n, size, size, 3]."""
    rows, columns = np.mgrid[:size, :size] / size
    grain = np.random.default_rng(0).normal(0, 4, (n, size, size, 1))
    smooth = [
        np.stack([120 + 60 * np.sin(5 * rows + i) * np.cos(4 * columns + c) for c in range(3)], axis=-1)
        for i in range(n)
    ]
    return np.clip(np.rint(np.stack(smooth) + grain), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return textured(12)


@pytest.fixture(scope="module")
def pasted(images: NDArray[np.uint8]) -> Pasted:
    """Every kind in every size several times."""
    return paste_defects(images, N_VARIANTS)


def of_kind(pasted: Pasted, kind: str) -> NDArray[np.int64]:
    return np.flatnonzero([each.split("-")[0] == kind for each in pasted.kinds])


def test_a_defect_changes_its_mask_alone_and_is_there(pasted: Pasted, images: NDArray[np.uint8]) -> None:
    sources = images[list(pasted.sources)]
    changed = np.abs(pasted.images.astype(int) - sources).max(axis=-1)
    assert not (changed > 0)[~pasted.masks].any()
    assert ((changed >= _LEAST_CHANGE) & pasted.masks).sum(axis=(1, 2)).min() >= 4
    assert pasted.masks.any(axis=(1, 2)).all()


@pytest.mark.parametrize("kind", ["blob", "scratch", "patch", "stain"])
def test_the_mask_of_a_drawn_defect_is_what_changed(kind: str, pasted: Pasted, images: NDArray[np.uint8]) -> None:
    chosen = of_kind(pasted, kind)
    changed = (pasted.images[chosen] != images[list(pasted.sources)][chosen]).any(axis=-1)
    np.testing.assert_array_equal(changed, pasted.masks[chosen])


@pytest.mark.parametrize("kind", ["smear", "grain"])
def test_the_mask_of_another_texture_is_one_place_and_not_only_the_pixels_that_differ(
    kind: str, pasted: Pasted, images: NDArray[np.uint8]
) -> None:
    chosen = of_kind(pasted, kind)
    changed = (pasted.images[chosen] != images[list(pasted.sources)][chosen]).any(axis=-1)
    masks = pasted.masks[chosen]
    assert (changed.sum(axis=(1, 2)) <= masks.sum(axis=(1, 2))).all()
    assert (masks & ~changed).any(), "some pixel of the place happens to keep its value"


def test_strengths_reach_from_hardly_visible_to_plain(pasted: Pasted, images: NDArray[np.uint8]) -> None:
    strength = np.abs(pasted.images.astype(int) - images[list(pasted.sources)]).max(axis=(1, 2, 3))
    assert strength.min() < 20
    assert strength.max() > 60


def test_every_kind_comes_in_every_size_equally_often(pasted: Pasted) -> None:
    counts = Counter(pasted.strata)
    assert counts.keys() == {f"{kind} {size}" for kind in KINDS for size in SIZES}
    assert set(counts.values()) == {len(pasted.strata) // (len(KINDS) * len(SIZES))}
    kinds = Counter(kind.split("-")[0] for kind in pasted.kinds)
    assert kinds.keys() == set(KINDS)


@pytest.mark.parametrize("kind", ["blob", "stain", "grain", "smear"])
def test_the_sizes_are_larger_and_larger(kind: str, pasted: Pasted) -> None:
    strata = np.array(pasted.strata)
    areas = [float(pasted.masks[strata == f"{kind} {size}"].mean()) for size in SIZES]
    assert areas == sorted(areas)
    assert areas[-1] > 10 * areas[0]
    assert areas[-1] < 0.6


def test_a_defect_is_made_from_the_picture_it_names(pasted: Pasted, images: NDArray[np.uint8]) -> None:
    assert pasted.sources == tuple(i for i in range(12) for _ in range(N_VARIANTS))
    assert [int(kind.split("-")[1]) for kind in pasted.kinds] == list(range(N_VARIANTS)) * 12


def test_another_seed_gives_other_defects_and_the_same_one_the_same(images: NDArray[np.uint8], pasted: Pasted) -> None:
    again = paste_defects(images, N_VARIANTS)
    np.testing.assert_array_equal(again.images, pasted.images)
    other = paste_defects(images, N_VARIANTS, seed=1)
    assert (other.images != pasted.images).any(axis=(1, 2, 3)).mean() > 0.99


def test_equal_pictures_at_other_places_of_the_set_still_get_their_own_defects(images: NDArray[np.uint8]) -> None:
    alone = paste_defects(images, 1)
    assert len({each.tobytes() for each in alone.images}) == 12


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("size", [(32, 32), (32, 96)])
def test_defects_show_on_black_and_on_white_and_on_a_single_plain_picture(level: int, size: tuple[int, int]) -> None:
    plain = np.full((1, *size, 3), level, dtype=np.uint8)
    pasted = paste_defects(plain, len(KINDS) * len(SIZES))
    assert pasted.masks.any(axis=(1, 2)).all()
    assert (np.abs(pasted.images.astype(int) - level).max(axis=(1, 2, 3)) >= _LEAST_CHANGE).all()


def test_the_defects_of_a_grey_camera_are_grey() -> None:
    grey = np.repeat(textured(4)[..., :1], 3, axis=-1)
    made = paste_defects(grey, 33).images
    assert (made == made[..., :1]).all()


def test_a_short_row_of_defects_has_about_as_many_of_each_kind_size_and_contrast() -> None:
    whole = len(KINDS) * len(SIZES) * len(CONTRASTS)
    assert len({turn(position) for position in range(whole)}) == whole
    for column in range(3):
        counts = Counter(turn(position)[column] for position in range(32))
        assert max(counts.values()) - min(counts.values()) <= 1


def scene(n: int = 4, side: int = 96) -> NDArray[np.uint8]:
    """Grey plates with dark strokes on them, each in another place, uint8 [n, side, side, 3]."""
    made = np.full((n, side, side, 3), 150, dtype=np.uint8)
    random = np.random.default_rng(3)
    for picture in made:
        for _ in range(14):
            row, column = random.integers(5, side - 25, 2)
            picture[row : row + 3, column : column + 20] = 40
            picture[row : row + 12, column : column + 3] = 40
    return made


@pytest.mark.parametrize("kind", STRUCTURAL)
def test_a_change_of_structure_is_local_and_plain_at_full_contrast(kind: str) -> None:
    images = scene()
    for variant in range(4):
        found = paste_defect(images, variant, kind, 0.2, 0.5, variant=variant)
        assert found.kind == kind
        rows, columns = np.nonzero(found.mask)
        assert max(np.ptp(rows), np.ptp(columns)) <= 0.45 * 96
        changed = np.abs(found.image.astype(int) - images[variant])[found.mask].max(axis=-1)
        assert np.percentile(changed, 95) > 30


def test_a_missing_piece_leaves_its_surroundings_and_an_extra_one_brings_what_lies_elsewhere() -> None:
    images = scene()
    dark = [int((image < 90).all(axis=-1).sum()) for image in images]
    fewer, more = 0, 0
    for variant in range(8):
        source = variant % 4
        gone = paste_defect(images, source, "missing", 0.25, 0.5, variant=variant).image
        new = paste_defect(images, source, "extra", 0.25, 0.5, variant=variant).image
        fewer += int((gone < 90).all(axis=-1).sum()) < dark[source]
        more += int((new < 90).all(axis=-1).sum()) > dark[source]
    assert fewer == 8
    assert more >= 4


@pytest.mark.parametrize("kind", ["warp", "missing"])
def test_where_a_change_of_structure_would_not_show_a_blob_takes_its_place(kind: str) -> None:
    plain = np.full((2, 64, 64, 3), 120, dtype=np.uint8)
    assert paste_defect(plain, 0, kind, 0.2, 0.25).kind == "blob"
    grain = np.random.default_rng(0).integers(110, 131, (2, 64, 64, 1)).astype(np.uint8).repeat(3, axis=-1)
    assert paste_defect(grain, 0, kind, 0.2, 0.5).kind == "blob"


def test_a_warp_does_not_fold_the_picture() -> None:
    ramp = np.broadcast_to(2 * np.arange(96, dtype=np.uint8)[None, :, None], (96, 96, 3)).copy()
    for seed in range(6):
        moved, strength = STRUCTURAL["warp"](ramp, ramp, 48, 0.5, np.random.default_rng(seed))
        assert strength.max() == 1
        # Away from the border, beyond which the picture is mirrored.
        assert np.diff(moved[20:76, 20:76, 0], axis=1).min() > -0.5
