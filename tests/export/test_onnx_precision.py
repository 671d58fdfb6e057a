from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.export.tiny_networks import make_images, make_network, nodes_of, run_model, tensor
from vae_edge.errors import InputError
from vae_edge.export import onnx_precision
from vae_edge.export.activation_ranges import Ranges, activation_ranges
from vae_edge.export.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.half_precision import to_half
from vae_edge.export.network_graph import quantizable_layers
from vae_edge.export.onnx_precision import quantize_for_onnxruntime, slower_in_half
from vae_edge.export.settings import Estimator

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def rewritten() -> onnx.ModelProto:
    return rewrite_transposed_convolutions(make_network())


@pytest.fixture(scope="module")
def ranges(rewritten: onnx.ModelProto) -> Ranges:
    return activation_ranges(rewritten, make_images(32), Estimator.MIN_MAX)


def largest_differences(model: onnx.ModelProto, other: onnx.ModelProto) -> list[float]:
    images = make_images(6, seed=9)
    pairs = zip(run_model(model, images), run_model(other, images), strict=True)
    return [float(np.abs(first - second).max()) for first, second in pairs]


class TestHalf:
    def test_maps_and_scores_are_fp32s_within_the_rounding_of_11_bits(self) -> None:
        model = make_network()
        assert max(largest_differences(model, to_half(model))) < 5e-3

    def test_the_networks_weights_are_stored_in_half_and_the_rest_in_float(self) -> None:
        half = to_half(make_network())
        kinds = {each.name: each.data_type for each in half.graph.initializer}
        assert {kinds["down0.w"], kinds["down0.b"], kinds["grow.w"], kinds["up1.w"]} == {TensorProto.FLOAT16}
        assert {kinds["kernel"], kinds["mean"], kinds["scale"], kinds["half_range"]} == {TensorProto.FLOAT}

    def test_one_cast_goes_in_and_one_comes_out(self) -> None:
        casts = [(list(node.input), node.attribute[0].i) for node in nodes_of(to_half(make_network()), "Cast")]
        assert casts == [
            (["image"], TensorProto.FLOAT),
            (["pixels"], TensorProto.FLOAT16),
            (["up1.active"], TensorProto.FLOAT),
        ]

    def test_inputs_outputs_metadata_and_names_stay_and_the_types_inside_are_right(self) -> None:
        model = make_network()
        half = to_half(model)
        assert (half.graph.input, half.graph.output) == (model.graph.input, model.graph.output)
        assert half.metadata_props == model.metadata_props
        assert quantizable_layers(half) == quantizable_layers(model)
        # Strict inference compares the types that are written down with those that follow from the operators.
        onnx.shape_inference.infer_shapes(half, strict_mode=True, check_type=True)

    def test_two_conversions_are_equal_to_the_byte(self) -> None:
        assert to_half(make_network()).SerializeToString() == to_half(make_network()).SerializeToString()

    def test_a_graph_without_a_network_is_refused(self) -> None:
        model = make_network()
        for node in nodes_of(model, "Tanh"):
            node.op_type = "Sigmoid"
        with pytest.raises(InputError, match="0 Tanh nodes; expected one"):
            to_half(model)

    def test_weights_that_other_nodes_use_too_are_refused(self) -> None:
        model = make_network()
        nodes_of(model, "Conv")[-1].input[1] = "down0.w"
        with pytest.raises(InputError, match=r"down0\.w belong to the network and to other nodes"):
            to_half(model)

    def test_a_slower_half_is_told_in_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_network()
        times = iter([0.002, 0.003] * 100)
        monkeypatch.setattr(onnx_precision, "_time_s", lambda *arguments: next(times))
        assert "3.00 ms an image against 2.00 ms" in str(slower_in_half(model, to_half(model)))
        times = iter([0.003, 0.002] * 100)
        assert slower_in_half(model, to_half(model)) is None

    def test_the_timing_runs_both_models(self) -> None:
        model = make_network()
        sentence = slower_in_half(model, to_half(model), threads=1)
        assert sentence is None or sentence.startswith("FP16 is slower than FP32 on ONNX Runtime's CPU provider here")


class TestInt8:
    @pytest.mark.parametrize("estimator", list(Estimator))
    @pytest.mark.parametrize("reduce_range", [False, True])
    def test_maps_and_scores_stay_near_fp32s(
        self, rewritten: onnx.ModelProto, estimator: Estimator, reduce_range: bool
    ) -> None:
        ranges = activation_ranges(rewritten, make_images(32), estimator)
        quantized = quantize_for_onnxruntime(rewritten, ranges, reduce_range=reduce_range)
        # Entropy clips the largest values: on few pixels and by much.
        assert max(largest_differences(rewritten, quantized)) < (0.5 if estimator is Estimator.ENTROPY else 0.15)

    def test_all_convolutions_but_the_last_are_integer_after_onnx_runtimes_fusions(
        self, rewritten: onnx.ModelProto, ranges: Ranges, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        import onnxruntime

        path = tmp_path_factory.mktemp("optimized") / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        quantized = quantize_for_onnxruntime(rewritten, ranges)
        onnxruntime.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(path)
        assert len(nodes_of(optimized, "QLinearConv")) == len(quantizable_layers(rewritten)) - 1
        assert not nodes_of(optimized, "ConvTranspose")

    def test_weights_are_symmetric_with_a_scale_for_each_channel(
        self, rewritten: onnx.ModelProto, ranges: Ranges
    ) -> None:
        quantized = quantize_for_onnxruntime(rewritten, ranges)
        assert tensor(quantized, "down1.w_quantized").dtype == np.int8
        assert tensor(quantized, "down1.w_scale").shape == (10,)
        assert not tensor(quantized, "down1.w_zero_point").any()

    def test_a_reduced_range_keeps_the_weights_to_7_bits(self, rewritten: onnx.ModelProto, ranges: Ranges) -> None:
        quantized = quantize_for_onnxruntime(rewritten, ranges, reduce_range=True)
        assert np.abs(tensor(quantized, "down1.w_quantized")).max() <= 64

    def test_layers_kept_in_float_keep_their_weights(self, rewritten: onnx.ModelProto, ranges: Ranges) -> None:
        layers = quantizable_layers(rewritten)
        quantized = quantize_for_onnxruntime(rewritten, ranges, keep_float={layers[1]})
        np.testing.assert_array_equal(tensor(quantized, "down1.w"), tensor(rewritten, "down1.w"))
        assert max(largest_differences(rewritten, quantized)) < 0.15
        assert quantizable_layers(quantized) == layers

    def test_everything_kept_in_float_is_the_model_itself(self, rewritten: onnx.ModelProto, ranges: Ranges) -> None:
        quantized = quantize_for_onnxruntime(rewritten, ranges, keep_float=quantizable_layers(rewritten))
        assert quantized == rewritten

    def test_nothing_around_the_network_is_quantized(self, rewritten: onnx.ModelProto, ranges: Ranges) -> None:
        quantized = quantize_for_onnxruntime(rewritten, ranges)
        names = {each.name for each in quantized.graph.initializer}
        assert {"kernel", "mean", "scale", "half_range"} <= names
        tail = {"difference", "residual", "grey", "padded", "smooth", "map", "shifted", "anomaly_map", "row", "largest"}
        for node in nodes_of(quantized, "QuantizeLinear"):
            assert not tail.intersection(node.input)

    def test_metadata_survives_and_two_runs_are_equal_to_the_byte(
        self, rewritten: onnx.ModelProto, ranges: Ranges
    ) -> None:
        first, second = (quantize_for_onnxruntime(rewritten, ranges) for _ in range(2))
        assert first.metadata_props == rewritten.metadata_props
        assert first.producer_name == "vae-edge"
        assert first.SerializeToString() == second.SerializeToString()

    def test_an_unknown_layer_is_refused_with_the_known_ones(self, rewritten: onnx.ModelProto, ranges: Ranges) -> None:
        with pytest.raises(InputError, match="no layer nowhere; the layers are node_down0, node_down1"):
            quantize_for_onnxruntime(rewritten, ranges, keep_float={"nowhere"})

    def test_ranges_of_another_model_are_refused(self, rewritten: onnx.ModelProto) -> None:
        ranges = activation_ranges(make_network(), make_images(4), Estimator.MIN_MAX)
        with pytest.raises(InputError, match="no range for"):
            quantize_for_onnxruntime(rewritten, ranges)
