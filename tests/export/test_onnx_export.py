from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vae_edge.export.onnx_export import OPSET, export_onnx, export_program
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
