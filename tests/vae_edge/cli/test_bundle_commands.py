"""`inspect`, `verify` and `sample`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile_bundles import as_first_schema, hostile_bundle
from tests.tiny_bundles import TARGETS, dark_image, example_detectability, make_bundle, spotted_image, write_image
from vae_edge import Bundle
from vae_edge.manifest import NEVER_VERIFIED, ThresholdMethod
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


def test_inspect_shows_which_pasted_defects_are_found_and_warns_of_a_blind_model(command: Run, tmp_path: Path) -> None:
    make_bundle(tmp_path / "blind", detectability=example_detectability())
    code, out, err = command("inspect", tmp_path / "blind")
    assert code == 0
    printed = " ".join(out.split())
    assert "Pasted defects found by size" in printed
    assert "4 % (10 px) low contrast 8 % (1/12); medium contrast 42 % (5/12); high contrast 83 % (10/12)" in printed
    assert "by kind blob" in printed
    assert "1 of 24 good parts that set the threshold, without a defect, called anomalous" in printed
    assert "invisible" not in err
    unseen = example_detectability(found_at_high=3)
    make_bundle(tmp_path / "worse", detectability=unseen)
    _, _, err = command("inspect", tmp_path / "worse")
    assert "warning: even defects of 16 % (41 px) of the shorter side are invisible" in " ".join(err.split())
    assert (
        json.loads(command("inspect", tmp_path / "worse", "--json")[1])["manifest"]["detectability"]["n_normals"] == 24
    )


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
    assert content["details"]["opsets"] == "ai.onnx 17"


def test_inspect_warns_of_a_file_that_was_exchanged(command: Run, onnx_bundle: Bundle) -> None:
    with onnx_bundle.model_path.open("ab") as file:
        file.write(bytes([0x12, 0x01, 0x61]))  # One more field: the producer's name, "a".
    code, out, err = command("inspect", onnx_bundle.model_path)
    assert code == 0
    assert "NOT the file" in out
    assert err.startswith("warning: ")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("part.png", "not a model file that vae-edge recognizes"),
        ("model.onnx", "not an ONNX model"),
        ("manifest.json", "folder"),
    ],
)
def test_inspect_refuses_a_file_that_is_no_model(command: Run, tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    code, _, err = command("inspect", tmp_path / name)
    assert code == 1
    assert sentence in err


def test_every_command_says_once_that_a_bundle_of_the_first_schema_is_not_verified(
    command: Run, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    out = hostile_bundle(onnx_bundle, tmp_path / "old", manifest=as_first_schema)
    picture = write_image(tmp_path / "normals" / "0.png", dark_image(0))
    for arguments in (
        ("inspect", out),
        ("run", out, picture, "--out", tmp_path / "results"),
        ("verify", out, "--data", picture.parent),
    ):
        code, said, err = command(*arguments)
        assert code == 0
        assert " ".join(err.split()).count(NEVER_VERIFIED[1]) == 1
        assert "is verified now" not in " ".join(said.split())
    found = json.loads(command("inspect", out, "--json")[1])["manifest"]
    assert (found["verified"], found["not_verified_because"]) == (False, NEVER_VERIFIED[1])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["inspect", "{bundle}/model.onnx", "--device", "cpu", "--threads", "1"],
            "--device and --threads are for bundles; but {bundle}/model.onnx is a model file, which",
        ),
        (
            ["inspect", "{torch}", "--requests", "2"],
            "--requests is for bundles for onnx, openvino and tensorrt",
        ),
        (
            ["verify", "{bundle}", "--data", "{picture}", "--recursive"],
            "--recursive is for folders",
        ),
        (
            ["verify", "{bundle}", "--data", "{picture}", "--no-rebuild"],
            "--no-rebuild is for bundles for tensorrt",
        ),
        (
            ["run", "{torch}", "{picture}", "--requests", "2", "--spinning"],
            "--spinning is for bundles for onnx",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, words: list[str], reason: str
) -> None:
    places = {"bundle": onnx_bundle.folder, "picture": write_image(tmp_path / "0.png", dark_image(0))}
    if "{torch}" in words:
        pytest.importorskip("safetensors")
        places["torch"] = make_bundle(tmp_path / "toy-torch-fp32", Target.TORCH).folder
    before = (onnx_bundle.folder / "manifest.json").read_bytes()
    code, out, err = command(*(word.format(**places) for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert reason.format(**places) in err
    assert (onnx_bundle.folder / "manifest.json").read_bytes() == before


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
    text = " ".join(out.split())
    assert "False alarms: at most 0.01 of normal parts." in text
    assert "The smallest possible rate is 0.00826 with 120 normals, 1 / (120 + 1)." in text


@pytest.mark.parametrize("arguments", [["set", "--recursive"], ["set/test", "--recursive"], ["set/*/*/*.png"]])
def test_verify_fits_no_threshold_on_what_is_named_after_defects_or_masks(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (onnx_bundle.folder / "manifest.json").read_bytes()
    for seed in range(3):
        for folder in ("train/good", "test/good", "test/broken", "ground_truth/broken"):
            write_image(tmp_path / "set" / folder / f"{seed}.png", spotted_image(seed))
    code, _, err = command("verify", onnx_bundle.folder, "--data", *arguments)
    assert code == 1
    assert re.search(r"^error: [36] of the (6|12) images of set\S* are not named like good parts \(", err)
    assert (onnx_bundle.folder / "manifest.json").read_bytes() == before
    code, _, _ = command("verify", onnx_bundle.folder, "--data", "set/train", "--data", "set/test/good", "--recursive")
    assert code == 0


def test_verify_says_when_the_normals_are_too_few(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    write_image(tmp_path / "normals" / "0.png", dark_image(0))
    code, _, err = command("verify", onnx_bundle.folder, "--data", tmp_path / "normals", "--false-alarm-rate", 0.1)
    assert code == 0
    assert "needs at least 9 held-out normals, there are 1" in err


def test_a_threshold_by_f1_is_said_to_promise_no_rate(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    for seed in range(20):
        write_image(tmp_path / "good" / f"{seed}.png", dark_image(seed))
        write_image(tmp_path / "bad" / f"{seed}.png", spotted_image(seed))
    both = ("--data", tmp_path / "good", "--abnormal", tmp_path / "bad")
    code, out, err = command("verify", onnx_bundle.folder, *both, "--method", "f1-optimal")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "no rate is guaranteed (F1-optimal on labelled images); among its own normals it is 0.0476" in text
    assert "finds 20 of 20 anomalous ones and calls 0 of 20 normals anomalous: F1 1.000" in text
    assert "0.0476 with 20 normals" in text
    code, out, err = command("inspect", onnx_bundle.folder)
    assert (code, err) == (0, "")
    assert "no rate is guaranteed (F1-optimal" in " ".join(out.split())
    code, _, err = command("run", onnx_bundle.folder, tmp_path / "bad", "--out", tmp_path / "results")
    assert code == 0
    assert "no rate is guaranteed (F1-optimal" in " ".join(err.split())


def test_verify_counts_the_defects_that_are_found_by_a_conformal_threshold(
    command: Run, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    for seed in range(20):
        write_image(tmp_path / "good" / f"{seed}.png", dark_image(seed))
    write_image(tmp_path / "bad.png", spotted_image(0))
    both = ("--data", tmp_path / "good", "--abnormal", tmp_path / "bad.png")
    code, out, _ = command("verify", onnx_bundle.folder, *both, "--false-alarm-rate", 0.1)
    assert code == 0
    assert "finds 1 of 1 anomalous ones and calls 1 of 20 normals anomalous" in " ".join(out.split())
    assert "at most 0.1 of normal parts" in out


def test_verify_warns_that_a_cross_conformal_model_has_seen_the_runs_parts(
    command: Run, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    manifest = onnx_bundle.manifest
    thresholds = manifest.thresholds.model_copy(update={"method": ThresholdMethod.CROSS_CONFORMAL})
    onnx_bundle.with_manifest(manifest.model_copy(update={"thresholds": thresholds}))
    assert "without a proof" in command("inspect", onnx_bundle.folder)[1]
    write_image(tmp_path / "normals" / "0.png", dark_image(0))
    code, _, err = command("verify", onnx_bundle.folder, "--data", tmp_path / "normals")
    assert code == 0
    assert "trained on all good parts that its run had" in err


@pytest.mark.parametrize(
    ("arguments", "says", "expected_code"),
    [
        ([], "add --abnormal", 2),
        (["--abnormal", "good", "--false-alarm-rate", "0.1"], "guarantees no false-alarm rate", 2),
        (["--abnormal", "good"], "1 image is in both --data and --abnormal", 1),
        (["--abnormal", "nowhere"], "nowhere does not exist", 1),
        (["--abnormal", "bad"], "none of 1 anomalous images could be read: ", 1),
    ],
)
def test_an_f1_optimal_threshold_needs_good_and_defective_images(
    command: Run,
    onnx_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
    expected_code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "good" / "0.png", dark_image(0))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.png").write_bytes(b"bad")
    code, _, err = command("verify", onnx_bundle.folder, "--data", "good", "--method", "f1-optimal", *arguments)
    assert code == expected_code
    assert says in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert Bundle.open(onnx_bundle.folder).manifest == onnx_bundle.manifest


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
    assert "already existed" in out
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
