"""What `--layout triton` leaves; tests/serve reads the configuration with Triton's own protocol buffers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tiny_bundles import SIZE, make_bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.export.triton_repository import export_triton
from vae_edge.manifest import RuntimeRecord
from vae_edge.targets import Precision, Target

Command = Callable[..., tuple[int, str, str]]


def test_a_bundle_becomes_a_model_byte_for_byte(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy-openvino-fp32", Target.OPENVINO)
    folder = export_triton(bundle, tmp_path / "repository")
    assert folder == tmp_path / "repository" / "toy-openvino-fp32"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "1",
        "1/model.bin",
        "1/model.xml",
        "README.md",
        "config.pbtxt",
    ]
    for name in ("model.xml", "model.bin"):
        assert (folder / "1" / name).read_bytes() == (bundle.folder / name).read_bytes()


def test_the_page_says_what_is_left_to_clients(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    page = (export_triton(bundle, tmp_path / "repository", "tile") / "README.md").read_text(encoding="utf-8")
    assert f"UINT8 [N, {SIZE}, {SIZE}, 3]" in page
    assert f"above {bundle.manifest.thresholds.image_threshold!r}" in page
    assert "{" not in page


@pytest.mark.parametrize(("precision", "is_warned"), [(Precision.INT8, True), (Precision.FP32, False)])
def test_the_page_says_where_sums_in_int8_are_not_exact(tmp_path: Path, precision: Precision, is_warned: bool) -> None:
    toy = make_bundle(tmp_path / "toy-onnx", Target.ONNX)
    bundle = replace(toy, manifest=toy.manifest.model_copy(update={"precision": precision}))
    page = (export_triton(bundle, tmp_path / "repository", "tile") / "README.md").read_text(encoding="utf-8")
    assert ("`session.x64quantprecision`" in page) is is_warned


def test_from_the_command_line_it_needs_no_torch(tmp_path: Path) -> None:
    make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    words = ["export", str(tmp_path / "toy-onnx-fp32"), "--layout", "triton", "--out", str(tmp_path / "repository")]
    program = (
        "import sys; from vae_edge.cli.main import invoke; code = invoke(sys.argv[1:]); "
        "sys.exit(code or ('torch' in sys.modules) * 9)"
    )
    ran = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "repository" / "toy-onnx-fp32" / "1" / "model.onnx").is_file()
    assert "README.md says what it leaves to clients" in " ".join(ran.stdout.split())


def test_a_batch_larger_than_the_bundle_takes_is_refused(command: Command, tmp_path: Path) -> None:
    make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX, max_batch=4)
    words = ("export", tmp_path / "toy-onnx-fp32", "--layout", "triton", "--out", tmp_path / "repository")
    code, _, err = command(*words, "--max-batch", 5)
    assert (code, "--max-batch is 5; expected 1 to 4" in err) == (2, True)
    assert not (tmp_path / "repository").exists()
    assert command(*words)[0] == 0
    assert "max_batch_size: 4" in (tmp_path / "repository" / "toy-onnx-fp32" / "config.pbtxt").read_text()


def test_what_triton_cannot_open_is_refused(tmp_path: Path) -> None:
    torch = make_bundle(tmp_path / "toy-torch-fp32", Target.TORCH)
    with pytest.raises(UsageError, match="needs one for onnx, openvino, tensorrt"):
        export_triton(torch, tmp_path / "repository")
    onnx = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    with pytest.raises(UsageError, match="pass --name"):
        export_triton(onnx, tmp_path / "repository", "two words")
    flavour = RuntimeRecord(flavour="tensorrt_rtx", version="1.0")
    other = replace(onnx, manifest=onnx.manifest.model_copy(update={"target": Target.TENSORRT, "runtime": flavour}))
    with pytest.raises(UsageError, match="TensorRT-RTX, which Triton does not load"):
        export_triton(other, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_name_that_is_taken_is_refused_and_stays(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    folder = export_triton(bundle, tmp_path / "repository")
    (folder / "config.pbtxt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        export_triton(bundle, tmp_path / "repository")
    assert (folder / "config.pbtxt").read_text() == "mine"


def test_a_run_is_sent_to_its_bundles(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, _, err = command("export", tmp_path / "run", "--layout", "triton", "--out", tmp_path / "repository")
    assert code == 2
    assert "expected a bundle: export the run first, then its bundle" in " ".join(err.split())
