from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, spotted_image, write_image
from vae_edge import Bundle
from vae_edge.platform.atomic import LOCK_FILE, claim
from vae_edge.targets import Target

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Two folders with equal file names: three normal pieces, two anomalous ones."""
    for name, image in {
        "left/0.png": dark_image(0, 100),
        "left/1.png": spotted_image(1, 100),
        "left/2.jpg": dark_image(2, 100),
        "right/0.png": spotted_image(3, 80),
        "right/1.png": dark_image(4, 80),
    }.items():
        write_image(tmp_path / "pieces" / name, image)
    return tmp_path / "pieces"


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_without_out_the_lines_go_to_stdout_in_order(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    code, out, err = command("run", onnx_bundle.folder, pieces / "left", pieces / "right")
    assert code == 0
    found = records(out)
    assert [Path(record["source"]).name for record in found] == ["0.png", "1.png", "2.jpg", "0.png", "1.png"]
    assert [record["is_anomalous"] for record in found] == [False, True, False, True, False]
    for record in found:
        assert record["is_anomalous"] == (record["score"] > record["threshold"])
        assert record["is_anomalous"] == (record["p_value"] <= record["false_alarm_rate"])
        assert record["anomalous_area"] == record["n_anomalous_pixels"] / 1024
    assert "pictures" in err
    assert "at most 0.01 of normal parts, from 99" in " ".join(err.split())
    assert "warning" not in err


def test_another_false_alarm_rate_is_stated_in_the_lines_and_the_summary(
    command: Run, onnx_bundle: Bundle, pieces: Path
) -> None:
    manifest = (onnx_bundle.folder / "manifest.json").read_bytes()
    code, out, err = command("run", onnx_bundle.folder, pieces / "left", "--false-alarm-rate", 0.25)
    assert code == 0
    own = onnx_bundle.manifest.thresholds
    for record in records(out):
        assert record["false_alarm_rate"] == 0.25
        assert record["threshold"] < own.image_threshold
        assert record["is_anomalous"] == (record["p_value"] <= 0.25)
    assert "at most 0.25 of normal parts, from 99 normals; chosen for this run, the bundle's own is 0.01" in " ".join(
        err.split()
    )
    assert (onnx_bundle.folder / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize(("rate", "why"), [(0.001, "can support is 0.01"), (0.6, "expected 1e-06 to 0.5")])
def test_a_false_alarm_rate_that_cannot_be_kept_is_refused_before_a_picture_is_read(
    command: Run, onnx_bundle: Bundle, pieces: Path, rate: float, why: str
) -> None:
    code, out, err = command("run", onnx_bundle.folder, pieces / "left", "--false-alarm-rate", rate)
    assert (code, out) == (2, "")
    assert why in " ".join(err.split())


def test_the_program_of_its_own_gives_the_same(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    left = command("run", onnx_bundle.folder, pieces / "left")
    assert command(onnx_bundle.folder, pieces / "left", program="run")[:2] == left[:2]


def test_a_corrupt_image_among_good_ones_costs_that_image_only(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path
) -> None:
    (pieces / "left" / "0a.png").write_bytes(b"\x89PNG broken")
    (pieces / "left" / "0b.png").touch()
    whole = (pieces / "left" / "2.jpg").read_bytes()
    (pieces / "left" / "0c.jpg").write_bytes(whole[: len(whole) // 2])
    code, out, err = command("run", onnx_bundle.folder, pieces / "left", "--out", tmp_path / "out", "--batch-size", 4)
    assert (code, out) == (1, "")
    found = records((tmp_path / "out" / "predictions.jsonl").read_text())
    assert [Path(record["source"]).name for record in found] == [
        "0.png",
        "0a.png",
        "0b.png",
        "0c.jpg",
        "1.png",
        "2.jpg",
    ]
    assert ["error" in record for record in found] == [False, True, True, True, False, False]
    assert "0b.png is empty" in found[2]["error"]
    assert err.count("error: ") == 3


def test_the_decoders_own_remarks_stay_off_the_terminal(onnx_bundle: Bundle, tmp_path: Path) -> None:
    content = bytearray(write_image(tmp_path / "piece.png", dark_image(0, 100)).read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    (tmp_path / "piece.png").write_bytes(content)
    arguments = [sys.executable, "-m", "vae_edge", "run", str(onnx_bundle.folder), str(tmp_path / "piece.png")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "could not be decoded" in records(done.stdout)[0]["error"]
    assert "libpng" not in done.stderr
    assert done.stderr.startswith("pictures")


@pytest.mark.parametrize(("which", "n"), [("all", 5), ("anomalous", 2), ("none", 0), (None, 2)])
def test_overlays_are_named_in_the_record_and_never_collide(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path, which: str | None, n: int
) -> None:
    out = tmp_path / "out"
    choice = [] if which is None else ["--overlays", which]
    code, _, _ = command("run", onnx_bundle.folder, pieces, "--recursive", "--out", out, *choice)
    assert code == 0
    named = [r["overlay"] for r in records((out / "predictions.jsonl").read_text()) if "overlay" in r]
    assert len(set(named)) == len(named) == n
    assert all((out / name).is_file() for name in named)
    assert len(list(out.glob("overlays/*"))) == n


def test_overlays_without_a_folder_are_wrong_usage(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    assert command("run", onnx_bundle.folder, pieces, "--overlays", "all")[0] == 2


def test_an_earlier_run_is_kept_unless_it_may_be_replaced(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("run", onnx_bundle.folder, pieces / "left", "--out", out)[0] == 0
    before = (out / "predictions.jsonl").read_bytes()
    code, _, err = command("run", onnx_bundle.folder, pieces / "right", "--out", out)
    assert code == 1
    assert "--overwrite" in err
    assert (out / "predictions.jsonl").read_bytes() == before
    assert command("run", onnx_bundle.folder, pieces / "right", "--out", out, "--overwrite")[0] == 0
    assert len(records((out / "predictions.jsonl").read_text())) == 2
    assert [path.name for path in out.glob("overlays/*")] == ["right-0.jpg"]
    arguments = ["--out", out, "--overwrite", "--overlays", "none"]
    assert command("run", onnx_bundle.folder, pieces / "right", *arguments)[0] == 0
    assert list(out.glob("overlays/*")) == []


def test_a_run_that_cannot_start_leaves_the_earlier_results(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert command("run", onnx_bundle.folder, pieces / "left", "--out", out)[0] == 0
    before = (out / "predictions.jsonl").read_bytes()
    assert command("run", onnx_bundle.folder, "nowhere", "--out", out, "--overwrite")[0] == 1
    assert command("run", tmp_path / "nothing", pieces / "left", "--out", out, "--overwrite")[0] == 1
    assert command("run", onnx_bundle.folder, pieces / "left", "--out", out, "--overwrite", "--device", "npu")[0] == 1
    assert (out / "predictions.jsonl").read_bytes() == before


def test_results_inside_the_source_are_not_taken_for_pictures(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    arguments = ["run", onnx_bundle.folder, pieces, "--recursive", "--out", pieces / "out", "--overwrite"]
    for _ in range(2):
        assert command(*arguments, "--overlays", "all")[0] == 0
        assert len(records((pieces / "out" / "predictions.jsonl").read_text())) == 5


@pytest.mark.parametrize("source", ["nowhere.png", "nowhere/*.png"])
def test_a_source_that_matches_nothing_is_an_error(command: Run, onnx_bundle: Bundle, source: str) -> None:
    code, out, err = command("run", onnx_bundle.folder, source)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert source in err


@pytest.mark.parametrize(
    ("option", "expected_code"),
    [(["--batch-size", "0"], 2), (["--threads", "0"], 2), (["--every", "0"], 2), (["--device", "toaster"], 1)],
)
def test_a_bad_option_is_a_sentence(
    command: Run, onnx_bundle: Bundle, pieces: Path, option: list[str], expected_code: int
) -> None:
    code, out, err = command("run", onnx_bundle.folder, pieces / "left", *option)
    assert (code, out) == (expected_code, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err


def test_a_bundle_of_little_trust_says_so_after_the_verdicts(command: Run, pieces: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    make_bundle(tmp_path / "few", n_normals=5, verified=False)
    code, _, err = command("run", tmp_path / "few", pieces / "left")
    assert code == 0
    assert "warning: a false-alarm rate of 0.01 needs at least 99 held-out normals, there are 5" in err
    assert f"run: vae-edge verify {tmp_path / 'few'}" in err


def test_a_changed_bundle_gives_no_verdict(command: Run, onnx_bundle: Bundle, pieces: Path) -> None:
    content = bytearray(onnx_bundle.model_path.read_bytes())
    content[-1] ^= 1
    onnx_bundle.model_path.write_bytes(content)
    code, out, err = command("run", onnx_bundle.folder, pieces / "left")
    assert (code, out) == (1, "")
    assert "was changed" in err


def test_a_video_gives_a_line_for_every_frame_taken(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    import cv2

    video = cv2.VideoWriter(str(tmp_path / "belt.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write MJPG videos")
    for frame in range(12):
        video.write(np.ascontiguousarray(spotted_image(0, 64) if frame == 8 else dark_image(0, 64)))
    video.release()
    code, out, _ = command("run", onnx_bundle.folder, tmp_path / "belt.avi", "--every", 4)
    assert code == 0
    assert [(r["frame"], r["time_s"], r["is_anomalous"]) for r in records(out)] == [
        (0, 0.0, False),
        (4, 0.4, False),
        (8, 0.8, True),
    ]


@pytest.mark.parametrize("target", [Target.OPENVINO, Target.TORCH])
def test_the_other_runtimes_give_the_same_verdicts(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path, target: Target
) -> None:
    pytest.importorskip(str(target))
    make_bundle(tmp_path / "other", target)
    expected = records(command("run", onnx_bundle.folder, pieces / "left")[1])
    found = records(command("run", tmp_path / "other", pieces / "left", "--device", "cpu")[1])
    for one, other in zip(expected, found, strict=True):
        assert other.pop("score") == pytest.approx(one.pop("score"), abs=1e-5)
        assert other == one


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_sentence(
    command: Run, onnx_bundle: Bundle, pieces: Path, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = command("run", onnx_bundle.folder, pieces / "left", "--out", tmp_path / "locked" / "out")
    assert code == 1
    assert "could not be written" in err


def test_two_runs_cannot_share_an_output(
    command: Callable[..., tuple[int, str, str]], onnx_bundle: Bundle, tmp_path: Path
) -> None:
    picture, out = write_image(tmp_path / "part.png", dark_image(1)), tmp_path / "out"
    with claim(out / LOCK_FILE, "the first run"):
        code, _, error = command(onnx_bundle.folder, picture, "--out", out, program="run")
        assert (code, [path.name for path in out.iterdir()]) == (1, [LOCK_FILE])
        assert f"another vae-run is writing to {out} (process {os.getpid()})" in " ".join(error.split())
    assert command(onnx_bundle.folder, picture, "--out", out, program="run")[0] == 0
    assert [path.name for path in out.iterdir()] == ["predictions.jsonl"]
