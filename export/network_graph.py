"""Finds the network, encoder to decoder, inside the exported graph, and names its layers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from vae_edge.errors import InputError

LAYERS = ("Conv", "ConvTranspose")
"""Operators that hold nearly all the weights and the work, and that INT8 is about."""


def network_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes of the network in the graph's order: its first convolution to the Tanh that ends the decoder.

    What comes before prepares and cuts the image; what comes after is stitching, the residual, the smoothing, the
    normalization and the pooling, which stay in float32 at every precision. So does the convolution to the latents'
    log-variance where a score asks for it: it leads to no reconstruction.

    Raises:
        InputError: the graph has no such network.
    """
    ends = [node for node in model.graph.node if node.op_type == "Tanh"]
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
    """Return the names of the network's convolutions, transposed ones too, in the graph's order.

    `rewrite_transposed_convolutions`, `to_half` and both quantizations keep these names, so that a layer can be named
    before and after.

    Raises:
        InputError: the graph has no such network, or two layers have one name.
    """
    names = tuple(node.name for node in network_nodes(model) if node.op_type in LAYERS)
    if not all(names) or len(set(names)) != len(names):
        raise InputError(f"the convolutions' names are {list(names)}; expected every one to have its own")
    return names


def check_layer_names(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Refuse names that no layer has.

    Raises:
        InputError: with the names there are.
    """
    known = quantizable_layers(model)
    if unknown := sorted(set(names).difference(known)):
        raise InputError(f"there is no layer {', '.join(unknown)}; the layers are {', '.join(known)}")


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Give a graph other nodes, its own among them perhaps."""
    # A node that is still in the graph would be emptied by the deletion: hence copies.
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def forget_types(graph: onnx.GraphProto, names: Collection[str]) -> None:
    """Drop the written-down types and shapes of tensors that a graph no longer has, or has with others."""
    kept = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(kept)
