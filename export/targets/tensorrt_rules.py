"""What TensorRT's ONNX parser takes, by version, as far as it is documented and concerns operators in use here.

Sources: `docs/operators.md` of onnx-tensorrt for TensorRT 9.2, 10.15 and 11.2, the newest that were read. For versions
between them the stricter of the two neighbours counts, so a graph without findings keeps to all of them. What TensorRT
does with it can only be seen by building it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NEWEST_OPSETS = {"10.3": 19, "10.7": 19, "10.13": 19, "10.16": 24, "11.4": 24}
"""The versions that are checked, and the newest opset that each reads for certain."""

OLDEST_OPSET = 9

FIRST_K_TOO_LARGE = 3840
"""K of TopK has to be less."""

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
_NUMBERS = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ANY = _NUMBERS | {TensorProto.BOOL}

_TYPES: dict[str, frozenset[int]] = {
    **dict.fromkeys(("Abs", "Add", "Div", "Max", "Min", "Mul", "Neg", "Sub", "DepthToSpace", "Pad"), _NUMBERS),
    **dict.fromkeys(("AveragePool", "Clip", "Conv", "ConvTranspose", "Exp", "GlobalAveragePool", "LeakyRelu"), _FLOATS),
    **dict.fromkeys(("Log", "MatMul", "Pow", "Relu", "Sigmoid", "Sqrt", "Tanh", "TopK"), _FLOATS),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _FLOATS),
    **dict.fromkeys(("Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice"), _ANY),
    **dict.fromkeys(("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where"), _ANY),
    "Cast": _ANY | {TensorProto.UINT8},
    "QuantizeLinear": _FLOATS,
    "DequantizeLinear": frozenset({TensorProto.INT8}),
}
"""The element types that an operator's first input may have in all versions. Only Cast takes the image's UINT8."""


@dataclass(frozen=True)
class Place:
    """A node and what is known of its inputs."""

    node: onnx.NodeProto
    types: dict[str, int]
    constants: dict[str, NDArray[np.generic]]

    def attribute(self, name: str, default: object) -> object:
        """Return an attribute's value."""
        found = next((each for each in self.node.attribute if each.name == name), None)
        return default if found is None else helper.get_attribute_value(found)

    def name_of(self, index: int) -> str:
        """Return the name of an input; empty: there is none."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def constant(self, index: int) -> NDArray[np.generic] | None:
        """Return an input's value, where it is written in the file."""
        return self.constants.get(self.name_of(index))


def findings(model: onnx.ModelProto, version: str) -> list[str]:
    """List what a version of TensorRT is not known to take of a graph.

    Args:
        model: an ONNX model with everything in one file.
        version: one of `NEWEST_OPSETS`.

    Returns:
        A sentence for each finding, with the node's name; none: the graph keeps to all rules.
    """
    found = []
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if not OLDEST_OPSET <= opset <= NEWEST_OPSETS[version]:
        found.append(f"the opset is {opset}; expected {OLDEST_OPSET} to {NEWEST_OPSETS[version]}")
    for place in _places(model):
        node = place.node
        if node.op_type not in _TYPES:
            found.append(f"{node.name}: the operator {node.op_type} is not known to work")
            continue
        kind = place.types.get(place.name_of(0))
        if kind is not None and kind not in _TYPES[node.op_type]:
            found.append(f"{node.name}: {node.op_type} does not take {TensorProto.DataType.Name(kind)}")
        check = _CHECKS.get(node.op_type)
        if check is not None:
            found += [f"{node.name}: {sentence}" for sentence in check(place)]
    return found


def warnings_for_tensorrt(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the findings of all versions in one sentence each, with the versions that they are for."""
    versions: dict[str, list[str]] = {}
    for version in NEWEST_OPSETS:
        for sentence in findings(model, version):
            versions.setdefault(sentence, []).append(version)
    return tuple(f"TensorRT {', '.join(those)} may refuse the model: {what}" for what, those in versions.items())


def _places(model: onnx.ModelProto) -> Iterator[Place]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.output, *graph.value_info)}
    types |= {each.name: each.data_type for each in graph.initializer}
    constants: dict[str, NDArray[np.generic]] = {
        each.name: numpy_helper.to_array(each) for each in model.graph.initializer
    }
    for node in model.graph.node:
        yield Place(node, types, constants)


def _check_top_k(place: Place) -> Iterator[str]:
    if place.attribute("sorted", 1) != 1:
        yield "TopK has sorted = 0; expected 1"
    k = place.constant(1)
    if k is None:
        yield "K of TopK is computed; expected a constant"
    elif not 1 <= (value := int(k.reshape(-1)[0])) < FIRST_K_TOO_LARGE:
        yield f"K of TopK is {value}; expected 1 to {FIRST_K_TOO_LARGE - 1}"


def _check_levels(place: Place) -> Iterator[str]:
    operator = place.node.op_type
    scale, zero = place.constant(1), place.constant(2)
    if scale is None:
        yield f"the scale of {operator} is computed; expected a constant"
    else:
        if not np.all(np.asarray(scale, np.float64) > 0):
            yield f"a scale of {operator} is not above 0"
        if scale.ndim and place.constant(0) is None:
            # A scale of shape (1,) leaves the convolution in float without a word.
            yield f"the scale of {operator} has rank {scale.ndim}; expected 0, for it is of an activation"
    if place.name_of(2) and (zero is None or zero.dtype != np.int8 or np.any(zero)):
        yield f"the zero-point of {operator} is not a constant 0 in INT8"


def _check_pool(place: Place) -> Iterator[str]:
    kernel, dilations = place.attribute("kernel_shape", []), place.attribute("dilations", [])
    assert isinstance(kernel, list)
    assert isinstance(dilations, list)
    if len(kernel) not in (2, 3):
        yield f"{place.node.op_type} pools {len(kernel)} dimensions; expected 2 or 3"
    if any(each != 1 for each in dilations):
        yield f"{place.node.op_type} has the dilations {dilations}; expected ones"


def _constant(index: int, what: str) -> Callable[[Place], Iterator[str]]:
    def check(place: Place) -> Iterator[str]:
        if place.name_of(index) and place.constant(index) is None:
            yield f"{what} of {place.node.op_type} are computed; expected constants"

    return check


_CHECKS: dict[str, Callable[[Place], Iterator[str]]] = {
    "TopK": _check_top_k,
    "QuantizeLinear": _check_levels,
    "DequantizeLinear": _check_levels,
    "AveragePool": _check_pool,
    "Slice": _constant(3, "the axes"),
    **dict.fromkeys(
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Squeeze", "Unsqueeze"), _constant(1, "the axes")
    ),
}
