"""What the report says of the pictures' sizes; what it leaves out and names is in test_inspection_set.py."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from vae_edge.train.data.inspection_set import open_inspection_set
from vae_edge.train.data.report import SIDE, DataReport, check_inspection_set, measure_traits


def report_of(folder: Path, sizes: list[tuple[int, int]]) -> DataReport:
    random = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        assert cv2.imwrite(str(folder / f"{number}.png"), random.integers(0, 255, (*size, 3), dtype=np.uint8))
    return check_inspection_set(open_inspection_set(folder))[1]


def test_equal_pictures_are_typical_themselves(tmp_path: Path) -> None:
    report = report_of(tmp_path, [(40, 72)] * 9)
    assert report.typical_size == (40, 72)
    assert report.aspect_spread == pytest.approx(1)


def test_the_typical_size_has_the_median_area_and_the_median_aspect(tmp_path: Path) -> None:
    report = report_of(tmp_path, [(20, 40), (40, 80), (40, 80), (40, 80), (400, 800)])
    assert report.typical_size == (40, 80)
    assert report.aspect_spread == pytest.approx(1)
    assert (report.smallest_size, report.largest_size) == ((20, 40), (400, 800))


def test_pictures_upright_and_lying_make_a_square_and_spread_their_aspects(tmp_path: Path) -> None:
    report = report_of(tmp_path, [(40, 90)] * 5 + [(90, 40)] * 5)
    assert report.typical_size == (60, 60)
    assert report.aspect_spread == pytest.approx((90 / 40) ** 2, rel=1e-3)


def test_a_single_odd_picture_in_twenty_does_not_spread_the_aspects(tmp_path: Path) -> None:
    assert report_of(tmp_path, [(50, 50)] * 20 + [(32, 320)]).aspect_spread == pytest.approx(1)


ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)


def images(*values: NDArray[np.float64]) -> NDArray[np.uint8]:
    stacked = np.clip(np.rint(np.stack(values)), 0, 255).astype(np.uint8)
    return np.repeat(stacked[..., None], 3, axis=3)


def part(seed: int) -> NDArray[np.float64]:
    """The same shapes at the same place, with noise of its own."""
    shape = 100 + 60 * ((ROWS - 48) ** 2 + (COLUMNS - 40) ** 2 < 600) + 40 * (COLUMNS > 70)
    return np.asarray(shape + np.random.default_rng(seed).normal(0, 3, shape.shape))


def surface(seed: int) -> NDArray[np.float64]:
    """A texture that lies elsewhere in each picture."""
    random = np.random.default_rng(seed)
    angle, phase = random.uniform(0, np.pi), random.uniform(0, 6)
    wave = np.sin((COLUMNS * np.cos(angle) + ROWS * np.sin(angle)) / 2.5 + phase)
    return np.asarray(120 + 30 * wave + random.normal(0, 3, wave.shape))


def test_parts_at_the_same_place_are_aligned_and_surfaces_are_not() -> None:
    parts = measure_traits(images(*(part(seed) for seed in range(20))))
    surfaces = measure_traits(images(*(surface(seed) for seed in range(20))))
    assert parts.is_aligned
    assert not surfaces.is_aligned
    assert abs(surfaces.alignment) < 0.2


def test_a_lamp_that_all_pictures_share_is_no_alignment() -> None:
    fall = np.linspace(-60, 60, SIDE)[None]
    assert not measure_traits(images(*(surface(seed) + fall for seed in range(20)))).is_aligned


@pytest.mark.parametrize("draw", [part, surface])
def test_light_that_differs_is_told_from_light_that_does_not(draw: object) -> None:
    assert callable(draw)
    steady = [draw(seed) for seed in range(20)]
    assert measure_traits(images(*steady)).has_steady_light
    random = np.random.default_rng(0)
    brighter = [each + random.normal(0, 15) for each in steady]
    assert not measure_traits(images(*brighter)).has_steady_light
    stronger = [120 + (each - 120) * random.uniform(0.4, 1.6) for each in steady]
    assert not measure_traits(images(*stronger)).has_steady_light


def test_changing_light_does_not_hide_that_parts_are_aligned() -> None:
    random = np.random.default_rng(0)
    lit = [30 + (part(seed) - 30) * random.uniform(0.5, 1.1) for seed in range(20)]
    assert measure_traits(images(*lit)).is_aligned


def test_blank_pictures_are_equal_and_nothing_is_divided_by_nothing() -> None:
    traits = measure_traits(np.full((4, SIDE, SIDE, 3), 90, dtype=np.uint8))
    assert traits.alignment == pytest.approx(1, abs=0.5)
    assert traits.has_steady_light
