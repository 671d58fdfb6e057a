from __future__ import annotations

import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle
from vae_edge import Bundle, InputError, Prediction
from vae_edge.pictures import Picture
from vae_edge.sinks import JsonLines, OverlayFolder, error_record, prediction_record, trust_warnings

PREDICTION = Prediction(0.5, 0.01, 0.25, True, np.eye(32, dtype=np.float32), 0.5, "piece.png")


def picture(name: str = "piece") -> Picture:
    return Picture("piece.png", name, dark_image(0, 64))


def test_a_record_holds_the_verdict_and_the_numbers_behind_it(onnx_bundle: Bundle) -> None:
    record = prediction_record(picture(), PREDICTION, onnx_bundle.manifest.thresholds)
    assert record == {
        "source": "piece.png",
        "is_anomalous": True,
        "score": 0.5,
        "p_value": 0.01,
        "threshold": 0.25,
        "false_alarm_rate": 0.01,
        "n_anomalous_pixels": 32,
        "anomalous_area": 32 / 1024,
    }


def test_a_record_of_a_video_holds_frame_and_time(onnx_bundle: Bundle) -> None:
    frame = Picture("belt.mp4", "belt-frame000007", dark_image(0), 7, 0.28)
    assert error_record(frame, InputError("what came")) == {
        "source": "belt.mp4",
        "frame": 7,
        "time_s": 0.28,
        "error": "what came",
    }
    assert prediction_record(frame, PREDICTION, onnx_bundle.manifest.thresholds)["frame"] == 7


def test_every_line_is_on_disk_before_the_next_one_comes(tmp_path: Path) -> None:
    path = tmp_path / "out" / "predictions.jsonl"
    with JsonLines(path) as lines:
        for number in range(3):
            lines.write({"source": f"ü{number}.png"})
            written = path.read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["source"] for line in written] == [f"ü{n}.png" for n in range(number + 1)]


def test_an_earlier_run_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_text("old\n")
    with pytest.raises(InputError, match="--overwrite"):
        JsonLines(path)
    assert path.read_text() == "old\n"
    with JsonLines(path, overwrite=True) as lines:
        lines.write({"new": 1})
    assert path.read_text() == '{"new": 1}\n'


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="is a file"):
        JsonLines(tmp_path / "out" / "predictions.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_a_sentence() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        with pytest.raises(InputError, match="No space left on device"):
            JsonLines(full).write({"source": "piece.png"})
        # What could not be written stays in the buffer, and closing would try again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_a_sentence_also_where_the_file_is_closed_after_it() -> None:
    with pytest.raises(InputError, match="could not be written"), JsonLines(Path("/dev/full")) as lines:
        lines.write({"source": "piece.png"})


def test_a_name_that_is_no_utf_8_is_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"St\xfcck.png")
    with JsonLines(tmp_path / "predictions.jsonl") as lines:
        lines.write({"source": name})
        lines.write({"source": "Stück.png"})
    first, second = (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(first) == {"source": name}
    assert second == '{"source": "Stück.png"}'


def test_a_stream_that_was_given_is_left_open() -> None:
    text = io.StringIO()
    with JsonLines(text) as lines:
        lines.write({"source": "a"})
    assert text.getvalue() == '{"source": "a"}\n'
    assert not text.closed


def test_overlays_of_equal_names_do_not_overwrite_each_other(tmp_path: Path) -> None:
    overlays = OverlayFolder(tmp_path / "overlays")
    names = ["piece", "piece", "PIECE", "piece-2", "a/b\\c:d", "", "..", "x" * 500]
    paths = [overlays.write(picture(name), dark_image(0, 64), PREDICTION) for name in names]
    assert len({path.name.casefold() for path in paths}) == len(names)
    assert all(path.parent == tmp_path / "overlays" for path in paths)
    assert len(list((tmp_path / "overlays").iterdir())) == len(names)


@pytest.mark.parametrize("file_format", ["jpg", "png"])
def test_an_overlay_has_the_size_and_the_colours_of_its_picture(tmp_path: Path, file_format: str) -> None:
    image = np.zeros((90, 120, 3), dtype=np.uint8)
    image[:, :, 0] = 200
    overlays = OverlayFolder(tmp_path, file_format=file_format)  # type: ignore[arg-type]  # one of the two
    path = overlays.write(picture(), image, PREDICTION)
    assert path.suffix == f".{file_format}"
    read = cv2.imread(str(path))
    assert read is not None
    assert read.shape == (90, 120, 3)
    assert read[80, 10, 2] > 150  # red is last in OpenCV's order
    assert read[80, 10, 0] < 60


def test_overlays_of_an_earlier_run_go_and_other_files_stay(tmp_path: Path) -> None:
    for name in ("old.jpg", "old.png", "notes.txt"):
        (tmp_path / name).touch()
    OverlayFolder(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_overlay_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        OverlayFolder(tmp_path / "file" / "overlays").write(picture(), dark_image(0), PREDICTION)


def test_a_bundle_to_trust_gives_no_warning_and_another_says_why(tmp_path: Path) -> None:
    assert trust_warnings(make_bundle(tmp_path / "good")) == []
    [unverified, few] = trust_warnings(make_bundle(tmp_path / "bad", n_normals=5, verified=False))
    assert "there was no such device" in unverified
    assert f"vae-edge verify {tmp_path / 'bad'}" in unverified
    assert "at least 99 held-out normals, there are 5" in few
