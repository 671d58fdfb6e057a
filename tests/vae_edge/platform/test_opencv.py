from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest

from vae_edge.cli.doctor import describe_opencv
from vae_edge.doctor import opencv_fix
from vae_edge.platform.machine import Jetson, look_at_machine
from vae_edge.platform.opencv import OpenCv, folders_with_cv2, look_at_opencv

WHEEL = OpenCv("4.8.1", "/venv/site-packages", "opencv-python-headless 4.8.1.78", False, "/usr/dist-packages", "1.26.4")
SYSTEM = OpenCv("4.8.0", "/usr/dist-packages", None, True, None, "1.26.4")
JETSON = replace(look_at_machine(), jetson=Jetson("36.4.0"))


def test_the_opencv_in_use_is_described() -> None:
    found = look_at_opencv()
    assert found.version == cv2.__version__
    assert Path(cv2.__file__).is_relative_to(found.folder)
    if found.wheel is not None:
        assert found.wheel.startswith("opencv-")
        assert not found.has_gstreamer  # No wheel has it.


def test_an_opencv_that_another_one_hides_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "system" / "cv2").mkdir(parents=True)
    (tmp_path / "empty" / "cv2").mkdir(parents=True)
    (tmp_path / "system" / "cv2" / "__init__.py").touch()
    assert folders_with_cv2([str(tmp_path / "empty"), str(tmp_path / "system")]) == [str(tmp_path / "system")]
    before = look_at_opencv()
    assert before.hidden != str(tmp_path / "system")
    monkeypatch.setattr(sys, "path", [before.folder, str(tmp_path / "system")])
    assert look_at_opencv().hidden == str(tmp_path / "system")


def test_on_a_jetson_a_wheel_that_hides_gstreamer_is_to_be_removed() -> None:
    assert opencv_fix(WHEEL, JETSON) == "pip uninstall -y opencv-python-headless"
    numpy_2 = replace(WHEEL, numpy="2.4.6")
    assert opencv_fix(numpy_2, JETSON) == "pip uninstall -y opencv-python-headless && pip install 'numpy<2'"
    assert opencv_fix(WHEEL, replace(JETSON, jetson=None)) is None
    assert opencv_fix(replace(WHEEL, hidden=None), JETSON) is None
    assert opencv_fix(SYSTEM, JETSON) is None


def test_an_opencv_of_the_system_that_is_too_old_is_named() -> None:
    assert not SYSTEM.is_too_old
    old = replace(SYSTEM, version="4.6.0")
    assert old.is_too_old
    assert "OpenCV 4.6.0 in /usr/dist-packages is too old" in (opencv_fix(old, JETSON) or "")
    assert not replace(old, version="5.0.0").is_too_old


def test_the_report_says_which_one_it_is_and_whether_it_has_gstreamer() -> None:
    assert describe_opencv(SYSTEM) == "4.8.0, not from pip, in /usr/dist-packages, with GStreamer"
    assert describe_opencv(WHEEL) == (
        "4.8.1, pip's opencv-python-headless 4.8.1.78, in /venv/site-packages, without GStreamer; "
        "hides the one in /usr/dist-packages"
    )
