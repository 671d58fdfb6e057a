"""Holds OpenVINO's core."""

from __future__ import annotations

from functools import cache
from typing import Any

from vae_edge.telemetry import import_openvino


@cache
def openvino_core() -> Any:
    """Return the process's one `openvino.Core`, which is never freed.

    The CPU plugin gives the thread that loads it a stack for signals of its own (room for wide registers), and takes it
    back when it is freed. With two cores that are not freed in the reverse order, a thread is left with a stack that is
    no longer mapped, and the next signal, such as Ctrl-C, ends the process with a segmentation fault (seen with
    OpenVINO 2026.4.1). One core serves all threads and models.

    Raises:
        ModuleNotFoundError: openvino is not installed.
    """
    return import_openvino().Core()


def version_of(openvino: Any) -> str:
    """Return OpenVINO's version without the build: `2026.4.1`."""
    return str(openvino.__version__).split("-")[0]
