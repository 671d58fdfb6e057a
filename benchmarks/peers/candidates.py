"""Who is measured: each tool with each model, in the layouts that it can be used in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vae_edge.benchmarks.peers.environments import Environment
from vae_edge.bundle import Bundle
from vae_edge.machine import usable_cores
from vae_edge.targets import Precision, Target

Models = Mapping[tuple[Target, Precision], Bundle]
"""The bundles, one of each kind."""

MEASURED = (
    (Target.ONNX, Precision.FP32),
    (Target.ONNX, Precision.INT8),
    (Target.OPENVINO, Precision.FP32),
    (Target.OPENVINO, Precision.INT8),
)


@dataclass(frozen=True)
class Candidate:
    """One process to start in each round. Several may share a row of the table, as its variants."""

    row: str
    """Label of the row."""
    variant: str
    """What sets it apart from the row's other candidates; empty where there is only one."""
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
    """Of the input of one image, for the programs that must be told."""

    @property
    def name(self) -> str:
        """Row and variant."""
        return f"{self.row}, {self.variant}" if self.variant else self.row


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
        make = _onnxruntime_loops if target is Target.ONNX else _benchmark_apps
        found += make(environments[target], precision, bundle)
    return found


def _onnxruntime_loops(environment: Environment, precision: Precision, bundle: Bundle) -> list[Candidate]:
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
        arithmetics.append((", its default arithmetic", None))
    return [
        Candidate(
            f"benchmark_app, {precision.value}{label}",
            hint,
            environment,
            "benchmark_app",
            bundle.model_path,
            options={"hint": hint, "precision": arithmetic},
            shape=_one_image(bundle),
        )
        for label, arithmetic in arithmetics
        for hint in ("latency", "throughput")
    ]


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
    """Return anomalib's inferencer as it comes, and set up to compute as the others do.

    Args:
        environment: anomalib's.
        default: the model as anomalib exports it by default, for images of any size.
        fixed: the model exported for the size of the images, where they have one.
        int8: the same, quantized by anomalib; None: that failed.
    """
    declare = {"declare_operators": environment.declare_operators}
    on_cpu = {"device": "CPU", "config": {"INFERENCE_PRECISION_HINT": "f32"}}
    settings: dict[str, tuple[Path, dict[str, Any]]] = {"its defaults": (default, {}), "fp32": (fixed, on_cpu)}
    if int8 is not None:
        settings["int8"] = (int8, on_cpu)
    return [
        Candidate(
            f"anomalib, {name}", "", environment, "process", model, "anomalib", {**declare, "arguments": arguments}
        )
        for name, (model, arguments) in settings.items()
    ]


def _one_image(bundle: Bundle) -> tuple[int, ...]:
    """Return the input's shape for one image."""
    _, *rest = bundle.manifest.inputs[0].shape
    return (1, *[size for size in rest if size is not None])
