from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import load_from_string, numpy_helper

from tests.hostile_bundles import as_first_schema, hostile_bundle
from tests.tiny_bundles import make_bundle, toy_references
from vae_edge.backends.base import Backend, open_backend
from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, ParityError
from vae_edge.export.rebuild import rebuild_engine
from vae_edge.manifest import NEVER_VERIFIED, Manifest
from vae_edge.reference_file import REFERENCES_FILE, ReferenceFile, Size
from vae_edge.targets import Target


def test_an_engine_is_built_from_a_bundles_onnx(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    bundle = rebuild_engine(source, tmp_path, EngineSettings(max_batch=2))
    assert bundle.folder.name == "toy-tensorrt-fp32"
    assert {file.name for file in bundle.manifest.files} == {"model.engine", "model.onnx", REFERENCES_FILE}
    assert bundle.model_path.read_bytes().startswith(b"vtrt")
    assert bundle.manifest.max_batch == 2
    assert not bundle.manifest.verified
    assert bundle.manifest.thresholds == source.manifest.thresholds
    assert source.manifest.references is not None
    assert bundle.manifest.references == source.manifest.references.model_copy(update={"own": None})
    file = ReferenceFile.read(bundle.folder / REFERENCES_FILE, bundle.manifest.references, Size(32, 32))
    assert file.pictures == toy_references().file.pictures


def open_in_onnxruntime(engine: Path, manifest: Manifest, max_batch: int) -> Backend:
    """Stand in for a GPU: run the ONNX file that the engine was built from."""
    return open_backend(Target.ONNX, engine.with_name("model.onnx"), manifest.inputs, manifest.outputs)


def test_an_engine_that_runs_here_is_verified_by_the_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("vae_edge.export.rebuild._open", open_in_onnxruntime)
    source = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    manifest = rebuild_engine(source, tmp_path, EngineSettings(max_batch=2)).manifest
    assert manifest.verified
    assert manifest.not_verified_because is None
    assert manifest.references is not None
    assert manifest.references.own is not None
    assert manifest.verified_by == f"{manifest.references.own.runtime} on cpu"


def test_an_engine_that_computes_something_else_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("vae_edge.export.rebuild._open", open_in_onnxruntime)
    whole = make_bundle(tmp_path / "whole", Target.ONNX)

    def brighter(content: bytes) -> bytes:
        model = load_from_string(content)
        kernel = next(each for each in model.graph.initializer if each.name == "kernel")
        kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(1.05), "kernel"))
        return bytes(model.SerializeToString())

    source = Bundle.open(hostile_bundle(whole, tmp_path / "toy-onnx-fp32", files={"model.onnx": brighter}))
    with pytest.raises(ParityError, match="the new engine does not give its reference outputs with ONNX Runtime"):
        rebuild_engine(source, tmp_path, EngineSettings(max_batch=2))
    assert not (tmp_path / "toy-tensorrt-fp32").exists()


def test_an_engine_from_a_bundle_of_the_first_schema_stays_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    whole = make_bundle(tmp_path / "whole", Target.ONNX)
    source = Bundle.open(hostile_bundle(whole, tmp_path / "toy-onnx-fp32", manifest=as_first_schema))
    bundle = rebuild_engine(source, tmp_path, EngineSettings())
    assert bundle.manifest.schema_version == 1
    assert bundle.manifest.digest is None
    assert not bundle.manifest.verified
    assert str(bundle.manifest.not_verified_because).endswith(NEVER_VERIFIED[1])


def test_a_bundle_without_onnx_is_refused(tmp_path: Path) -> None:
    source = make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)
    with pytest.raises(InputError, match=r"without model\.onnx"):
        rebuild_engine(source, tmp_path, EngineSettings())


def test_the_device_needs_neither_torch_nor_onnx_for_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'lightning'): sys.modules[name] = None\n"
        "from vae_edge.cli.main import invoke\n"
        f"sys.exit(invoke([{str(tmp_path / 'toy-onnx-fp32')!r}, '--target', 'tensorrt', '--out', {str(tmp_path)!r}],"
        " command='export'))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "toy-tensorrt-fp32" / "model.engine").is_file()
    assert "not verified" in result.stderr
