"""The resizing within the graph is OpenCV's, to the last value."""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13

from vae_edge.export.model_api.opencv_resize import resize_as_opencv
from vae_edge.image import Preparation, prepare

Resize = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

FUSES = platform.machine().lower() in ("aarch64", "arm64")
"""Whether OpenCV is compiled so that a product and a sum are rounded once."""


def resizer(height: int, width: int) -> Resize:
    picture = opset13.parameter([1, -1, -1, 3], openvino.Type.u8, name="image")
    resized = resize_as_opencv(picture, height, width)
    assert list(resized.output(0).shape) == [1, height, width, 3]
    compiled = openvino.Core().compile_model(
        openvino.Model([opset13.result(resized)], [picture], "resize"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda image: np.asarray(compiled(image[None])[0][0], dtype=np.uint8)


def check(resize: Resize, image: NDArray[np.uint8], height: int, width: int) -> None:
    expected = prepare(image, Preparation(height=height, width=width))
    difference = np.abs(resize(image).astype(int) - expected)
    if FUSES:
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-2
    else:
        assert not difference.any(), f"{image.shape[:2]}: {(difference > 0).sum()} values differ"


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(48, 40), (32, 64), (100, 60)])
def test_pictures_of_many_sizes_come_out_as_opencv_resizes_them(height: int, width: int) -> None:
    resize = resizer(height, width)
    sides = np.random.default_rng(1)
    sizes = [(int(sides.integers(1, 4 * height)), int(sides.integers(1, 4 * width))) for _ in range(60)]
    for seed, size in enumerate(sizes):
        check(resize, noise(*size, seed=seed), height, width)


@pytest.mark.parametrize(
    "size",
    [
        (50, 60),  # as it is
        (100, 120),  # blocks of 2 x 2, whose halves OpenCV rounds upwards
        (150, 180),
        (200, 240),  # blocks of 4 x 4, whose halves go to even
        (100, 60),  # one side by 2
        (100, 240),  # whole numbers, but not the same
        (60, 72),  # 6 / 5: one value in 36 lies halfway, and 1 / 5 is no binary number
        (75, 90),  # 3 / 2
        (51, 61),
        (49, 59),  # both grow by a pixel
        (25, 30),
        (25, 90),  # one grows, one shrinks
        (1, 1),
        (1, 500),
        (700, 2),
    ],
)
def test_ratios_with_rules_of_their_own(size: tuple[int, int]) -> None:
    resize = resizer(50, 60)
    for seed in range(3):
        check(resize, noise(*size, seed=seed), 50, 60)


def test_black_and_white_stay_what_they_are() -> None:
    resize = resizer(50, 60)
    for size in ((77, 93), (20, 200), (13, 17)):
        for value in (0, 255):
            assert (resize(np.full((*size, 3), value, dtype=np.uint8)) == value).all()


def test_slivers_of_a_pixel_are_left_out_as_in_opencv() -> None:
    # A new row that reaches less than a thousandth into an old one: only where there are more than 1000 of them.
    check(resizer(1100, 32), noise(1101, 33), 1100, 32)


def test_a_model_of_the_largest_size_takes_a_large_picture() -> None:
    check(resizer(4096, 32), noise(4500, 40), 4096, 32)
    check(resizer(4096, 32), noise(4000, 40), 4096, 32)
    check(resizer(32, 32), noise(9001, 31), 32, 32)
