"""The graphs themselves, and their numbers in ONNX Runtime; test_engine_layers.py builds engines from them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.export.tiny_networks import make_images, make_network, nodes_of, run_model, tensor
from vae_edge.errors import InputError
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.onnx_network import quantizable_layers
from vae_edge.export.quantization.onnx_quantizer import Ranges, activation_ranges
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.tensorrt_target import activation_scale, quantize_for_tensorrt, quantize_weights

pytest.importorskip("onnxruntime")
SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)


@pytest.fixture(scope="module")
def rewritten() -> onnx.ModelProto:
    return rewrite_transposed_convolutions(make_network())


@pytest.fixture(scope="module")
def ranges(rewritten: onnx.ModelProto) -> Ranges:
    return activation_ranges(rewritten, make_images(32), Estimator.MIN_MAX)


@pytest.mark.parametrize("estimator", list(Estimator))
def test_run_in_onnx_runtime_it_stays_near_fp32(rewritten: onnx.ModelProto, estimator: Estimator) -> None:
    quantized = quantize_for_tensorrt(rewritten, activation_ranges(rewritten, make_images(32), estimator))
    images = make_images(6, seed=9)
    for exact, rounded in zip(run_model(rewritten, images), run_model(quantized, images), strict=True):
        # Entropy clips the largest values: on few pixels and by much.
        assert np.abs(exact - rounded).max() < (0.5 if estimator is Estimator.ENTROPY else 0.15)


def test_pairs_stand_on_inputs_and_weights_of_every_convolution_and_nowhere_else(
    rewritten: onnx.ModelProto, ranges: Ranges
) -> None:
    quantized = quantize_for_tensorrt(rewritten, ranges)
    made = {name: node for node in quantized.graph.node for name in node.output}
    layers = quantizable_layers(rewritten)
    for node in nodes_of(quantized, "Conv"):
        kinds = [made[name].op_type for name in node.input[:2] if name in made]
        assert kinds == (["DequantizeLinear", "DequantizeLinear"] if node.name in layers else ["Pad"])
        followers = {other.op_type for other in quantized.graph.node if node.output[0] in other.input}
        # Only the latents have no activation: there the next layer's input pair comes at once.
        assert "QuantizeLinear" not in followers or node.name == "node_latents"
    assert len(nodes_of(quantized, "QuantizeLinear")) == len(layers)
    assert len(nodes_of(quantized, "DequantizeLinear")) == 2 * len(layers)


def test_scales_are_half_of_rank_0_for_activations_and_per_channel_for_weights(
    rewritten: onnx.ModelProto, ranges: Ranges
) -> None:
    quantized = quantize_for_tensorrt(rewritten, ranges)
    for layer in quantizable_layers(rewritten):
        scale, scales = tensor(quantized, f"{layer}.input_scale"), tensor(quantized, f"{layer}.weight_scales")
        levels = tensor(quantized, f"{layer}.levels")
        assert scale.shape == ()
        assert [str(each.dtype) for each in (scale, scales, levels)] == ["float16", "float16", "int8"]
        assert scales.shape == (len(levels),)
        assert min(float(scale), float(scales.min())) >= SMALLEST_NORMAL
        assert not tensor(quantized, f"{layer}.input_zero").any()
        assert not tensor(quantized, f"{layer}.weight_zeros").any()
        assert tensor(quantized, f"{layer}.input_zero").dtype == np.int8
        assert levels.min() >= -127


def test_biases_stay_in_half_and_the_tail_in_float(rewritten: onnx.ModelProto, ranges: Ranges) -> None:
    quantized = quantize_for_tensorrt(rewritten, ranges)
    kinds = {each.name: each.data_type for each in quantized.graph.initializer}
    assert (kinds["down0.b"], kinds["kernel"], kinds["scale"]) == (
        TensorProto.FLOAT16,
        TensorProto.FLOAT,
        TensorProto.FLOAT,
    )
    assert TensorProto.INT32 not in kinds.values()
    assert "down0.w" not in kinds


def test_layers_kept_in_float_are_half(rewritten: onnx.ModelProto, ranges: Ranges) -> None:
    layers = quantizable_layers(rewritten)
    quantized = quantize_for_tensorrt(rewritten, ranges, keep_float={layers[0], layers[-1]})
    assert tensor(quantized, "down0.w").dtype == np.float16
    assert len(nodes_of(quantized, "QuantizeLinear")) == len(layers) - 2
    assert quantizable_layers(quantized) == layers


def test_the_opset_is_the_first_with_half_scales(rewritten: onnx.ModelProto, ranges: Ranges) -> None:
    assert [each.version for each in quantize_for_tensorrt(rewritten, ranges).opset_import] == [19]


def test_metadata_survives_the_input_is_left_alone_and_two_runs_are_equal_to_the_byte(
    rewritten: onnx.ModelProto, ranges: Ranges
) -> None:
    before = rewritten.SerializeToString()
    first, second = (quantize_for_tensorrt(rewritten, ranges) for _ in range(2))
    assert first.metadata_props == rewritten.metadata_props
    assert first.SerializeToString() == second.SerializeToString()
    assert rewritten.SerializeToString() == before


def test_the_types_written_down_follow_from_the_operators(rewritten: onnx.ModelProto, ranges: Ranges) -> None:
    onnx.shape_inference.infer_shapes(quantize_for_tensorrt(rewritten, ranges), strict_mode=True, check_type=True)


def test_a_transposed_convolution_is_refused_unless_it_is_kept_in_float() -> None:
    model = make_network()
    ranges = activation_ranges(model, make_images(4), Estimator.MIN_MAX)
    with pytest.raises(InputError, match="no INT8 for the transposed convolution 'node_grow'; rewrite it first"):
        quantize_for_tensorrt(model, ranges)
    kept = [node.name for node in nodes_of(model, "ConvTranspose")]
    assert len(nodes_of(quantize_for_tensorrt(model, ranges, keep_float=kept), "QuantizeLinear")) == 3


def test_a_scale_that_half_precision_would_lose_is_raised() -> None:
    assert activation_scale(0.0).shape == ()
    assert float(activation_scale(1e-9)) == SMALLEST_NORMAL
    levels, scales = quantize_weights(np.array([[0.0, 0.0], [1e-6, -1e-6], [1.27, 0.5]], np.float32))
    assert [float(scale) for scale in scales[:2]] == [SMALLEST_NORMAL] * 2
    assert levels.tolist() == [[0, 0], [0, 0], [127, 50]]


def test_levels_are_those_of_the_rounded_scales() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    levels, scales = quantize_weights(weights)
    steps = scales.astype(np.float32).reshape(-1, 1, 1, 1)
    # 127.06 levels, which a scale rounded down asks for, are cut to 127.
    assert (np.abs(weights - levels * steps) <= 0.56 * steps).all()
