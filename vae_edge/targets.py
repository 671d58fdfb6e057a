"""What can be exported: the one table of targets, precisions and the files each leaves.

The command line's choices, its error messages, the tests and the README's table all come from `SUPPORTED`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vae_edge.errors import UsageError
from vae_edge.text_enum import TextEnum


class Target(TextEnum):
    """A runtime that a bundle is made for."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TORCH = "torch"


class Precision(TextEnum):
    """The number format of a bundle's weights and arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True)
class TargetRecord:
    """One row of the table: what a target needs and leaves."""

    precisions: tuple[Precision, ...]
    model_file: str
    """The file that the backend opens, relative to the bundle."""
    other_files: tuple[str, ...]
    backend: str
    """`module:Class` of the backend."""
    extra: str
    """The extra of this package that installs the runtime."""
    options: frozenset[str]
    """Options of `Detector.open` that have an effect, of those that some runtime has no use for."""


SUPPORTED: dict[Target, TargetRecord] = {
    Target.ONNX: TargetRecord(
        (Precision.FP32, Precision.FP16, Precision.INT8),
        "model.onnx",
        (),
        "vae_edge.backends.onnxruntime_backend:OnnxRuntimeBackend",
        "onnxruntime",
        frozenset({"threads", "requests", "spinning", "arithmetic"}),
    ),
    Target.OPENVINO: TargetRecord(
        (Precision.FP32, Precision.FP16, Precision.INT8),
        "model.xml",
        ("model.bin",),
        "vae_edge.backends.openvino_backend:OpenVinoBackend",
        "openvino",
        frozenset({"threads", "requests", "cache", "arithmetic"}),
    ),
    Target.TENSORRT: TargetRecord(
        (Precision.FP32, Precision.FP16, Precision.INT8),
        "model.engine",
        ("model.onnx",),
        "vae_edge.backends.tensorrt_backend:TensorRtBackend",
        "tensorrt",
        frozenset({"requests", "cache", "rebuild"}),
    ),
    Target.TORCH: TargetRecord(
        (Precision.FP32,),
        "program.json",
        ("program.safetensors",),
        "vae_edge.backends.torch_backend:TorchBackend",
        "torch",
        frozenset({"threads"}),
    ),
}


def parse_targets(text: str) -> list[Target]:
    """Read `onnx,openvino` or `all`.

    Raises:
        InputError: a name is not a target.

    Examples:
        >>> [str(target) for target in parse_targets("onnx, openvino")]
        ['onnx', 'openvino']
    """
    names = [str(target) for target in Target] if text.strip() == "all" else _split(text)
    known = [str(target) for target in Target]
    return [Target(_checked(name, known, "target")) for name in names]


def parse_precisions(text: str) -> list[Precision]:
    """Read `fp32` or `all`.

    Raises:
        InputError: a name is not a precision.
    """
    known = [str(precision) for precision in Precision]
    names = known if text.strip() == "all" else _split(text)
    return [Precision(_checked(name, known, "precision")) for name in names]


def combinations(
    targets: Iterable[Target], precisions: Iterable[Precision], *, only_supported: bool = False
) -> list[tuple[Target, Precision]]:
    """Return every pair of the two lists, in order.

    Args:
        targets: what to export to.
        precisions: in which number formats.
        only_supported: leave out the pairs that are not in the table instead of refusing them.

    Raises:
        UsageError: a target does not support one of the precisions.

    Examples:
        >>> pairs = combinations(parse_targets("torch,onnx"), parse_precisions("fp32,int8"), only_supported=True)
        >>> [f"{target}-{precision}" for target, precision in pairs]
        ['torch-fp32', 'onnx-fp32', 'onnx-int8']
    """
    pairs = [(target, precision) for target in targets for precision in precisions]
    if only_supported:
        return [(target, precision) for target, precision in pairs if precision in SUPPORTED[target].precisions]
    for target, precision in pairs:
        if precision not in SUPPORTED[target].precisions:
            allowed = ", ".join(map(str, SUPPORTED[target].precisions))
            raise UsageError(f"target {target} cannot be exported in {precision}; it supports {allowed}")
    return pairs


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _checked(name: str, known: list[str], what: str) -> str:
    if name not in known:
        raise UsageError(f"{name!r} is not a {what}; choose from {', '.join(known)}, or all")
    return name
