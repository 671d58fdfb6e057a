"""`vae-run` with sources that wait, and with the formats that it writes."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.mjpeg_server import MjpegServer
from tests.threads import our_threads, wait_until
from tests.tiny_bundles import dark_image, spotted_image, write_image
from vae_edge import Bundle

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[3]
QUICK = ["--watch", "--poll", "0.05", "--settle", "0.1", "--patience", "1"]


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def begin(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """Begin `vae-run` in a process of its own, which hears Ctrl-C."""
    command = [sys.executable, "-m", "vae_edge", "run", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, encoding="utf-8", **more
    )


@pytest.fixture
def belt(tmp_path: Path) -> Path:
    """A video of 12 frames, the eighth of them anomalous."""
    video = cv2.VideoWriter(str(tmp_path / "belt.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write MJPG videos")
    for frame in range(12):
        video.write(np.ascontiguousarray(spotted_image(0, 64) if frame == 8 else dark_image(0, 64)))
    video.release()
    return tmp_path / "belt.avi"


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[MjpegServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with MjpegServer(frames_per_s=200) as server:
        probe = cv2.VideoCapture(server.url)
        if not probe.isOpened():
            pytest.skip("this OpenCV reads no stream over HTTP")
        probe.release()
        yield server


def test_every_file_that_arrives_in_a_watched_folder_has_exactly_one_line(onnx_bundle: Bundle, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / "out"
    write_image(folder / "0.png", dark_image(0, 100))
    spotted = write_image(tmp_path / "spotted.png", spotted_image(1, 100)).read_bytes()
    arguments = [*QUICK, "--recursive", "--idle-timeout", 2, "--out", out, "--overlays", "all"]
    with begin(onnx_bundle.folder, folder, *arguments) as run:
        wait_until((out / "predictions.jsonl").exists)
        with (folder / "halves.png").open("wb") as file:
            file.write(spotted[:200])
            file.flush()
            (folder / "broken.png").write_bytes(spotted[:200])
            (folder / ".hidden.png").write_bytes(spotted)
            time.sleep(0.3)
            file.write(spotted[200:])
        for number in range(1, 4):
            write_image(folder / "deep" / f"{number}.png", dark_image(number))
        (folder / ".hidden.png").rename(folder / "renamed.png")
        _, err = run.communicate(timeout=60)
    assert run.returncode == 1, err
    found = {}
    for record in records((out / "predictions.jsonl").read_text()):
        name = str(Path(record["source"]).relative_to(folder))
        assert name not in found
        found[name] = "error" if "error" in record else record["is_anomalous"]
    assert found == {
        "0.png": False,
        "halves.png": True,
        "broken.png": "error",
        "renamed.png": True,
        **{str(Path("deep", f"{number}.png")): False for number in range(1, 4)},
    }


def test_ctrl_c_ends_a_watch_with_its_summary(onnx_bundle: Bundle, tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / "in" / f"{number}.png", dark_image(number))
    with begin(onnx_bundle.folder, tmp_path / "in", *QUICK) as run:
        assert run.stdout is not None
        assert json.loads(run.stdout.readline())["source"].endswith("0.png")
        assert run.stderr is not None
        run.send_signal(signal.SIGINT)
        # `communicate` would lose the lines that came together with the first one and were not asked for yet.
        out, err = run.stdout.read(), run.stderr.read()
        run.wait(timeout=30)
    assert run.returncode == 130
    assert err.startswith("pictures")
    n = 1 + len(records(out))
    # The signal may come between a line and its being counted.
    assert any(f"interrupted after {count} picture" in err for count in (n - 1, n))


def test_a_watch_that_ends_by_itself_has_a_line_for_every_file(
    command: Run, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", dark_image(number))
    (tmp_path / "in" / "1-broken.png").write_bytes(b"\x89PNG broken")
    code, out, _ = command("run", onnx_bundle.folder, tmp_path / "in", *QUICK, "--idle-timeout", 0.2)
    assert code == 1
    found = records(out)
    assert [Path(record["source"]).name for record in found] == ["0.png", "1.png", "2.png", "1-broken.png"]
    assert "could not be decoded" in found[3]["error"]
    code, out, _ = command("run", onnx_bundle.folder, tmp_path / "in", *QUICK, "--max-pictures", 2)
    assert (code, len(records(out))) == (0, 2)
    assert our_threads() == []


def test_a_watched_folder_may_be_empty_but_must_be_there(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    code, out, err = command("run", onnx_bundle.folder, tmp_path / "in", *QUICK, "--idle-timeout", 0)
    assert (code, out) == (0, "")
    assert "pictures" in err
    code, _, err = command("run", onnx_bundle.folder, tmp_path / "nowhere", *QUICK)
    assert code == 1
    assert "does not exist" in err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{belt}", "--watch"], "is not a folder"),
        (["-", "--watch"], "is not a folder"),
        (["http://127.0.0.1:9/", "--watch"], "is not a folder"),
        (["{folder}", "--watch", "--null"], "--null is for paths from stdin, but --watch is for folders"),
        (["{folder}", "--watch", "--out", "{folder}"], "choose another --out"),
        (["{folder}", "--watch", "--settle", "20"], "patience is 10 s and settle 20 s"),
        (["{belt}", "--poll", "1"], "--poll is for watched folders: add --watch"),
        (["{belt}", "--idle-timeout", "1"], "--idle-timeout is for watched folders: add --watch"),
        (["-", "-"], "standard input can be read only once"),
        (["{belt}", "-0"], "add - as a source"),
        (["{belt}", "--format", "xml"], "'xml' is not a format"),
        (["{belt}", "--format", ","], "choose from jsonl, csv"),
        (["{belt}", "--format", "csv,jsonl"], "stdout can have only one format"),
        (["{belt}", "--video"], "--video is for a folder of results: add --out DIR"),
        (
            ["{picture}", "--video", "--out", "{folder}/out"],
            "--video is for videos, cameras and streams",
        ),
        (["{picture}", "--every", "2", "--max-frames", "3"], "--every and --max-frames are for videos, cameras and"),
        (["-", "--every", "2"], "--every is for videos, cameras and streams, but no source is one"),
        (["{belt}", "--no-skip"], "--no-skip is for cameras and streams, but no source is one"),
        (["{folder}", "--reconnect", "5"], "--reconnect is for cameras and streams"),
        (["{belt}", "--follow-redirects"], "--follow-redirects is for http addresses, but no source is one"),
        (["{belt}", "--recursive"], "--recursive is for folders, but no source is one"),
        (["{folder}", "--watch", "--every", "2"], "--every is for videos, cameras and streams, but --watch waits for"),
        (["{folder}", "--watch", "--reconnect", "2", "--no-skip"], "--no-skip and --reconnect are for videos, cameras"),
        (["{belt}", "--overwrite"], "--overwrite is for a folder of results: add --out DIR"),
        (["{belt}", "--overlay-format", "png"], "--overlay-format is for a folder of results"),
        (["{belt}", "--overlay-format", "png", "--overlays", "none", "--out", "{folder}/o"], "but --overlays is none"),
        (["{belt}", "--no-cache"], "--no-cache is for bundles for openvino and tensorrt, but this one is for onnx"),
        (["{belt}", "--no-rebuild"], "--no-rebuild is for bundles for tensorrt, but this one is for onnx"),
        (["{belt}", "--max-pictures", "0"], "expected 1 or more"),
        (["{belt}", "--reconnect", "-1"], "expected 0 (never) or more"),
    ],
)
def test_options_that_contradict_each_other_are_wrong_usage(
    command: Run, onnx_bundle: Bundle, belt: Path, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    picture = write_image(tmp_path / "in" / "a.png", dark_image(1))
    words = [word.format(belt=belt, folder=picture.parent, picture=picture) for word in arguments]
    code, out, err = command("run", onnx_bundle.folder, *words)
    assert (code, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_paths_come_from_standard_input(onnx_bundle: Bundle, tmp_path: Path) -> None:
    paths = [str(write_image(tmp_path / f"ä {n}.png", dark_image(n))) for n in range(2)]
    with begin(onnx_bundle.folder, "-", stdin=subprocess.PIPE) as run:
        out, err = run.communicate("\r\n".join([paths[0], "", "nowhere.png", paths[1]]), timeout=60)
    assert run.returncode == 1, err
    assert [record["source"] for record in records(out)] == [paths[0], "nowhere.png", paths[1]]
    assert "could not be read" in records(out)[1]["error"]


def test_a_path_gets_its_verdict_before_the_next_one_comes(onnx_bundle: Bundle, tmp_path: Path) -> None:
    with begin(onnx_bundle.folder, "-", stdin=subprocess.PIPE) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        for number in range(3):
            path = str(write_image(tmp_path / f"{number}.png", dark_image(number)))
            run.stdin.write(path + "\n")
            run.stdin.flush()
            assert json.loads(run.stdout.readline())["source"] == path
        run.stdin.close()
        assert run.wait(20) == 0


def test_both_formats_hold_the_same(command: Run, onnx_bundle: Bundle, belt: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "broken, or not.png").write_bytes(b"no image")
    arguments = ["run", onnx_bundle.folder, belt, tmp_path / "broken, or not.png", "--out", out]
    assert command(*arguments, "--format", "csv,jsonl")[0] == 1
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = records((out / "predictions.jsonl").read_text())
    assert len(rows) == len(found) == 13
    for row, record in zip(rows, found, strict=True):
        kept = {name: cell for name, cell in row.items() if cell != ""}
        assert kept == {
            name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in record.items()
        }
    assert command(*arguments)[0] == 1
    assert command(*arguments, "--overwrite")[0] == 1
    assert not (out / "predictions.csv").exists()


def test_a_table_goes_to_stdout_as_well(command: Run, onnx_bundle: Bundle, belt: Path) -> None:
    code, out, _ = command("run", onnx_bundle.folder, belt, "--format", "csv", "--every", 4)
    assert code == 0
    header, *rows = csv.reader(out.splitlines())
    assert header[:3] == ["source", "frame", "time_s"]
    assert [row[1] for row in rows] == ["0", "4", "8"]
    assert [row[4] for row in rows] == ["false", "false", "true"]


def test_an_annotated_video_has_every_judged_frame(
    command: Run, onnx_bundle: Bundle, belt: Path, tmp_path: Path
) -> None:
    arguments = ["run", onnx_bundle.folder, belt, "--out", tmp_path / "out", "--video", "--every", 2, "--overwrite"]
    for _ in range(2):
        code, _, err = command(*arguments)
        assert code == 0
    [path] = (tmp_path / "out" / "annotated").iterdir()
    video = cv2.VideoCapture(str(path))
    assert (video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)) == (6, 5)
    assert "6 frames in" in " ".join(err.split())


def test_a_live_source_says_what_it_skipped_and_how_often_it_came_back(
    command: Run, onnx_bundle: Bundle, camera: MjpegServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = command(
        "run", onnx_bundle.folder, camera.url, "--max-frames", 30, "--out", out, "--video", "--overlays", "all"
    )
    assert code == 0
    found = records((out / "predictions.jsonl").read_text())
    assert len(found) == 30
    skipped = sum(record["skipped"] for record in found)
    assert f"skipped frames {skipped} of {skipped + 30}" in " ".join(err.split())
    assert "reconnections" not in err
    assert len(list((out / "annotated").iterdir())) == 1


def test_a_live_source_that_breaks_off_is_said_on_stderr(onnx_bundle: Bundle, camera: MjpegServer) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with begin(onnx_bundle.folder, camera.url, "--reconnect", "20", env=environment) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        for _ in range(5):
            assert "skipped" in json.loads(run.stdout.readline())
        camera.up.clear()
        assert "warning: " in run.stderr.readline()
        camera.up.set()
        assert "is back after" in run.stderr.readline()
        run.stdout.readline()
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert "reconnections" in err


def test_after_ctrl_c_the_annotated_video_can_be_played(
    onnx_bundle: Bundle, camera: MjpegServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with begin(onnx_bundle.folder, camera.url, "--out", out, "--video") as run:
        lines = out / "predictions.jsonl"
        wait_until(lambda: lines.exists() and len(lines.read_text().splitlines()) > 5)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    [path] = (out / "annotated").iterdir()
    video = cv2.VideoCapture(str(path))
    n_lines = len(lines.read_text().splitlines())
    # The signal may come between a frame and its line.
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) in (n_lines, n_lines + 1)


BLOCKED = """
import sys, time
import vae_edge.sources.pictures as pictures
read = pictures.read_pixels
def stuck(path, **options):
    if "stuck" in str(path):
        print("waiting", file=sys.stderr, flush=True)
        time.sleep(60)
    return read(path, **options)
pictures.read_pixels = stuck
sys.argv = ["vae-edge", "run", *sys.argv[1:]]
from vae_edge.cli.main import main
main()
"""


@pytest.mark.skipif(os.name != "posix", reason="a signal is sent to another process")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_signal_ends_a_run_within_two_seconds_while_a_decoder_does_not_answer(
    onnx_bundle: Bundle, tmp_path: Path, number: str, twice: bool
) -> None:
    for name in ("a", "b-stuck", "c"):
        write_image(tmp_path / "in" / f"{name}.png", dark_image(1))
    command = [
        sys.executable,
        "-c",
        BLOCKED,
        str(onnx_bundle.folder),
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "o"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        assert run.stderr is not None
        assert run.stderr.readline() == "waiting\n"
        lines = tmp_path / "o/predictions.jsonl"
        wait_until(lambda: lines.exists() and lines.stat().st_size > 0)
        begin_s = time.perf_counter()
        run.send_signal(getattr(signal, number))
        if twice:
            time.sleep(0.5)
            run.send_signal(getattr(signal, number))
        run.wait(timeout=30)
        took_s = time.perf_counter() - begin_s
        err = run.stderr.read()
    assert run.returncode == 128 + getattr(signal, number)
    assert took_s < (1.2 if twice else 2.2)
    assert "interrupted" in err
    (record,) = records((tmp_path / "o/predictions.jsonl").read_text())
    assert record["source"].endswith("a.png")


@pytest.mark.skipif(os.name != "posix", reason="a signal is sent to another process")
def test_ctrl_c_ends_a_run_that_waits_for_a_server(onnx_bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/still.png"
        with begin(onnx_bundle.folder, address, env={**os.environ, "no_proxy": "127.0.0.1"}) as run:
            server.accept()
            begin_s = time.perf_counter()
            run.send_signal(signal.SIGINT)
            run.wait(timeout=30)
            assert time.perf_counter() - begin_s < 2.2
    assert run.returncode == 130


def test_an_overlay_or_a_table_that_fails_costs_no_verdict(
    command: Run, onnx_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        write_image(tmp_path / "in" / f"{number}.png", dark_image(number))
    encode = cv2.imencode

    def fails_once(suffix: str, *arguments: Any) -> Any:
        monkeypatch.setattr(cv2, "imencode", encode)
        raise cv2.error("too large")

    monkeypatch.setattr(cv2, "imencode", fails_once)
    code, _, err = command(
        "run",
        onnx_bundle.folder,
        tmp_path / "in",
        "--overlays",
        "all",
        "--out",
        tmp_path / "out",
        "--format",
        "jsonl,csv",
    )
    assert code == 0
    found = records((tmp_path / "out/predictions.jsonl").read_text())
    assert [record.get("overlay") for record in found] == [None, "overlays/in-1.jpg", "overlays/in-2.jpg"]
    assert "could not be encoded" in found[0]["note"]
    assert all("is_anomalous" in record for record in found)
    assert "not written" in err
    assert "1 overlays" in err
    with (tmp_path / "out/predictions.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["note"] == found[0]["note"]


def test_a_place_for_overlays_that_cannot_be_used_is_said_and_costs_no_verdict(
    command: Run, onnx_bundle: Bundle, tmp_path: Path
) -> None:
    write_image(tmp_path / "in" / "a.png", dark_image(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/overlays").write_text("a file")
    code, _, err = command("run", onnx_bundle.folder, tmp_path / "in", "--overlays", "all", "--out", tmp_path / "out")
    assert code == 0
    (record,) = records((tmp_path / "out/predictions.jsonl").read_text())
    assert "could not be written" in record["note"]
    assert "warning" in err


def test_pictures_far_below_white_are_asked_about(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 4000, (64, 64)).astype(np.uint16)
    write_image(tmp_path / "in" / "a.png", values)
    _, _, err = command("run", onnx_bundle.folder, tmp_path / "in")
    assert "no value above 4095" in err
    assert "did you mean --white-level 4095?" in err
    write_image(tmp_path / "in" / "b.png", values * 16)
    _, _, err = command("run", onnx_bundle.folder, tmp_path / "in")
    assert "white-level" not in err


def test_the_limit_of_pixels_is_an_option(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", dark_image(1, 64))
    code, out, _ = command("run", onnx_bundle.folder, tmp_path / "a.png", "--max-pixels", 4095)
    assert code == 1
    assert "64x64 pixels" in records(out)[0]["error"]
    code, out, _ = command("run", onnx_bundle.folder, tmp_path / "a.png", "--max-pixels", 4096)
    assert code == 0
    code, _, _ = command("run", onnx_bundle.folder, tmp_path / "a.png", "--max-pixels", 0)
    assert code == 2


def test_files_that_are_passed_over_are_counted(command: Run, onnx_bundle: Bundle, tmp_path: Path) -> None:
    write_image(tmp_path / "in" / "a.png", dark_image(1))
    for name in ("notes.txt", "Thumbs.db", ".hidden.png"):
        (tmp_path / "in" / name).write_text("no picture")
    _, out, err = command("run", onnx_bundle.folder, tmp_path / "in")
    assert len(records(out)) == 1
    assert re.search(r"left out\s+3 files", err)
