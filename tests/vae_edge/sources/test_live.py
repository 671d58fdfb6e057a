from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from tests.mjpeg_server import MjpegServer
from tests.threads import Taking, our_threads, wait_until
from vae_edge import InputError
from vae_edge.sources.live import LiveOptions, LiveVideo, open_video
from vae_edge.sources.pictures import AtMost, Chain
from vae_edge.sources.video import Video

PATIENT = LiveOptions(reconnect_s=20, timeout_s=2)


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[MjpegServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with MjpegServer() as server:
        probe = cv2.VideoCapture(server.url)
        if not probe.isOpened():
            pytest.skip("this OpenCV reads no stream over HTTP")
        probe.release()
        yield server


def no_thread_is_left() -> None:
    wait_until(lambda: our_threads() == [], 5)


def test_a_slow_reader_gets_the_newest_frame_and_the_number_skipped(camera: MjpegServer) -> None:
    source = open_video(camera.url)
    frames = []
    for picture in AtMost(source, 100):  # A busy machine may hold up the camera as well as the reader.
        frames.append((picture.frame, picture.skipped))
        assert not isinstance(picture.image, InputError)
        assert picture.image.shape == (48, 48, 3)
        if sum(skipped or 0 for _, skipped in frames[1:]) >= 3:
            break
        time.sleep(0.15)
    numbers = [number for number, _ in frames if number is not None]
    skipped = [skipped for _, skipped in frames if skipped is not None]
    assert [later - earlier - 1 for earlier, later in itertools.pairwise(numbers)] == skipped[1:]
    assert sum(skipped[1:]) >= 3
    no_thread_is_left()


def test_without_skipping_every_frame_comes(camera: MjpegServer) -> None:
    source = open_video(camera.url, live=LiveOptions(skip=False))
    pictures = []
    for picture in AtMost(source, 6):
        pictures.append(picture)
        time.sleep(0.05)
    assert [(picture.frame, picture.skipped) for picture in pictures] == [(number, 0) for number in range(6)]
    times = [picture.time_s for picture in pictures if picture.time_s is not None]
    assert times == sorted(times)


def test_every_third_frame_is_considered_and_the_others_do_not_count_as_skipped(camera: MjpegServer) -> None:
    source = open_video(camera.url, every=3, max_frames=3, live=LiveOptions(skip=False))
    assert source.n_pictures == 3
    pictures = list(source)
    assert [(picture.frame, picture.skipped) for picture in pictures] == [(0, 0), (3, 0), (6, 0)]
    no_thread_is_left()


def test_a_stream_that_breaks_off_is_taken_up_again_and_the_numbers_go_on(
    camera: MjpegServer, caplog: pytest.LogCaptureFixture
) -> None:
    source = Chain([open_video(camera.url, live=PATIENT)])
    with caplog.at_level(logging.WARNING), Taking(source) as taking:
        taking.wait_for(3)
        camera.up.clear()
        wait_until(lambda: "reconnecting for up to 20 s" in caplog.text)
        n_before = len(taking.pictures)
        camera.up.set()
        taking.wait_for(n_before + 3)
        assert "is back after" in caplog.text
        assert source.n_reconnections == 1
    numbers = [picture.frame for picture in taking.pictures if picture.frame is not None]
    assert numbers == sorted(set(numbers))
    assert not any(isinstance(picture.image, InputError) for picture in taking.pictures)
    no_thread_is_left()


def test_a_stream_that_falls_silent_is_taken_up_again(camera: MjpegServer, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.WARNING),
        Taking(open_video(camera.url, live=LiveOptions(reconnect_s=20, timeout_s=0.5))) as taking,
    ):
        taking.wait_for(1)
        camera.silent.set()
        wait_until(lambda: "returns no more frames" in caplog.text)
        camera.silent.clear()
        taking.wait_for(len(taking.pictures) + 2)


@pytest.mark.parametrize(("reconnect_s", "reason"), [(0, "returns no more frames after"), (0.2, "within 0.2 s")])
def test_a_stream_that_does_not_come_back_ends_with_an_error(
    camera: MjpegServer, reconnect_s: float, reason: str
) -> None:
    source = open_video(camera.url, live=LiveOptions(reconnect_s=reconnect_s))
    with Taking(source) as taking:
        taking.wait_for(2)
        camera.up.clear()
        taking.join(20)
        assert not taking.is_alive()
    *frames, last = taking.pictures
    assert not any(isinstance(picture.image, InputError) for picture in frames)
    assert reason in str(last.image)
    assert last.skipped == 0
    no_thread_is_left()


def test_what_gives_one_picture_each_time_is_not_judged_for_ever(camera: MjpegServer) -> None:
    camera.one_each_time = True
    pictures = list(LiveVideo(camera.url, options=PATIENT))
    assert 1 <= len(pictures) <= 4
    assert isinstance(pictures[-1].image, InputError)
    assert "returned one image and ended, 3 times" in str(pictures[-1].image)
    no_thread_is_left()


def test_stopping_ends_a_source_that_waits_for_a_frame(camera: MjpegServer) -> None:
    source = open_video(camera.url, live=LiveOptions(timeout_s=1))
    with Taking(source) as taking:
        taking.wait_for(1)
        camera.silent.set()
        time.sleep(0.1)
        begin_s = time.monotonic()
        source.stop()
        taking.join(5)
        assert time.monotonic() - begin_s < 0.3
    no_thread_is_left()
    assert list(source) == []


def test_stopping_ends_a_source_that_waits_for_a_connection(camera: MjpegServer) -> None:
    source = open_video(camera.url, live=PATIENT)
    with Taking(source) as taking:
        taking.wait_for(1)
        camera.up.clear()
        time.sleep(0.3)
        begin_s = time.monotonic()
        source.stop()
        taking.join(5)
        assert time.monotonic() - begin_s < 0.3
    no_thread_is_left()


def test_a_consumer_that_stops_early_leaves_no_thread(camera: MjpegServer) -> None:
    pictures = iter(open_video(camera.url))
    next(pictures)
    del pictures
    no_thread_is_left()


def test_an_address_that_does_not_answer_is_refused_at_once(camera: MjpegServer) -> None:
    camera.up.clear()
    begin_s = time.monotonic()
    with pytest.raises(InputError, match="could not be opened; check that it responds"):
        open_video(camera.url)
    assert time.monotonic() - begin_s < 3


def test_a_password_is_neither_shown_nor_written_down(camera: MjpegServer, caplog: pytest.LogCaptureFixture) -> None:
    address = camera.url.replace("://", "://somebody:secret@")
    source = open_video(address, live=LiveOptions(reconnect_s=0.2))
    with caplog.at_level(logging.WARNING), Taking(source) as taking:
        taking.wait_for(1)
        camera.up.clear()
        taking.join(20)
    assert {picture.source for picture in taking.pictures} == {camera.url}
    with pytest.raises(InputError) as refused:
        open_video(address)
    assert "secret" not in f"{caplog.text} {taking.pictures[-1].image} {refused.value}"


def test_a_camera_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="camera 63 could not be opened"):
        open_video("63")


def test_a_recording_behind_a_url_is_no_live_source(tmp_path: Path) -> None:
    path = tmp_path / "belt.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 48))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write MJPG videos")
    for _ in range(5):
        video.write(255 * cv2.getStructuringElement(cv2.MORPH_RECT, (48, 48))[:, :, None].repeat(3, axis=2))
    video.release()
    source = open_video(path.as_uri())
    assert isinstance(source, Video)
    assert [(picture.frame, picture.skipped) for picture in source] == [(number, None) for number in range(5)]


@pytest.mark.parametrize("numbers", [{"reconnect_s": -1}, {"reconnect_s": float("inf")}, {"timeout_s": 0}])
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected"):
        LiveOptions(**numbers)  # type: ignore[arg-type]  # only numbers are passed


def test_a_live_source_without_a_limit_has_no_number_of_pictures() -> None:
    assert LiveVideo("0").n_pictures is None
    assert LiveVideo("0").has_frames
