from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from tests.export.tiny_networks import count_convolutions
from vae_edge.cli.model_file import describe_model_file
from vae_edge.errors import InputError
from vae_edge.export.openvino_ir import (
    CONVOLUTIONS,
    export_openvino,
    network_operations,
    read_graph,
    save_ir,
    sources,
)
from vae_edge.export.quantization.nncf_quantizer import QuantizationSettings
from vae_edge.export.quantization.onnx_network import quantizable_layers as onnx_layers
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.onnx_target import export_onnx, export_program
from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants, run_graph
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import parse_scoring

pytest.importorskip("openvino")
pytest.importorskip("nncf")

from vae_edge.export.quantization.nncf_quantizer import (
    OpenVinoQuantizer,
    compute_alike_everywhere,
    quantizable_layers,
)


def images_of(n: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth images: uint8 [n, 32, 32, 3]."""
    torch.manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4)
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return (smooth.permute(0, 2, 3, 1) * 255).byte().numpy()


IMAGES = images_of(16)


@pytest.fixture(scope="module")
def graph() -> AnomalyGraph:
    torch.manual_seed(0)
    vae = Vae(8, 16, image_size=(32, 32)).train()
    batch = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        for _ in range(20):
            vae(batch)
    scoring = parse_scoring("l1/0.05/pixel/top1%")
    assert scoring is not None
    mean, scale = 0.3 + 0.1 * torch.rand(1, 1, 32, 32), 0.1 + torch.rand(1, 1, 32, 32)
    return AnomalyGraph(vae.eval(), scoring, ScoringConstants((mean,), (scale,)))


@pytest.fixture(scope="module")
def onnx_path(graph: AnomalyGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(export_program(graph), path, metadata={"name": "tile"})
    return path


@pytest.fixture(scope="module")
def quantizer(onnx_path: Path) -> OpenVinoQuantizer:
    settings = QuantizationSettings(fast_bias_correction=True, halve_weight_range=False)
    return OpenVinoQuantizer(onnx_path, IMAGES, settings)


def test_layers_are_the_networks_convolutions_named_as_in_onnx(quantizer: OpenVinoQuantizer, onnx_path: Path) -> None:
    assert quantizer.layers == onnx_layers(onnx.load(onnx_path))
    assert quantizer.layers == quantizable_layers(quantizer.model())
    assert len(quantizer.layers) == 8


def test_every_layer_runs_in_int8_transposed_ones_too_but_the_one_that_reads_latent_values(
    quantizer: OpenVinoQuantizer, onnx_path: Path
) -> None:
    assert count_convolutions(onnx_path) == {"int8": 0, "float": 8}
    assert count_convolutions(quantizer.model()) == {"int8": 7, "float": 1}
    unrounded = [
        op.get_type_name()
        for op in network_operations(quantizer.model())
        if op.get_type_name() in CONVOLUTIONS and sources(op)[0].get_type_name() != "FakeQuantize"
    ]
    assert unrounded == ["ConvolutionBackpropData"]


def test_no_processor_takes_signed_integers_and_the_largest_values_stay_inside(onnx_path: Path) -> None:
    import nncf

    signed = []
    for is_changed in (False, True):
        model = read_graph(onnx_path)
        inside = {op.get_friendly_name() for op in network_operations(model)}
        rest = [op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() not in inside]
        quantized = nncf.quantize(
            model,
            nncf.Dataset(range(2), lambda position: {"image": IMAGES[position : position + 1]}),
            ignored_scope=nncf.IgnoredScope(names=rest, validate=False),
        )
        if is_changed:
            compute_alike_everywhere(quantized)
        roundings = [op for op in quantized.get_ordered_ops() if op.get_type_name() == "FakeQuantize"]
        bounds = [[float(source.data.ravel()[0]) for source in sources(op)[1:]] for op in roundings]
        assert all(each[:2] == each[2:] for each in bounds)
        signed.append([each[:2] for each in bounds if each[0] < 0])
    before, after = signed
    assert len(before) == len(after) + 1  # The latent values are not rounded any more.
    for (low, high), (raised_low, raised_high) in zip(before, after, strict=False):
        assert low == pytest.approx(-128 / 127 * high)
        assert (raised_low, raised_high) == (-high, -low)


def test_scores_stay_near_the_trained_models(quantizer: OpenVinoQuantizer, graph: AnomalyGraph) -> None:
    images = images_of(6, seed=1)
    maps, scores = run_graph(graph, images)
    told: list[tuple[int, int]] = []
    outputs = quantizer.outputs(images, progress=lambda done, total: told.append((done, total)))
    assert np.abs(outputs.scores - scores).max() < 0.05 * np.abs(scores).max()
    assert np.abs(outputs.maps - maps).max() < 0.1 * np.abs(maps).max()
    assert told[-1] == (6, 6)


def test_nothing_after_the_network_is_quantized(quantizer: OpenVinoQuantizer) -> None:
    model = quantizer.model()
    network = {op.get_friendly_name() for op in network_operations(model)}
    rounding = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    assert len(rounding) == len(quantizer.layers) - 1  # Latent values are not rounded.
    for op in rounding:
        readers = {reader.get_node().get_friendly_name() for reader in op.output(0).get_target_inputs()}
        assert readers <= network


def test_all_layers_in_float_give_the_float_models_outputs(quantizer: OpenVinoQuantizer, graph: AnomalyGraph) -> None:
    images = images_of(4, seed=2)
    outputs = quantizer.outputs(images, frozenset(quantizer.layers))
    maps, scores = run_graph(graph, images)
    np.testing.assert_allclose(outputs.maps, maps, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(outputs.scores, scores, rtol=1e-3)
    assert count_convolutions(quantizer.model(frozenset(quantizer.layers)))["int8"] == 0


def test_a_layer_put_back_is_what_nncf_makes_when_told_to_leave_it(
    quantizer: OpenVinoQuantizer, onnx_path: Path
) -> None:
    import nncf
    import openvino

    kept = quantizer.layers[2]
    model = read_graph(onnx_path)
    network = {op.get_friendly_name() for op in network_operations(model)}
    names = [op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() not in network]
    told = nncf.quantize(
        model,
        nncf.Dataset(range(len(IMAGES)), lambda position: {"image": IMAGES[position : position + 1]}),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(IMAGES),
        ignored_scope=nncf.IgnoredScope(names=[*names, f"{kept}/WithoutBiases"], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.DISABLE,
            activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
        ),
    )
    compute_alike_everywhere(told)
    expected = openvino.Core().compile_model(told, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = quantizer.outputs(IMAGES[:4], frozenset({kept}))
    for position in range(4):
        result = expected({"image": IMAGES[position : position + 1]})
        np.testing.assert_allclose(outputs.maps[position], result["anomaly_map"][0], atol=1e-4)
    assert count_convolutions(quantizer.model(frozenset({kept}))) == {"int8": 6, "float": 2}


def test_variants_do_not_disturb_each_other(quantizer: OpenVinoQuantizer) -> None:
    before = quantizer.outputs(IMAGES[:2])
    quantizer.model(frozenset(quantizer.layers[:3]))
    np.testing.assert_array_equal(quantizer.outputs(IMAGES[:2]).maps, before.maps)


def test_the_same_input_gives_the_same_bytes(onnx_path: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        model = OpenVinoQuantizer(onnx_path, IMAGES).model(frozenset({"node_conv2d_1"}))
        save_ir(model, tmp_path / f"{name}.xml", metadata={"name": "tile"}, precision="int8")
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_the_file_is_a_quarter_as_large_and_still_says_what_it_is(
    quantizer: OpenVinoQuantizer, onnx_path: Path, tmp_path: Path
) -> None:
    save_ir(quantizer.model(), tmp_path / "model.xml", metadata={"name": "tile"}, precision="int8")
    export_openvino(onnx_path, tmp_path / "float.xml", metadata={})
    assert (tmp_path / "model.bin").stat().st_size < 0.35 * (tmp_path / "float.bin").stat().st_size
    described = describe_model_file(tmp_path / "model.xml").metadata
    assert described.items() >= {"name": "tile", "precision": "int8", "estimator": "min-max"}.items()
    assert described["n_calibration_images"] == "16"
    assert str(onnx_path.parent) not in (tmp_path / "model.xml").read_text()


@pytest.mark.parametrize("estimator", Estimator)
def test_every_estimator_gives_a_model_near_the_trained_one(
    estimator: Estimator, onnx_path: Path, graph: AnomalyGraph
) -> None:
    settings = QuantizationSettings(estimator)
    told: list[int] = []
    quantizer = OpenVinoQuantizer(onnx_path, IMAGES, settings, progress=lambda done, total: told.append(done))
    _, scores = run_graph(graph, IMAGES[:4])
    outputs = quantizer.outputs(IMAGES[:4])
    assert np.abs(outputs.scores - scores).max() < 0.1 * np.abs(scores).max()
    assert told == list(range(1, 17))


def test_weights_have_seven_bits_on_every_machine_unless_eight_are_asked_for(onnx_path: Path) -> None:
    largest = {}
    eight = QuantizationSettings(halve_weight_range=False)
    for name, settings in {"default": QuantizationSettings(), "eight": eight}.items():
        model = OpenVinoQuantizer(onnx_path, IMAGES[:2], settings).model()
        weights = [op.data for op in model.get_ops() if op.get_type_name() == "Constant" and op.data.dtype == np.int8]
        largest[name] = max(int(np.abs(value.astype(np.int16)).max()) for value in weights)
    assert largest == {"default": 64, "eight": 127}


@pytest.mark.parametrize(
    "images", [IMAGES[:0], IMAGES[:, :16], IMAGES.astype(np.float32), IMAGES[0]], ids=["none", "size", "type", "one"]
)
def test_images_that_do_not_fit_are_refused_before_any_work(images: NDArray[np.uint8], onnx_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \['n', 32, 32, 3\]"):
        OpenVinoQuantizer(onnx_path, images)


def test_an_unknown_layer_is_named(quantizer: OpenVinoQuantizer) -> None:
    with pytest.raises(InputError, match="no layer 'decoder'; expected some of node_conv2d,"):
        quantizer.model(frozenset({"decoder"}))


def test_nncf_writes_nothing_and_leaves_logging_alone(onnx_path: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES[:2])
    code = f"""
import logging, sys
from pathlib import Path
import numpy as np
from vae_edge.export.quantization.nncf_quantizer import OpenVinoQuantizer
OpenVinoQuantizer(Path({str(onnx_path)!r}), np.load({str(tmp_path / "images.npy")!r}))
assert logging.getLoggerClass() is logging.Logger
assert "openvino_telemetry" not in sys.modules
from nncf.telemetry.wrapper import NNCFTelemetry, telemetry
assert not isinstance(telemetry, NNCFTelemetry)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
