"""The process that is measured, one for each candidate and round: a stand-alone script.

It is run by the Python of the candidate's own environment, where this package may not be installed: nothing but the
standard library and the tool itself is imported, and of the tool only what its users import. All tools go through the
same loops, those of `vae_edge.benchmarks.measure.instruments`, which is loaded by its path.

The job: `tool`, `model`, `options` of the tool; `files` (image files, the first of them for the first verdict),
`n_start` (images until the peak of memory is read), `seconds` for each loop; and what to measure: `judged` (image files
to give scores for), `wanted` (some of `LOOPS`), `beside` (`tool`, `model` and `options` of another tool, to time single
calls of both in turns), `memory_counts` (numbers of streamed files after which the peak of memory is read).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_edge.benchmarks.measure import instruments
else:
    _spec = importlib.util.spec_from_file_location(
        "vae_edge_instruments", Path(__file__).resolve().parents[2] / "measure/instruments.py"
    )
    instruments = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(instruments)

LOOPS = ("file_p50_ms", "engine_p50_ms", "files_per_s", "ready_per_s")
"""The measurements that a tool can be asked for."""

_WARMUP_SHARE = 0.3
"""Warm-up before the calls are timed, as a share of the time."""

_TURNS = 8
"""Turns of two tools that run side by side."""


class Tool(ABC):
    """A tool that is measured: its constructor opens it with a model file and its own options."""

    n_callers = 1
    """Threads that call it at the same time if many images are judged."""

    @staticmethod
    @abstractmethod
    def load() -> None:
        """Import what the tool's users import."""

    @abstractmethod
    def __init__(self, model: str, options: dict[str, Any]) -> None: ...

    @abstractmethod
    def predict(self, image: Any) -> float:
        """Return the score of an image file, decoded and resized here, or of a prepared image."""

    @abstractmethod
    def make_ready(self, file: str) -> Any:
        """Return an image prepared for the tool's model."""

    @abstractmethod
    def run_engine(self, ready: Any) -> object:
        """Run the model alone."""

    def per_s(self, images: Sequence[Any], seconds: float) -> float:
        """Return verdicts per second on files or prepared images in rotation, by the tool's fastest call."""
        return instruments.calls_per_s(self.predict, images, self.n_callers, seconds)


class _VaeEdge(Tool):
    """`Detector`, as a program on a device uses it."""

    @staticmethod
    def load() -> None:
        from vae_edge import Detector  # noqa: F401 - loading it is all

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from vae_edge import Detector

        of_stream = ("batch_size", "is_gated")
        self.detector = Detector.open(model, **{key: value for key, value in options.items() if key not in of_stream})
        self._batch_size = options.get("batch_size")
        if not options.get("is_gated", True):
            self.detector.gate = None

    def predict(self, image: Any) -> float:
        return self.detector.predict(image).score

    def predict_without_gate(self, image: Any) -> float:
        """Return the score as `predict` does, without asking whether the picture is inspectable."""
        gate, self.detector.gate = self.detector.gate, None
        try:
            return self.detector.predict(image).score
        finally:
            self.detector.gate = gate

    def make_ready(self, file: str) -> Any:
        from vae_edge.image import load_prepared

        return load_prepared(file, self.detector.bundle.manifest.preparation)

    def run_engine(self, ready: Any) -> object:
        return self.detector.backend.run({"image": ready[None]})

    def per_s(self, images: Sequence[Any], seconds: float) -> float:
        counted = instruments.count_stream(self.detector.stream(cycle(images), batch_size=self._batch_size), seconds)
        return 1e9 * counted["n_images"] / counted["elapsed_ns"]


class _Loop(Tool):
    """The loop that a user would write around a runtime: OpenCV decodes and resizes, a session infers."""

    _size: tuple[int, int]
    """Width and height of the model's input."""

    def predict(self, image: Any) -> float:
        return float(self.run_engine(self.make_ready(image) if isinstance(image, str) else image)[1][0])

    def make_ready(self, file: str) -> Any:
        import cv2

        image: Any = cv2.imread(file, cv2.IMREAD_COLOR)
        image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    @abstractmethod
    def run_engine(self, ready: Any) -> Any:
        """Return anomaly map and score, [1, H, W] and [1]."""


class _OnnxRuntime(_Loop):
    @staticmethod
    def load() -> None:
        import cv2  # noqa: F401 - loading it is all
        import onnxruntime  # noqa: F401 - loading it is all

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.intra_op_num_threads = options["threads"]
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options["spinning"])))
        self._sessions = [
            onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
            for _ in range(options.get("sessions", 1))
        ]
        self._turn = cycle(self._sessions)
        self.n_callers = options["callers"]
        _, height, width, _ = self._sessions[0].get_inputs()[0].shape
        self._size = (width, height)

    def run_engine(self, ready: Any) -> Any:
        return next(self._turn).run(["anomaly_map", "score"], {"image": ready[None]})


class _OpenVino(_Loop):
    """One request for one image at a time, least latency; FP32 arithmetic as in the bundle."""

    @staticmethod
    def load() -> None:
        import cv2  # noqa: F401 - loading it is all
        import openvino  # noqa: F401 - loading it is all

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        import openvino

        core = openvino.Core()
        network = core.read_model(model)
        shape = network.input("image").get_partial_shape()
        height, width = shape[1].get_length(), shape[2].get_length()
        network.reshape({"image": (1, height, width, 3)})
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._request = core.compile_model(network, "CPU", settings).create_infer_request()
        self._size = (width, height)

    def run_engine(self, ready: Any) -> Any:
        outputs = self._request.infer({"image": ready[None]}, share_inputs=True, share_outputs=True)
        return outputs["anomaly_map"], outputs["score"]


class _Anomalib(Tool):
    """`anomalib.deploy.OpenVINOInferencer`. It has one request, so only one caller, and no call for many images."""

    @staticmethod
    def load() -> None:
        from anomalib.deploy import OpenVINOInferencer  # noqa: F401 - loading it is all

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        from anomalib.deploy import OpenVINOInferencer

        self._inferencer = OpenVINOInferencer(model, **options["arguments"])

    def predict(self, image: Any) -> float:
        return float(self._inferencer.predict(image).pred_score.item())

    def make_ready(self, file: str) -> Any:
        from anomalib.data.utils import read_image

        # Of the file's size: anomalib resizes inside its exported graph.
        return self._inferencer.pre_process(read_image(file))

    def run_engine(self, ready: Any) -> object:
        return self._inferencer.model({self._inferencer.input_blob.any_name: ready})


TOOLS: dict[str, type[Tool]] = {
    "vae-edge": _VaeEdge,
    "onnxruntime": _OnnxRuntime,
    "openvino": _OpenVino,
    "anomalib": _Anomalib,
}


def keep_telemetry_off() -> None:
    """Turn off the runtimes' telemetry, as `vae_edge` does, which may not be installed here."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # looks missing


def declare_torchvision_operators() -> None:
    """Let a torchvision that was built for CUDA be imported beside a torch for the CPU.

    Its compiled operators cannot be loaded there, and the import fails because it describes two of them that were not
    declared. They process boxes and are not used here.
    """
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_declared"] = library  # The declarations end with it.


def make_torchvision_importable() -> None:
    """Import torchvision; if it is built for CUDA and torch is not, declare its operators first.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        declare_torchvision_operators()


def has_declared_operators() -> bool:
    """Return whether this process needed `declare_torchvision_operators`."""
    return "_declared" in globals()


def do(job: dict[str, Any]) -> dict[str, Any]:
    """Print the first verdict, then the requested figures; see the module's docstring."""
    options, files, seconds = dict(job["options"]), job["files"], job["seconds"]
    keep_telemetry_off()
    begin = time.perf_counter()
    if options.pop("declare_operators", False):
        declare_torchvision_operators()
    kind = TOOLS[job["tool"]]
    kind.load()
    imported = time.perf_counter()
    tool = kind(job["model"], options)
    opened = time.perf_counter()
    tool.predict(files[0])
    instruments.tell("first_result")
    done = time.perf_counter()
    for file in files[1 : job["n_start"]]:
        tool.predict(file)
    result: dict[str, Any] = {
        "import_s": imported - begin,
        "open_s": opened - imported,
        "predict_s": done - opened,
        "peak_bytes": instruments.peak_resident_bytes(),
    }
    if job["judged"]:
        result["scores"] = [tool.predict(file) for file in job["judged"]]
    if job["memory_counts"]:
        assert isinstance(tool, _VaeEdge)
        result["peaks"] = _peaks(tool, files, job["memory_counts"])
    ready = [tool.make_ready(file) for file in files]
    loops: dict[str, Callable[[], float]] = {
        "file_p50_ms": lambda: _p50_ms(tool.predict, files, seconds),
        "engine_p50_ms": lambda: _p50_ms(tool.run_engine, ready, seconds),
        "files_per_s": lambda: tool.per_s(files, seconds),
        "ready_per_s": lambda: tool.per_s(ready, seconds),
    }
    result |= {name: loops[name]() for name in job["wanted"]}
    if job["beside"]:
        other = job["beside"]
        TOOLS[other["tool"]].load()
        bare = TOOLS[other["tool"]](other["model"], other["options"])
        calls: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
            "call_ms": (tool.predict, ready),
            "bare_call_ms": (bare.run_engine, ready),
            "file_call_ms": (tool.predict, files),
            "bare_file_call_ms": (bare.predict, files),
        }
        if isinstance(tool, _VaeEdge):
            calls["ungated_call_ms"] = (tool.predict_without_gate, ready)
        result |= _in_turns(calls, seconds)
    return result


def _rules(seconds: float, warmup_s: float) -> instruments.MeasuringRules:
    return instruments.MeasuringRules(warmup_s, warmup_iterations=1, round_s=seconds, most_iterations=10**9)


def _p50_ms(call: Callable[[Any], object], inputs: Sequence[Any], seconds: float) -> float:
    """Return the nearest-rank median of single calls, with the inputs in rotation."""
    return median_low(instruments.measure(call, inputs, _rules(seconds, _WARMUP_SHARE * seconds)).measured_ns) / 1e6


def _in_turns(calls: dict[str, tuple[Callable[[Any], object], Sequence[Any]]], seconds: float) -> dict[str, float]:
    """Return the median of each call, in ms; they take turns in random order, so a drift affects all of them."""
    samples: dict[str, list[int]] = {name: [] for name in calls}
    for turn in range(_TURNS + 1):
        for name in random.sample(list(calls), len(calls)):
            found = instruments.measure(*calls[name], _rules(seconds / _TURNS, 0.0)).measured_ns
            samples[name] += found if turn else ()  # The first turn warms up.
    return {name: median_low(values) / 1e6 for name, values in samples.items()}


def _peaks(tool: _VaeEdge, files: Sequence[str], counts: Sequence[int]) -> list[int | None]:
    """Return the peak of resident memory after this many image files have gone through one stream."""
    found = {}
    for number, _ in enumerate(tool.detector.stream(islice(cycle(files), max(counts))), 1):
        if number in counts:
            found[number] = instruments.peak_resident_bytes()
    return [found[count] for count in counts]


if __name__ == "__main__":
    sys.exit(instruments.serve(sys.argv[1:], do))
