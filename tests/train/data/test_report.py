"""What the report says of the pictures' sizes; what it leaves out and names is in test_inspection_set.py."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from vae_edge.train.data.inspection_set import open_inspection_set
from vae_edge.train.data.report import DataReport, check_inspection_set


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
