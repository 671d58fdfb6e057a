from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.errors import InputError
from vae_edge.prediction import Prediction


def make_prediction(*, anomalous: bool = True) -> Prediction:
    anomaly_map = np.zeros((32, 32), dtype=np.float32)
    anomaly_map[8:16, 8:16] = 2.0
    return Prediction(2.0, 0.01, 1.0, anomalous, anomaly_map, pixel_threshold=1.0)


def test_the_mask_is_what_lies_above_the_pixel_threshold() -> None:
    mask = make_prediction().mask
    assert mask.dtype == np.bool_
    assert mask.sum() == 64
    assert mask[8:16, 8:16].all()


@pytest.mark.parametrize("shape", [(48, 64), (48, 64, 1), (480, 640, 3), (31, 17, 4), (32, 32, 3), (2000, 300)])
def test_an_overlay_has_the_size_of_the_picture_and_leaves_the_picture_alone(shape: tuple[int, ...]) -> None:
    image: NDArray[np.uint8] = np.full(shape, 100, dtype=np.uint8)
    overlay = make_prediction().overlay(image)
    assert overlay.shape == (*shape[:2], 3)
    assert overlay.dtype == np.uint8
    assert (image == 100).all()


def test_an_overlay_of_a_12_bit_picture_is_as_bright_as_the_picture() -> None:
    image = np.full((48, 64), 4095, dtype=np.uint16)
    assert make_prediction().overlay(image, white_level=4095)[-1, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_picture_of_a_few_pixels_can_be_drawn_over(size: int) -> None:
    assert make_prediction().overlay(np.zeros((size, size, 3), dtype=np.uint8)).shape == (size, size, 3)


def test_where_nothing_is_found_the_picture_stays_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    overlay = make_prediction().overlay(image)
    assert np.array_equal(overlay[160:], image[160:])
    assert not np.array_equal(overlay[64:128, 64:128], image[64:128, 64:128])


def test_the_outline_is_red_for_anomalous_and_yellow_for_normal() -> None:
    image = np.zeros((256, 256, 3), dtype=np.uint8)
    red = make_prediction(anomalous=True).overlay(image)
    yellow = make_prediction(anomalous=False).overlay(image)
    assert (red == (230, 40, 40)).all(axis=2).any()
    assert (yellow == (240, 200, 40)).all(axis=2).any()


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1e30])
def test_any_pixel_threshold_can_be_drawn(threshold: float) -> None:
    base = make_prediction()
    prediction = Prediction(2.0, 0.01, 1.0, True, base.anomaly_map, pixel_threshold=threshold)
    assert prediction.overlay(np.zeros((64, 64, 3), dtype=np.uint8)).shape == (64, 64, 3)


@pytest.mark.parametrize("image", [np.zeros((4, 4), dtype=np.float32), np.zeros((0, 4, 3), dtype=np.uint8), "a.png"])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(InputError, match="expected"):
        make_prediction().overlay(image)
