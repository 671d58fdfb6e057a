"""The process that is measured, one for each candidate and round: a stand-alone script.

It is run by the Python of the candidate's own environment, where this package may not be installed: nothing but the
standard library and the tool itself is imported, and of the tool only what its users import. All tools go through the
same loops.

    python -I measured_process.py JOB.json RESULT.json

The job: `tool`, `model`, `files` (image files, the first of them for the first verdict), `n_start`, `seconds` for each
loop, `judged` (image files whose scores are wanted instead of times; may be empty), `options` of the tool. As soon as
the first verdict is there the line `FIRST_RESULT` is written to standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

FIRST_RESULT = "vae-edge-peers first result"

_WARMUP_SHARE = 0.3
"""Warm-up before each loop, as a share of the loop's time."""

_FEWEST_CALLS = 10


class Tool(ABC):
    """What is measured: opened by its constructor with a model file and its own options."""

    @abstractmethod
    def predict(self, file: str) -> float:
        """Decode an image file, resize, infer; return the score."""

    @abstractmethod
    def make_ready(self, file: str) -> Any:
        """Return an image as the tool's model takes it."""

    @abstractmethod
    def run_engine(self, ready: Any) -> object:
        """Run the model alone."""

    @abstractmethod
    def files_per_s(self, files: list[str], seconds: float) -> float:
        """Return verdicts a second on image files in rotation, by the tool's fastest call."""

    @abstractmethod
    def ready_per_s(self, ready: list[Any], seconds: float) -> float:
        """Return verdicts a second on images that are ready."""


class _VaeEdge(Tool):
    """`Detector`, as a program on a device uses it."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from vae_edge import Detector

        self._detector = Detector.open(model)

    def predict(self, file: str) -> float:
        return self._detector.predict(file).score

    def make_ready(self, file: str) -> Any:
        from vae_edge.image import load_prepared

        return load_prepared(file, self._detector.bundle.manifest.preparation)

    def run_engine(self, ready: Any) -> object:
        return self._detector.backend.run({"image": ready[None]})

    def files_per_s(self, files: list[str], seconds: float) -> float:
        return _stream_rate(self._detector.stream(cycle(files)), seconds)

    def ready_per_s(self, ready: list[Any], seconds: float) -> float:
        return _stream_rate(self._detector.stream(cycle(ready)), seconds)


class _OnnxRuntime(Tool):
    """The loop that one writes around ONNX Runtime: OpenCV decodes and resizes, a session infers."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        if not options["spinning"]:
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        self._callers: int = options["callers"]
        _, self._height, self._width, _ = self._session.get_inputs()[0].shape

    def predict(self, file: str) -> float:
        _, score = self._infer(self.make_ready(file))
        return float(score[0])

    def make_ready(self, file: str) -> Any:
        import cv2

        image: Any = cv2.imread(file, cv2.IMREAD_COLOR)
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return cv2.resize(image, (self._width, self._height), interpolation=cv2.INTER_AREA)

    def run_engine(self, ready: Any) -> object:
        return self._infer(ready)

    def files_per_s(self, files: list[str], seconds: float) -> float:
        return _callers_rate(self.predict, cycle(files), self._callers, seconds)

    def ready_per_s(self, ready: list[Any], seconds: float) -> float:
        return _callers_rate(self._infer, cycle(ready), self._callers, seconds)

    def _infer(self, ready: Any) -> Any:
        return self._session.run(["anomaly_map", "score"], {"image": ready[None]})


class _Anomalib(Tool):
    """`anomalib.deploy.OpenVINOInferencer`. It has one request, so one caller, and no call for many images."""

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        if options["declare_operators"]:
            declare_torchvision_operators()
        from anomalib.deploy import OpenVINOInferencer

        self._inferencer = OpenVINOInferencer(model, **options["arguments"])

    def predict(self, file: str) -> float:
        return float(self._inferencer.predict(file).pred_score.item())

    def make_ready(self, file: str) -> Any:
        from anomalib.data.utils import read_image

        # Of the file's size: anomalib resizes inside its exported graph.
        return self._inferencer.pre_process(read_image(file))

    def run_engine(self, ready: Any) -> object:
        return self._inferencer.model({self._inferencer.input_blob.any_name: ready})

    def files_per_s(self, files: list[str], seconds: float) -> float:
        return _callers_rate(self.predict, cycle(files), 1, seconds)

    def ready_per_s(self, ready: list[Any], seconds: float) -> float:
        return _callers_rate(self._inferencer.predict, cycle(ready), 1, seconds)


def keep_telemetry_off() -> None:
    """Keep the runtimes from reporting to their makers, as `vae_edge.telemetry` does, which may not be installed."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # looks missing


def declare_torchvision_operators() -> None:
    """Let a torchvision that was built for CUDA be imported beside a torch for the CPU.

    Its compiled operators cannot be loaded there, and the import fails because it describes two of them that nobody
    has declared. They have to do with boxes and are not used here.
    """
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_declared"] = library  # The declarations end with it.


def has_declared_operators() -> bool:
    """Tell whether this process needed `declare_torchvision_operators`."""
    return "_declared" in globals()


TOOLS: dict[str, Callable[[str, dict[str, Any]], Tool]] = {
    "vae-edge": _VaeEdge,
    "onnxruntime": _OnnxRuntime,
    "anomalib": _Anomalib,
}


def main(arguments: list[str]) -> int:
    """Do the job of the file `arguments[0]` and write its result to `arguments[1]`."""
    keep_telemetry_off()
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    tool = TOOLS[job["tool"]](job["model"], job["options"])
    tool.predict(job["files"][0])
    os.write(1, f"\n{FIRST_RESULT}\n".encode())
    for file in job["files"][1 : job["n_start"]]:
        tool.predict(file)
    result: dict[str, Any] = {"peak_bytes": _peak_bytes()}
    if job["judged"]:
        result["scores"] = [tool.predict(file) for file in job["judged"]]
    else:
        seconds = job["seconds"]
        result["file_p50_ms"] = _median_ms(tool.predict, job["files"], seconds)
        ready = [tool.make_ready(file) for file in job["files"]]
        result["engine_p50_ms"] = _median_ms(tool.run_engine, ready, seconds)
        result["files_per_s"] = tool.files_per_s(job["files"], seconds)
        result["ready_per_s"] = tool.ready_per_s(ready, seconds)
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")
    return 0


def _median_ms(call: Callable[[Any], object], inputs: list[Any], seconds: float) -> float:
    """Return the nearest-rank median of single calls, with the inputs in rotation."""
    rotation = cycle(inputs)
    _calls(call, rotation, _WARMUP_SHARE * seconds)
    samples = sorted(_calls(call, rotation, seconds))
    return samples[(len(samples) - 1) // 2] / 1e6


def _calls(call: Callable[[Any], object], inputs: Iterator[Any], seconds: float) -> list[int]:
    samples: list[int] = []
    end = time.perf_counter() + seconds
    while len(samples) < _FEWEST_CALLS or time.perf_counter() < end:
        item = next(inputs)
        begin = time.perf_counter_ns()
        call(item)
        samples.append(time.perf_counter_ns() - begin)
    return samples


def _stream_rate(verdicts: Iterator[Any], seconds: float) -> float:
    """Return verdicts a second, once the pipeline is full and warm."""
    start = time.perf_counter()
    begin = 0.0
    n = 0
    for _ in verdicts:
        now = time.perf_counter()
        if not begin:
            if now - start >= _WARMUP_SHARE * seconds:
                begin = now
            continue
        n += 1
        if n >= _FEWEST_CALLS and now - begin >= seconds:
            break
    return n / (now - begin)


def _callers_rate(call: Callable[[Any], object], items: Iterator[Any], n_callers: int, seconds: float) -> float:
    """Return calls a second of several threads that each take the next item."""
    taking = threading.Lock()
    begin = time.perf_counter() + _WARMUP_SHARE * seconds
    finished: list[float] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while time.perf_counter() < begin + seconds or len(finished) < _FEWEST_CALLS:
                with taking:
                    item = next(items)
                call(item)
                now = time.perf_counter()
                if now >= begin:
                    finished.append(now)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that can tell of it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(n_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    # The first to finish stands for the beginning: what it had begun before is not counted.
    return (len(finished) - 1) / (max(finished) - min(finished))


def _peak_bytes() -> int | None:
    """Return VmHWM, see `vae_edge.benchmarks.worker.peak_resident_bytes`; None where the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
