from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import make_bundle, toy_onnx
from vae_edge.cli.model_file import describe_model_file
from vae_edge.errors import InputError
from vae_edge.model_files.onnx_header import read_onnx_header
from vae_edge.targets import SUPPORTED, Target

IR = """<?xml version="1.0"?>
<net name="vae_edge" version="11">
  <layers>
    <layer id="0" name="image" type="Parameter" version="opset1">
      <rt_info><attribute name="a" value="the layer's own"/></rt_info>
    </layer>
  </layers>
  <rt_info>
    <Runtime_version value="2026.4.1-1"/>
    <framework><name value="from onnx"/></framework>
    <nncf><version value="3.4.0"/></nncf>
    %s
  </rt_info>
</net>
"""
WORDS = '<vae_edge><name value="tile &amp; co"/><info name="a key" value="x"/></vae_edge>'


def plan(path: Path) -> Path:
    """A header as TensorRT-RTX 1.7.1 writes it."""
    path.write_bytes(b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]) + bytes(100))
    return path


def write_onnx(path: Path, **metadata: str) -> Path:
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(toy_onnx())
    model.producer_name = "vae-edge"
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_an_onnx_file_says_what_was_written_into_it(tmp_path: Path) -> None:
    found = describe_model_file(write_onnx(tmp_path / "model.onnx", name="tile", scoring="größte Werte"))
    assert found.format == "ONNX"
    assert found.metadata == {"name": "tile", "scoring": "größte Werte"}
    assert found.details == {"ir_version": "8", "opsets": "ai.onnx 17", "producer": "vae-edge"}
    assert found.size_bytes == (tmp_path / "model.onnx").stat().st_size
    assert (found.bundle, found.bundle_match) == (None, None)


def test_the_weights_of_an_onnx_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(toy_onnx())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(10**6), "large"))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    monkeypatch.setattr("vae_edge.model_files.onnx_header._MAX_VALUE_BYTES", 100)
    assert read_onnx_header(path).opsets == {"": 17}


@pytest.mark.parametrize("size", [0, 1, 5, 40, -1])
def test_a_cut_onnx_file_is_refused(size: int, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", name="tile")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match="not an ONNX model"):
        describe_model_file(path)


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n", b"{}", b"\xff" * 40, b"\x72" + b"\xff\xff\xff\xff\x7f", bytes([0x72, 2, 8, 1])]
)
def test_bytes_that_are_no_onnx_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match="not an ONNX model"):
        describe_model_file(tmp_path / "model.onnx")


def test_an_ir_says_what_was_written_into_it(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text(IR % WORDS)
    (tmp_path / "model.bin").write_bytes(bytes(12))
    found = describe_model_file(tmp_path / "model.xml")
    assert found.format == "OpenVINO IR"
    assert found.metadata == {"name": "tile & co", "a key": "x"}
    assert found.details == {
        "ir_version": "11",
        "layers": "1",
        "openvino": "2026.4.1-1",
        "nncf": "3.4.0",
        "weights": "model.bin, 12 bytes",
    }


def test_an_ir_that_others_made_from_our_onnx_still_has_its_words(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text(IR % "")
    found = describe_model_file(tmp_path / "model.xml")
    assert found.metadata == {"name": "from onnx"}
    assert found.details["weights"] == "missing"


@pytest.mark.parametrize(
    "text",
    ["", "<net", "<html></html>", '<!DOCTYPE net [<!ENTITY a "b">]><net version="11">&a;</net>', "<net></layers>"],
)
def test_xml_that_is_no_ir_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text(text)
    with pytest.raises(InputError, match="not an OpenVINO IR"):
        describe_model_file(tmp_path / "model.xml")


def test_an_engine_tells_its_version_and_the_onnx_beside_it_the_rest(tmp_path: Path) -> None:
    write_onnx(tmp_path / "model.onnx", name="tile")
    found = describe_model_file(plan(tmp_path / "model.engine"))
    assert found.format == "TensorRT engine"
    assert found.details["built_by"] == "TensorRT-RTX 1.7.1.116"
    assert found.metadata == {"name": "tile"}


def test_a_lone_engine_has_no_words(tmp_path: Path) -> None:
    found = describe_model_file(plan(tmp_path / "model.engine"))
    assert (found.metadata, found.details["onnx"]) == ({}, "not beside it")
    (tmp_path / "model.engine").write_bytes(b"vtrt")
    with pytest.raises(InputError, match="not a TensorRT engine"):
        describe_model_file(tmp_path / "model.engine")


@pytest.mark.parametrize("target", [Target.ONNX, Target.OPENVINO, Target.TORCH])
def test_a_file_in_its_bundle_is_known_by_the_manifest(target: Target, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnx"}.get(str(target), str(target)))
    bundle = make_bundle(tmp_path / "toy", target)
    for name in (SUPPORTED[target].model_file, *SUPPORTED[target].other_files):
        if name.endswith(".bin"):
            continue
        found = describe_model_file(bundle.folder / name)
        assert (found.bundle, found.bundle_match) == (bundle.manifest.name, True)
        assert found.metadata["image_threshold"] == repr(bundle.manifest.thresholds.image_threshold)


def test_a_file_that_was_exchanged_is_told(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    bundle = make_bundle(tmp_path / "toy", Target.ONNX)
    write_onnx(bundle.model_path, name="another")
    found = describe_model_file(bundle.model_path)
    assert (found.bundle_match, found.metadata) == (False, {"name": "another"})


def test_a_damaged_manifest_does_not_hide_the_file(tmp_path: Path) -> None:
    write_onnx(tmp_path / "model.onnx", name="tile")
    (tmp_path / "manifest.json").write_text("{")
    assert describe_model_file(tmp_path / "model.onnx").metadata == {"name": "tile"}


def safetensors(header: object, data: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def test_safetensors_tell_their_tensors(tmp_path: Path) -> None:
    header = {"__metadata__": {"name": "tile"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(header, bytes(8)))
    found = describe_model_file(path)
    assert (found.details, found.metadata) == ({"tensors": "1", "types": "F32"}, {"name": "tile"})
    path.write_bytes(safetensors(header, bytes(7)))
    with pytest.raises(InputError, match="1 bytes are missing"):
        describe_model_file(path)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\xff" * 9, safetensors([]), safetensors({"w": 1}), safetensors({"w": {}}, b"x")]
)
def test_bytes_that_are_no_safetensors_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors"):
        describe_model_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "content", ["[", "[]", '{"format": 1}', '{"format": 1, "inputs": [], "outputs": [], "nodes": 3}']
)
def test_json_that_is_no_program_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "program.json").write_text(content)
    with pytest.raises(InputError, match=r"program\.json"):
        describe_model_file(tmp_path / "program.json")


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        describe_model_file(tmp_path / "model.onnx")
    (tmp_path / "part.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected \.onnx, \.xml, \.engine, \.json, \.safetensors"):
        describe_model_file(tmp_path / "part.png")


def test_no_runtime_is_loaded(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "model.onnx", name="tile")
    code = (
        "import sys; from vae_edge.cli.model_file import describe_model_file; "
        f"describe_model_file({str(path)!r}); "
        "print(*{'onnx', 'onnxruntime', 'openvino', 'torch', 'tensorrt'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == ""
