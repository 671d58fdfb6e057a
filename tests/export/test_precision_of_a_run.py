"""FP16 and INT8 of a really exported, really trained network, tiny as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from tests.export.tiny_networks import nodes_of, run_model
from vae_edge.export.quantization.deconvolution import rewrite_transposed_convolutions
from vae_edge.export.quantization.onnx_network import quantizable_layers, to_half
from vae_edge.export.quantization.onnx_quantizer import activation_ranges
from vae_edge.export.settings import Estimator
from vae_edge.export.targets.onnx_target import export_onnx, export_program, quantize_for_onnxruntime
from vae_edge.export.targets.tensorrt_target import quantize_for_tensorrt
from vae_edge.train.data.inspection_set import load_images
from vae_edge.train.run.folder import RunFolder

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def exported(trained_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("precision") / "model.onnx"
    export_onnx(export_program(trained_run.load_graph()), path, metadata={"name": "dial"})
    return onnx.load(path)


@pytest.fixture(scope="module")
def images(trained_run: RunFolder) -> NDArray[np.uint8]:
    return load_images(trained_run.find_images(("fit", "threshold")), trained_run.record.preparation)


def drift(exact: onnx.ModelProto, other: onnx.ModelProto, images: NDArray[np.uint8]) -> float:
    """Return the largest difference of maps and scores, as a share of the exact ones' largest value."""
    pairs = zip(run_model(exact, images), run_model(other, images), strict=True)
    return max(float(np.abs(first - second).max() / np.abs(first).max()) for first, second in pairs)


def test_the_layers_are_those_of_the_encoder_and_the_decoder(exported: onnx.ModelProto) -> None:
    # Three halvings, the latents, and back.
    assert len(quantizable_layers(exported)) == 3 + 1 + 1 + 3
    assert len(nodes_of(exported, "Conv") + nodes_of(exported, "ConvTranspose")) == 8


def test_the_rewrite_changes_nothing_but_the_rounding(exported: onnx.ModelProto, images: NDArray[np.uint8]) -> None:
    assert drift(exported, rewrite_transposed_convolutions(exported), images[:8]) < 1e-5


def test_half_precision_drifts_by_a_thousandth(exported: onnx.ModelProto, images: NDArray[np.uint8]) -> None:
    assert drift(exported, to_half(exported), images[:8]) < 5e-3


@pytest.mark.parametrize("estimator", list(Estimator))
def test_both_kinds_of_int8_drift_by_a_few_hundredths(
    exported: onnx.ModelProto, images: NDArray[np.uint8], estimator: Estimator
) -> None:
    rewritten = rewrite_transposed_convolutions(exported)
    ranges = activation_ranges(rewritten, images, estimator)
    assert drift(exported, quantize_for_onnxruntime(rewritten, ranges), images[:8]) < 0.05
    assert drift(exported, quantize_for_tensorrt(rewritten, ranges), images[:8]) < 0.05


def test_the_whole_road_twice_gives_equal_bytes(
    exported: onnx.ModelProto, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    made = []
    for _ in range(2):
        rewritten = rewrite_transposed_convolutions(exported)
        ranges = activation_ranges(rewritten, images, Estimator.ENTROPY)
        models = quantize_for_onnxruntime(rewritten, ranges), quantize_for_tensorrt(rewritten, ranges)
        made.append([model.SerializeToString() for model in models])
    assert made[0] == made[1]
