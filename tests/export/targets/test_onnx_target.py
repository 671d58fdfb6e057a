from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from tests.export.tiny_networks import make_images, make_network, nodes_of, run_model, tensor
from vae_edge.errors import InputError
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.onnx_network import quantizable_layers, to_half
from vae_edge.export.quantization.onnx_quantizer import Ranges, activation_ranges
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.onnx_target import (
    OPSET,
    export_onnx,
    export_program,
    quantize_for_onnxruntime,
    slower_in_half,
)
from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import parse_scoring

NORMALIZED = "l1/0.05/pixel/top1%"


def random_graph(text: str = NORMALIZED) -> AnomalyGraph:
    torch.manual_seed(0)
    vae = Vae(4, 8, image_size=(32, 48)).eval()
    constants = ScoringConstants((torch.rand(1, 1, 32, 48),), (0.5 + torch.rand(1, 1, 32, 48),))
    settings = parse_scoring(text)
    assert settings is not None
    return AnomalyGraph(vae, settings, constants)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(export_program(random_graph()), path, metadata={"name": "tile", "scoring": "mean of the top"})
    return path


@pytest.mark.parametrize("scoring", [NORMALIZED, "mse"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnx_runtime_gives_torchs_map_and_score_at_any_batch(scoring: str, batch: int, tmp_path: Path) -> None:
    graph = random_graph(scoring)
    export_onnx(export_program(graph), tmp_path / "model.onnx", metadata={})
    images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 48, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    maps, scores = session.run(["anomaly_map", "score"], {"image": images})
    with torch.inference_mode():
        expected_maps, expected_scores = graph(torch.from_numpy(images))
    np.testing.assert_allclose(maps, expected_maps.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, expected_scores.numpy(), rtol=1e-4, atol=1e-4)


def test_inputs_and_outputs_are_those_of_the_design(model_path: Path) -> None:
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["N", 32, 48, 3])
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("anomaly_map", "tensor(float)", ["N", 32, 48]),
        ("score", "tensor(float)", ["N"]),
    ]


def test_the_opset_is_one_that_all_three_runtimes_read(model_path: Path) -> None:
    assert [(entry.domain, entry.version) for entry in onnx.load(model_path).opset_import] == [("", OPSET)]


def test_the_image_is_cast_before_it_is_transposed(model_path: Path) -> None:
    kinds = [node.op_type for node in onnx.load(model_path).graph.node]
    assert kinds.index("Cast") < kinds.index("Transpose")


def test_nothing_in_the_graph_draws_random_numbers(model_path: Path) -> None:
    assert not {node.op_type for node in onnx.load(model_path).graph.node} & {
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Bernoulli",
        "Dropout",
    }


def test_batch_norms_and_the_log_variance_are_not_exported(model_path: Path) -> None:
    kinds = [node.op_type for node in onnx.load(model_path).graph.node]
    # Three halvings and the mean's head.
    assert (kinds.count("Conv"), kinds.count("ConvTranspose"), kinds.count("BatchNormalization")) == (4, 4, 0)


def test_a_lone_file_says_what_it_is(model_path: Path) -> None:
    stored = onnx.load(str(model_path)).metadata_props
    assert {entry.key: entry.value for entry in stored} == {"name": "tile", "scoring": "mean of the top"}


def test_the_file_tells_nothing_of_the_machine_that_made_it(model_path: Path) -> None:
    content = model_path.read_bytes()
    assert str(Path(__file__).resolve().parents[2]).encode() not in content
    assert b".py" not in content


def test_two_exports_are_equal_to_the_byte(model_path: Path, tmp_path: Path) -> None:
    export_onnx(
        export_program(random_graph()), tmp_path / "again.onnx", metadata={"scoring": "mean of the top", "name": "tile"}
    )
    assert (tmp_path / "again.onnx").read_bytes() == model_path.read_bytes()


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
        with pytest.raises(InputError, match=r"down0\.w are used by the network and by other nodes"):
            to_half(model)

    def test_a_slower_half_is_told_in_a_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = make_network()
        times = iter([0.002, 0.003] * 100)
        monkeypatch.setattr("vae_edge.export.targets.onnx_target._time_s", lambda *arguments: next(times))
        assert "3.00 ms an image against 2.00 ms" in str(slower_in_half(model, to_half(model)))
        times = iter([0.003, 0.002] * 100)
        assert slower_in_half(model, to_half(model)) is None

    def test_the_timing_runs_both_models(self) -> None:
        model = make_network()
        sentence = slower_in_half(model, to_half(model), threads=1)
        assert sentence is None or sentence.startswith("FP16 is slower than FP32 on ONNX Runtime's CPU provider here")


class TestInt8:
    @pytest.mark.parametrize("estimator", list(Estimator))
    def test_maps_and_scores_stay_near_fp32s(self, rewritten: onnx.ModelProto, estimator: Estimator) -> None:
        ranges = activation_ranges(rewritten, make_images(32), estimator)
        quantized = quantize_for_onnxruntime(rewritten, ranges)
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

    def test_weights_have_all_8_bits(self, rewritten: onnx.ModelProto, ranges: Ranges) -> None:
        quantized = quantize_for_onnxruntime(rewritten, ranges)
        assert np.abs(tensor(quantized, "down1.w_quantized")).max() == 127

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
