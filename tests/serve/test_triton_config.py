"""The configuration of `--layout triton`, read with the protocol buffers that Triton's client has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.tiny_bundles import SIZE, make_bundle
from vae_edge.export.triton_repository import config_text, export_triton
from vae_edge.targets import Target

pytest.importorskip("tritonclient", reason="tritonclient is not installed; `make test-serve` has it")
from google.protobuf import text_format


def load_model_config() -> ModuleType:
    """Load the client's messages of a model's configuration alone.

    The package around them registers the protocol's services as well, which MLServer has registered under the same
    names if it is loaded in this process.
    """
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


model_config_pb2 = load_model_config()


def parsed(text: str) -> Any:
    return text_format.Parse(text, model_config_pb2.ModelConfig())


@pytest.mark.parametrize(("target", "backend"), [(Target.ONNX, "onnxruntime"), (Target.OPENVINO, "openvino")])
def test_the_configuration_is_what_the_bundle_says(tmp_path: Path, target: Target, backend: str) -> None:
    bundle = make_bundle(tmp_path / "bundle", target)
    folder = export_triton(bundle, tmp_path / "repository", "tile")
    config = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config.name, config.backend, config.max_batch_size) == ("tile", backend, 8)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    (image,) = config.input
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_UINT8, [SIZE, SIZE, 3])
    anomaly_map, score = config.output
    assert (anomaly_map.name, list(anomaly_map.dims)) == ("anomaly_map", [SIZE, SIZE])
    assert anomaly_map.data_type == score.data_type == model_config_pb2.TYPE_FP32
    # A score has no dimension but the batch, for which Triton wants one of size 1 that is taken away.
    assert (score.name, list(score.dims), list(score.reshape.shape)) == ("score", [1], [])
    assert score.HasField("reshape")
    assert not anomaly_map.HasField("reshape")
    thresholds = bundle.manifest.thresholds
    assert float(config.parameters["image_threshold"].string_value) == thresholds.image_threshold
    assert float(config.parameters["pixel_threshold"].string_value) == thresholds.pixel_threshold


def test_an_engine_is_a_plan_and_names_are_quoted(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle", Target.ONNX).manifest
    config = parsed(
        config_text(manifest.model_copy(update={"target": Target.TENSORRT, "name": 'a "b" \\c'}), "tile", 4)
    )
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("tensorrt", "model.plan", 4)
    assert config.parameters["vae_edge_bundle"].string_value == 'a "b" \\c'
