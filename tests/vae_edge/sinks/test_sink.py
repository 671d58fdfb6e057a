from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle
from vae_edge import InputError, Prediction
from vae_edge.references import ReferenceCheck, not_verified, recorded
from vae_edge.sinks.overlays import OverlayFolder
from vae_edge.sinks.sink import (
    check_no_earlier_run,
    clear_earlier_run,
    error_record,
    prediction_record,
    trust_warnings,
)
from vae_edge.sources.pictures import Picture

PREDICTION = Prediction(0.5, 0.01, 0.25, True, np.eye(32, dtype=np.float32), 0.5, "piece.png", 0.01)


def picture(name: str = "piece") -> Picture:
    return Picture("piece.png", name, dark_image(0, 64))


def test_a_record_holds_the_verdict_and_the_numbers_behind_it() -> None:
    record = prediction_record(picture(), PREDICTION)
    assert record == {
        "source": "piece.png",
        "is_anomalous": True,
        "score": 0.5,
        "p_value": 0.01,
        "threshold": 0.25,
        "false_alarm_rate": 0.01,
        "n_anomalous_pixels": 32,
        "anomalous_area": 32 / 1024,
        "verdict": "anomalous",
    }


def test_a_record_of_a_video_holds_frame_and_time() -> None:
    frame = Picture("belt.mp4", "belt-frame000007", dark_image(0), 7, 0.28)
    assert error_record(frame, InputError("what came")) == {
        "source": "belt.mp4",
        "frame": 7,
        "time_s": 0.28,
        "error": "what came",
    }
    assert prediction_record(frame, PREDICTION)["frame"] == 7


def test_a_bundle_to_trust_gives_no_warning_and_another_says_why(tmp_path: Path) -> None:
    assert trust_warnings(make_bundle(tmp_path / "good")) == []
    [unverified, few] = trust_warnings(make_bundle(tmp_path / "bad", n_normals=5, verified=False))
    assert "there was no such device" in unverified
    assert f"vae-edge verify {tmp_path / 'bad'}" in unverified
    assert "at least 99 held-out normals, there are 5" in few


def test_a_bundle_that_failed_verification_is_not_sent_there_again_as_it_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bad")
    check = ReferenceCheck("drawn", 4, (1,), (), "ONNX Runtime on cpu")
    for manifest in (
        recorded(bundle.manifest, check),
        not_verified(
            bundle.manifest, "the engine that was built here from b does not give its reference outputs with X"
        ),
    ):
        bundle = bundle.with_manifest(manifest)
        [said] = trust_warnings(bundle)
        assert "failed verification" in said
        assert "not give its reference outputs with" in said
        assert "or use another device or version of the runtime, and run there: vae-edge verify" in said
    assert "1 of 4 verdicts is not the trained model's" in str(check.disagreement())


def test_a_record_of_a_live_source_holds_what_was_skipped() -> None:
    frame = Picture("0", "0-frame000007", dark_image(0), 7, 0.28, skipped=3)
    assert error_record(frame, InputError("what came"))["skipped"] == 3


@pytest.mark.parametrize("name", ["predictions.jsonl", "predictions.csv"])
def test_a_folder_of_an_earlier_run_is_refused_whatever_its_format(tmp_path: Path, name: str) -> None:
    check_no_earlier_run(tmp_path, overwrite=False)
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{name} of an earlier run"):
        check_no_earlier_run(tmp_path, overwrite=False)
    check_no_earlier_run(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        check_no_earlier_run(tmp_path / name, overwrite=True)


def test_results_of_an_earlier_run_go_and_other_files_stay(tmp_path: Path) -> None:
    own = ["overlays/a.jpg", "overlays/b.png", "annotated/belt.mp4", "annotated/belt-2.avi", "annotated/.belt.part.mp4"]
    others = ["notes.txt", "overlays/notes.txt", "overlays/holiday.jpg", "annotated/holiday.mp4", "annotated/belt.txt"]
    for name in [*own, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    records: list[dict[str, object]] = [
        {"source": "a.png", "overlay": "overlays/a.jpg"},
        {"source": "films/belt.avi", "frame": 0},
        {"source": "c.png", "overlay": "notes.txt"},
        {"source": "d.png", "overlay": "overlays/../notes.txt"},
        {"source": "e.png", "overlay": "overlays/gone.jpg"},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "predictions.jsonl").write_text(lines + '{"source": "b')
    (tmp_path / "predictions.csv").write_text("source,frame,overlay\r\nb.png,,overlays/b.png\r\n")
    clear_earlier_run(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")) == sorted(others)


@pytest.mark.parametrize(
    ("name", "content"),
    [("predictions.jsonl", '{"mine": 1}\n'), ("predictions.jsonl", "text\n"), ("predictions.csv", "name,age\n")],
)
def test_a_file_of_somebody_else_with_the_name_of_the_lines_stays(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match="was not written by vae-run"):
        clear_earlier_run(tmp_path)
    assert (tmp_path / name).read_text() == content


def test_an_overlay_does_not_take_the_name_of_a_picture_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays" / "piece.jpg").write_bytes(b"mine")
    path = OverlayFolder(tmp_path / "overlays").draw(picture(), dark_image(0, 64), PREDICTION)
    assert path.name == "piece-2.jpg"
    assert (tmp_path / "overlays" / "piece.jpg").read_bytes() == b"mine"
