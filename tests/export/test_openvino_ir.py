from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray

from vae_edge.agreement import Outputs, run_backend
from vae_edge.backends.base import RuntimeOptions
from vae_edge.backends.openvino_backend import OpenVinoBackend
from vae_edge.cli.model_file import describe_model_file
from vae_edge.errors import DeviceError, InputError
from vae_edge.export.openvino_ir import export_openvino, network_operations, read_graph
from vae_edge.export.targets.onnx_target import export_onnx, export_program
from vae_edge.manifest import graph_inputs, graph_outputs
from vae_edge.train.model.anomaly_graph import AnomalyGraph, ScoringConstants, run_graph
from vae_edge.train.model.network import Vae
from vae_edge.train.model.scoring import parse_scoring

IMAGES: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


NORMALIZED = "l1/0.05/pixel/top1%"


def make_graph(text: str = NORMALIZED) -> AnomalyGraph:
    torch.manual_seed(0)
    scoring = parse_scoring(text)
    assert scoring is not None
    # A mean that is large beside the scale: what FP16 would hurt.
    mean, scale = 0.5 + 0.1 * torch.rand(1, 1, 32, 32), 0.02 + 0.01 * torch.rand(1, 1, 32, 32)
    n = len(scoring.maps)
    constants = ScoringConstants((mean,) * n, (scale,) * n)
    return AnomalyGraph(Vae(8, 16, image_size=(32, 32)).eval(), scoring, constants)


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(export_program(make_graph()), path, metadata={"name": "tile"})
    return path


def run(xml_path: Path) -> Outputs:
    backend = OpenVinoBackend(
        xml_path, graph_inputs(32, 32), graph_outputs(32, 32), max_batch=None, options=RuntimeOptions()
    )
    with backend:
        return run_backend(backend, IMAGES)


def largest_drift(xml_path: Path) -> float:
    maps, _ = run_graph(make_graph(), IMAGES)
    return float(np.abs(run(xml_path).maps - maps).max() / np.abs(maps).max())


def test_fp16_halves_the_weights_and_hardly_moves_the_maps(onnx_path: Path, tmp_path: Path) -> None:
    export_openvino(onnx_path, tmp_path / "full.xml", metadata={})
    record = export_openvino(onnx_path, tmp_path / "half.xml", metadata={}, precision="fp16")
    assert record.details == {"weights": "fp16"}
    sizes = {name: (tmp_path / f"{name}.bin").stat().st_size for name in ("full", "half")}
    # Mean, scale and the smoothing's two matrices stay as they are.
    kept_bytes = 4 * 32 * 32 * 4
    assert sizes["half"] - sizes["full"] / 2 == pytest.approx(kept_bytes / 2, abs=256)
    assert largest_drift(tmp_path / "full.xml") < 1e-5
    assert largest_drift(tmp_path / "half.xml") < 1e-3


def test_the_scorings_constants_stay_in_fp32_which_openvinos_own_compression_does_not_keep(
    onnx_path: Path, tmp_path: Path
) -> None:
    export_openvino(onnx_path, tmp_path / "ours.xml", metadata={}, precision="fp16")
    openvino.save_model(read_graph(onnx_path), tmp_path / "theirs.xml", compress_to_fp16=True)
    stored = {
        op.get_friendly_name(): op.get_element_type().get_type_name()
        for op in openvino.Core().read_model(tmp_path / "ours.xml").get_ops()
        if op.get_type_name() == "Constant"
    }
    assert stored["score.mean_0"] == stored["score.scale_0"] == "f32"
    assert stored["reconstruct.encode.0.weight/fp16"] == "f16"
    assert largest_drift(tmp_path / "ours.xml") < 0.5 * largest_drift(tmp_path / "theirs.xml")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_file_says_what_it_is_at_every_precision(precision: str, onnx_path: Path, tmp_path: Path) -> None:
    export_openvino(onnx_path, tmp_path / "model.xml", metadata={"name": "tile", "run": "a"}, precision=precision)
    found = describe_model_file(tmp_path / "model.xml")
    assert found.metadata == {"name": "tile", "run": "a", "precision": precision}
    assert found.details["openvino"].startswith(openvino.__version__.split("-")[0])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_exports_are_equal_to_the_byte(precision: str, onnx_path: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        export_openvino(onnx_path, tmp_path / f"{name}.xml", metadata={"name": "tile"}, precision=precision)
    for suffix in (".xml", ".bin"):
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


def test_int8_is_not_made_here(onnx_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'int8'; expected fp32 or fp16"):
        export_openvino(onnx_path, tmp_path / "model.xml", metadata={}, precision="int8")


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(DeviceError, match=r"cannot convert model\.onnx"):
        export_openvino(tmp_path / "model.onnx", tmp_path / "model.xml", metadata={})


@pytest.mark.parametrize("scoring", ["mse", NORMALIZED, "ssim/0.05/local+pixel/max,gradient/0/image/mean"])
def test_the_network_ends_where_scoring_begins(scoring: str, tmp_path: Path) -> None:
    export_onnx(export_program(make_graph(scoring)), tmp_path / "model.onnx", metadata={})
    kinds = [op.get_type_name() for op in network_operations(read_graph(tmp_path / "model.onnx"))]
    assert (kinds.count("Convolution"), kinds.count("ConvolutionBackpropData")) == (4, 4)
    assert kinds[-1] == "Tanh"
    assert "ReduceMean" not in kinds
