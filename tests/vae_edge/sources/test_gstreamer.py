"""Pipelines with GStreamer's own test pictures. PyGObject comes from Debian, for the version of Debian's Python."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.threads import our_threads, wait_until
from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.platform.opencv import reports_gstreamer
from vae_edge.sources import gstreamer, video
from vae_edge.sources.gstreamer import GStreamerCapture, check_pipeline
from vae_edge.sources.live import LiveOptions, LiveVideo, open_video
from vae_edge.sources.opening import open_sources
from vae_edge.sources.pictures import AtMost

DEBIAN = "/usr/lib/python3/dist-packages"
NO_RECONNECTION = LiveOptions(skip=False, reconnect_s=0, timeout_s=5)


def import_pygobject() -> str | None:
    """Import PyGObject from this environment or from Debian's; return why it cannot be used."""
    sys.path.append(DEBIAN)
    try:
        import gi  # noqa: F401 - what the module under test finds then
    except ImportError as error:
        return f"no PyGObject for Python {sys.version_info[0]}.{sys.version_info[1]} ({error})"
    finally:
        sys.path.remove(DEBIAN)  # Nothing else is to be found there.
    try:
        gstreamer._load()
    except MissingDependencyError as error:
        return str(error)
    return None


@pytest.fixture
def pygobject(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines run in PyGObject, also where OpenCV has GStreamer."""
    if reason := import_pygobject():
        pytest.skip(reason)
    monkeypatch.setattr(video, "reports_gstreamer", lambda text: False)


def pipeline(pattern: str = "red", *, size: str = "width=50,height=30", n: int = 5, form: str = "BGR") -> str:
    source = f"videotestsrc num-buffers={n} pattern={pattern}"
    return f"gst:{source} ! video/x-raw,{size},framerate=10/1 ! videoconvert ! video/x-raw,format={form} ! appsink"


@pytest.mark.usefixtures("pygobject")
@pytest.mark.parametrize(
    ("pattern", "colour"), [("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255)), ("white", (255,) * 3)]
)
def test_frames_come_in_rgb_and_in_order(pattern: str, colour: tuple[int, int, int]) -> None:
    # 50 and 51 pixels of 3 bytes: rows that GStreamer pads.
    for size in ("width=50,height=30", "width=51,height=31", "width=64,height=32"):
        pictures = list(open_video(pipeline(pattern, size=size), live=NO_RECONNECTION))
        assert [picture.frame for picture in pictures] == [0, 1, 2, 3, 4]
        for picture in pictures:
            assert isinstance(picture.image, np.ndarray)
            assert picture.image.shape[:2] == tuple(int(part.partition("=")[2]) for part in size.split(","))[::-1]
            assert (picture.image == colour).all()
            assert picture.frame_rate == 10.0
            assert picture.name == f"gstreamer-frame{picture.frame:06d}"
            assert picture.source == pipeline(pattern, size=size)


@pytest.mark.usefixtures("pygobject")
def test_grey_frames_are_taken_as_they_are() -> None:
    capture = GStreamerCapture(pipeline("white", form="GRAY8", size="width=51,height=31"), timeout_s=5)
    assert capture.grab()
    ok, pixels = capture.retrieve()
    capture.release()
    capture.release()
    assert ok
    assert pixels is not None
    assert pixels.shape == (31, 51)
    assert len(np.unique(pixels)) == 1
    assert pixels[0, 0] > 200  # 235 is white in the range of videos.


@pytest.mark.usefixtures("pygobject")
def test_a_pattern_is_not_skewed() -> None:
    (picture,) = open_video(pipeline("smpte", size="width=70,height=30", n=1), live=NO_RECONNECTION)
    assert isinstance(picture.image, np.ndarray)
    bars = picture.image[:18]
    # Seven upright bars of ten pixels: all rows are equal, and so are the columns within a bar.
    assert (bars == bars[0]).all()
    assert (bars[0, 1:9] == bars[0, 1]).all()
    assert len({tuple(pixel) for pixel in bars[0, 5::10].tolist()}) == 7


@pytest.mark.usefixtures("pygobject")
def test_a_live_pipeline_gives_the_newest_frame_until_it_is_stopped() -> None:
    source = open_sources(["gst:videotestsrc is-live=true ! videoconvert ! appsink"])
    assert isinstance(source, LiveVideo)
    assert source.is_live
    assert len(list(AtMost(source, 3))) == 3
    wait_until(lambda: our_threads() == [], 5)


@pytest.mark.usefixtures("pygobject")
def test_an_element_that_fails_on_the_way_is_opened_again_and_then_an_error() -> None:
    # The source fails after some pictures, as a camera that was unplugged.
    text = "gst:videotestsrc is-live=true ! identity error-after=4 ! videoconvert ! appsink"
    pictures = list(open_video(text, live=LiveOptions(skip=False, reconnect_s=0, timeout_s=2)))
    assert all(isinstance(picture.image, np.ndarray) for picture in pictures[:-1])
    assert len(pictures) >= 3
    assert isinstance(pictures[-1].image, InputError)
    assert "returns no more frames after" in str(pictures[-1].image)


@pytest.mark.usefixtures("pygobject")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuchsource ! videoconvert ! appsink", 'is not a pipeline of GStreamer here: no element "nosuchsource"'),
        ("videotestsrc ! ! appsink", "is not a pipeline of GStreamer here"),
        ("appsink", "has nothing before its appsink"),
        ("videotestsrc ! video/x-raw,format=I420 ! appsink", "put videoconvert before appsink; try it with gst-launch"),
        ("filesrc location=/no/file ! decodebin ! videoconvert ! appsink", "could not be opened: filesrc.*not found"),
    ],
)
def test_a_pipeline_that_does_not_run_is_an_error_with_gstreamers_reason(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_sources([f"gst:{text}"])


@pytest.mark.parametrize("text", ["gst:", "gst:videotestsrc", "gst:videotestsrc ! fakesink", "gst:a ! notappsink"])
def test_a_pipeline_without_appsink_is_refused_before_anything_is_loaded(text: str) -> None:
    with pytest.raises(InputError, match=r"has no appsink; end the pipeline with: ! videoconvert ! appsink"):
        check_pipeline(text)


def test_an_opencv_with_gstreamer_gets_the_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[object, ...]] = []

    class Opened:
        def __init__(self, *arguments: object) -> None:
            given.append(arguments)

        def isOpened(self) -> bool:
            return True

    monkeypatch.setattr(cv2, "VideoCapture", Opened)
    monkeypatch.setattr(video, "reports_gstreamer", lambda text: True)
    video.open_capture("gst: videotestsrc ! videoconvert ! appsink")
    assert given == [("videotestsrc ! videoconvert ! appsink", cv2.CAP_GSTREAMER)]
    with pytest.raises(InputError, match="has no appsink"):
        video.open_capture("gst:videotestsrc")


@pytest.mark.skipif(not reports_gstreamer(cv2.getBuildInformation()), reason="this OpenCV has no GStreamer")
def test_opencvs_own_gstreamer_gives_frames() -> None:
    (picture,) = AtMost(open_video(pipeline(), live=NO_RECONNECTION), 1)
    assert isinstance(picture.image, np.ndarray)
    assert (picture.image == (255, 0, 0)).all()


def test_without_pygobject_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    monkeypatch.setattr(video, "reports_gstreamer", lambda text: False)
    gstreamer._load.cache_clear()
    monkeypatch.setattr(gstreamer, "which", lambda program: f"/usr/bin/{program}")
    with pytest.raises(MissingDependencyError, match=r"apt-get install python3-gi .*--system-site-packages"):
        open_sources([pipeline()])
    monkeypatch.setattr(gstreamer, "which", lambda program: None)  # Another system has other packages.
    with pytest.raises(MissingDependencyError, match=r"install GStreamer and PyGObject .* from where this system has"):
        open_sources([pipeline()])


def test_a_pipeline_without_an_appsink_is_refused_also_where_there_is_no_gstreamer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gi", None)
    monkeypatch.setattr(video, "reports_gstreamer", lambda text: False)
    gstreamer._load.cache_clear()
    with pytest.raises(InputError, match=r"has no appsink; end the pipeline with: ! videoconvert ! appsink"):
        open_sources(["gst:videotestsrc ! videoconvert"])


def test_no_password_of_a_pipeline_is_shown() -> None:
    source = LiveVideo('gst:rtspsrc location=rtsp://joe:pw1@camera/1 user-id=joe user-pw="pw 2" ! decodebin ! appsink')
    assert source.address == "gst:rtspsrc location=rtsp://camera/1 user-id=*** user-pw=*** ! decodebin ! appsink"


def test_nothing_but_a_pipeline_imports_pygobject() -> None:
    assert "import gi" in Path(gstreamer.__file__).read_text(encoding="utf-8")
    for path in Path(gstreamer.__file__).parents[1].rglob("*.py"):
        assert path.name == "gstreamer.py" or "import gi\n" not in path.read_text(encoding="utf-8")
