"""Find the networks inside an exported ONNX graph, name their layers, and convert them to FP16.

A graph has one of these:

* a VAE on pixels, encoder to decoder, found by the Tanh that ends it;
* the pretrained backbone of a VAE on features, up to the features that are taken from it, found by its nodes' names,
  which `export_onnx` begins with `BACKBONE`. The VAE behind it, a few 1 x 1 convolutions whose input and output are
  subtracted from each other, is not one of them, nor is the VAE on patches: in INT8 it cost a tenth of
  its AUROC.

Everything around the networks stays in float32. The converter of `onnxruntime.transformers.float16` decides by operator
and puts casts around every node that it leaves alone. Here a network is one connected piece with few edges in and out,
so a cast at each edge is enough, and what must stay exact, the image's scaling and the steps from the residual to the
score, cannot be converted by mistake.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vae_edge.errors import InputError
from vae_edge.export.settings import BACKBONE, BACKBONE_IN_FLOAT

LAYERS = ("Conv", "ConvTranspose")
"""Operators that hold nearly all the weights and do nearly all the work; INT8 is for these."""

_LARGEST = float(np.finfo(np.float16).max)


def network_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes of the networks in the graph's order, that of the backbone and that of the VAE on pixels.

    Those of the VAE reach from its first convolution to the Tanh that ends the decoder. What comes before prepares and
    cuts the image; what comes after is stitching, the residual, the smoothing, the normalization and the pooling, which
    stay in float32 at every precision. So does the convolution to the latents' log-variance if a score uses it: it does
    not lead to a reconstruction.

    Raises:
        InputError: the graph has neither.
    """
    chosen = {node.output[0] for node in _pixel_nodes(model)}
    return [node for node in model.graph.node if node.output[0] in chosen or node.name.startswith(BACKBONE)]


def reconstructing_layer(model: onnx.ModelProto) -> str | None:
    """Return the name of the layer whose values are the reconstructed pixels; None: there is no network on pixels."""
    return next((node.name for node in reversed(_pixel_nodes(model)) if node.op_type in LAYERS), None)


def _pixel_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    ends = [node for node in model.graph.node if node.op_type == "Tanh"]
    if not ends and any(node.name.startswith(BACKBONE) for node in model.graph.node):
        return []
    if len(ends) != 1:
        raise InputError(f"the graph has {len(ends)} Tanh nodes; expected one, the end of the decoder")
    # The nodes are in topological order: one walk back finds what the Tanh needs, one forth what needs a convolution.
    needed, before_end = set(ends[0].input), {ends[0].output[0]}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            before_end.update(node.output)
    found: list[onnx.NodeProto] = []
    computed: set[str] = set()
    for node in model.graph.node:
        if before_end.intersection(node.output) and (node.op_type in LAYERS or computed.intersection(node.input)):
            found.append(node)
            computed.update(node.output)
    if not any(node.op_type in LAYERS for node in found):
        raise InputError("the graph has no convolution before its Tanh; expected the encoder and the decoder of a VAE")
    return found


def quantizable_layers(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the networks' convolutions, including transposed ones, in the graph's order.

    Two of a backbone's are not among them: see `vae_edge.export.settings.BACKBONE_IN_FLOAT`.

    `rewrite_transposed_convolutions`, `to_half` and both quantizations keep these names, so that a layer can be named
    before and after.

    Raises:
        InputError: the graph has no such network, or two layers have the same name.
    """
    layers = (node.name for node in network_nodes(model) if node.op_type in LAYERS)
    names = tuple(name for name in layers if not name.startswith(BACKBONE_IN_FLOAT))
    if not all(names) or len(set(names)) != len(names):
        raise InputError(f"the convolutions' names are {list(names)}; expected a unique name for each")
    return names


def check_layer_names(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Refuse names that no layer has.

    Raises:
        InputError: a name is unknown; the message lists the known ones.
    """
    known = quantizable_layers(model)
    if unknown := sorted(set(names).difference(known)):
        raise InputError(f"there is no layer {', '.join(unknown)}; the layers are {', '.join(known)}")


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the nodes of a graph; the new ones may include old ones."""
    # A node that is still in the graph would be emptied by the deletion: hence copies.
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def forget_types(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Drop the recorded types and shapes of tensors that a graph no longer has or that have changed."""
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose networks compute in FP16, with their weights stored in FP16, half the size.

    There is a cast at every edge into and out of a network. Weights beyond 65504, which no trained network has, are
    clamped.

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
        raise InputError(
            f"{', '.join(shared)} are used by the network and by other nodes; expected weights that only the network "
            "uses"
        )
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
    """Round float32 values to FP16, with the same shape (rank 0 stays rank 0) and without making any infinite."""
    return np.asarray(np.clip(values, -_LARGEST, _LARGEST), np.float16)


def _edges(readers: list[onnx.NodeProto], names: set[str], kind: int, ending: str) -> dict[str, onnx.NodeProto]:
    """Make the readers read casts of the named tensors; return the casts by their names in the readers."""
    casts = {}
    for name in sorted(names):
        cast = helper.make_node("Cast", [name], [name + ending], f"cast_{name}{ending}", to=kind)
        casts[name + ending] = cast
        for node in readers:
            for index, read in enumerate(node.input):
                if read == name:
                    node.input[index] = name + ending
    return casts
