"""Imports OpenVINO without its telemetry, and holds its core."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any


def import_openvino() -> Any:
    """Import `openvino` so that the import itself tells nobody.

    `import openvino` sends an event to Intel over the network wherever its dependency `openvino-telemetry` is
    installed, which a device beside a line must not do unasked; loading that package also costs 30 ms. Where it is
    missing OpenVINO goes on without, so for the time of the import it is made to look missing. A program that has
    imported openvino before is left as it is.

    Raises:
        ModuleNotFoundError: openvino is not installed.
    """
    loaded = sys.modules.get("openvino")
    if loaded is not None:
        return loaded
    hidden = "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what makes an import fail at once
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
    return openvino


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
