"""Which OpenCV is used: on a Jetson the system has one with GStreamer, and a wheel from pip hides it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import cv2
import numpy as np

_DISTRIBUTIONS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
"""Wheels that bring a `cv2`."""

_LOWEST = (4, 8)
"""The lowest version that the tests run on, as in pyproject.toml."""


@dataclass(frozen=True)
class OpenCv:
    """The `cv2` that this Python imports."""

    version: str
    folder: str
    """Where it lies."""
    wheel: str | None
    """The package that pip knows it as; None: it is the system's, or was compiled here."""
    has_gstreamer: bool
    """Whether it opens GStreamer's pipelines, such as those of a Jetson's CSI cameras."""
    hidden: str | None
    """The folder of another `cv2` that would be imported if this one were not there, such as the system's."""
    numpy: str
    """NumPy's version: a `cv2` that was compiled for NumPy 1 does not load with NumPy 2."""

    @property
    def is_too_old(self) -> bool:
        """Whether it is older than what vae-edge is tested with; the system's is not checked by pip."""
        return tuple(map(int, re.findall(r"\d+", self.version)[:2])) < _LOWEST

    @property
    def hides_gstreamer(self) -> bool:
        """Whether another `cv2`, which may have GStreamer, is hidden by this one, which has not."""
        return self.wheel is not None and not self.has_gstreamer and self.hidden is not None


def look_at_opencv() -> OpenCv:
    """Gather the facts about `cv2`; takes a few milliseconds."""
    found = folders_with_cv2(sys.path)
    folder = found[0] if found else str(Path(cv2.__file__).parent)
    return OpenCv(
        version=cv2.__version__,
        folder=folder,
        wheel=_wheel_in(folder),
        has_gstreamer=reports_gstreamer(cv2.getBuildInformation()),
        hidden=found[1] if len(found) > 1 else None,
        numpy=np.__version__,
    )


def reports_gstreamer(build_information: str) -> bool:
    r"""Return whether OpenCV was built with GStreamer.

    Args:
        build_information: what `cv2.getBuildInformation()` returns.

    Examples:
        >>> reports_gstreamer("  Video I/O:\n    FFMPEG:       YES\n    GStreamer:    YES (1.20.3)\n")
        True
        >>> reports_gstreamer("  Video I/O:\n    FFMPEG:       YES\n    GStreamer:    NO\n")
        False
    """
    return re.search(r"^\s*GStreamer:\s*YES\b", build_information, re.MULTILINE) is not None


def folders_with_cv2(path: list[str]) -> list[str]:
    """Return the folders, of those that Python searches, that have a `cv2`: the first one's is imported.

    Args:
        path: as `sys.path`; an empty entry is the current folder.
    """
    folders = dict.fromkeys(str(Path(entry or ".").resolve()) for entry in path)
    specs = {folder: PathFinder.find_spec("cv2", [folder]) for folder in folders}
    # Without a loader it is a folder of that name without a module in it.
    return [folder for folder, spec in specs.items() if spec is not None and spec.loader is not None]


def _wheel_in(folder: str) -> str | None:
    """Return the package that brought the `cv2` of a folder."""
    for found in metadata.distributions(path=[folder]):
        name = found.metadata["Name"]
        if name in _DISTRIBUTIONS:
            return f"{name} {found.version}"
    return None
