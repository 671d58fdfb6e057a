"""Tiny ONNX models of the design's form: uint8 NHWC images in, a map and a score out."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper


def make_onnx(
    size: int = 32,
    batch: int | str = "N",
    *,
    height: int | str | None = None,
    score: str = "score",
    unknown: bool = False,
    doc: str = "",
) -> bytes:
    """Return a graph that scales, transposes, convolves twice and takes the maximum.

    Args:
        size: height and width of the image.
        batch: the batch, or a name for a dynamic one.
        height: height of the image, to make it dynamic; then the map is declared of that height too.
        score: name of the second output.
        unknown: use an operator that TensorRT does not know.
        doc: a text in the file, by which the TensorRT double takes the model for one in low precision.
    """
    rng = np.random.default_rng(0)
    constants = {
        "w1": rng.normal(size=(8, 3, 3, 3)).astype(np.float32) * 0.2,
        "w2": rng.normal(size=(1, 8, 3, 3)).astype(np.float32) * 0.2,
        "scale": np.float32(1 / 127.5),
        "one": np.float32(1),
        "channel": np.array([1], np.int64),
        "pixels": np.array([1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "one"], ["centred"]),
        helper.make_node("Transpose", ["centred"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1"], ["features"], pads=[1] * 4),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("Conv", ["active", "w2"], ["residual"], pads=[1] * 4),
        helper.make_node("Squeeze", ["residual", "channel"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map", "pixels"], [score], keepdims=0),
    ]
    if unknown:
        nodes[5] = helper.make_node("Det", ["features"], ["active"], name="strange")
    rows = height or size
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, rows, size, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [batch, rows, size]),
            helper.make_tensor_value_info(score, TensorProto.FLOAT, [batch]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, doc_string=doc)
    if not unknown:
        checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
