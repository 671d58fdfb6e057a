from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.train.choice.synthetic_defects import _LEAST_CHANGE, KINDS, SIZES, Pasted, paste_defects


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
    return paste_defects(images, 20)


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
    assert pasted.sources == tuple(i for i in range(12) for _ in range(20))
    assert [int(kind.split("-")[1]) for kind in pasted.kinds] == list(range(20)) * 12


def test_another_seed_gives_other_defects_and_the_same_one_the_same(images: NDArray[np.uint8], pasted: Pasted) -> None:
    again = paste_defects(images, 20)
    np.testing.assert_array_equal(again.images, pasted.images)
    other = paste_defects(images, 20, seed=1)
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
    made = paste_defects(grey, 24).images
    assert (made == made[..., :1]).all()
