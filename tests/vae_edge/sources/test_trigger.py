"""A camera that takes pictures when it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import cv2
import numpy as np
import pytest

from tests.mjpeg_server import MjpegServer
from tests.threads import Taking, our_threads, wait_until
from vae_edge.sources.live import LiveOptions, LiveVideo
from vae_edge.sources.trigger import Trigger


def test_a_request_is_taken_once_and_those_before_it_are_one() -> None:
    trigger = Trigger()
    taken: list[int] = []
    trigger.when_taken = lambda: taken.append(trigger.n_taken)
    assert not trigger.wait(lambda: True)
    assert trigger.request()
    assert not trigger.request()
    assert trigger.wait(lambda: False)
    assert not trigger.wait(lambda: True)
    assert trigger.request()
    assert trigger.wait(lambda: False)
    assert taken == [1, 2]


def test_who_waits_hears_of_a_request_and_of_the_end() -> None:
    trigger, over = Trigger(), threading.Event()
    answers: list[bool] = []

    def wait_twice() -> None:
        answers.append(trigger.wait(over.is_set))
        answers.append(trigger.wait(over.is_set))

    waiting = threading.Thread(target=wait_twice, daemon=True)
    waiting.start()
    time.sleep(0.2)
    assert answers == []
    trigger.request()
    wait_until(lambda: answers == [True])
    over.set()
    waiting.join(5)
    assert answers == [True, False]


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[MjpegServer]:
    """A stream with 50 frames a second."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with MjpegServer() as server:
        probe = cv2.VideoCapture(server.url)
        if not probe.isOpened():
            pytest.skip("this OpenCV reads no stream over HTTP")
        probe.release()
        yield server


def test_a_camera_takes_one_new_picture_for_each_trigger(camera: MjpegServer) -> None:
    trigger = Trigger()
    source = LiveVideo(camera.url, options=LiveOptions(trigger=trigger, timeout_s=5))
    with Taking(source) as taking:
        time.sleep(0.7)
        assert taking.pictures == []
        for n in range(1, 4):
            trigger.request()
            taking.wait_for(n)
            time.sleep(0.4)
            assert len(taking.pictures) == n
        frames = [picture.frame for picture in taking.pictures]
        assert all(isinstance(picture.image, np.ndarray) for picture in taking.pictures)
        assert None not in frames
        # 0.4 s are some 20 frames of which none was taken.
        assert all(later - earlier > 5 for earlier, later in pairwise(frames))  # type: ignore[operator]
    wait_until(lambda: our_threads() == [])


def test_a_camera_that_is_lost_ends_the_wait_for_a_trigger(camera: MjpegServer) -> None:
    source = LiveVideo(camera.url, options=LiveOptions(trigger=Trigger(), timeout_s=1, reconnect_s=0))
    with Taking(source) as taking:
        time.sleep(0.5)
        camera.up.clear()
        taking.join(20)
        assert not taking.is_alive()
        assert "returns no more frames" in str(taking.pictures[-1].image)
