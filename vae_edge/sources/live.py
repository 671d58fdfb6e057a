"""Frames of cameras and streams: the newest each time, reconnecting when the connection is lost."""

from __future__ import annotations

import atexit
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2

from vae_edge.errors import InputError, UsageError
from vae_edge.sources.addresses import without_password
from vae_edge.sources.cameras import is_camera
from vae_edge.sources.gstreamer import GStreamerCapture
from vae_edge.sources.pictures import Picture, Source
from vae_edge.sources.trigger import Trigger
from vae_edge.sources.video import (
    DEFAULT_TIMEOUT_S,
    Capture,
    Video,
    frame_image,
    frame_name,
    frame_rate,
    n_frames_announced,
    open_capture,
)

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_STILLS = 3
"""Connections in a row with one picture each, from which a source counts as a still picture if nothing else shows
it."""


@dataclass(frozen=True)
class LiveOptions:
    """How cameras and streams are read.

    Raises:
        UsageError: a number is invalid.
    """

    skip: bool = True
    """Return the newest frame each time and drop those before it; otherwise return every one, with growing delay."""
    reconnect_s: float = 60.0
    """How long to keep reconnecting to a camera or a stream that was lost; 0: not at all."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """How long a stream may take to answer, and to send its next frame."""
    other_hosts: bool = False
    """Follow a URL that leads to another host, see `vae_edge.sources.addresses`."""
    trigger: Trigger | None = None
    """Take pictures only when this asks for one; None: as they come."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 0 <= self.reconnect_s < math.inf:
            raise UsageError(f"reconnect is {self.reconnect_s} s; expected 0 (never) or more seconds")
        if not 0 < self.timeout_s < math.inf:
            raise UsageError(f"timeout is {self.timeout_s} s; expected more than 0 seconds")


def open_video(
    address: str, *, every: int = 1, max_frames: int | None = None, live: LiveOptions | None = None
) -> Source:
    """Open a camera or a URL: as a recording where it announces its length, else as something live.

    Raises:
        InputError: it cannot be opened.
    """
    options = LiveOptions() if live is None else live
    video = open_capture(address, timeout_s=options.timeout_s, other_hosts=options.other_hosts)
    # A camera's driver may answer any question; a URL of a file in a store knows how long the file is.
    recorded = not is_camera(address) and n_frames_announced(video) is not None
    video.release()
    if recorded:
        return Video(address, every=every, max_frames=max_frames, other_hosts=options.other_hosts)
    return LiveVideo(address, every=every, max_frames=max_frames, options=options)


class LiveVideo(Source):
    """A camera or a stream (its URL), read by a thread that keeps the newest frame.

    Args:
        address: a camera as `open_capture` takes it, or a URL, of something that could be opened a moment ago.
        every: of the frames that arrive, consider 0, N, 2N and so on; the others do not count as skipped.
        max_frames: stop after this many pictures; None: never.
        options: skipping, reconnection and patience.
    """

    def __init__(
        self, address: str, *, every: int = 1, max_frames: int | None = None, options: LiveOptions | None = None
    ) -> None:
        super().__init__()
        self._address = address
        self.address = without_password(address)
        self._every = every
        self._max_frames = max_frames
        self._options = LiveOptions() if options is None else options
        self._reader: _Reader | None = None

    @property
    def n_pictures(self) -> int | None:
        """As many as were requested at most; None for no end."""
        return self._max_frames

    @property
    def has_frames(self) -> bool:
        """Whether there are frames: yes."""
        return True

    @property
    def is_live(self) -> bool:
        """Whether pictures come at their own pace: yes."""
        return True

    @property
    def n_reconnections(self) -> int:
        """How often the connection was lost and restored, in the latest iteration."""
        return 0 if self._reader is None else self._reader.n_reconnections

    def __iter__(self) -> Iterator[Picture]:
        """Yield the frames; after the last connection has broken off for good, an error."""
        reader = _Reader(self._address, self._every, self._options)
        self._reader = reader
        # After the line above: `stop` ends this reader, or it was called before.
        if self._stopped.is_set():
            return
        reader.start()
        try:
            given = 0
            while (self._max_frames is None or given < self._max_frames) and (frame := self._next(reader)) is not None:
                yield self._picture(frame)
                given += 1
            if reader.failure is not None and not self._stopped.is_set() and given != self._max_frames:
                number = reader.n_read
                yield Picture(self.address, frame_name(self.address, number), reader.failure, number, skipped=0)
        finally:
            reader.end()
            # It may be waiting for a frame; then it ends by itself when that comes or the patience is over.
            reader.join(0.1)

    def stop(self) -> None:
        """Let the iteration and its thread end."""
        super().stop()
        if (reader := self._reader) is not None:
            reader.end()

    def _next(self, reader: _Reader) -> _Frame | None:
        """Wait for a frame, and for the trigger before it where there is one."""
        trigger = self._options.trigger
        if trigger is not None and trigger.wait(lambda: reader.is_over):
            # What lies ready was seen before the trigger.
            reader.drop()
        return reader.take()

    def _picture(self, frame: _Frame) -> Picture:
        return Picture(
            self.address,
            frame_name(self.address, frame.number),
            frame_image(self.address, frame.number, frame.retrieved),
            frame.number,
            time_s=frame.time_s,
            skipped=frame.skipped,
            frame_rate=None if frame.rate is None else frame.rate / self._every,
        )


@dataclass(frozen=True, eq=False)
class _Frame:
    number: int
    time_s: float
    rate: float | None
    retrieved: tuple[bool, Any]
    skipped: int


class _Reader(threading.Thread):
    """Reads frames as they come, keeps the newest for whoever takes it, and finds a lost connection again."""

    def __init__(self, address: str, every: int, options: LiveOptions) -> None:
        super().__init__(name="vae-edge-live", daemon=True)
        self.n_read = 0
        self.n_reconnections = 0
        self.failure: InputError | None = None
        """Why there are no more frames, although no end was requested."""
        self._address = address
        self._shown = without_password(address)
        self._every = every
        self._options = options
        self._changed = threading.Condition()
        self._newest: _Frame | None = None
        self._over = False
        self._finished = False

    def take(self) -> _Frame | None:
        """Wait for a frame that was not taken yet; None: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._over or self._finished)
            frame, self._newest = self._newest, None
            self._changed.notify_all()
            return None if self._over else frame

    @property
    def is_over(self) -> bool:
        """Whether there will be no more frames than the one that may lie ready."""
        return self._over or self._finished

    def drop(self) -> None:
        """Forget the frame that lies ready."""
        with self._changed:
            self._newest = None
            self._changed.notify_all()

    def end(self) -> None:
        """Ask the thread to end, and wake anyone waiting for a frame; does not wait for the thread."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def run(self) -> None:
        """Read until the end is requested or the connection is lost for good."""
        # A thread inside FFmpeg when the interpreter goes would crash it; the timeouts bound this wait.
        atexit.register(self._end_and_wait)
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, the one who waits for a frame must hear of it
            self.failure = InputError(f"{self._shown} could not be read ({error}); check the camera or the network")
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()
            atexit.unregister(self._end_and_wait)

    def _end_and_wait(self) -> None:
        self.end()
        self.join(self._options.timeout_s + 1)

    def _read(self) -> None:
        begin_s = time.monotonic()
        video = self._try_to_open()
        rate = None if video is None else frame_rate(video)
        n_here, n_stills = 0, 0
        try:
            while not self._over:
                if video is None or not _succeeds(video.grab):
                    if isinstance(video, GStreamerCapture) and video.has_ended:
                        return
                    if video is not None:
                        video.release()
                    n_stills = n_stills + 1 if n_here == 1 else 0
                    if n_stills == _STILLS and self._address.lower().startswith("http"):
                        self.failure = InputError(
                            f"{self._shown} returned one image and ended, {_STILLS} times; expected a stream: for a "
                            "still image, run vae-run for each new one"
                        )
                        return
                    n_here = 0
                    video = self._reconnect()
                    if video is None:
                        return
                    rate = frame_rate(video)
                if self.n_read % self._every == 0:
                    self._offer(self.n_read, time.monotonic() - begin_s, rate, _retrieve(video))
                self.n_read += 1
                n_here += 1
        finally:
            if video is not None:
                video.release()

    def _offer(self, number: int, time_s: float, rate: float | None, retrieved: tuple[bool, Any]) -> None:
        with self._changed:
            if not self._options.skip:
                self._changed.wait_for(lambda: self._newest is None or self._over)
            skipped = 0 if self._newest is None else self._newest.skipped + 1
            self._newest = _Frame(number, time_s, rate, retrieved, skipped)
            self._changed.notify_all()

    def _reconnect(self) -> Capture | None:
        """Retry, less and less often, until a frame has been grabbed again; None: given up, or no longer wanted."""
        lost = f"{self._shown} returns no more frames after {self.n_read}"
        advice = "check the camera or the network"
        patience_s = self._options.reconnect_s
        if patience_s == 0:
            self.failure = InputError(f"{lost}; {advice}")
            return None
        _log.warning("%s; reconnecting for up to %g s", lost, patience_s)
        begin_s, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while (left_s := begin_s + patience_s - time.monotonic()) > 0:
            with self._changed:
                if self._changed.wait_for(lambda: self._over, min(pause_s, left_s)):
                    return None
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            video = self._try_to_open()
            if video is not None and _succeeds(video.grab):
                self.n_reconnections += 1
                _log.warning("%s is back after %.1f s", self._shown, time.monotonic() - begin_s)
                return video
            if video is not None:
                video.release()
        self.failure = InputError(f"{lost}, and could not be reconnected within {patience_s:g} s; {advice}")
        return None

    def _try_to_open(self) -> Capture | None:
        try:
            options = self._options
            return open_capture(self._address, timeout_s=options.timeout_s, other_hosts=options.other_hosts)
        except (InputError, cv2.error):
            return None


def _retrieve(video: Capture) -> tuple[bool, Any]:
    try:
        return video.retrieve()
    except cv2.error:
        return False, None


def _succeeds(grab: Callable[[], bool]) -> bool:
    try:
        return grab()
    except cv2.error:
        return False
    except InputError as error:  # A pipeline's element failed.
        _log.warning("%s", error)
        return False
