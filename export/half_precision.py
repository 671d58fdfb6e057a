"""Puts the network of an FP32 graph into FP16 and leaves everything around it in float32.

The converter of `onnxruntime.transformers.float16` decides by operator and puts casts around every node that it leaves
alone. The network is one connected piece with one edge in and one out, so two casts are enough, and nothing of what
must stay exact, the image's scaling and the road from the residual to the score, can be converted by mistake.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vae_edge.errors import InputError
from vae_edge.export.network_graph import network_nodes, replace_nodes

_LARGEST = float(np.finfo(np.float16).max)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose network computes in FP16, with its weights stored in FP16, half the size.

    A cast stands before the network and one after it. Weights beyond 65504, which no trained network has, are clamped.

    Raises:
        InputError: the graph has no network, or shares weights of the network with other nodes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    inside = network_nodes(result)
    names = {id(node) for node in inside}
    outside = [node for node in graph.node if id(node) not in names]
    made = {name for node in inside for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    used = {name for node in inside for name in node.input if name}
    shared = sorted(used.intersection(weights).intersection(name for node in outside for name in node.input))
    if shared:
        raise InputError(f"{', '.join(shared)} belong to the network and to other nodes; expected weights of its own")
    for name in sorted(used.intersection(weights)):
        weights[name].CopyFrom(numpy_helper.from_array(half(numpy_helper.to_array(weights[name])), name))
    entries = _edges(inside, used - made - {tensor.name for tensor in graph.initializer}, TensorProto.FLOAT16, ".half")
    wanted = [name for node in outside for name in node.input if name in made]
    exits = _edges(outside, set(wanted), TensorProto.FLOAT, ".float")
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        # In front of the first node that reads it.
        nodes += [cast for name in node.input if (cast := entries.pop(name, None) or exits.pop(name, None))]
        nodes.append(node)
    replace_nodes(graph, nodes)
    for value in graph.value_info:
        if value.name in made or value.name in used.intersection(weights):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.checker.check_model(result)
    return result


def half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round float32 values to FP16, of the same shape (rank 0 stays rank 0), none becoming infinite."""
    return np.asarray(np.clip(values, -_LARGEST, _LARGEST), np.float16)


def _edges(readers: list[onnx.NodeProto], names: set[str], kind: int, ending: str) -> dict[str, onnx.NodeProto]:
    """Make the readers read casts of the named tensors; return the casts by what they are named in the readers."""
    casts = {}
    for name in sorted(names):
        cast = helper.make_node("Cast", [name], [name + ending], f"cast_{name}{ending}", to=kind)
        casts[name + ending] = cast
        for node in readers:
            for index, read in enumerate(node.input):
                if read == name:
                    node.input[index] = name + ending
    return casts
