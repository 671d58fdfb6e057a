"""GStreamer pipelines through PyGObject, for an OpenCV without GStreamer: that of every wheel on the package index.

On a Jetson and on many industrial cameras a pipeline is the only way to the pictures.
"""

from __future__ import annotations

import re
from functools import cache
from shutil import which
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.sources.addresses import without_password
from vae_edge.sources.cameras import PIPELINE

_CAPS = "video/x-raw,format=(string){BGR,GRAY8}"
"""What `frame_image` takes."""
_MOST_BUFFERS = 2
_NS_PER_S = 1_000_000_000

_INSTALL_ELSEWHERE = "install GStreamer and PyGObject (gi with GstVideo-1.0) from where this system has them"
_INSTALL = (
    "run: sudo apt-get install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base, and use an "
    "environment made with: python3 -m venv --system-site-packages (pip needs 'PyGObject<3.51' on Debian 12 and "
    "Ubuntu 22.04)"
)


def check_pipeline(address: str) -> str:
    """Return the pipeline of `gst:PIPELINE`.

    Raises:
        InputError: it is empty, or does not end in an `appsink`, from which a program takes the pictures.
    """
    pipeline = address.removeprefix(PIPELINE).strip()
    if re.search(r"(^|[\s!])appsink\b", pipeline) is None:
        raise InputError(
            f"{without_password(address)} has no appsink; end the pipeline with: ! videoconvert ! appsink, as in "
            "gst:v4l2src device=/dev/video0 ! videoconvert ! appsink"
        )
    return pipeline


class GStreamerCapture:
    """What `cv2.VideoCapture` does with a pipeline, as far as this package uses it.

    Args:
        address: `gst:` and a pipeline with an `appsink`, in the syntax of `gst-launch-1.0`.
        timeout_s: how long it may take to start, and to give the next picture.

    Raises:
        InputError: it is not a pipeline, an element is missing, or it does not start.
        MissingDependencyError: PyGObject or GStreamer's description for it is not installed.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        pipeline = check_pipeline(address)  # First: it is wrong with any GStreamer, and without one.
        self._gst, self._video = _load()
        self._shown = without_password(address)
        self._timeout_ns = round(timeout_s * _NS_PER_S)
        self._sample: Any = None
        try:
            self._pipeline = self._gst.parse_launch(pipeline)
        except Exception as error:  # noqa: BLE001 - `GLib.Error` has no name before it is loaded
            raise InputError(f"{self._shown} is not a pipeline of GStreamer here: {_said(error)}") from None
        self._sink = self._find_sink()
        self._sink.set_property("caps", self._gst.Caps.from_string(_CAPS))
        if self._sink.get_property("max-buffers") == 0:  # No limit: a slow reader would fill the memory.
            self._sink.set_property("max-buffers", _MOST_BUFFERS)
        self._failed = False
        self._is_live = self._start()

    def _start(self) -> bool:
        """Start the pipeline; return whether it is live.

        Raises:
            InputError: it does not start, or not in time.
        """
        states, results = self._gst.State, self._gst.StateChangeReturn
        # While it is paused a live source, unlike a file, has no picture to wait with.
        result = self._pipeline.set_state(states.PAUSED)
        if result == results.ASYNC:
            result = self._pipeline.get_state(self._timeout_ns)[0]
        if result in (results.FAILURE, results.ASYNC) or self._pipeline.set_state(states.PLAYING) == results.FAILURE:
            late = f"it did not start within {self._timeout_ns / _NS_PER_S:g} s"
            reason = self._error() or (late if result == results.ASYNC else "it does not start")
            self.release()
            raise InputError(f"{self._shown} could not be opened: {reason}; try it with gst-launch-1.0")
        return bool(result == results.NO_PREROLL)

    @property
    def has_ended(self) -> bool:
        """Whether the pipeline came to its end by itself, as a file's does and a camera's does not."""
        return not self._is_live and not self._failed and bool(self._sink.get_property("eos"))

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        """Return whether it is running."""
        return self._pipeline is not None

    def grab(self) -> bool:
        """Wait for the next picture; return False if none comes within the timeout or ever.

        Raises:
            InputError: an element failed; with its reason.
        """
        self._sample = self._sink.emit("try-pull-sample", self._timeout_ns)
        if self._sample is None and (reason := self._error()) is not None:
            self._failed = True
            raise InputError(f"{self._shown} failed: {reason}")
        return self._sample is not None

    def retrieve(self) -> tuple[bool, NDArray[np.uint8] | None]:
        """Return the picture that was grabbed, uint8 [H, W, 3] BGR or [H, W] grey; False if it is incomplete."""
        shape = self._sample.get_caps().get_structure(0)
        width, height = shape.get_value("width"), shape.get_value("height")
        channels = 1 if shape.get_value("format") == "GRAY8" else 3
        buffer = self._sample.get_buffer()
        meta = self._video.buffer_get_video_meta(buffer)
        # GStreamer pads a row to a multiple of 4 bytes, unless an element says otherwise.
        stride = (width * channels + 3) // 4 * 4 if meta is None else meta.stride[0]
        begin = 0 if meta is None else meta.offset[0]
        content = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), dtype=np.uint8)[begin:]
        if content.size < (height - 1) * stride + width * channels:
            return False, None
        rows = np.lib.stride_tricks.as_strided(content, (height, width * channels), (stride, 1), writeable=False)
        return True, np.ascontiguousarray(rows).reshape((height, width, channels) if channels == 3 else (height, width))

    def get(self, prop: int) -> float:
        """Return the frames in a second where the pipeline says so; 0 for every other property."""
        caps = self._sink.get_static_pad("sink").get_current_caps() if prop == cv2.CAP_PROP_FPS else None
        if caps is None:
            return 0.0
        found, numerator, denominator = caps.get_structure(0).get_fraction("framerate")
        return numerator / denominator if found and denominator else 0.0

    def release(self) -> None:
        """Stop the pipeline and free the camera; calling it twice is fine."""
        if self._pipeline is not None:
            self._pipeline.set_state(self._gst.State.NULL)
        self._pipeline = self._sample = None

    def _find_sink(self) -> Any:
        elements = self._pipeline.iterate_recurse() if isinstance(self._pipeline, self._gst.Bin) else None
        while elements is not None:
            result, element = elements.next()
            if result != self._gst.IteratorResult.OK:
                break
            if element.get_factory().get_name() == "appsink":
                return element
        raise InputError(
            f"{self._shown} has nothing before its appsink; expected a source of pictures, such as v4l2src"
        )

    def _error(self) -> str | None:
        message = self._pipeline.get_bus().pop_filtered(self._gst.MessageType.ERROR)
        if message is None:
            return None
        error, details = message.parse_error()
        advice = "; put videoconvert before appsink" if "not-negotiated" in (details or "") else ""
        return f"{message.src.get_name()}: {_said(error)}{advice}"


@cache
def _load() -> tuple[Any, Any]:
    try:
        import gi

        gi.require_version("Gst", "1.0")
        gi.require_version("GstVideo", "1.0")
        from gi.repository import Gst, GstVideo
    except (ImportError, ValueError) as error:
        raise MissingDependencyError(
            f"{PIPELINE}PIPELINE needs an OpenCV with GStreamer, or PyGObject with GStreamer's description ({error}); "
            f"{_INSTALL if which('apt-get') else _INSTALL_ELSEWHERE}"
        ) from error
    Gst.init(None)
    return Gst, GstVideo


def _said(error: Any) -> str:
    return " ".join(without_password(str(getattr(error, "message", error))).split())[:300]
