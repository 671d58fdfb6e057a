"""`inspect`, `verify` and `sample`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bundles import TARGETS, dark_image, make_bundle, write_image
from vae_edge import Bundle
from vae_edge.targets import Target

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("width", ["80", "120"])
def test_inspect_shows_what_a_bundle_is(
    command: Run, onnx_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    code, out, err = command("inspect", onnx_bundle.folder)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= int(width)
    text = " ".join(out.split())
    for part in ("onnx, fp32", "uint8 N x 32 x 32 x 3", "99 normals", "score > ", "ONNX Runtime", "not measured"):
        assert part in text


@pytest.mark.parametrize("target", TARGETS)
def test_inspect_gives_everything_as_json(command: Run, tmp_path: Path, target: Target) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(str(target), str(target)))
    bundle = make_bundle(tmp_path / "toy", target)
    code, out, _ = command("inspect", bundle.folder, "--json", "--device", "cpu")
    assert code == 0
    content = json.loads(out)
    assert content["manifest"] == json.loads(bundle.manifest.model_dump_json())
    assert content["runs_with"].endswith("on cpu")


def test_inspect_works_where_the_bundle_cannot_run(command: Run, onnx_bundle: Bundle) -> None:
    code, out, _ = command("inspect", onnx_bundle.folder, "--device", "toaster")
    assert code == 0
    assert "nothing: " in out


def test_inspect_warns_of_a_bundle_of_little_trust(command: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    make_bundle(tmp_path / "few", n_normals=5, verified=False)
    code, out, err = command("inspect", tmp_path / "few")
    assert code == 0
    assert "there was no such device" in out
    assert err.count("warning: ") == 2


def test_inspect_says_what_a_lone_file_is(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    lone = tmp_path / "lone.onnx"
    lone.write_bytes(onnx_bundle.model_path.read_bytes())
    code, out, err = command("inspect", lone)
    assert (code, err) == (0, "")
    for part in ("lone.onnx", "ONNX", "17", "no metadata of vae-edge"):
        assert part in out
    code, out, _ = command("inspect", onnx_bundle.model_path)
    assert code == 0
    for part in ("toy-onnx-fp32, unchanged", "image_threshold", "brightness"):
        assert part in out


def test_inspect_gives_a_lone_file_as_json(command: Run, onnx_bundle: Bundle) -> None:
    code, out, _ = command("inspect", onnx_bundle.model_path, "--json")
    assert code == 0
    content = json.loads(out)
    assert (content["format"], content["bundle_match"]) == ("ONNX", True)
    assert content["details"]["opset ai.onnx"] == "17"


def test_inspect_warns_of_a_file_that_was_exchanged(command: Run, onnx_bundle: Bundle) -> None:
    with onnx_bundle.model_path.open("ab") as file:
        file.write(bytes([0x12, 0x01, 0x61]))  # One more field: the producer's name, "a".
    code, out, err = command("inspect", onnx_bundle.model_path)
    assert code == 0
    assert "NOT the file" in out
    assert err.startswith("warning: ")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("part.png", "no model file that vae-edge knows"), ("model.onnx", "no ONNX model"), ("manifest.json", "folder")],
)
def test_inspect_refuses_a_file_that_is_no_model(command: Run, tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    code, _, err = command("inspect", tmp_path / name)
    assert code == 1
    assert sentence in err


def test_verify_writes_thresholds_that_fit_this_device(command: Run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    bundle = make_bundle(tmp_path / "few", n_normals=5, verified=False)
    for seed in range(500, 620):
        write_image(tmp_path / "normals" / f"{seed}.png", dark_image(seed))
    (tmp_path / "normals" / "bad.png").write_bytes(b"bad")
    code, out, err = command("verify", bundle.folder, "--data", tmp_path / "normals")
    assert code == 0
    assert "which is verified now" in " ".join(out.split())
    assert "bad.png could not be decoded" in err
    assert "1 of 121 images could not be read" in err
    assert "held-out normals, there are" not in err
    manifest = Bundle.open(bundle.folder).manifest
    assert manifest.verified
    assert manifest.thresholds.n_normals == 120
    assert manifest.thresholds.false_alarm_rate == 0.01


def test_verify_says_when_the_normals_are_too_few(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    write_image(tmp_path / "normals" / "0.png", dark_image(0))
    code, _, err = command("verify", onnx_bundle.folder, "--data", tmp_path / "normals", "--false-alarm-rate", 0.1)
    assert code == 0
    assert "needs at least 9 held-out normals, there are 1" in err


@pytest.mark.parametrize(
    ("arguments", "expected_code"), [(["--data", "nowhere"], 1), (["--data", ".", "--false-alarm-rate", "1.5"], 2)]
)
def test_verify_leaves_the_bundle_alone_when_it_cannot_start(
    command: Run, onnx_bundle: Bundle, arguments: list[str], expected_code: int
) -> None:
    code, _, err = command("verify", onnx_bundle.folder, *arguments)
    assert code == expected_code
    assert err.startswith("error: ")
    assert Bundle.open(onnx_bundle.folder).manifest == onnx_bundle.manifest


def test_sample_draws_once_and_keeps_what_is_there(command: Run, tmp_path: Path) -> None:
    arguments = ["sample", tmp_path, "--product", "dial", "--image-size", 64, "--train", 3, "--test-good", 2]
    code, out, _ = command(*arguments, "--per-defect", 1)
    assert code == 0
    assert "images drawn" in out
    assert len(list((tmp_path / "dial" / "train" / "good").iterdir())) == 3
    code, out, _ = command(*arguments, "--per-defect", 1)
    assert code == 0
    assert "there already" in out
    code, _, err = command(*arguments, "--per-defect", 2)
    assert code == 1
    assert "choose another folder" in err


@pytest.mark.parametrize("option", [["--product", "car"], ["--image-size", "3"], ["--train", "0"], ["--product", ","]])
def test_sample_refuses_what_it_cannot_draw(command: Run, tmp_path: Path, option: list[str]) -> None:
    code, _, err = command("sample", tmp_path, *option)
    assert code == 2
    assert err.startswith("error: ")
    assert "expected" in err
    assert list(tmp_path.iterdir()) == []
