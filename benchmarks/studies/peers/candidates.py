"""The candidates: each tool with each model, in the layouts in which it can be used."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vae_edge.benchmarks.studies.peers.environments import Environment
from vae_edge.benchmarks.studies.peers.measured_process import LOOPS
from vae_edge.bundle import Bundle
from vae_edge.platform.machine import usable_cores
from vae_edge.targets import Precision, Target

Models = Mapping[tuple[Target, Precision], Bundle]
"""The bundles, one of each kind."""

FP32_ARITHMETIC = {"device": "CPU", "config": {"INFERENCE_PRECISION_HINT": "f32"}}
"""Arguments of anomalib's inferencer that make it compute as the others do."""

_BENCHMARK_APP = (
    "import sys; sys.modules['openvino_telemetry'] = None; from openvino.tools.benchmark.main import main; main()"
)
"""OpenVINO's own tool as a program for `python -c`, without its telemetry."""


@dataclass(frozen=True)
class Candidate:
    """One process to start in each round. Several may share a row of the table, as its variants."""

    row: str
    """Label of the row."""
    variant: str
    """What distinguishes it from the row's other candidates; empty if there is only one."""
    environment: Environment | None
    """None: the program belongs to the system."""
    kind: Literal["process", "benchmark_app", "trtexec"]
    """`process` is `measured_process.py`."""
    model: Path
    """The model file; a bundle's folder for vae-edge."""
    tool: str = ""
    """Of `measured_process.TOOLS`."""
    options: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    """Shape of the input for one image, for programs that need it."""
    wanted: tuple[str, ...] = LOOPS
    """What is measured in each round."""
    beside: dict[str, Any] | None = None
    """Another tool in the same process, whose calls are timed in turns with the calls of this one."""

    @property
    def name(self) -> str:
        """Row and variant."""
        return f"{self.row}, {self.variant}" if self.variant else self.row

    def command(self, seconds: float) -> list[str]:
        """Return the command line of a runtime's own benchmark program."""
        duration = str(max(1, round(seconds)))
        if self.kind == "trtexec":
            # It builds an engine from the ONNX file first.
            shapes = "image:" + "x".join(map(str, self.shape))
            return [self.options["program"], f"--onnx={self.model}", f"--shapes={shapes}", f"--duration={duration}"]
        assert self.environment is not None
        shape = f"[{','.join(map(str, self.shape))}]"
        hint = self.options["hint"]
        command = [*self.environment.command, "-c", _BENCHMARK_APP, "-m", str(self.model), "-d", "CPU"]
        command += ["-hint", hint, "-shape", shape]
        precision = self.options["precision"]
        return [*command, "-t", duration, *([] if precision is None else ["-infer_precision", precision])]


def own_candidates(models: Models, environments: Mapping[Target, Environment]) -> list[Candidate]:
    """Return `Detector` with every bundle."""
    return [
        Candidate(
            f"vae-edge, {target.value} {precision.value}",
            "",
            environments[target],
            "process",
            bundle.folder,
            "vae-edge",
        )
        for (target, precision), bundle in models.items()
    ]


def bare_candidates(models: Models, environments: Mapping[Target, Environment]) -> list[Candidate]:
    """Return the bare runtimes with the same model files."""
    found = []
    for (target, precision), bundle in models.items():
        make = onnxruntime_loops if target is Target.ONNX else _benchmark_apps
        found += make(environments[target], precision, bundle)
    return found


def onnxruntime_loops(environment: Environment, precision: Precision, bundle: Bundle) -> list[Candidate]:
    """Return a loop around ONNX Runtime in the layouts of threads and sessions that are in use."""
    cores = usable_cores()
    layouts = {
        "all threads, 1 caller": {"threads": cores, "callers": 1, "spinning": True},
        "all threads that do not spin, 1 caller": {"threads": cores, "callers": 1, "spinning": False},
        f"1 thread, {cores} callers": {"threads": 1, "callers": cores, "spinning": True},
    }
    row = f"ONNX Runtime loop, {precision.value}"
    return [
        Candidate(row, name, environment, "process", bundle.model_path, "onnxruntime", options)
        for name, options in layouts.items()
    ]


def _benchmark_apps(environment: Environment, precision: Precision, bundle: Bundle) -> list[Candidate]:
    arithmetics: list[tuple[str, str | None]] = [("", "f32")]
    if precision is Precision.FP32:
        # OpenVINO's choice, which is bfloat16 where the processor has it.
        arithmetics.append((", its default arithmetic", None))
    return [
        benchmark_app(f"benchmark_app, {precision.value}{label}", environment, bundle, hint, arithmetic)
        for label, arithmetic in arithmetics
        for hint in ("latency", "throughput")
    ]


def benchmark_app(
    row: str, environment: Environment, bundle: Bundle, hint: str, arithmetic: str | None = "f32"
) -> Candidate:
    """Return OpenVINO's benchmark_app with a bundle's model, for one image at a time."""
    options = {"hint": hint, "precision": arithmetic}
    shape = _one_image(bundle)
    return Candidate(row, hint, environment, "benchmark_app", bundle.model_path, options=options, shape=shape)


def trtexec_candidates(models: Models) -> list[Candidate] | str:
    """Return TensorRT's trtexec with the ONNX models, or why it is not measured."""
    program = shutil.which("trtexec")
    if program is None:
        return "not present on this machine"
    bundle = models.get((Target.ONNX, Precision.FP32))
    if bundle is None:
        return "there is no ONNX bundle in FP32"
    options = {"program": program}
    shape = _one_image(bundle)
    return [Candidate("trtexec, fp32", "", None, "trtexec", bundle.model_path, options=options, shape=shape)]


def anomalib_candidates(environment: Environment, default: Path, fixed: Path, int8: Path | None) -> list[Candidate]:
    """Return anomalib's inferencer with its defaults, and set up to compute as the others do.

    Args:
        environment: anomalib's.
        default: the model as anomalib exports it by default, for images of any size.
        fixed: the model exported for the size of the images, where they have one.
        int8: the same, quantized by anomalib; None: that failed.
    """
    settings: dict[str, tuple[Path, dict[str, Any]]] = {"its defaults": (default, {}), "fp32": (fixed, FP32_ARITHMETIC)}
    if int8 is not None:
        settings["int8"] = (int8, FP32_ARITHMETIC)
    return [
        Candidate(
            f"anomalib, {name}",
            "",
            environment,
            "process",
            model,
            "anomalib",
            {"declare_operators": environment.declare_operators, "arguments": arguments},
        )
        for name, (model, arguments) in settings.items()
    ]


def _one_image(bundle: Bundle) -> tuple[int, ...]:
    """Return the input's shape for one image."""
    _, *rest = bundle.manifest.inputs[0].shape
    return (1, *[size for size in rest if size is not None])
