"""Cameras by name: indices, Video4Linux's devices and names, and GStreamer pipelines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vae_edge.errors import InputError
from vae_edge.platform.machine import read_system_file

PIPELINE = "gst:"
"""What a GStreamer pipeline begins with on a command line."""

NAME = "v4l:"
"""What the name of a Video4Linux camera begins with."""

_SYSTEM = Path("/sys/class/video4linux")
_DEVICE = re.compile(r"/dev/(video\d+|v4l/by-(id|path)/[^/]+)")


@dataclass(frozen=True)
class Camera:
    """A camera that Linux knows."""

    device: str
    """Such as `/dev/video0`."""
    name: str

    def __str__(self) -> str:
        return f"{self.device} ({self.name})"


def is_pipeline(text: str) -> bool:
    """Return whether a word is a GStreamer pipeline: `gst:` and elements."""
    return text.startswith(PIPELINE)


def is_device(text: str) -> bool:
    """Return whether a word is a Video4Linux camera: `/dev/videoN`, `/dev/v4l/by-id/...` or `v4l:NAME`."""
    return text.startswith(NAME) or _DEVICE.fullmatch(text) is not None


def is_camera(text: str) -> bool:
    """Return whether a word is a camera in any of these forms, its index included."""
    return text.isdecimal() or is_pipeline(text) or is_device(text)


def find_cameras(system: Path = _SYSTEM) -> list[Camera]:
    """Return Linux's cameras in the order of their numbers; elsewhere none.

    Args:
        system: the folder in which the system describes them.
    """
    try:
        entries = sorted(system.iterdir(), key=lambda entry: (len(entry.name), entry.name))
    except OSError:
        return []
    # A camera has a second entry for data beside the picture, with the same name and the index 1.
    pictures = [entry for entry in entries if read_system_file(entry / "index") in ("", "0")]
    return [Camera(f"/dev/{entry.name}", read_system_file(entry / "name") or entry.name) for entry in pictures]


def device_of(text: str, system: Path = _SYSTEM) -> str:
    """Return the device of `v4l:NAME`, and that of a device as it is.

    Args:
        text: NAME is a camera's name or a part of it that no other camera's name contains, in any case.
        system: see `find_cameras`.

    Raises:
        InputError: no camera has that name, or several have.
    """
    if not text.startswith(NAME):
        return text
    wanted = text.removeprefix(NAME).strip().lower()
    cameras = find_cameras(system)
    equal = [camera for camera in cameras if camera.name.lower() == wanted]
    found = equal or [camera for camera in cameras if wanted and wanted in camera.name.lower()]
    if len(found) == 1:
        return found[0].device
    if found:
        raise InputError(f"{text} fits {len(found)} cameras: {_listed(found)}; use the device instead of the name")
    raise InputError(f"no camera is called {text.removeprefix(NAME)!r}; {cameras_here(system)}")


def index_of(text: str, system: Path = _SYSTEM) -> int:
    """Return the N of the camera `/dev/videoN` that a device's path, a link to it or `v4l:NAME` leads to.

    Raises:
        InputError: it leads to no such device, see also `device_of`.
    """
    device = Path(device_of(text, system))
    match = re.fullmatch(r"video(\d+)", device.resolve().name)
    if match is None:
        raise InputError(f"{text} does not exist; {cameras_here(system)}")
    return int(match[1])


def cameras_here(system: Path = _SYSTEM) -> str:
    """Return the cameras as a part of a sentence: `the cameras here are /dev/video0 (HD Webcam)`."""
    cameras = find_cameras(system)
    return f"the cameras here are {_listed(cameras)}" if cameras else "this system lists no camera"


def _listed(cameras: list[Camera]) -> str:
    return ", ".join(map(str, cameras))
