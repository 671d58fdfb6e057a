"""From a checked ONNX file to OpenVINO IR, in FP32 or with its weights in FP16."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.backends import openvino_module
from vae_edge.backends.base import missing_runtime
from vae_edge.errors import DeviceError, InputError
from vae_edge.export.settings import BACKBONE
from vae_edge.manifest import RuntimeRecord
from vae_edge.platform import telemetry
from vae_edge.targets import Target

CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData")
"""Operations that hold nearly all the weights and do nearly all the work."""

PRECISION_KEY = "precision"
"""Name of the metadata entry that holds the precision: the backend asks it how to compute on a GPU."""


def export_openvino(
    onnx_path: Path, xml_path: Path, *, metadata: Mapping[str, str], precision: str = "fp32"
) -> RuntimeRecord:
    """Convert the ONNX file and write `model.xml` and `model.bin`.

    `fp16` stores the network's weights in FP16, which halves the file. `OpenVinoBackend` has CPUs and GPUs compute
    such a model in FP32; an NPU computes every model in FP16. The scoring's constants (means, scales, smoothing)
    stay in FP32. On an `edge` network of 256 x 256 the scores then moved by 3e-5 of the largest; with the compression
    of OpenVINO's own `save_model`, which includes the constants and saves 2 % more, by 5e-4.

    Args:
        onnx_path: the file to convert.
        xml_path: the file to write; the weights go beside it.
        metadata: goes into the IR's `rt_info` under `vae_edge`, together with the precision.
        precision: `fp32` or `fp16`; see `vae_edge.export.quantization.nncf_quantizer` for `int8`.

    Raises:
        InputError: the precision is neither of the two.
        MissingDependencyError: openvino is not installed.
        DeviceError: OpenVINO cannot convert the file.
    """
    if precision not in ("fp32", "fp16"):
        raise InputError(f"the precision is {precision!r}; expected fp32 or fp16")
    return save_ir(read_graph(onnx_path), xml_path, metadata=metadata, precision=precision)


def read_graph(path: Path) -> Any:
    """Read an ONNX file or an IR as an `openvino.Model` whose computed constants are folded.

    `openvino.convert_model` would fold too, and report its use to Intel over the network; this does not.

    Raises:
        MissingDependencyError: openvino is not installed.
        DeviceError: OpenVINO cannot read the file.
    """
    openvino = import_openvino()
    from openvino import passes

    try:
        model = openvino_module.openvino_core().read_model(path)
        # torch's exporter leaves shapes to be computed around every bias: folded, a bias is a plain constant again,
        # which is what quantization corrects.
        manager = passes.Manager()
        manager.register_pass(passes.ConstantFolding())
        manager.run_passes(model)
    except RuntimeError as error:
        raise DeviceError(f"OpenVINO {openvino.__version__} cannot convert {path.name}: {error}") from error
    name_plainly(model)
    return model


def save_ir(model: Any, xml_path: Path, *, metadata: Mapping[str, str], precision: str) -> RuntimeRecord:
    """Write an `openvino.Model` with its metadata.

    Args:
        model: from `read_graph` or quantized; it gets the metadata.
        xml_path: the file to write; the weights go beside it.
        metadata: goes into the IR's `rt_info` under `vae_edge`.
        precision: goes there as well; `fp16` stores the network's weights in FP16.

    Raises:
        InputError: the files cannot be written.
    """
    openvino = import_openvino()
    half = precision == "fp16"
    if half:
        model = model.clone()
        _halve_weights(model)
    for key, value in sorted({**metadata, PRECISION_KEY: precision}.items()):
        model.set_rt_info(value, ["vae_edge", key])
    write_ir(model, xml_path)
    return RuntimeRecord(
        flavour="openvino", version=str(openvino.__version__), details={"weights": "fp16"} if half else {}
    )


def write_ir(model: Any, xml_path: Path) -> None:
    """Write an `openvino.Model` as it is; the weights go beside it.

    Raises:
        InputError: the files cannot be written.
    """
    try:
        # save_model would round all constants to FP16 by default.
        import_openvino().save_model(model, xml_path, compress_to_fp16=False)
    except RuntimeError as error:
        # It has nothing but "iostream error" to say about a full disk.
        raise InputError(
            f"{xml_path.parent} could not be written, most likely because the disk is full ({error}); free some space "
            "or choose another folder"
        ) from error


def _halve_weights(model: Any) -> None:
    """Store the network's FP32 constants in FP16, each followed by a conversion back that runtimes fold away."""
    import_openvino()
    from openvino import Type, opset13

    for op in network_operations(model):
        if op.get_type_name() != "Constant" or op.get_element_type() != Type.f32:
            continue
        stored = opset13.constant(op.data.astype(np.float16))
        stored.set_friendly_name(f"{op.get_friendly_name()}/fp16")
        restored = opset13.convert(stored, "f32")
        restored.set_friendly_name(op.get_friendly_name())
        for reader in op.output(0).get_target_inputs():
            reader.replace_source_output(restored.output(0))


def network_operations(model: Any) -> list[Any]:
    """Return the networks' operations in the graph's order, with the constants that only they read.

    They are those of `quantization.onnx_network.network_nodes`: the backbone's, recognized by their names, and those of
    a network on pixels from its first convolutions to the Tanh that ends its decoder, without what prepares, cuts or
    compares the image. An operation that rounds the input of the first convolution is not part of the network.

    Raises:
        AssertionError: the graph is not one of this package.
    """
    ordered = list(model.get_ordered_ops())
    ends = [op for op in ordered if op.get_type_name() == "Tanh"]
    backbone = _backbone_names(ordered)
    if len(ends) != 1 and (ends or not backbone):
        raise AssertionError(f"the graph has {len(ends)} Tanh operations; expected 1, the end of the decoder")
    needed = {op.get_friendly_name() for op in ends}
    waiting = [source for op in ends for source in sources(op)]
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in needed:
            needed.add(op.get_friendly_name())
            waiting.extend(sources(op))
    from_image: set[str] = set()
    network: set[str] = backbone
    for op in ordered:
        name, before = op.get_friendly_name(), {source.get_friendly_name() for source in sources(op)}
        if op.get_type_name() == "Parameter" or before & from_image:
            from_image.add(name)
        if name in needed and ((op.get_type_name() in CONVOLUTIONS and before & from_image) or before & network):
            network.add(name)
    for op in reversed(ordered):
        # Weights, and what computes them: nothing that the image has a part in.
        name, readers = op.get_friendly_name(), _readers(op)
        if readers and name not in from_image and all(reader.get_friendly_name() in network for reader in readers):
            network.add(name)
    return [op for op in ordered if op.get_friendly_name() in network]


def _backbone_names(ordered: list[Any]) -> set[str]:
    marked = {name for op in ordered if (name := op.get_friendly_name()).startswith(BACKBONE)}
    # OpenVINO makes two operations of a Clip, and only the second keeps its name.
    between = {
        op.get_friendly_name()
        for op in ordered
        if any(source.get_friendly_name() in marked for source in sources(op))
        and all(reader.get_friendly_name() in marked for reader in _readers(op))
    }
    return marked | between


def sources(op: Any) -> list[Any]:
    """Return the operations that produce an operation's inputs."""
    return [value.get_source_output().get_node() for value in op.inputs()]


def _readers(op: Any) -> list[Any]:
    return [reader.get_node() for value in op.outputs() for reader in value.get_target_inputs()]


def name_plainly(model: Any) -> None:
    """Number the operations that OpenVINO named by a counter of the whole process, so that equal models are equal."""
    counts: Counter[str] = Counter()
    for op in model.get_ordered_ops():
        # A folded constant keeps the name of what it was folded from, so the type before the number may be another.
        if re.fullmatch(r"[A-Z][A-Za-z0-9]*_\d+", op.get_friendly_name()):
            kind = op.get_type_name()
            op.set_friendly_name(f"{kind}.{counts[kind]}")
            counts[kind] += 1


def import_openvino() -> Any:
    """Import openvino, without its telemetry.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return telemetry.import_openvino()
    except ModuleNotFoundError as error:
        raise missing_runtime(Target.OPENVINO, "openvino") from error
