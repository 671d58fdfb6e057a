from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.export.tiny_networks import make_images, make_network, nodes_of
from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.onnx_network import to_half
from vae_edge.export.quantization.onnx_quantizer import activation_ranges
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.base import Source
from vae_edge.export.targets.tensorrt_rules import FIRST_K_TOO_LARGE, NEWEST_OPSETS, findings, warnings_for_tensorrt
from vae_edge.export.targets.tensorrt_target import Exporter, quantize_for_tensorrt
from vae_edge.targets import Precision
from vae_edge.train.model.scoring import MAX_POOLED_PIXELS


def one_node(operator: str, inputs: dict[str, Any], kind: int = TensorProto.FLOAT, opset: int = 18, **more: Any) -> Any:
    """Make a graph of one node; inputs that are None are the graph's own, the others constants."""
    node = helper.make_node(operator, list(inputs), ["y"] if operator != "TopK" else ["y", "where"], "it", **more)
    outer = [helper.make_tensor_value_info(name, kind, None) for name, value in inputs.items() if value is None]
    constants = [numpy_helper.from_array(value, name) for name, value in inputs.items() if value is not None]
    graph = helper.make_graph([node], "one", outer, [helper.make_tensor_value_info("y", kind, None)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


HALF = np.array(0.5, np.float16)
ZERO = np.array(0, np.int8)


@pytest.mark.parametrize("version", NEWEST_OPSETS)
def test_the_projects_graphs_keep_to_all_rules(version: str) -> None:
    single = make_network()
    rewritten = rewrite_transposed_convolutions(single)
    int8 = quantize_for_tensorrt(rewritten, activation_ranges(rewritten, make_images(4), Estimator.MIN_MAX))
    for model in (single, to_half(single), int8):
        assert findings(model, version) == []


def test_a_map_is_pooled_over_no_more_pixels_than_tensorrt_takes() -> None:
    assert MAX_POOLED_PIXELS < FIRST_K_TOO_LARGE


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one_node("TopK", {"x": None, "k": integers(5)}, sorted=0), "it: TopK has sorted = 0; expected 1"),
        (one_node("TopK", {"x": None, "k": integers(3840)}), "it: K of TopK is 3840; expected 1 to 3839"),
        (one_node("TopK", {"x": None, "k": None}), "it: K of TopK is computed; expected a constant"),
        (one_node("Det", {"x": None}), "it: the operator Det is not known to work"),
        (one_node("Transpose", {"x": None}, TensorProto.UINT8), "it: Transpose does not take UINT8"),
        (one_node("Tanh", {"x": None}, TensorProto.DOUBLE), "it: Tanh does not take DOUBLE"),
        (one_node("Relu", {"x": None}, opset=7), "the opset is 7; expected 9 to 19"),
        (one_node("Relu", {"x": None}, opset=20), "the opset is 20; expected 9 to 19"),
        (
            one_node("ReduceMax", {"x": None, "axes": None}),
            "it: the axes of ReduceMax are computed; expected constants",
        ),
        (
            one_node("QuantizeLinear", {"x": None, "scale": HALF * 0, "zero": ZERO}, TensorProto.FLOAT16, 19),
            "it: a scale of QuantizeLinear is not above 0",
        ),
        (
            one_node("QuantizeLinear", {"x": None, "scale": HALF.reshape(1), "zero": ZERO}, TensorProto.FLOAT16, 19),
            "it: the scale of QuantizeLinear has rank 1; expected 0, for it is of an activation",
        ),
        (
            one_node("QuantizeLinear", {"x": None, "scale": None, "zero": ZERO}, TensorProto.FLOAT16, 19),
            "it: the scale of QuantizeLinear is computed; expected a constant",
        ),
        (
            one_node("QuantizeLinear", {"x": None, "scale": HALF, "zero": ZERO + 3}, TensorProto.FLOAT16, 19),
            "it: the zero-point of QuantizeLinear is not a constant 0 in INT8",
        ),
        (
            one_node(
                "QuantizeLinear", {"x": None, "scale": HALF, "zero": ZERO.astype(np.uint8)}, TensorProto.FLOAT16, 19
            ),
            "it: the zero-point of QuantizeLinear is not a constant 0 in INT8",
        ),
        (
            one_node("DequantizeLinear", {"x": None, "scale": HALF}, TensorProto.INT32, 19),
            "it: DequantizeLinear does not take INT32",
        ),
        (
            one_node("AveragePool", {"x": None}, kernel_shape=[3], dilations=[1]),
            "it: AveragePool pools 1 dimensions; expected 2 or 3",
        ),
        (
            one_node("AveragePool", {"x": None}, opset=19, kernel_shape=[3, 3], dilations=[2, 1]),
            "it: AveragePool has the dilations [2, 1]; expected ones",
        ),
    ],
)
def test_what_the_parser_does_not_take_is_found(model: onnx.ModelProto, expected: str) -> None:
    assert findings(model, "10.3") == [expected]


def test_a_finding_that_some_versions_have_names_those() -> None:
    assert warnings_for_tensorrt(one_node("Relu", {"x": None}, opset=20)) == (
        "TensorRT 10.3, 10.7, 10.13 may refuse the model: the opset is 20; expected 9 to 19",
    )
    assert warnings_for_tensorrt(one_node("Relu", {"x": None})) == ()


def test_a_scale_for_each_channel_is_for_constant_weights_alone() -> None:
    scales, zeros = np.array([0.5, 0.25], np.float16), np.zeros(2, np.int8)
    weights = {"x": np.zeros((2, 3), np.int8), "scale": scales, "zero": zeros}
    assert findings(one_node("DequantizeLinear", weights, TensorProto.FLOAT16, 19, axis=0), "10.3") == []
    assert findings(one_node("DequantizeLinear", {**weights, "x": None}, TensorProto.INT8, 19, axis=0), "10.3") == [
        "it: the scale of DequantizeLinear has rank 1; expected 0, for it is of an activation"
    ]


def test_an_unsorted_network_is_found_by_its_nodes_name() -> None:
    model = make_network()
    (node,) = nodes_of(model, "TopK")
    node.attribute.append(helper.make_attribute("sorted", 0))
    assert findings(model, "11.4") == ["topk: TopK has sorted = 0; expected 1"]


@pytest.mark.parametrize(("is_sorted", "n_warnings"), [(1, 0), (0, 1)])
def test_the_export_warns_of_what_it_finds(tmp_path: Path, is_sorted: int, n_warnings: int) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    model = make_network()
    nodes_of(model, "TopK")[0].attribute.append(helper.make_attribute("sorted", is_sorted))
    onnx.save(model, tmp_path / "source.onnx")
    source = Source(None, tmp_path / "source.onnx", {}, EngineSettings(), lambda what, done, total: None)  # type: ignore[arg-type]  # no program is needed
    written = Exporter(source).write(tmp_path, Precision.FP32)
    assert len(written.warnings) == n_warnings
    for warning in written.warnings:
        assert warning == (
            "TensorRT 10.3, 10.7, 10.13, 10.16, 11.4 may refuse the model: topk: TopK has sorted = 0; expected 1"
        )
