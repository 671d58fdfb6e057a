from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle
from vae_edge.targets import Target
from vae_edge.train.run_folder import RunFolder

Command = Callable[..., tuple[int, str, str]]


def test_all_targets_are_exported_and_tabled(command: Command, trained_run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    code, out, err = command("export", trained_run.folder, "--target", "all", "--out", tmp_path / "bundles")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == sorted(
        f"dial-{target}-fp32" for target in Target
    )
    assert out.count("0 of ") == 3
    assert "not verified: dial-tensorrt-fp32" in err


def test_one_target_is_one_bundle(command: Command, trained_run: RunFolder, tmp_path: Path) -> None:
    code, _, err = command("export", trained_run.folder, "--target", "torch", "--out", tmp_path, "--name", "tile")
    assert code == 0, err
    assert [path.name for path in tmp_path.iterdir()] == ["tile-torch-fp32"]


@pytest.mark.parametrize(
    ("option", "value", "choices"), [("--target", "tflite", "onnx, openvino"), ("--precision", "fp4", "fp32")]
)
def test_an_unknown_target_or_precision_is_wrong_usage_and_names_the_choices(
    option: str, value: str, choices: str, command: Command, trained_run: RunFolder, tmp_path: Path
) -> None:
    code, _, err = command("export", trained_run.folder, option, value, "--out", tmp_path / "bundles")
    assert code == 2
    assert repr(value) in err
    assert choices in err


@pytest.mark.parametrize(("option", "value"), [("--name", "a/b"), ("--name", ".."), ("--false-alarm-rate", "0")])
def test_a_bad_option_is_refused_before_any_work(
    option: str, value: str, command: Command, trained_run: RunFolder, tmp_path: Path
) -> None:
    code, out, err = command("export", trained_run.folder, option, value, "--out", tmp_path / "bundles")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert not (tmp_path / "bundles").exists()


def test_a_folder_that_is_no_run_is_refused(command: Command, tmp_path: Path) -> None:
    code, _, err = command("export", tmp_path, "--out", tmp_path / "bundles")
    assert code == 1
    assert "is not a run" in err


def test_a_missing_folder_is_refused(command: Command, tmp_path: Path) -> None:
    code, _, err = command("export", tmp_path / "nothing", "--out", tmp_path / "bundles")
    assert code == 1
    assert "expected a run folder" in err


def test_changed_weights_end_the_export(command: Command, own_run: Path, tmp_path: Path) -> None:
    weights = own_run / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, _, err = command("export", own_run, "--out", tmp_path / "bundles")
    assert code == 1
    assert "model.safetensors" in err
    assert not (tmp_path / "bundles").exists()


def test_from_a_bundle_only_an_engine_is_built(command: Command, tmp_path: Path) -> None:
    make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    code, _, err = command("export", tmp_path / "toy-onnx-fp32", "--target", "openvino", "--out", tmp_path)
    assert code == 2
    assert "--target tensorrt" in err


def test_too_few_normals_for_the_rate_are_told(command: Command, trained_run: RunFolder, tmp_path: Path) -> None:
    code, _, err = command(
        "export", trained_run.folder, "--target", "torch", "--out", tmp_path, "--false-alarm-rate", "0.001"
    )
    assert code == 0
    assert "needs at least 999 held-out normals" in err
