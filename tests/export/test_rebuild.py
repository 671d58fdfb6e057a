from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile_bundles import as_first_schema, hostile_bundle
from tests.tiny_bundles import make_bundle
from vae_edge.backends.tensorrt.build import EngineSettings
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError
from vae_edge.export.rebuild import rebuild_engine
from vae_edge.manifest import NO_DIGEST
from vae_edge.targets import Target


def test_an_engine_is_built_from_a_bundles_onnx(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    bundle = rebuild_engine(source, tmp_path, EngineSettings(max_batch=2))
    assert bundle.folder.name == "toy-tensorrt-fp32"
    assert {file.name for file in bundle.manifest.files} == {"model.engine", "model.onnx"}
    assert bundle.model_path.read_bytes().startswith(b"vtrt")
    assert bundle.manifest.max_batch == 2
    assert not bundle.manifest.verified
    assert bundle.manifest.thresholds == source.manifest.thresholds


def test_an_engine_from_a_bundle_of_the_first_schema_stays_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    whole = make_bundle(tmp_path / "whole", Target.ONNX)
    source = Bundle.open(hostile_bundle(whole, tmp_path / "toy-onnx-fp32", manifest=as_first_schema))
    bundle = rebuild_engine(source, tmp_path, EngineSettings())
    assert bundle.manifest.schema_version == 1
    assert bundle.manifest.digest is None
    assert not bundle.manifest.verified
    assert str(bundle.manifest.not_verified_because).endswith(NO_DIGEST)


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
