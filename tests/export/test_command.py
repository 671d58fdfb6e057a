from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle, spotted_image, write_image
from vae_edge.export.command import export
from vae_edge.export.options import (
    BUNDLE_TO_ENGINE,
    BUNDLE_TO_MODEL_API,
    BUNDLE_TO_TRITON,
    CHECKPOINT,
    RUN,
    SOURCE_KINDS,
)
from vae_edge.targets import Target
from vae_edge.train.run.folder import RunFolder

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


def test_a_run_becomes_bundles_and_model_api_folders(command: Command, trained_run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code, out, err = command(
        "export", trained_run.folder, "--layout", "model-api", "--precision", "fp32,fp16", "--out", tmp_path
    )
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dial-openvino-fp16",
        "dial-openvino-fp32",
        "dial-openvino-model-api-fp16",
        "dial-openvino-model-api-fp32",
    ]
    n_images = len(trained_run.find_calibration_images()) + len(trained_run.find_images(("test",)))
    assert out.count(f"the bundle's verdict on {n_images} of {n_images} pictures") == 2
    sizes = [
        (tmp_path / f"dial-openvino-model-api-{precision}" / "model.bin").stat().st_size
        for precision in ("fp32", "fp16")
    ]
    assert sizes[1] < 0.8 * sizes[0]


def test_an_openvino_bundle_becomes_a_model_api_folder_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)
    write_image(tmp_path / "parts" / "spot.png", spotted_image(0, 80))
    arguments = ["--layout", "model-api", "--out", str(tmp_path), "--data", str(tmp_path / "parts")]
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'lightning'): sys.modules[name] = None\n"
        "from vae_edge.cli.main import invoke\n"
        f"sys.exit(invoke({[str(tmp_path / 'toy-openvino-fp32'), *arguments]!r}, command='export'))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "the bundle's verdict on 1 of 1 picture" in " ".join(result.stdout.split())
    assert (tmp_path / "toy-openvino-model-api-fp32" / "model.xml").is_file()


def test_without_pictures_it_is_told_that_drawn_ones_were_compared(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)
    code, _, err = command(
        "export", tmp_path / "toy-openvino-fp32", "--layout", "model-api", "--out", tmp_path, "--name", "tile"
    )
    assert code == 0
    assert "only on synthetic pictures" in err
    assert (tmp_path / "tile-openvino-model-api-fp32" / "model_api.json").is_file()


@pytest.mark.parametrize("targets", ["onnx", "openvino,onnx", "tensorrt"])
def test_model_api_is_for_openvino_only(targets: str, command: Command, trained_run: RunFolder, tmp_path: Path) -> None:
    code, out, err = command(
        "export", trained_run.folder, "--target", targets, "--layout", "model-api", "--out", tmp_path / "out"
    )
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"--layout model-api came with --target {targets}; expected --target openvino" in err
    assert not (tmp_path / "out").exists()


def test_a_bundle_for_another_target_becomes_no_model_api_folder(command: Command, tmp_path: Path) -> None:
    make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    code, _, err = command("export", tmp_path / "toy-onnx-fp32", "--layout", "model-api", "--out", tmp_path)
    assert code == 2
    assert "is a bundle for target onnx; the layout model-api needs one for openvino" in err
    assert [path.name for path in tmp_path.iterdir()] == ["toy-onnx-fp32"]


def test_a_model_api_name_that_is_taken_is_refused_before_any_work(
    command: Command, trained_run: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "dial-openvino-model-api-fp32").mkdir()
    (tmp_path / "dial-openvino-model-api-fp32" / "notes.txt").write_text("mine")
    code, _, err = command("export", trained_run.folder, "--layout", "model-api", "--out", tmp_path)
    assert code == 1
    assert "already exists" in err
    assert not (tmp_path / "dial-openvino-fp32").exists()


OPTIONS = {
    "target": ("--target", "onnx"),
    "references": ("--references", "none"),
    "precision": ("--precision", "fp16"),
    "data": ("--data", "pictures"),
    "false_alarm_rate": ("--false-alarm-rate", "0.05"),
    "scoring": ("--scoring", "mse"),
    "input_range": ("--input-range", "imagenet"),
    "calibration_data": ("--calibration-data", "normals"),
    "calibration_images": ("--calibration-images", "300"),
    "estimator": ("--estimator", "min-max"),
    "max_auroc_drop": ("--max-auroc-drop", "0.01"),
    "max_flip_rate": ("--max-flip-rate", "0.02"),
    "max_batch": ("--max-batch", "8"),
    "workspace_mib": ("--workspace-mib", "512"),
    "optimization_level": ("--optimization-level", "3"),
    "timing_cache": ("--timing-cache", "timings"),
    "weak_typing": ("--weak-typing",),
}
"""An option of each parameter that some kind of source does not take, half of them with its default as value."""

KINDS = {
    "run": RUN,
    "checkpoint": CHECKPOINT,
    "engine": BUNDLE_TO_ENGINE,
    "model-api": BUNDLE_TO_MODEL_API,
    "triton": BUNDLE_TO_TRITON,
}
EXTRA = {"engine": ("--target", "tensorrt"), "model-api": ("--layout", "model-api"), "triton": ("--layout", "triton")}


def test_every_option_is_declared_for_some_kind_of_source() -> None:
    parameters = set(inspect.signature(export).parameters) - {"context", "source"}
    assert parameters == frozenset().union(*(kind.options for kind in SOURCE_KINDS))
    assert set(OPTIONS) == {name for name in parameters if any(name not in kind.options for kind in SOURCE_KINDS)}


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, option) for name, kind in KINDS.items() for option in OPTIONS if option not in kind.options],
)
def test_an_option_that_does_not_apply_to_the_source_is_refused_with_what_it_is_for(
    name: str, option: str, command: Command, trained_run: RunFolder, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    if name == "checkpoint":
        source = tmp_path / "model.ckpt"
        source.touch()
    elif name == "run":
        source = trained_run.folder
    else:
        make_bundle(source, Target.OPENVINO if name == "model-api" else Target.ONNX)
    code, out, err = command("export", source, *OPTIONS[option], *EXTRA.get(name, ()), "--out", tmp_path / "out")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    suited = [kind.several for kind in SOURCE_KINDS if option in kind.options]
    assert f"{OPTIONS[option][0]} is for {suited[0]}" in err
    assert all(several in err for several in suited)
    assert f"but {source} is {KINDS[name].one}: leave it out" in err
    assert not (tmp_path / "out").exists()


def test_several_options_that_do_not_apply_are_refused_in_one_sentence(command: Command, tmp_path: Path) -> None:
    make_bundle(tmp_path / "toy", Target.ONNX)
    options = ("--scoring", "mse", "--precision", "int8", "--input-range", "imagenet", "--max-batch", "4")
    code, _, err = command("export", tmp_path / "toy", "--target", "tensorrt", *options)
    assert code == 2
    assert "--precision and --scoring are for run folders and checkpoints; --input-range is for checkpoints; but" in err
    assert "leave them out" in err
    assert "--max-batch" not in err


def test_an_option_for_what_is_not_made_of_a_run_is_warned_about(
    command: Command, trained_run: RunFolder, tmp_path: Path
) -> None:
    unused = ("--calibration-images", "64", "--max-flip-rate", "0.5", "--max-batch", "2", "--workspace-mib", "64")
    code, _, err = command("export", trained_run.folder, "--target", "torch", "--out", tmp_path, *unused)
    assert code == 0, err
    said = " ".join(err.split())
    for sentence in (
        "--calibration-images is for --precision int8, which was not requested: no effect",
        "--max-flip-rate is for --precision fp16 or int8",
        "--max-batch and --workspace-mib are for --target tensorrt",
    ):
        assert sentence in said


def test_the_help_has_the_common_options_first_and_the_rest_in_groups(command: Command) -> None:
    code, out, _ = command("export", "--help")
    assert code == 0
    common = ("Arguments ─", "Options ─", "--target ", "--precision ", "--out ")
    groups = ("Thresholds and scores, for", "--scoring ", "FP16 and INT8, for", "--max-flip-rate ", "TensorRT, for")
    at = 0
    for text in (*common, *groups, "--max-batch ", "For other libraries and servers ─", "--layout "):
        assert text in out[at:], text
        at = out.index(text, at)
