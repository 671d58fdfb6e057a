"""Disables the telemetry of the runtimes: nothing that this package does leaves the machine.

| package                     | what it does by default                             | what is done here                |
|-----------------------------|-----------------------------------------------------|----------------------------------|
| onnxruntime 1.29 and newer, | uploads what runs where, from 10 s after its import | `import vae_edge` sets           |
| but on Windows              | on; keeps a device id below `~/.cache/Microsoft`    | `ORT_DISABLE_TELEMETRY=1`        |
| onnxruntime on Windows      | hands events to the system's tracing                | `disable_telemetry_events()`     |
| openvino, and nncf for INT8 | send events through the package openvino-telemetry, | that package looks missing while |
|                             | and keep an id below `~/intel`                      | they are imported                |

ONNX Runtime reads its variable once, while it is imported. So the variable is set when this package is imported and
stays in the environment of the process and of those it starts: other packages import ONNX Runtime too, torchmetrics and
onnxscript among them. To allow it, set `ORT_DISABLE_TELEMETRY=0`. A program that imports ONNX Runtime
before this package has to set the variable to 1 itself; a module that is already imported is not changed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ORT_VARIABLE = "ORT_DISABLE_TELEMETRY"
_hiding = threading.RLock()


def disable_onnxruntime_telemetry() -> bool:
    """Set the variable that ONNX Runtime reads; return whether its telemetry is off (the user may have allowed it)."""
    # ONNX Runtime takes an empty value, and words that it does not know, for "not disabled".
    if os.environ.get(_ORT_VARIABLE, "").strip().lower() in ("0", "false", "no", "off"):
        return False
    os.environ[_ORT_VARIABLE] = "1"
    return True


def import_onnxruntime() -> Any:
    """Import `onnxruntime` without its telemetry.

    Raises:
        ModuleNotFoundError: onnxruntime is not installed.
    """
    off = disable_onnxruntime_telemetry()
    import onnxruntime

    if off:
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def import_openvino() -> Any:
    """Import `openvino` without its telemetry, whose package also takes 30 ms to load.

    Raises:
        ModuleNotFoundError: openvino is not installed.
    """
    with openvino_telemetry_hidden():
        import openvino
    return openvino


@contextmanager
def openvino_telemetry_hidden() -> Iterator[None]:
    """Let the package openvino-telemetry look missing: what is imported meanwhile continues without it."""
    with _hiding:
        before = sys.modules.get("openvino_telemetry")
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # what makes an import fail at once
        try:
            yield
        finally:
            if before is None:
                del sys.modules["openvino_telemetry"]
            else:
                sys.modules["openvino_telemetry"] = before
