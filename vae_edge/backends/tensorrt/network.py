"""An ONNX file read into a TensorRT network, and the types that it computes in.

Networks are strongly typed. Where TensorRT 10 cannot build one of them, which has happened with INT8 on some devices, a
weakly typed one may be built on request: TensorRT then chooses each layer's type among those that the ONNX file names
and keeps to FP32 where that has FP32, as far as it can. The results can differ from the strongly typed network's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vae_edge.backends.tensorrt.module import TensorRtModule
from vae_edge.errors import DeviceError, InputError

_FLOAT = "FLOAT"


def read_onnx(onnx_path: Path) -> bytes:
    """Read an ONNX file.

    TensorRT gets the content and not the path: its own reader takes no path that is not ASCII on Windows.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return onnx_path.read_bytes()
    except OSError as error:
        raise InputError(f"the ONNX file {onnx_path} cannot be read: {error.strerror or error}") from error


def is_quantized(onnx: bytes) -> bool:
    """Return whether an ONNX file has INT8 in it: operators are written into it by name."""
    return b"QuantizeLinear" in onnx


def strong_network(module: TensorRtModule, builder: Any, onnx: bytes, onnx_path: Path) -> Any:
    """Return a network in which every layer computes in the types that the ONNX file names.

    Raises:
        DeviceError: TensorRT cannot read the file.
    """
    # The flag's number differs between versions. Versions in which it is the only mode accept it all the same.
    network = builder.create_network(1 << int(module.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return _parsed(module, network, onnx, onnx_path)


def weak_network(module: TensorRtModule, builder: Any, config: Any, onnx: bytes, onnx_path: Path) -> Any:
    """Return a network in which TensorRT chooses the layers' types, and allow it those of the ONNX file.

    Raises:
        InputError: this TensorRT has no weakly typed networks, or the file is in FP32, for which there is no choice.
        DeviceError: TensorRT cannot read the file.
    """
    api = module.api
    if not hasattr(api.BuilderFlag, "FP16"):
        raise InputError(f"weak typing is for TensorRT 10, and this is {module}; leave it out")
    strong = strong_network(module, builder, onnx, onnx_path)
    types = tensor_types(strong)
    if "HALF" not in types and "INT8" not in types:
        raise InputError(f"{onnx_path} is in FP32, for which weak typing has no effect; leave it out")
    if "HALF" in types:
        config.set_flag(api.BuilderFlag.FP16)
    if "INT8" in types:
        config.set_flag(api.BuilderFlag.INT8)
    # Residual, smoothing and score: in FP16 they would lose the small differences that they are there to find.
    config.set_flag(api.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    stay = {layer.name for layer in _layers(strong) if set(_output_types(layer)) == {_FLOAT}}
    network = _parsed(module, builder.create_network(0), onnx, onnx_path)
    for layer in _layers(network):
        if layer.name in stay:
            layer.precision = api.DataType.FLOAT
            for index in range(layer.num_outputs):
                layer.set_output_type(index, api.DataType.FLOAT)
    return network


def tensor_types(network: Any) -> list[str]:
    """List the element types of the layers' outputs: what a strongly typed network computes in."""
    return sorted({name for layer in _layers(network) for name in _output_types(layer)})


def way_out(module: TensorRtModule, onnx: bytes, *, weakly_typed: bool) -> str:
    """Return what to do if a network cannot be built, as the end of a sentence; empty: nothing in particular."""
    if not is_quantized(onnx):
        return ""
    fp16 = "if this device cannot run this INT8 model, use the FP16 bundle (vae-export RUN --precision fp16)"
    api = module.api
    if weakly_typed or not hasattr(api.BuilderFlag, "FP16"):
        return f"; {fp16}"
    return f"; {fp16}, or try vae-export BUNDLE --target tensorrt --weak-typing, whose scores can differ"


def _parsed(module: TensorRtModule, network: Any, onnx: bytes, onnx_path: Path) -> Any:
    parser = module.api.OnnxParser(network, module.logger)
    if not parser.parse(onnx):
        problems = []
        for index in range(parser.num_errors):
            parser_error = parser.get_error(index)
            where = f"node {parser_error.node_name()!r}, operator {parser_error.node_operator()!r}"
            problems.append(f"{parser_error.desc()} ({where})")
        reason = "; ".join(problems) or "no reason was given"
        # A weakly typed network is read by the same parser.
        advice = way_out(module, onnx, weakly_typed=True)
        raise DeviceError(f"{module} cannot read {onnx_path}: {reason}{advice}")
    if network.num_inputs < 1 or network.num_outputs < 1:
        # Bytes that are not ONNX at all often pass as a protocol buffer without any field, and parse.
        raise DeviceError(f"{onnx_path} contains no model: {network.num_inputs} inputs, {network.num_outputs} outputs")
    return network


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]


def _output_types(layer: Any) -> list[str]:
    types = []
    for index in range(layer.num_outputs):
        tensor = layer.get_output(index)
        types.append(tensor.dtype.name)
    return types
