"""TensorRT: an engine and the ONNX file that it is built from, which sets the types it computes in.

What TensorRT needs in INT8, and what happens otherwise (seen in engines of TensorRT-RTX 1.7):

- Symmetric: zero-points are 0. Activations have one scale of rank 0: one of shape (1,) silently leaves the convolution
  in FP16. Weights have one scale for each output channel.
- Q/DQ pairs stand on a convolution's inputs and weights only. Its output goes straight to its activation, in FP16;
  the engine then has one kernel for bias, activation, rearrangement and the next convolution's quantization.
- An input of 3 channels is padded to 4, by the kernel that prepares the image: the first convolution is INT8 like the
  others.
- Scales are FP16, which makes the convolution's result FP16. One below FP16's smallest normal number may become 0,
  which TensorRT refuses, so smaller ones are raised to it.
- A bias stays in FP16: an INT32 bias through DequantizeLinear does not parse.
- A transposed convolution never becomes INT8: it is rewritten first. For FP16 it is not: its kernel includes the
  activation, and the rewrite needs one more kernel for every layer.

benchmarks/PRECISION.md has the layers of the engines.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vae_edge.agreement import Outputs
from vae_edge.backends.tensorrt.build import build_engine
from vae_edge.errors import InputError
from vae_edge.export.quantization.onnx_network import (
    check_layer_names,
    forget_types,
    half,
    network_nodes,
    quantizable_layers,
    replace_nodes,
    to_half,
)
from vae_edge.export.quantization.onnx_quantizer import OnnxQuantizer, Ranges, simulate_onnx
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.base import ONNX_FILE, TargetExporter, Written
from vae_edge.export.targets.tensorrt_rules import warnings_for_tensorrt
from vae_edge.platform.work import Progress
from vae_edge.targets import SUPPORTED, Precision, Target

_OPSET = 19
"""The first in which QuantizeLinear takes FP16. TensorRT 10.3 reads it."""
_SMALLEST_SCALE = float(np.finfo(np.float16).smallest_normal)
_LARGEST_LEVEL = 127


class Exporter(TargetExporter):
    """Writes `model.onnx` and builds `model.engine` from it."""

    target = Target.TENSORRT
    simulated_by = "ONNX Runtime, simulating TensorRT's graph"

    @property
    def max_batch(self) -> int | None:
        """The batch that the engine is built for."""
        return self.source.engine.max_batch

    def write(self, folder: Path, precision: Precision, quantized: Any = None) -> Written:
        """Write the graph with its types and build an engine from it; needs TensorRT and, except for RTX, a GPU."""
        onnx_path = folder / ONNX_FILE
        if precision is Precision.FP32:
            shutil.copyfile(self.source.onnx_path, onnx_path)
        else:
            onnx.save(
                to_half(onnx.load(str(self.source.onnx_path))) if quantized is None else quantized, str(onnx_path)
            )
        warnings = warnings_for_tensorrt(onnx.load(str(onnx_path)))
        return Written(
            build_engine(
                onnx_path,
                folder / SUPPORTED[self.target].model_file,
                self.source.engine,
                progress=lambda phase, done, total: self.source.report(
                    f"{self.target} {precision}: {phase}", done, total
                ),
            ),
            warnings,
        )

    def quantize(
        self, images: NDArray[np.uint8], estimator: Estimator, progress: Progress | None = None
    ) -> TensorRtQuantizer:
        """Rewrite the decoder and measure the ranges for Q/DQ pairs."""
        return TensorRtQuantizer(onnx.load(str(self.source.onnx_path)), images, estimator, progress)

    def simulate(self, folder: Path, images: NDArray[np.uint8], progress: Progress | None = None) -> Outputs:
        """Run the ONNX file with ONNX Runtime: the same graph, rounded in the same places."""
        return simulate_onnx(onnx.load(str(folder / ONNX_FILE)), images, progress)


class TensorRtQuantizer(OnnxQuantizer):
    """Places Q/DQ pairs where TensorRT needs them; `outputs` simulates the engine."""

    def model(self, keep_float: frozenset[str] = frozenset()) -> onnx.ModelProto:
        """Return the model with these layers in FP16.

        Raises:
            InputError: a name that is not one of `layers`.
        """
        return quantize_for_tensorrt(self.float_model, self.ranges, keep_float=keep_float)

    def outputs(
        self, images: NDArray[np.uint8], keep_float: frozenset[str] = frozenset(), progress: Progress | None = None
    ) -> Outputs:
        """Simulate a variant with ONNX Runtime over prepared images, uint8 [n, H, W, 3]."""
        return simulate_onnx(self.model(keep_float), images, progress)


def quantize_for_tensorrt(
    model: onnx.ModelProto, ranges: Ranges, *, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of a model with the network's convolutions in INT8 and the rest of the network in FP16.

    Args:
        model: FP32, after `rewrite_transposed_convolutions`.
        ranges: of this model.
        keep_float: names of layers (see `quantizable_layers`) that stay in FP16.

    Raises:
        InputError: a name that no layer has, a transposed convolution is to be quantized, or a range is missing.
    """
    check_layer_names(model, keep_float)
    result = to_half(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    layers = set(quantizable_layers(model)).difference(keep_float)
    chosen = {node.name: node for node in network_nodes(model) if node.name in layers}
    graph = result.graph
    constants: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        original = chosen.get(node.name)
        if original is not None:
            if node.op_type == "ConvTranspose":
                raise InputError(f"TensorRT has no INT8 for the transposed convolution {node.name!r}; rewrite it first")
            scale = activation_scale(ranges.largest(original.input[0]))
            levels, scales = quantize_weights(weights[original.input[1]])
            constants += [
                numpy_helper.from_array(scale, f"{node.name}.input_scale"),
                numpy_helper.from_array(np.zeros((), np.int8), f"{node.name}.input_zero"),
                numpy_helper.from_array(levels, f"{node.name}.levels"),
                numpy_helper.from_array(scales, f"{node.name}.weight_scales"),
                numpy_helper.from_array(np.zeros(len(scales), np.int8), f"{node.name}.weight_zeros"),
            ]
            nodes += _pairs(node)
            node.input[0], node.input[1] = f"{node.name}.input", f"{node.name}.weights"
        nodes.append(node)
    replace_nodes(graph, nodes)
    read = {name for node in graph.node for name in node.input}
    stay = [tensor for tensor in graph.initializer if tensor.name in read]
    forget_types(graph, {tensor.name for tensor in graph.initializer} - read)
    del graph.initializer[:]
    graph.initializer.extend([*stay, *constants])
    for opset in result.opset_import:
        if opset.domain in ("", "ai.onnx"):
            # Of the operators in these graphs none changed its meaning from 18 to 19.
            opset.version = max(opset.version, _OPSET)
    onnx.checker.check_model(result)
    return result


def activation_scale(largest: float) -> NDArray[np.float16]:
    """Return the step of a tensor whose largest absolute value is given; FP16, rank 0."""
    return half(np.asarray(max(largest / _LARGEST_LEVEL, _SMALLEST_SCALE), np.float32))


def quantize_weights(weights: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Quantize weights [O, ...] symmetrically, each output channel separately.

    Returns:
        The levels, int8 -127 to 127 of the same shape, and the scales, FP16 [O]: weights are about levels * scales. The
        levels are computed with the scales after rounding to FP16.
    """
    largest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scales = half(np.maximum(largest / _LARGEST_LEVEL, _SMALLEST_SCALE))
    steps = scales.astype(np.float32).reshape(-1, *[1] * (weights.ndim - 1))
    levels = np.clip(np.rint(weights / steps), -_LARGEST_LEVEL, _LARGEST_LEVEL)
    return levels.astype(np.int8), scales


def _pairs(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the Q/DQ pair of a convolution's input and the DQ of its weights."""
    name = node.name
    grid = [f"{name}.input_scale", f"{name}.input_zero"]
    return [
        helper.make_node("QuantizeLinear", [node.input[0], *grid], [f"{name}.input_levels"], f"{name}.quantize"),
        helper.make_node("DequantizeLinear", [f"{name}.input_levels", *grid], [f"{name}.input"], f"{name}.dequantize"),
        helper.make_node(
            "DequantizeLinear",
            [f"{name}.levels", f"{name}.weight_scales", f"{name}.weight_zeros"],
            [f"{name}.weights"],
            f"{name}.dequantize_weights",
            axis=0,
        ),
    ]
