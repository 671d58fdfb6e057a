"""Rewrites transposed convolutions as convolutions, exactly, so that the decoder can compute in INT8.

TensorRT and ONNX Runtime keep ConvTranspose in floating point, but quantize a Conv. Two forms occur in the decoder.

**Stride 2, kernel 4, padding 1**, weights W [C, O, 4, 4]. One axis is enough, the other is the same. Output pixel o
uses input pixel j with weight k = o + 1 - 2 j, where 0 <= k <= 3. Count the outputs from one pixel further left,
m = o + 1, and split m = 2 p + q with q = 0 or 1: then k = 2 (p - j) + q, so that p - j is 0 or 1. Every m needs two
inputs, p - 1 and p: a convolution with a kernel of 2, whose tap t reads j = p - 1 + t, has the weight

    V[(q, o), c, t] = W[c, o, 2 (1 - t) + q]

and gives all q of one p as channels. p runs from 0 to H, which a padding of 1 makes: H + 1 positions. DepthToSpace
interleaves them to 2 (H + 1) pixels m, and m = 1 to 2 H are the outputs: one pixel is cut off each border.

This takes as many multiplications as the transposed convolution, except for the one row and column at the border, and
as many weights. The form that needs no cropping, a 3x3 convolution, spends 9 taps of which only 4 are not zero: 2.25
times the multiplications and weights. (On the two layers' relation: Shi et al. 2016, "Is the deconvolution layer the
same as a convolutional layer?", arXiv 1609.07009.)

**An input of 1 x 1** (the first one, from the latents), stride 1, padding 0, weights W [C, O, h, w]: every output pixel
has its own weight for every latent, y[o, i, j] = sum over c of x[c] W[c, o, i, j]. That is a 1 x 1 convolution to O h w
channels and a Reshape.

An activation that follows is moved before the DepthToSpace or Reshape, which only move values: INT8 kernels need the
activation directly after the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from vae_edge.errors import InputError
from vae_edge.export.quantization.onnx_network import forget_types, replace_nodes

_ACTIVATIONS = ("Relu", "LeakyRelu")
_ATTRIBUTES = {"auto_pad", "dilations", "group", "kernel_shape", "output_padding", "pads", "strides"}


def rewrite_transposed_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with every ConvTranspose replaced by a Conv and a rearrangement; equal within float rounding.

    The Conv keeps the node name of the ConvTranspose, and the last new node keeps the name of its output.

    Raises:
        InputError: a ConvTranspose has neither of the forms described in this module's docstring.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    shapes = _known_shapes(graph)
    replaced: dict[str, list[onnx.NodeProto]] = {}
    swallowed: set[str] = set()
    stale: set[str] = set()
    for node in graph.node:
        if node.op_type != "ConvTranspose":
            continue
        users = [user for user in graph.node if node.output[0] in user.input]
        activation = users[0] if len(users) == 1 and users[0].op_type in _ACTIVATIONS else None
        nodes, constants = _replacement(node, activation, weights, shapes)
        replaced[node.output[0]] = nodes
        if activation is not None:
            swallowed.add(activation.output[0])
            stale.add(node.output[0])
        for name in list(node.input)[1:]:
            if name and sum(name in user.input for user in graph.node) == 1:
                graph.initializer.remove(weights.pop(name))
                stale.add(name)
        graph.initializer.extend(constants)
        weights |= {tensor.name: tensor for tensor in graph.initializer}
    replace_nodes(graph, _spliced(graph.node, replaced, swallowed))
    forget_types(graph, stale)
    onnx.checker.check_model(result)
    return result


def subpixel_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return V [4 O, C, 2, 2] for the W [C, O, 4, 4] of a stride-2 padding-1 transposed convolution.

    V's first axis runs over the row's q, the column's q and the output channel, as DepthToSpace's mode DCR needs it.
    """
    n_in, n_out, _, _ = weights.shape
    # W's rows are 2 (1 - t) + q: an axis of (1 - t) and one of q; reversing the first gives t.
    split = weights.reshape(n_in, n_out, 2, 2, 2, 2)[:, :, ::-1, :, ::-1, :]
    # From (c, o, t, q, u, r) to (q, r, o, c, t, u).
    return np.ascontiguousarray(split.transpose(3, 5, 1, 0, 2, 4)).reshape(4 * n_out, n_in, 2, 2)


def _replacement(
    node: onnx.NodeProto,
    activation: onnx.NodeProto | None,
    weights: dict[str, onnx.TensorProto],
    shapes: dict[str, tuple[int | None, ...]],
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Return the nodes and the constants that replace one transposed convolution and its activation."""
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.input[1] not in weights or set(settings) - _ATTRIBUTES:
        raise _unknown(node, settings)
    values = numpy_helper.to_array(weights[node.input[1]]).astype(np.float32)
    bias = numpy_helper.to_array(weights[node.input[2]]) if len(node.input) > 2 and node.input[2] else None
    kernel = values.shape[2:]
    form = (
        list(settings.get("strides", (1, 1))),
        list(settings.get("pads", (0, 0, 0, 0))),
        list(settings.get("output_padding", (0, 0))),
        list(settings.get("dilations", (1, 1))),
        settings.get("group", 1),
        settings.get("auto_pad", b"NOTSET"),
    )
    usual = ([0, 0], [1, 1], 1, b"NOTSET")
    n_out, stem, last = values.shape[1], node.name or node.output[0], (activation or node).output[0]
    if kernel == (4, 4) and form == ([2, 2], [1, 1, 1, 1], *usual):
        kernels, pads, repeats = subpixel_weights(values), [1, 1, 1, 1], 4
        # DCR: the channel is (q, r, o); the bias of o comes once for every (q, r).
        biases = None if bias is None else np.tile(bias, repeats)
        constants = [
            numpy_helper.from_array(np.array([1, 1], np.int64), f"{stem}.crop_starts"),
            numpy_helper.from_array(np.array([-1, -1], np.int64), f"{stem}.crop_ends"),
            numpy_helper.from_array(np.array([2, 3], np.int64), f"{stem}.crop_axes"),
        ]
        moves = [
            helper.make_node("DepthToSpace", [""], [f"{stem}.wide"], f"{stem}.depth_to_space", blocksize=2, mode="DCR"),
            helper.make_node("Slice", [f"{stem}.wide", *(each.name for each in constants)], [last], f"{stem}.crop"),
        ]
    elif shapes.get(node.input[0], ())[2:] == (1, 1) and form == ([1, 1], [0, 0, 0, 0], *usual):
        repeats = kernel[0] * kernel[1]
        kernels, pads = values.transpose(1, 2, 3, 0).reshape(n_out * repeats, -1, 1, 1), [0, 0, 0, 0]
        biases = None if bias is None else np.repeat(bias, repeats)
        # 0 keeps the batch.
        constants = [numpy_helper.from_array(np.array([0, n_out, *kernel], np.int64), f"{stem}.shape")]
        moves = [helper.make_node("Reshape", ["", constants[0].name], [last], f"{stem}.reshape")]
    else:
        raise _unknown(node, settings)
    constants.append(numpy_helper.from_array(np.ascontiguousarray(kernels), f"{stem}.weight"))
    inputs = [node.input[0], f"{stem}.weight"]
    if biases is not None:
        constants.append(numpy_helper.from_array(biases, f"{stem}.bias"))
        inputs.append(f"{stem}.bias")
    size = [int(side) for side in kernels.shape[2:]]
    chain = [helper.make_node("Conv", inputs, [f"{stem}.phases"], stem, kernel_shape=size, pads=pads)]
    if activation is not None:
        moved = onnx.NodeProto()
        moved.CopyFrom(activation)
        moved.input[0], moved.output[0] = f"{stem}.phases", f"{stem}.active"
        chain.append(moved)
    moves[0].input[0] = chain[-1].output[0]
    return [*chain, *moves], constants


def _known_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...]]:
    return {
        value.name: tuple(
            side.dim_value if side.HasField("dim_value") else None for side in value.type.tensor_type.shape.dim
        )
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _spliced(
    nodes: Sequence[onnx.NodeProto], replaced: dict[str, list[onnx.NodeProto]], swallowed: set[str]
) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        if node.output[0] in replaced:
            yield from replaced[node.output[0]]
        elif node.output[0] not in swallowed:
            yield node


def _unknown(node: onnx.NodeProto, settings: dict[str, object]) -> InputError:
    return InputError(
        f"the transposed convolution {node.name!r} cannot be rewritten: expected kernel 4, stride 2 and padding 1, or "
        f"an input of 1x1 with stride 1 and padding 0, with constant weights and one group; it has {settings}"
    )
