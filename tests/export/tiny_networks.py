"""Graphs of the exported form, tiny and without torch: an encoder, latents and a decoder between scaling and score."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

from vae_edge.backends.openvino_module import openvino_core


def make_network(
    *, size: tuple[int, int] = (16, 24), widths: tuple[int, ...] = (6, 10), latents: int = 5, bias: bool = True
) -> onnx.ModelProto:
    """Return a random VAE of the exported form: names, operators and order are those of the real export.

    Its weights are scaled to keep the activations' spread from layer to layer, as a trained network's are.

    Args:
        size: height and width, divisible by 2 ** len(widths).
        widths: channels after each halving.
        latents: channels of the latents.
        bias: whether the convolutions have one.
    """
    rng = np.random.default_rng(3)
    height, width = size
    rest = (height >> len(widths), width >> len(widths))
    constants: dict[str, NDArray[Any]] = {
        "half_range": np.array(127.5, np.float32),
        "one": np.array(1, np.float32),
        "colours": np.array([1], np.int64),
        "planes": np.array([1], np.int64),
        "frame": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "kernel": np.full((1, 1, 3, 3), 1 / 9, np.float32),
        "mean": rng.uniform(0, 0.1, (1, height, width)).astype(np.float32),
        "scale": rng.uniform(0.5, 1, (1, height, width)).astype(np.float32),
        "flat": np.array([0, -1], np.int64),
        "k": np.array([4], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["cast", "half_range"], ["scaled"], "div"),
        helper.make_node("Sub", ["scaled", "one"], ["centred"], "sub"),
        helper.make_node("Transpose", ["centred"], ["pixels"], "transpose", perm=[0, 3, 1, 2]),
    ]
    current = "pixels"

    def layer(kind: str, name: str, shape: tuple[int, ...], after: str | None, **settings: Any) -> None:
        nonlocal current
        n_out = shape[0] if kind == "Conv" else shape[1]
        fan_in = float(np.prod(shape)) / n_out / (1 if kind == "Conv" or settings["strides"] == [1, 1] else 4)
        if kind == "ConvTranspose" and settings["strides"] == [1, 1]:
            fan_in = shape[0]
        constants[f"{name}.w"] = (rng.normal(size=shape) * 1.3 / np.sqrt(fan_in)).astype(np.float32)
        inputs = [current, f"{name}.w"]
        if bias:
            constants[f"{name}.b"] = (rng.normal(size=n_out) * 0.1).astype(np.float32)
            inputs.append(f"{name}.b")
        nodes.append(helper.make_node(kind, inputs, [name], f"node_{name}", kernel_shape=list(shape[2:]), **settings))
        current = name
        if after is not None:
            slope: dict[str, Any] = {"alpha": 0.2} if after == "LeakyRelu" else {}
            nodes.append(helper.make_node(after, [current], [f"{name}.active"], f"node_{name}_active", **slope))
            current = f"{name}.active"

    halving = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    whole = {"strides": [1, 1], "pads": [0, 0, 0, 0]}
    before = 3
    for stage, n_out in enumerate(widths):
        layer("Conv", f"down{stage}", (n_out, before, 4, 4), "LeakyRelu", **halving)
        before = n_out
    layer("Conv", "latents", (latents, before, *rest), None, **whole)
    layer("ConvTranspose", "grow", (latents, before, *rest), "Relu", **whole)
    for stage, n_out in enumerate([*widths[-2::-1], 3]):
        last = stage == len(widths) - 1
        layer("ConvTranspose", f"up{stage}", (before, n_out, 4, 4), "Tanh" if last else "Relu", **halving)
        before = n_out
    nodes += [
        helper.make_node("Sub", ["pixels", current], ["difference"], "difference"),
        helper.make_node("Abs", ["difference"], ["residual"], "abs"),
        helper.make_node("ReduceMean", ["residual", "colours"], ["grey"], "mean", keepdims=1),
        helper.make_node("Pad", ["grey", "frame"], ["padded"], "pad", mode="edge"),
        helper.make_node("Conv", ["padded", "kernel"], ["smooth"], "smoothing"),
        helper.make_node("Squeeze", ["smooth", "planes"], ["map"], "squeeze"),
        helper.make_node("Sub", ["map", "mean"], ["shifted"], "shift"),
        helper.make_node("Div", ["shifted", "scale"], ["anomaly_map"], "normalize"),
        helper.make_node("Reshape", ["anomaly_map", "flat"], ["row"], "flatten"),
        helper.make_node("TopK", ["row", "k"], ["largest", "where"], "topk"),
        helper.make_node("ReduceMean", ["largest", "colours"], ["score"], "pool", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "vae_edge",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", height, width, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", height, width]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.producer_name = "vae-edge"
    model.metadata_props.add(key="name", value="tile")
    model = shape_inference.infer_shapes(model, strict_mode=True)
    checker.check_model(model, full_check=True)
    return model


def make_images(n: int, size: tuple[int, int] = (16, 24), seed: int = 0) -> NDArray[np.uint8]:
    """Draw uint8 [n, H, W, 3]: gradients of random direction with a little noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : complex(size[0]), 0 : 1 : complex(size[1])]
    slopes = rng.uniform(-1, 1, (n, 2, 1, 1, 3))
    values = 128 + 60 * (slopes[:, 0] * rows[None, ..., None] + slopes[:, 1] * columns[None, ..., None])
    images: NDArray[np.uint8] = np.clip(values + rng.normal(0, 5, values.shape), 0, 255).astype(np.uint8)
    return images


def run_model(model: onnx.ModelProto, images: NDArray[np.uint8], outputs: list[str] | None = None) -> list[Any]:
    """Run a model in ONNX Runtime; the map and the score unless other outputs are asked for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values: list[Any] = session.run(outputs or ["anomaly_map", "score"], {"image": images})
    return values


def tensor(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """Return a constant of a model by its name."""
    return np.asarray(numpy_helper.to_array(next(each for each in model.graph.initializer if each.name == name)))


def nodes_of(model: onnx.ModelProto, kind: str) -> list[onnx.NodeProto]:
    """Return the nodes of one operator."""
    return [node for node in model.graph.node if node.op_type == kind]


def count_convolutions(model: Any) -> dict[str, int]:
    """Return how many convolutions, transposed ones too, OpenVINO runs on the CPU in `int8` and how many in `float`.

    Args:
        model: an `openvino.Model`, or the path of an IR or ONNX file.
    """
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    counts = {"int8": 0, "float": 0}
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if str(info["layerType"].astype(str)) in ("Convolution", "Deconvolution"):
            counts["int8" if info["runtimePrecision"].astype(str) in ("i8", "u8") else "float"] += 1
    return counts
