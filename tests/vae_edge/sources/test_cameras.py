from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from vae_edge.errors import InputError
from vae_edge.sources import cameras, video
from vae_edge.sources.cameras import Camera, cameras_here, device_of, find_cameras, index_of, is_camera
from vae_edge.sources.opening import open_sources
from vae_edge.sources.video import open_capture, video_name


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """As Linux lists two cameras with two entries each, and one more."""
    for number, name, index in (
        (0, "HD Webcam: HD Webcam", 0),
        (1, "HD Webcam: HD Webcam", 1),
        (2, "Basler dart", 0),
        (10, "HD Pro Webcam", 0),
    ):
        entry = tmp_path / "video4linux" / f"video{number}"
        entry.mkdir(parents=True)
        (entry / "name").write_text(f"{name}\n")
        (entry / "index").write_text(f"{index}\n")
    return tmp_path / "video4linux"


def test_cameras_are_listed_once_in_the_order_of_their_numbers(system: Path) -> None:
    assert find_cameras(system) == [
        Camera("/dev/video0", "HD Webcam: HD Webcam"),
        Camera("/dev/video2", "Basler dart"),
        Camera("/dev/video10", "HD Pro Webcam"),
    ]
    assert cameras_here(system).startswith("the cameras here are /dev/video0 (HD Webcam: HD Webcam), /dev/video2 (Bas")


def test_without_video4linux_there_is_no_camera(tmp_path: Path) -> None:
    assert find_cameras(tmp_path / "none") == []
    assert cameras_here(tmp_path / "none") == "this system lists no camera"


@pytest.mark.parametrize(
    ("text", "device", "index"),
    [
        ("v4l:Basler dart", "/dev/video2", 2),
        ("v4l:basler", "/dev/video2", 2),
        ("v4l:HD Pro Webcam", "/dev/video10", 10),
        ("/dev/video7", "/dev/video7", 7),
    ],
)
def test_a_camera_is_found_by_a_part_of_its_name(system: Path, text: str, device: str, index: int) -> None:
    assert device_of(text, system) == device
    assert index_of(text, system) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v4l:webcam", r"fits 2 cameras: /dev/video0 .*, /dev/video10 .*; use the device"),
        (
            "v4l:Toaster",
            r"no camera is called 'Toaster'; the cameras here are /dev/video0 .*/dev/video2 \(Basler dart\)",
        ),
        ("v4l:", r"no camera is called ''"),
        ("/dev/v4l/by-id/usb-none", r"does not exist; the cameras here are"),
    ],
)
def test_a_name_that_does_not_lead_to_one_camera_is_an_error_with_the_cameras(
    system: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        index_of(text, system)


def test_what_is_a_camera() -> None:
    for text in ("0", "/dev/video0", "/dev/v4l/by-path/pci-0", "v4l:Basler", "gst:videotestsrc ! appsink"):
        assert is_camera(text)
    for text in ("/dev/video", "/dev/null", "a.mp4", "rtsp://camera/1", "video0"):
        assert not is_camera(text)


def test_a_camera_that_does_not_open_is_an_error_with_the_cameras(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "cameras_here", lambda: cameras_here(system))
    for address in ("/dev/video99", "99"):
        with pytest.raises(
            InputError, match=rf"camera {address} could not be opened; .*the cameras here are /dev/video0"
        ):
            open_sources([address])


def test_a_named_camera_is_opened_by_its_number(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[object, ...]] = []

    class Opened:
        def __init__(self, *given: object) -> None:
            opened.append(given)

        def isOpened(self) -> bool:
            return True

    monkeypatch.setattr(cv2, "VideoCapture", Opened)
    monkeypatch.setattr(video, "index_of", lambda text: cameras.index_of(text, system))
    open_capture("v4l:basler")
    open_capture("/dev/video3")
    assert opened == [(2, cv2.CAP_V4L2), (3, cv2.CAP_V4L2)]


def test_names_of_cameras_are_names_for_files() -> None:
    assert video_name("v4l:HD Webcam: HD") == "HD-Webcam-HD"
    assert video_name("/dev/video0") == "video0"
    assert video_name("gst:videotestsrc ! video/x-raw,width=8 ! appsink") == "gstreamer"
