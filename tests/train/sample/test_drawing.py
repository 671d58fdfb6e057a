"""Images of the sample set: deterministic, truthful masks, any size."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from vae_edge.errors import InputError
from vae_edge.train.sample import DEFAULT_PRODUCT, PRODUCTS, SampleSettings, defect_kinds, draw_defective, draw_normal
from vae_edge.train.sample.canvas import text_strokes

SMALL = SampleSettings(image_size=64)
EVERY_DEFECT = [(product, kind) for product in PRODUCTS for kind in defect_kinds(product)]


def test_there_are_three_products_with_five_kinds_of_defect_or_more() -> None:
    assert len(PRODUCTS) >= 3
    assert PRODUCTS[0] == DEFAULT_PRODUCT
    for product in PRODUCTS:
        kinds = defect_kinds(product)
        assert len(kinds) >= 5
        assert kinds == tuple(sorted(set(kinds)))
        assert "good" not in kinds


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_same_seed_draws_the_same_pixels(product: str) -> None:
    first = draw_normal(product, 3, SMALL)
    # Other draws in between must leave no trace: there is no shared random state.
    draw_normal(product, 4, SMALL)
    np.random.default_rng(0).random()
    assert np.array_equal(first, draw_normal(product, 3, SMALL))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8


@pytest.mark.parametrize("product", PRODUCTS)
def test_index_split_and_seed_each_change_the_image(product: str) -> None:
    images = [
        draw_normal(product, 0, SMALL),
        draw_normal(product, 1, SMALL),
        draw_normal(product, 0, SMALL, split="test"),
        draw_normal(product, 0, SampleSettings(seed=1, image_size=64)),
    ]
    assert len({hashlib.sha256(image.tobytes()).hexdigest() for image in images}) == len(images)


@pytest.mark.parametrize("product", PRODUCTS)
def test_counts_do_not_change_an_image(product: str) -> None:
    more = SampleSettings(image_size=64, n_train=9, n_test_good=9, n_test_per_defect=9)
    assert np.array_equal(draw_normal(product, 2, SMALL), draw_normal(product, 2, more))


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_number_of_opencv_threads_does_not_change_an_image(product: str) -> None:
    before = cv2.getNumThreads()
    try:
        images = []
        for n in (1, 2):
            cv2.setNumThreads(n)
            images.append(draw_normal(product, 0, SMALL))
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(images[0], images[1])


@pytest.mark.parametrize(("product", "kind"), EVERY_DEFECT)
def test_outside_the_mask_a_defective_part_equals_its_clean_twin(product: str, kind: str) -> None:
    drawing = draw_defective(product, kind, 0, SMALL)
    outside = drawing.mask == 0
    assert outside.any()
    assert np.array_equal(drawing.image[outside], drawing.clean[outside])


@pytest.mark.parametrize(("product", "kind"), EVERY_DEFECT)
def test_inside_the_mask_nearly_every_pixel_differs_from_the_clean_twin(product: str, kind: str) -> None:
    drawing = draw_defective(product, kind, 1, SMALL)
    inside = drawing.mask == 255
    assert set(np.unique(drawing.mask)) == {0, 255}
    assert drawing.mask.dtype == np.uint8
    assert inside.sum() >= 1
    differs = (drawing.image[inside] != drawing.clean[inside]).any(axis=1)
    assert differs.mean() > 0.9


@pytest.mark.parametrize(("product", "kind"), EVERY_DEFECT)
def test_a_defect_stays_small_beside_the_part(product: str, kind: str) -> None:
    drawing = draw_defective(product, kind, 2, SMALL)
    assert (drawing.mask > 0).mean() < 0.12


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_defective_part_is_drawn_alike_twice(product: str) -> None:
    kind = defect_kinds(product)[0]
    first, second = draw_defective(product, kind, 5, SMALL), draw_defective(product, kind, 5, SMALL)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_image_keeps_its_content_at_another_size(product: str) -> None:
    large = draw_normal(product, 0, SampleSettings(image_size=192))
    small = draw_normal(product, 0, SampleSettings(image_size=96))
    reduced = cv2.resize(large, (96, 96), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced.astype(int) - small.astype(int)).mean() < 6


def test_a_scratch_is_a_hairline() -> None:
    settings = SampleSettings(image_size=256)
    for index in range(2):
        mask = draw_defective(DEFAULT_PRODUCT, "scratch", index, settings).mask
        # The widest place of the mask, twice the distance to the nearest pixel outside; the lens adds a pixel or two.
        assert 2 * cv2.distanceTransform(mask, cv2.DIST_L2, 5).max() < 9


def test_the_light_never_burns_the_image_out() -> None:
    for product in PRODUCTS:
        assert (draw_normal(product, 0, SMALL) == 255).mean() < 0.05


def test_an_unknown_product_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(InputError, match=r"'teapot'.*dial, board, fabric"):
        draw_normal("teapot", 0, SMALL)
    with pytest.raises(InputError, match=r"'teapot'.*dial, board, fabric"):
        defect_kinds("teapot")


def test_an_unknown_kind_split_or_index_is_refused() -> None:
    with pytest.raises(InputError, match=r"no defect 'rust'.*scratch"):
        draw_defective(DEFAULT_PRODUCT, "rust", 0, SMALL)
    with pytest.raises(InputError, match=r"'validation'.*train, test"):
        draw_normal(DEFAULT_PRODUCT, 0, SMALL, split="validation")
    with pytest.raises(InputError, match=r"index is -1"):
        draw_normal(DEFAULT_PRODUCT, -1, SMALL)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 63}, "image_size is 63, expected an integer from 64 to 1024"),
        ({"image_size": 1025}, "image_size is 1025"),
        ({"n_train": 0}, "n_train is 0, expected an integer from 1 to 1000000"),
        ({"n_test_good": True}, "n_test_good is True"),
        ({"n_test_per_defect": 2.5}, r"n_test_per_defect is 2\.5"),
        ({"seed": -1}, "seed is -1, expected an integer of 0 or more"),
    ],
)
def test_settings_that_cannot_be_drawn_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SampleSettings(**values)


def test_importing_the_sample_set_loads_no_torch() -> None:
    code = "import sys, vae_edge.train.sample; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("text", ["0123456789", "ABCDEFGIJKLMNOPRSTUVX", "-./+ "])
def test_lettering_stays_within_its_height(text: str) -> None:
    strokes = [np.asarray(stroke) for stroke in text_strokes(text)]
    points = np.concatenate(strokes)
    assert np.abs(points[:, 1]).max() <= 0.5
    assert np.abs(points[:, 0]).max() <= len(text) / 2
    assert all(len(stroke) >= 2 for stroke in strokes)
