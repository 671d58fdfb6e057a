"""The runtimes as their own documentation uses them, without vae-edge: what the Detector is compared with.

Run as a script (`python bare_runtime.py RUNTIME MODEL HEIGHT WIDTH THREADS`) it is the shortest program that gives a
result with a runtime, and tells when it had it. Nothing of this package is imported, a runtime only when it is opened.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.uint8]], object]
"""Runs a model on uint8 [1, H, W, 3]."""

FIRST_RESULT = "first-result"

BENCHMARK_APP = (
    "import sys; sys.modules['openvino_telemetry'] = None; from openvino.tools.benchmark.main import main; main()"
)
"""OpenVINO's own tool as a program for `python -c`, without its telemetry."""

# As `vae_edge.telemetry` does, which is not imported here.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def open_openvino(model: str, height: int, width: int) -> Run:
    """Compile for one image at a time and least latency; FP32 arithmetic as in the bundle."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # looks missing
    import openvino

    core = openvino.Core()
    network = core.read_model(model)
    network.reshape({"image": (1, height, width, 3)})
    compiled = core.compile_model(network, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return lambda image: request.infer({"image": image}, share_inputs=True, share_outputs=True)


def open_onnxruntime(model: str, threads: int) -> Run:
    """Open a session whose threads do not spin, as in the bundle."""
    session = _session(model, threads)
    return lambda image: session.run(None, {"image": image})


def onnxruntime_throughputs(
    model: str, images: Sequence[NDArray[np.uint8]], threads: int, seconds: float
) -> dict[str, float]:
    """Measure images/s of the layouts of threads and sessions that are in use, by the layout's name."""
    layouts: dict[str, tuple[Callable[[], list[Any]], int]] = {
        "1 session on all threads, 1 caller": (lambda: [_session(model, threads)], 1),
        "1 session on all threads, spinning, 1 caller": (lambda: [_session(model, threads, spinning=True)], 1),
        f"1 session on 1 thread, {threads} callers": (lambda: [_session(model, 1)], threads),
        f"{threads} sessions on 1 thread": (lambda: [_session(model, 1) for _ in range(threads)], threads),
    }
    return {
        name: _images_per_s(open_sessions(), images, callers, seconds)
        for name, (open_sessions, callers) in layouts.items()
    }


def _session(model: str, threads: int, *, spinning: bool = False) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _images_per_s(sessions: list[Any], images: Sequence[NDArray[np.uint8]], callers: int, seconds: float) -> float:
    counts = [0] * callers
    begin, end = threading.Event(), threading.Event()

    def call(number: int) -> None:
        session, position = sessions[number % len(sessions)], number
        for _ in range(5):
            session.run(None, {"image": images[0][None]})
        begin.wait()
        while not end.is_set():
            session.run(None, {"image": images[position % len(images)][None]})
            counts[number] += 1
            position += 1

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    begin_s = time.perf_counter()
    begin.set()
    time.sleep(seconds)
    end.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin_s)


def main(runtime: str, model: str, height: int, width: int, threads: int) -> None:
    """Give one result and tell."""
    run = open_openvino(model, height, width) if runtime == "openvino" else open_onnxruntime(model, threads)
    run(np.zeros((1, height, width, 3), dtype=np.uint8))
    print(FIRST_RESULT, flush=True)  # noqa: T201 - the one that measures listens


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
