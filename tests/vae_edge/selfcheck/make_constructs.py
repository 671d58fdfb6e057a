"""Make the small graphs of `vae-edge selfcheck`: `python -m tests.vae_edge.selfcheck.make_constructs`.

Each holds one construct of exported models on which TensorRT has failed somewhere or may: uint8 images [N, 16, 16, 3]
in, as in every bundle, float32 `y` out. The answers are ONNX Runtime's, which computes FP16 in FP32 between roundings;
so tolerances of FP16 are those of its rounding.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from vae_edge.selfcheck.shipped import CONSTRUCTS_FILE, INDEX_NAME

SIDE, N_IMAGES, OPSET = 16, 2, 19

FP32_TOLERANCE, FP16_TOLERANCE, INT8_TOLERANCE = 1e-4, 1e-2, 2e-2

LARGEST_K = 3839
"""TensorRT takes K below 3,840 in TopK."""


@dataclass
class Graph:
    """A graph in the making."""

    title: str
    tolerance: float
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, n_outputs: int = 1, **attributes: Any) -> str:
        """Add a node and return the name of its first output."""
        names = [f"{operator.lower()}_{len(self.nodes)}_{number}" for number in range(n_outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, name=f"node_{len(self.nodes)}", **attributes))
        return names[0]

    def weights(self, *shape: int, dtype: Any = np.float32) -> str:
        """Add random weights that keep the size of what they are multiplied with."""
        scale = 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant(self.random.normal(size=shape) * scale, dtype)

    def planes(self, to: int = TensorProto.FLOAT) -> str:
        """Return the images as [N, 3, H, W], -1 to 1: cast first, for TensorRT transposes no uint8."""
        pixels = self.add("Cast", "image", to=TensorProto.FLOAT)
        centred = self.add("Sub", self.add("Mul", pixels, self.constant(1 / 127.5)), self.constant(1.0))
        planes = self.add("Transpose", centred, perm=[0, 3, 1, 2])
        return planes if to == TensorProto.FLOAT else self.add("Cast", planes, to=to)

    def quantized(self, values: str, scale: float, dtype: Any) -> str:
        """Return values rounded to 8 bits and back, with a scale of rank 0 in this type."""
        inputs = self.constant(scale, dtype), self.constant(0, np.int8)
        return self.add("DequantizeLinear", self.add("QuantizeLinear", values, *inputs), *inputs)

    def int8_weights(self, *shape: int, dtype: Any) -> str:
        """Return weights that are stored in 8 bits, with a scale for each channel."""
        weights = self.random.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
        scales = np.abs(weights).reshape(shape[0], -1).max(axis=1) / 127
        levels = np.round(weights / scales.reshape(-1, *[1] * (len(shape) - 1)))
        inputs = (
            self.constant(levels, np.int8),
            self.constant(scales, dtype),
            self.constant(np.zeros(shape[0]), np.int8),
        )
        return self.add("DequantizeLinear", *inputs, axis=0)

    def tiles(self, values: str, side: int = 8) -> str:
        """Cut [N, C, H, W] into tiles by static slices and put them one after the other on the batch's axis."""
        cut = []
        for top in range(0, SIDE, side):
            for left in range(0, SIDE, side):
                starts, ends = self.constant([top, left], np.int64), self.constant([top + side, left + side], np.int64)
                cut.append(self.add("Slice", values, starts, ends, self.constant([2, 3], np.int64)))
        return self.add("Concat", *cut, axis=0)

    def stitched(self, values: str, n_channels: int, side: int = 8) -> str:
        """Put four tiles that `tiles` cut beside and below each other again."""
        apart = self.add("Reshape", values, self.constant([4, -1, n_channels, side, side], np.int64))
        parts = [self.add("Gather", apart, self.constant(number, np.int64), axis=0) for number in range(4)]
        rows = [self.add("Concat", *parts[i : i + 2], axis=3) for i in (0, 2)]
        return self.add("Concat", *rows, axis=2)

    def model(self, output: str) -> bytes:
        """Return the graph as ONNX, with `output` as FP32."""
        self.nodes.append(helper.make_node("Cast", [output], ["y"], to=TensorProto.FLOAT, name="last"))
        image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
        graph = helper.make_graph(self.nodes, "construct", [image], [_output(None)], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        shape = _run(model.SerializeToString(), np.zeros((1, SIDE, SIDE, 3), np.uint8)).shape
        graph.output[0].CopyFrom(_output(["N", *shape[1:]]))
        model.graph.CopyFrom(graph)
        checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content


def _output(shape: list[Any] | None) -> Any:
    return helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)


def uint8_cast() -> tuple[Graph, str]:
    graph = Graph("uint8 images, cast and transposed", FP32_TOLERANCE)
    return graph, graph.planes()


def slices() -> tuple[Graph, str]:
    """Tiles through a convolution, and back into one picture."""
    graph = Graph("static slices into tiles and back", FP32_TOLERANCE)
    made = graph.add("Conv", graph.tiles(graph.planes()), graph.weights(4, 3, 3, 3), pads=[1] * 4)
    return graph, graph.stitched(made, 4)


def top_k() -> tuple[Graph, str]:
    """The mean of the largest values, of just more values than are taken."""
    graph = Graph("TopK of 3,839 values, close to its limit", FP32_TOLERANCE)
    many = graph.add("Conv", graph.planes(), graph.weights(16, 3, 3, 3), pads=[1] * 4)
    flat = graph.add("Reshape", many, graph.constant([0, -1], np.int64))
    k = graph.constant([LARGEST_K], np.int64)
    largest = graph.add("TopK", flat, k, n_outputs=2, axis=1, largest=1, sorted=1)
    mean = graph.add("ReduceMean", largest, graph.constant([1], np.int64), keepdims=1)
    first = graph.add("Slice", largest, *(graph.constant([each], np.int64) for each in (0, 8, 1)))
    return graph, graph.add("Concat", mean, first, axis=1)


def deconvolution() -> tuple[Graph, str]:
    half = TensorProto.FLOAT16
    graph = Graph("transposed convolution in FP16", FP16_TOLERANCE)
    coarse = graph.add(
        "Conv", graph.planes(half), graph.weights(8, 3, 4, 4, dtype=np.float16), pads=[1] * 4, strides=[2, 2]
    )
    active = graph.add("Relu", coarse)
    weights = graph.weights(8, 3, 4, 4, dtype=np.float16)
    return graph, graph.add("ConvTranspose", active, weights, pads=[1] * 4, strides=[2, 2])


def _quantized_convolutions(title: str, dtype: Any, *, tiled: bool = False) -> tuple[Graph, str]:
    graph = Graph(title, INT8_TOLERANCE)
    values = graph.planes(TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16)
    if tiled:
        values = graph.tiles(values)
    first = graph.add(
        "Conv", graph.quantized(values, 1 / 127, dtype), graph.int8_weights(16, 3, 3, 3, dtype=dtype), pads=[1] * 4
    )
    active = graph.quantized(graph.add("Relu", first), 2 / 127, dtype)
    second = graph.add("Conv", active, graph.int8_weights(4, 16, 3, 3, dtype=dtype), pads=[1] * 4)
    if tiled:
        second = graph.stitched(second, 4)
    return graph, second


def quantized_fp32() -> tuple[Graph, str]:
    return _quantized_convolutions("INT8 convolutions with FP32 scales", np.float32)


def quantized_fp16() -> tuple[Graph, str]:
    return _quantized_convolutions("INT8 convolutions with FP16 scales", np.float16)


def quantized_tiles() -> tuple[Graph, str]:
    """What has failed on Orin: half scales with slices around them (NVIDIA/TensorRT 4832)."""
    return _quantized_convolutions("INT8 convolutions with FP16 scales between slices", np.float16, tiled=True)


def depth_to_space() -> tuple[Graph, str]:
    """What a transposed convolution becomes in an INT8 export."""
    graph = Graph("DepthToSpace between INT8 convolutions", INT8_TOLERANCE)
    values = graph.quantized(graph.planes(TensorProto.FLOAT16), 1 / 127, np.float16)
    wide = graph.add("Conv", values, graph.int8_weights(32, 3, 3, 3, dtype=np.float16), pads=[1] * 4)
    fine = graph.add("DepthToSpace", wide, blocksize=2, mode="DCR")
    active = graph.quantized(graph.add("Relu", fine), 2 / 127, np.float16)
    return graph, graph.add("Conv", active, graph.int8_weights(3, 8, 3, 3, dtype=np.float16), pads=[1] * 4)


CONSTRUCTS = {
    "uint8-cast": uint8_cast,
    "slices": slices,
    "topk": top_k,
    "deconvolution-fp16": deconvolution,
    "quantized-fp32": quantized_fp32,
    "quantized-fp16": quantized_fp16,
    "quantized-tiles-fp16": quantized_tiles,
    "depth-to-space": depth_to_space,
}


def _run(onnx: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"image": images})
    return np.asarray(answer)


def contents() -> dict[str, bytes]:
    """Return what the file holds, by entry."""
    images = np.random.default_rng(1).integers(0, 256, (N_IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    files: dict[str, bytes] = {}
    index: dict[str, dict[str, Any]] = {}
    for name, make in CONSTRUCTS.items():
        graph, output = make()
        onnx = graph.model(output)
        answers = np.concatenate([_run(onnx, images[i : i + 1]) for i in range(N_IMAGES)])
        index[name] = {"title": graph.title, "tolerance": graph.tolerance}
        files[f"{name}.onnx"] = onnx
        for part, array in (("images", images), ("answers", answers)):
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            files[f"{name}.{part}.npy"] = content.getvalue()
    return {INDEX_NAME: json.dumps(index, indent=1).encode(), **files}


def main() -> None:
    """Make the file."""
    with zipfile.ZipFile(CONSTRUCTS_FILE, "w") as archive:
        for name, content in contents().items():
            # An entry with a date that never changes: equal contents make an equal file.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
    print(CONSTRUCTS_FILE, CONSTRUCTS_FILE.stat().st_size)  # noqa: T201 - a program


if __name__ == "__main__":
    main()
