"""Graphs with everything that training can put into one, in every runtime and precision: as in torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from tests.export.tiny_networks import count_convolutions, nodes_of, run_model
from vae_edge.agreement import Outputs
from vae_edge.backends.base import Hint, RuntimeOptions, open_backend
from vae_edge.export.openvino_ir import export_openvino, read_graph, sources
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.nncf_quantizer import QuantizationSettings
from vae_edge.export.quantization.nncf_quantizer import quantizable_layers as openvino_layers
from vae_edge.export.quantization.onnx_network import network_nodes, quantizable_layers, to_half
from vae_edge.export.quantization.onnx_quantizer import activation_ranges
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.onnx_target import export_onnx, export_program, quantize_for_onnxruntime
from vae_edge.export.targets.tensorrt_rules import warnings_for_tensorrt
from vae_edge.export.targets.tensorrt_target import quantize_for_tensorrt
from vae_edge.export.targets.torch_target import save_program
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.targets import Target
from vae_edge.train.model.anomaly_graph import AnomalyGraph, run_graph
from vae_edge.train.model.input_settings import IMAGENET, SYMMETRIC, InputRange, InputSettings, Photometric, Tiling
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import parse_scoring
from vae_edge.train.model.scoring_constants import fit_scoring_constants

HEIGHT, WIDTH = 48, 80
TILES = Tiling(image_height=HEIGHT, image_width=WIDTH, tile_height=32, tile_width=32)
TOLERANCE = 1e-4
"""Of the largest value."""


class Case(NamedTuple):
    """A composition and the way that light is evened out."""

    scoring: str
    photometric: Photometric = Photometric.NONE
    input_range: InputRange = SYMMETRIC

    def __str__(self) -> str:
        return f"{self.scoring};{self.photometric}" + (";imagenet" if self.input_range == IMAGENET else "")


CASES = (
    Case("default"),
    Case("l1/0.03/none/mean"),
    Case("l2/0.03/image+pixel/max", Photometric.IMAGE),
    Case("ssim/0.03/local+pixel/top2%", Photometric.LOCAL),
    Case("gradient/0/local/max,l1/0.1/image+pixel/top5%", Photometric.LOCAL),
    Case("l2/0.03/pixel/top1%,latent"),
    Case("l1/0.03/pixel/top1%,kl", Photometric.LOCAL),
    Case("l1/0.03/pixel/top1%,ssim/0.02/image/mean,latent,fusion=max", Photometric.LOCAL),
    Case("gradient/0.01/none/top1%,kl,fusion=max"),
    # As of a network that was trained elsewhere.
    Case("default", input_range=IMAGENET),
    # Wide enough to be computed at every second pixel: all of it, and beside a narrow map and a term of the latents.
    Case("l2/0.05/image+pixel/top5%,gradient/0.04/local/max,map=0.06", Photometric.IMAGE),
    Case("l1/0.05/pixel/mean,ssim/0.01/none/top1%,latent,map=0.05"),
)
EVERYTHING = CASES[7]
WITH_KL = CASES[6]
COARSE = CASES[-2]
TAKEN_OVER = CASES[9]
SOME = (CASES[0], WITH_KL, EVERYTHING, TAKEN_OVER, COARSE)


def images_of(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pictures under different light: uint8 [n, HEIGHT, WIDTH, 3]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 10, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")
    light = 0.6 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator)
    return np.ascontiguousarray((smooth * light).permute(0, 2, 3, 1).mul(255).byte().numpy())


@cache
def vae() -> Vae:
    """A network that has learned a little, so that its activations are those of one that is in use."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Vae(8, 16, image_size=(32, 32)).train()
        pixels = (torch.from_numpy(images_of(24)).permute(0, 3, 1, 2) / 127.5 - 1)[:, :, 8:40]
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for step in range(60):
            batch = pixels[..., (left := 8 * (step % 6)) : left + 32]
            optimizer.zero_grad()
            torch.autograd.backward(network.loss(network(batch), batch).total)
            optimizer.step()
    return network.eval()


@cache
def graph_of(case: Case) -> AnomalyGraph:
    scoring = parse_scoring(case.scoring)
    assert scoring is not None
    input_settings = InputSettings(TILES, case.photometric, case.input_range)
    return AnomalyGraph(
        vae(),
        scoring,
        fit_scoring_constants(vae(), scoring, images_of(20), input_settings=input_settings),
        input_settings,
    )


@cache
def program_of(case: Case) -> torch.export.ExportedProgram:
    return export_program(graph_of(case))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def onnx_file(case: Case, folder: Path) -> Path:
    """Return the case's ONNX file, which is exported once."""
    path = folder / f"{CASES.index(case)}.onnx"
    if not path.exists():
        export_onnx(program_of(case), path, metadata={})
    return path


def check(case: Case, maps: NDArray[np.float32], scores: NDArray[np.float32], images: NDArray[np.uint8]) -> None:
    """Compare with torch, relative to the largest value."""
    exact = run_graph(graph_of(case), images)
    assert np.ptp(exact[1]) > 0.01, "the scores differ, so that a wrong one is seen"
    for found, expected in zip((maps, scores), exact, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


def drift(case: Case, found: Outputs, images: NDArray[np.uint8]) -> float:
    """Return the largest difference to torch's scores and maps, as a share of the largest value."""
    exact = run_graph(graph_of(case), images)
    pairs = zip((found.maps, found.scores), exact, strict=True)
    return max(float(np.abs(first - second).max() / np.abs(second).max()) for first, second in pairs)


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryRuntimeGivesTheMapAndTheScoreOfTorch:
    @pytest.mark.parametrize("n", [1, 3])
    def test_onnx_runtime(self, case: Case, n: int, folder: Path) -> None:
        pytest.importorskip("onnxruntime")
        images = images_of(n + 1, seed=9)
        outputs = run_model(onnx.load(onnx_file(case, folder)), images)
        check(case, outputs[0], outputs[1], images)

    @pytest.mark.parametrize("hint", list(Hint))
    def test_openvino_for_one_image_and_spread_over_its_requests(
        self, case: Case, hint: Hint, folder: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("openvino")
        export_openvino(onnx_file(case, folder), tmp_path / "model.xml", metadata={})
        images = images_of(5, seed=9)
        specs = graph_inputs(HEIGHT, WIDTH), graph_outputs(HEIGHT, WIDTH)
        with open_backend(
            Target.OPENVINO, tmp_path / "model.xml", *specs, options=RuntimeOptions(hint=hint)
        ) as backend:
            together = backend.run({"image": images})
            alone = backend.run({"image": images[:1]})
        check(case, together["anomaly_map"], together["score"], images)
        np.testing.assert_allclose(alone["score"], together["score"][:1], rtol=1e-5, atol=1e-6)

    def test_the_torch_program_to_the_bit(self, case: Case, tmp_path: Path) -> None:
        save_program(program_of(case), tmp_path / "program.json")
        images = images_of(3, seed=9)
        specs = graph_inputs(HEIGHT, WIDTH), graph_outputs(HEIGHT, WIDTH)
        with (
            torch.inference_mode(),
            open_backend(Target.TORCH, tmp_path / "program.json", *specs) as backend,
        ):
            outputs = backend.run({"image": images})
            maps, scores = graph_of(case)(torch.from_numpy(images))
        np.testing.assert_array_equal(outputs["anomaly_map"], maps.numpy())
        np.testing.assert_array_equal(outputs["score"], scores.numpy())

    def test_tensorrts_parser_takes_it(self, case: Case, folder: Path) -> None:
        assert warnings_for_tensorrt(onnx.load(onnx_file(case, folder))) == ()

    def test_tensorrt_rtx_builds_an_engine(self, case: Case, folder: Path) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        from vae_edge.export.quantization.engine_layers import count_layers, read_layers

        counts = count_layers(read_layers(onnx_file(case, folder)))
        n_heads = 1 + ("kl" in case.scoring)
        assert counts["convolution"] == {"Float": 3 + n_heads}
        assert counts["transposed convolution"] == {"Float": 4}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_network_is_the_same_piece_of_the_graph_in_onnx_and_in_openvino(case: Case, folder: Path) -> None:
    pytest.importorskip("openvino")
    model = onnx.load(onnx_file(case, folder))
    nodes = network_nodes(model)
    kinds = [node.op_type for node in nodes]
    assert (kinds[0], kinds[-1]) == ("Conv", "Tanh")
    assert set(kinds) == {"Conv", "ConvTranspose", "LeakyRelu", "Relu", "Tanh"} | ({"Reshape"} & set(kinds))
    assert (kinds.count("Conv"), kinds.count("ConvTranspose")) == (4, 4)
    assert openvino_layers(read_graph(onnx_file(case, folder))) == quantizable_layers(model)


@pytest.mark.parametrize("case", SOME, ids=str)
class TestHalfPrecision:
    def test_the_network_alone_is_in_half(self, case: Case, folder: Path) -> None:
        model = onnx.load(onnx_file(case, folder))
        half = to_half(model)
        inside = {name for node in network_nodes(half) for name in node.input}
        kinds = {each.name: each.data_type for each in half.graph.initializer}
        halves = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT16}
        assert halves <= inside
        assert len(halves) == 2 * len(quantizable_layers(model))
        # One cast in; out of the latents and features where a score asks for them, and of the reconstruction.
        casts = [node for node in nodes_of(half, "Cast") if node.name.startswith("cast_")]
        n_out = 1 + any(word in case.scoring for word in ("latent", "kl")) + ("kl" in case.scoring)
        assert len(casts) == 1 + n_out

    def test_the_scores_hardly_move(self, case: Case, folder: Path) -> None:
        pytest.importorskip("onnxruntime")
        images = images_of(6, seed=9)
        outputs = run_model(to_half(onnx.load(onnx_file(case, folder))), images)
        assert 0 < drift(case, Outputs(*outputs), images) < 0.01

    def test_openvino_stores_the_networks_weights_in_half_and_nothing_else(
        self, case: Case, folder: Path, tmp_path: Path
    ) -> None:
        openvino = pytest.importorskip("openvino")
        export_openvino(onnx_file(case, folder), tmp_path / "half.xml", metadata={}, precision="fp16")
        stored = [
            op
            for op in openvino.Core().read_model(tmp_path / "half.xml").get_ops()
            if op.get_type_name() == "Constant" and op.get_element_type().get_type_name() == "f16"
        ]
        names = [op.get_friendly_name().removesuffix("/fp16") for op in stored]
        weights = [name for name in names if name.endswith(".weight")]
        assert len(weights) == 8
        assert not [name for name in names if name.startswith(("score.", "reconstruct.tiles", "reconstruct.photo"))]
        assert not [name for name in names if "log_variance" in name]
        images = images_of(4, seed=9)
        specs = graph_inputs(HEIGHT, WIDTH), graph_outputs(HEIGHT, WIDTH)
        with open_backend(Target.OPENVINO, tmp_path / "half.xml", *specs) as backend:
            outputs = backend.run({"image": images})
        assert drift(case, Outputs(outputs["anomaly_map"], outputs["score"]), images) < 0.01

    def test_an_engine_computes_the_network_in_half_and_the_rest_in_float(
        self, case: Case, folder: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        from vae_edge.export.quantization.engine_layers import count_layers, read_layers

        onnx.save(to_half(onnx.load(onnx_file(case, folder))), tmp_path / "half.onnx")
        counts = count_layers(read_layers(tmp_path / "half.onnx"))
        assert counts["convolution"] == {"Half": 4} | ({"Float": 1} if "kl" in case.scoring else {})
        assert counts["transposed convolution"] == {"Half": 4}


@pytest.mark.parametrize("case", SOME, ids=str)
class TestInt8:
    def test_onnx_runtimes_and_tensorrts_pairs_stand_on_the_networks_layers_alone(
        self, case: Case, folder: Path
    ) -> None:
        pytest.importorskip("onnxruntime")
        model = onnx.load(onnx_file(case, folder))
        rewritten = rewrite_transposed_convolutions(model)
        ranges = activation_ranges(rewritten, images_of(16), Estimator.MIN_MAX)
        layers = quantizable_layers(rewritten)
        assert layers == quantizable_layers(model)
        images = images_of(6, seed=9)
        for low in (to_half(model), quantize_for_tensorrt(rewritten, ranges)):
            assert warnings_for_tensorrt(low) == ()
        for quantized in (quantize_for_onnxruntime(rewritten, ranges), quantize_for_tensorrt(rewritten, ranges)):
            # What is rounded is what the network computes, and what it starts from.
            first, *_ = network_nodes(rewritten)
            computed = {name for node in network_nodes(rewritten) for name in node.output} | {first.input[0]}
            casts = {node.output[0]: node.input[0] for node in nodes_of(quantized, "Cast")}
            rounded = {casts.get(node.input[0], node.input[0]) for node in nodes_of(quantized, "QuantizeLinear")}
            assert rounded <= computed
            assert len(rounded) >= len(layers) - 1
            # And of the constants the weights of its layers alone; the last one may be left in float.
            stored = {each.name for each in quantized.graph.initializer if each.data_type == TensorProto.INT8}
            levels = {node.input[0] for node in nodes_of(quantized, "DequantizeLinear")} & stored
            assert len(layers) - 1 <= len(levels) <= len(layers)
            assert not any(name.startswith("score.") for name in levels)
            assert drift(case, Outputs(*run_model(quantized, images)), images) < 0.2

    def test_nncf_rounds_the_inputs_of_the_networks_layers_alone(self, case: Case, folder: Path) -> None:
        pytest.importorskip("openvino")
        pytest.importorskip("nncf")
        from vae_edge.export.quantization.nncf_quantizer import OpenVinoQuantizer

        quantizer = OpenVinoQuantizer(
            onnx_file(case, folder), images_of(12), QuantizationSettings(fast_bias_correction=True)
        )
        assert quantizer.layers == quantizable_layers(onnx.load(onnx_file(case, folder)))
        model = quantizer.model()
        n_heads = int("kl" in case.scoring)
        # The transposed convolution that reads the latent values reads them as they are.
        assert count_convolutions(model) == {"int8": 7, "float": n_heads + 1}
        rounding = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
        readers = [reader.get_node() for op in rounding for reader in op.output(0).get_target_inputs()]
        assert {op.get_type_name() for op in readers} <= {"Convolution", "ConvolutionBackpropData"}
        assert len(rounding) == 7
        for op in model.get_ops():
            if op.get_type_name() == "MatMul":
                assert not any(source.get_type_name() == "FakeQuantize" for source in sources(op))
        images = images_of(6, seed=9)
        assert 0 < drift(case, quantizer.outputs(images), images) < 0.2

    def test_an_engine_runs_the_network_in_int8_and_the_rest_in_float(
        self, case: Case, folder: Path, tmp_path: Path
    ) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
        pytest.importorskip("onnxruntime")
        from vae_edge.export.quantization.engine_layers import count_layers, read_layers

        rewritten = rewrite_transposed_convolutions(onnx.load(onnx_file(case, folder)))
        ranges = activation_ranges(rewritten, images_of(8), Estimator.MIN_MAX)
        onnx.save(quantize_for_tensorrt(rewritten, ranges), tmp_path / "int8.onnx")
        counts = count_layers(read_layers(tmp_path / "int8.onnx"))
        assert counts["convolution"] == {"Int8": 8} | ({"Float": 1} if "kl" in case.scoring else {})
        assert "transposed convolution" not in counts
