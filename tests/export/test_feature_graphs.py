"""Graphs with a pretrained backbone, with and without a network on patches, in every runtime and precision."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from tests.export.tiny_networks import count_convolutions, nodes_of, run_model
from tests.train.features.test_graph import SIZE, feature_graph, graph_on_both
from tests.train.random_backbones import random_weights
from vae_edge.agreement import Outputs, run_backend
from vae_edge.backends.base import open_backend
from vae_edge.export.calibration.calibration_set import CalibrationSet, with_pasted_defects
from vae_edge.export.openvino_ir import export_openvino, network_operations, read_graph, sources
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.nncf_quantizer import OpenVinoQuantizer, QuantizationSettings
from vae_edge.export.quantization.nncf_quantizer import quantizable_layers as openvino_layers
from vae_edge.export.quantization.onnx_network import (
    LAYERS,
    network_nodes,
    quantizable_layers,
    reconstructing_layer,
    to_half,
)
from vae_edge.export.quantization.onnx_quantizer import Ranges, activation_ranges, simulate_onnx
from vae_edge.export.settings import BACKBONE, Estimator
from vae_edge.export.targets.onnx_target import (
    OnnxRuntimeQuantizer,
    export_onnx,
    export_program,
    quantize_for_onnxruntime,
)
from vae_edge.export.targets.tensorrt_rules import warnings_for_tensorrt
from vae_edge.export.targets.tensorrt_target import TensorRtQuantizer, quantize_for_tensorrt
from vae_edge.export.targets.torch_target import save_program
from vae_edge.manifest import FP32_TOLERANCE, graph_inputs, graph_outputs
from vae_edge.model_files.checks import check_model_files
from vae_edge.targets import SUPPORTED, Target
from vae_edge.train.features.backbone_weights import backbone_from
from vae_edge.train.features.graph import FeatureGraph
from vae_edge.train.model.anomaly_graph import run_graph

KINDS = ("feature", "both")
N_BACKBONE = 33
"""The stem, two convolutions of the first block and three of each of the other ten."""
N_IN_INT8 = 31
"""All but the stem and the first depthwise convolution."""
N_HEAD = {"feature": 6, "both": 12}
"""Convolutions of the VAE on features, and of the one on patches of pixels: in float at every precision."""


def images_of(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pictures, uint8 [n, *SIZE, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 8, 12, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
    return np.ascontiguousarray(smooth.permute(0, 2, 3, 1).mul(255).byte().numpy())


@cache
def graph_of(kind: str) -> FeatureGraph:
    backbone = backbone_from(random_weights("package", 0), "random")
    return feature_graph(backbone) if kind == "feature" else graph_on_both(backbone)


@cache
def program_of(kind: str) -> torch.export.ExportedProgram:
    return export_program(graph_of(kind))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def onnx_file(kind: str, folder: Path) -> Path:
    """Return the ONNX file, which is exported once."""
    path = folder / kind / "model.onnx"
    if not path.exists():
        path.parent.mkdir()
        export_onnx(program_of(kind), path, metadata={})
    return path


def rewritten_model(kind: str, folder: Path) -> onnx.ModelProto:
    return rewrite_transposed_convolutions(onnx.load(onnx_file(kind, folder)))


def ranges_of(model: onnx.ModelProto) -> Ranges:
    return activation_ranges(model, images_of(8), Estimator.MIN_MAX)


def drift(kind: str, found: Outputs, images: NDArray[np.uint8]) -> float:
    """Return the largest difference to torch's scores and maps, as a share of the largest value."""
    pairs = zip((found.maps, found.scores), run_graph(graph_of(kind), images), strict=True)
    return max(float(np.abs(first - second).max() / np.abs(second).max()) for first, second in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_tensorrts_parser_takes_it_in_every_precision(kind: str, folder: Path) -> None:
    single, rewritten = onnx.load(onnx_file(kind, folder)), rewritten_model(kind, folder)
    for model in (single, to_half(single), quantize_for_tensorrt(rewritten, ranges_of(rewritten))):
        assert warnings_for_tensorrt(model) == ()


@pytest.mark.parametrize("kind", KINDS)
class TestTheNetworks:
    def test_a_backbones_nodes_say_where_they_are_from_and_no_others_do(self, kind: str, folder: Path) -> None:
        nodes = onnx.load(onnx_file(kind, folder)).graph.node
        marked = [node for node in nodes if node.name.startswith(BACKBONE)]
        assert {node.op_type for node in marked} == {"Conv", "Clip", "Add"}
        names = [node.name for node in marked if node.op_type == "Conv"]
        assert len(names) == len(set(names)) == N_BACKBONE
        assert names[0].startswith("backbone.stem.")
        assert names[-1].startswith("backbone.blocks.10.project.")
        others = [node for node in nodes if node.op_type == "Conv" and node not in marked]
        assert len(others) == N_HEAD[kind]

    def test_they_are_the_backbone_in_onnx_and_in_openvino(self, kind: str, folder: Path) -> None:
        model = onnx.load(onnx_file(kind, folder))
        layers = quantizable_layers(model)
        assert len(layers) == N_IN_INT8
        assert not [name for name in layers if "vae" in name]
        graph = read_graph(onnx_file(kind, folder))
        assert openvino_layers(graph) == layers
        # OpenVINO makes two operations of a Clip: both are the backbone's.
        kinds = [op.get_type_name() for op in network_operations(graph)]
        assert kinds.count("Maximum") == kinds.count("Minimum") > 20 or kinds.count("Clamp") > 20

    def test_none_of_them_reconstructs_pixels(self, kind: str, folder: Path) -> None:
        assert reconstructing_layer(onnx.load(onnx_file(kind, folder))) is None

    def test_uneven_padding_is_inside_the_convolutions(self, kind: str, folder: Path) -> None:
        assert not nodes_of(onnx.load(onnx_file(kind, folder)), "Pad")
        assert "Pad" not in {op.get_type_name() for op in read_graph(onnx_file(kind, folder)).get_ops()}

    def test_the_file_tells_nothing_of_the_machine_that_made_it(self, kind: str, folder: Path) -> None:
        content = onnx_file(kind, folder).read_bytes()
        assert b"name_scopes" not in content
        assert b".py" not in content


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO, Target.TORCH])
@pytest.mark.parametrize("kind", KINDS)
def test_every_runtime_gives_torchs_map_and_score_in_fp32(
    kind: str, target: Target, batch: int, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / SUPPORTED[target].model_file
    if target is Target.ONNX:
        path.write_bytes(onnx_file(kind, folder).read_bytes())
    elif target is Target.OPENVINO:
        export_openvino(onnx_file(kind, folder), path, metadata={})
    else:
        save_program(program_of(kind), path)
    check_model_files(tmp_path, [each.name for each in tmp_path.iterdir()], advice="export it again")
    images = images_of(batch, seed=5)
    with open_backend(target, path, graph_inputs(*SIZE), graph_outputs(*SIZE)) as backend:
        found = backend.run({"image": images})
    assert drift(kind, Outputs(found["anomaly_map"], found["score"]), images) < FP32_TOLERANCE / 10


@pytest.mark.parametrize("kind", KINDS)
class TestHalfPrecision:
    def test_the_networks_compute_in_half_between_casts_and_the_rest_in_float(self, kind: str, folder: Path) -> None:
        half = to_half(onnx.load(onnx_file(kind, folder)))
        kinds = {each.name: each.data_type for each in half.graph.initializer}
        inside = {name for node in network_nodes(half) for name in node.input}
        assert {name for name, type_ in kinds.items() if type_ == TensorProto.FLOAT16} <= inside
        head = [name for name in kinds if ".vae." in name]
        assert len(head) >= N_HEAD[kind]
        assert {kinds[name] for name in head} == {TensorProto.FLOAT}
        casts = [node for node in nodes_of(half, "Cast") if node.name.startswith("cast_")]
        # One in, and the features of four blocks out.
        assert len(casts) == 1 + 4

    def test_the_scores_hardly_move(self, kind: str, folder: Path) -> None:
        images = images_of(4, seed=9)
        half = to_half(onnx.load(onnx_file(kind, folder)))
        assert 0 < drift(kind, Outputs(*run_model(half, images)), images) < 0.02

    def test_openvino_stores_the_networks_weights_in_half(self, kind: str, folder: Path, tmp_path: Path) -> None:
        openvino = pytest.importorskip("openvino")
        export_openvino(onnx_file(kind, folder), tmp_path / "model.xml", metadata={}, precision="fp16")
        constants = [
            op
            for op in openvino.Core().read_model(tmp_path / "model.xml").get_ops()
            if op.get_type_name() == "Constant"
        ]
        kinds = {op.get_friendly_name(): op.get_element_type().get_type_name() for op in constants}
        weights = [op for op in constants if kinds[op.get_friendly_name()] == "f16" and len(op.shape) >= 4]
        biases = [op for op in weights if op.shape[0] == 1 and list(op.shape[2:]) == [1, 1]]
        assert len(weights) - len(biases) == N_BACKBONE
        assert {type_ for name, type_ in kinds.items() if ".vae." in name or "channel_" in name} == {"f32"}
        images = images_of(4, seed=9)
        with open_backend(
            Target.OPENVINO, tmp_path / "model.xml", graph_inputs(*SIZE), graph_outputs(*SIZE)
        ) as backend:
            assert drift(kind, run_backend(backend, images), images) < 0.02


@pytest.mark.parametrize("kind", KINDS)
class TestInt8:
    def test_onnx_runtime_computes_all_but_the_reconstruction_in_integers(
        self, kind: str, folder: Path, tmp_path: Path
    ) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        model = rewritten_model(kind, folder)
        quantized = quantize_for_onnxruntime(model, ranges_of(model))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(quantized.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(tmp_path / "optimized.onnx")
        assert len(nodes_of(optimized, "QLinearConv")) == N_IN_INT8
        # The bounds of the others are the bounds of the integers.
        assert len(nodes_of(optimized, "Clip")) <= 2
        images = images_of(4, seed=9)
        assert 0 < drift(kind, Outputs(*run_model(quantized, images)), images) < 0.5

    def test_features_leave_the_backbone_unrounded(self, kind: str, folder: Path) -> None:
        model = rewritten_model(kind, folder)
        sums = {node.output[0] for node in network_nodes(model) if node.op_type == "Add"}
        outside = [node for node in model.graph.node if not node.name.startswith(BACKBONE)]
        taken = {name for node in outside for name in node.input} & sums
        assert len(taken) == 4
        quantized = quantize_for_onnxruntime(model, ranges_of(model))
        readers = {
            name for node in quantized.graph.node if node.op_type in ("AveragePool", "MatMul") for name in node.input
        }
        assert taken <= readers

    def test_a_layer_given_back_is_in_float_and_the_others_are_not(self, kind: str, folder: Path) -> None:
        quantizer = OnnxRuntimeQuantizer(onnx.load(onnx_file(kind, folder)), images_of(4), Estimator.MIN_MAX)
        layer = quantizer.layers[2]
        quantized = quantizer.model(frozenset({layer}))
        (kept,) = [node for node in quantized.graph.node if node.name == layer]
        constants = {each.name: each.data_type for each in quantized.graph.initializer}
        assert constants[kept.input[1]] == TensorProto.FLOAT
        levels = [
            name for name, type_ in constants.items() if name.endswith("_quantized") and type_ == TensorProto.INT8
        ]
        assert len(levels) == len(quantizer.layers) - 1
        images = images_of(4, seed=9)
        # ONNX Runtime does not quantize it by itself.
        as_written = simulate_onnx(quantized, images)
        found = run_model(quantized, images)
        assert np.abs(found[0] - as_written.maps).max() < 0.1 * np.abs(as_written.maps).max()

    def test_tensorrts_pairs_stand_at_the_convolutions_with_nothing_between(self, kind: str, folder: Path) -> None:
        model = rewritten_model(kind, folder)
        quantized = quantize_for_tensorrt(model, ranges_of(model))
        made_by = {name: node for node in quantized.graph.node for name in node.output}
        layers = set(quantizable_layers(model))
        for node in quantized.graph.node:
            if node.op_type in LAYERS:
                kinds = {made_by[name].op_type for name in node.input[:2] if name in made_by}
                assert (kinds == {"DequantizeLinear"}) == (node.name in layers)
        images = images_of(4, seed=9)
        assert 0 < drift(kind, simulate_onnx(quantized, images), images) < 0.5

    def test_an_engine_runs_them_in_int8_depthwise_ones_too_and_the_head_in_float(
        self, kind: str, folder: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        from vae_edge.export.quantization.engine_layers import count_layers, read_layers

        model = rewritten_model(kind, folder)
        onnx.save(quantize_for_tensorrt(model, ranges_of(model)), tmp_path / "int8.onnx")
        counts = count_layers(read_layers(tmp_path / "int8.onnx"))
        assert counts["convolution"] == {"Float": N_HEAD[kind], "Half": 2, "Int8": N_IN_INT8}
        assert "transposed convolution" not in counts

    def test_nncf_quantizes_their_layers_alone_and_gives_them_back(self, kind: str, folder: Path) -> None:
        pytest.importorskip("nncf")
        settings = QuantizationSettings(fast_bias_correction=True, halve_weight_range=False)
        quantizer = OpenVinoQuantizer(onnx_file(kind, folder), images_of(6), settings)
        assert quantizer.layers == quantizable_layers(onnx.load(onnx_file(kind, folder)))
        n_layers = N_IN_INT8
        assert count_convolutions(quantizer.model()) == {"int8": n_layers, "float": N_HEAD[kind] + 2}
        images = images_of(4, seed=9)
        full = drift(kind, quantizer.outputs(images), images)
        assert 0 < full < 0.5
        some = frozenset(quantizer.layers[: n_layers // 2])
        assert count_convolutions(quantizer.model(some))["int8"] == n_layers - len(some)
        everything = frozenset(quantizer.layers)
        assert drift(kind, quantizer.outputs(images, everything), images) < full
        for op in quantizer.model().get_ops():
            if op.get_type_name() in ("AvgPool", "MatMul"):
                assert not any(source.get_type_name() == "FakeQuantize" for source in sources(op))


class TestSaturation:
    @pytest.mark.parametrize("quantizer_type", [OnnxRuntimeQuantizer, TensorRtQuantizer])
    def test_values_beyond_the_ranges_are_counted_by_layer(
        self, quantizer_type: type[OnnxRuntimeQuantizer | TensorRtQuantizer], folder: Path
    ) -> None:
        model = onnx.load(onnx_file("feature", folder))
        quantizer = quantizer_type(model, images_of(6), Estimator.MIN_MAX)
        assert set(quantizer.saturation(images_of(6)).values()) == {0.0}
        layer = quantizer.layers[3]
        (read,) = [node.input[0] for node in model.graph.node if node.name == layer]
        quantizer.ranges = replace(quantizer.ranges, bounds={**quantizer.ranges.bounds, read: (-1.0, 1.0)})
        model.graph.output.add(name=read)
        images = images_of(4, seed=3)
        (values,) = run_model(model, images, [read])
        shares = quantizer.saturation(images)
        assert tuple(shares) == quantizer.layers
        assert shares[layer] == pytest.approx(float(np.mean(np.abs(values) > 1 + 1 / 255)))
        assert shares[layer] > 0.1
        assert layer not in quantizer.saturation(images, frozenset({layer}))

    def test_nncfs_ranges_are_read_from_the_model(self, folder: Path) -> None:
        pytest.importorskip("nncf")
        dark = (images_of(6) // 8).astype(np.uint8)
        settings = QuantizationSettings(fast_bias_correction=True, halve_weight_range=False)
        quantizer = OpenVinoQuantizer(onnx_file("feature", folder), dark, settings)
        shares = quantizer.saturation(images_of(4, seed=3))
        assert tuple(shares) == quantizer.layers
        assert max(shares.values()) > 0.01
        assert max(quantizer.saturation(dark).values()) < max(shares.values()) / 2
        assert quantizer.layers[0] not in quantizer.saturation(images_of(1), frozenset(quantizer.layers[:1]))


class TestPastedDefects:
    def test_a_quarter_as_many_as_there_are_normals_come_on_top_hashed_and_counted(self) -> None:
        normals = CalibrationSet(images_of(8), tuple(f"{i}.png" for i in range(8)), "test")
        made = with_pasted_defects(normals)
        np.testing.assert_array_equal(made.images[:8], normals.images)
        assert (len(made.images), made.n_with_defects, len(made.names)) == (10, 2, 10)
        assert [name.split("+")[0] for name in made.names[8:]] == ["0.png", "4.png"]
        assert (made.images[8:] != normals.images[::4]).any(axis=(1, 2, 3)).all()
        assert made.record.n_images == 10
        assert made.record.n_with_defects == 2
        assert made.sha256 != normals.sha256
        assert with_pasted_defects(normals).sha256 == made.sha256
