from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge import Bundle
from vae_edge.drift import DriftVerdict
from vae_edge.errors import InputError, UsageError
from vae_edge.kept import labelled_anomalous, read_kept, sampled_normals
from vae_edge.prediction import Prediction
from vae_edge.sinks import kept_pictures
from vae_edge.sinks.keep_rules import KeepRules
from vae_edge.sinks.kept_pictures import N_AFTER, N_BEFORE, KeptFolder
from vae_edge.sinks.sink import Inspected
from vae_edge.sources.pictures import Picture


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy")


def inspected(picture: Picture, *, is_anomalous: bool = True, alarm: bool | None = None) -> Inspected:
    score = 0.9 if is_anomalous else 0.1
    drift = None if alarm is None else DriftVerdict(alarm, 1.0, None, None)
    verdict = Prediction(score, 0.01, 0.5, is_anomalous, np.zeros((2, 2), np.float32), 0.5, drift=drift)
    return Inspected(picture, verdict)


def picture_of(path: Path) -> Picture:
    write_image(path, dark_image(1, 64))
    return Picture(str(path), path.stem, dark_image(1, 64))


def frame(number: int, size: int = 64) -> Picture:
    return Picture(
        "rtsp://user@camera.example/door", "door", dark_image(number, size), frame=number, time_s=number / 10
    )


def kept_files(folder: Path) -> list[Path]:
    return sorted((folder / "unlabelled").iterdir())


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "kept.jsonl").read_text().splitlines()]


def total_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def open_folder(folder: Path, bundle: Bundle, rules: str = "anomalous", quota: int = 10**7) -> KeptFolder:
    return KeptFolder(folder, KeepRules.parse([rules]), quota, bundle)


def test_a_file_is_copied_byte_for_byte_and_recorded_without_its_place(tmp_path: Path, bundle: Bundle) -> None:
    with open_folder(tmp_path / "kept", bundle) as sink:
        picture = picture_of(tmp_path / "secret place" / "part 7.jpg")
        sink.write(inspected(picture))
        sink.write(inspected(picture, is_anomalous=False))
    (file,) = kept_files(tmp_path / "kept")
    assert file.read_bytes() == Path(picture.source).read_bytes()
    (line,) = lines(tmp_path / "kept")
    assert line["name"] == file.name
    assert file.name.endswith("-part_7.jpg")
    assert (line["source"], line["score"], line["p_value"], line["is_anomalous"]) == ("part 7.jpg", 0.9, 0.01, True)
    assert line["verdict"] == "anomalous"
    assert (line["rules"], line["bundle_digest"]) == (["anomalous"], bundle.manifest.digest)
    assert line["time_utc"].endswith("+00:00")
    text = (tmp_path / "kept" / "kept.jsonl").read_text()
    assert "secret" not in text
    assert str(tmp_path) not in text


def test_a_frame_is_kept_as_png_without_loss_and_without_its_address(tmp_path: Path, bundle: Bundle) -> None:
    with open_folder(tmp_path, bundle) as sink:
        sink.write(inspected(frame(3)))
    (file,) = kept_files(tmp_path)
    assert file.suffix == ".png"
    pixels = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)  # type: ignore[arg-type]
    assert np.array_equal(pixels, dark_image(3, 64))
    (line,) = lines(tmp_path)
    assert (line["source"], line["frame"]) == ("door", 3)
    assert "camera.example" not in (tmp_path / "kept.jsonl").read_text()


def test_the_quota_holds_after_every_picture_and_restart_and_the_oldest_go(tmp_path: Path, bundle: Bundle) -> None:
    quota = 10**6
    for begin in (0, 30, 60):
        with open_folder(tmp_path, bundle, quota=quota) as sink:
            for number in range(begin, begin + 30):
                sink.write(inspected(frame(number, 200)))
                assert total_bytes(tmp_path) <= quota
    frames = {line["name"]: line["frame"] for line in lines(tmp_path)}
    left = [frames[path.name] for path in kept_files(tmp_path)]
    assert 3 <= len(left) < 30
    assert sorted(left) == list(range(90 - len(left), 90))
    with open_folder(tmp_path, bundle, quota=quota // 2):
        assert total_bytes(tmp_path) <= quota // 2
    assert {line["name"] for line in lines(tmp_path)} >= {path.name for path in kept_files(tmp_path)}


def test_labelled_pictures_stay_and_count_and_full_of_them_it_says_so(
    tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with open_folder(tmp_path, bundle, quota=10**6) as sink:
        for number in range(8):
            sink.write(inspected(frame(number, 200)))
        for file in kept_files(tmp_path):
            file.rename(tmp_path / "normal" / file.name)
        labelled = sorted((tmp_path / "normal").iterdir())
        for number in range(20):
            sink.write(inspected(frame(number, 200)))
            assert total_bytes(tmp_path) <= 10**6
        for file in kept_files(tmp_path):
            file.rename(tmp_path / "normal" / file.name)
        with caplog.at_level(logging.WARNING):
            for number in range(20):
                sink.write(inspected(frame(number, 200)))
    assert set(labelled) <= set((tmp_path / "normal").iterdir())
    assert total_bytes(tmp_path) <= 10**6
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "labelled pictures take" in warnings[0]


def test_a_full_disk_pauses_keeping_with_one_warning_until_there_is_room_again(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    n_tried = 0

    def full(path: Path, line: bytes) -> None:
        nonlocal n_tried
        n_tried += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_folder(tmp_path, bundle) as sink:
        sink.write(inspected(frame(0)))
        with monkeypatch.context() as patch:
            patch.setattr(kept_pictures, "_append", full)
            for number in range(1, 5):
                sink.write(inspected(frame(number)))
            now_s += 61
            sink.write(inspected(frame(5)))
        assert n_tried == 2  # One a minute: a full disk costs no time.
        (warning,) = [record.getMessage() for record in caplog.records]
        assert "no pictures are kept" in warning
        assert "No space left" in warning
        assert len(lines(tmp_path)) == len(kept_files(tmp_path)) == 1  # Nor is one left that no line names.
        sink.write(inspected(frame(6)))
        assert len(lines(tmp_path)) == 1
        now_s += 61
        sink.write(inspected(frame(7)))
        sink.write(inspected(frame(8)))
    assert [line["frame"] for line in lines(tmp_path)] == [0, 7, 8]
    assert [record.getMessage() for record in caplog.records][1:] == [f"pictures are kept in {tmp_path} again"]


@pytest.mark.parametrize("moment", ["_content", "_append"])
def test_a_picture_that_is_taken_away_at_any_moment_is_no_failure_of_the_disk(
    tmp_path: Path,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    moment: str,
) -> None:
    first, second = (picture_of(tmp_path / "incoming" / f"{number}.png") for number in range(2))
    real = getattr(kept_pictures, moment)

    def taken(*arguments: Any) -> Any:
        done = real(*arguments)
        Path(first.source).unlink(missing_ok=True)
        return done

    with open_folder(tmp_path / "kept", bundle) as sink:
        monkeypatch.setattr(kept_pictures, moment, taken)
        sink.write(inspected(first))
        sink.write(inspected(second))
    assert not caplog.records
    expected = ["1.png"] if moment == "_content" else ["0.png", "1.png"]
    assert [line["source"] for line in lines(tmp_path / "kept")] == expected


def test_a_torn_last_line_is_ignored_and_mended(tmp_path: Path, bundle: Bundle) -> None:
    with open_folder(tmp_path, bundle, "1/1") as sink:
        sink.write(inspected(frame(0)))
    (tmp_path / "normal" / kept_files(tmp_path)[0].name).write_bytes(kept_files(tmp_path)[0].read_bytes())
    with (tmp_path / "kept.jsonl").open("ab") as file:
        file.write(b'{"name": "torn-aw')
    assert len(read_kept(tmp_path).sampled_normal) == 1
    with open_folder(tmp_path, bundle, "1/1") as sink:
        sink.write(inspected(frame(1)))
    assert [line["frame"] for line in lines(tmp_path)] == [0, 1]


def test_around_an_alarm_of_drift_the_pictures_before_and_after_are_kept_once(tmp_path: Path, bundle: Bundle) -> None:
    with open_folder(tmp_path, bundle, "drift,anomalous") as sink:
        for number in range(60):
            sink.write(inspected(frame(number), is_anomalous=number == 28, alarm=number >= 30))
    kept = {line["frame"]: line["rules"] for line in lines(tmp_path)}
    # Of the pictures before, 28 was kept already.
    assert sorted(kept) == [*range(30 - N_BEFORE - 1, 30), *range(30, 31 + N_AFTER)]
    assert kept.pop(28) == ["anomalous"]
    assert set(map(tuple, kept.values())) == {("drift",)}


def test_an_alarm_of_an_earlier_run_keeps_nothing(tmp_path: Path, bundle: Bundle) -> None:
    with open_folder(tmp_path, bundle, "drift") as sink:
        for number in range(30):
            sink.write(inspected(frame(number), is_anomalous=False, alarm=True))
    assert kept_files(tmp_path) == []


def test_only_what_a_person_labelled_is_read_and_only_samples_for_thresholds(tmp_path: Path, bundle: Bundle) -> None:
    with open_folder(tmp_path, bundle, "anomalous,1/1") as sink:
        for number in range(3):
            sink.write(inspected(frame(number)))
    with open_folder(tmp_path, bundle, "anomalous") as sink:
        sink.write(inspected(frame(3)))
    with pytest.raises(InputError, match="0 pictures in normal/, none of which was kept by a rule such as 1/100"):
        sampled_normals(tmp_path)
    with pytest.raises(InputError, match="no picture in anomalous/"):
        labelled_anomalous(tmp_path)
    files = kept_files(tmp_path)
    for file, label in zip(files, ("normal", "anomalous", "unlabelled", "normal"), strict=True):
        file.rename(tmp_path / label / file.name)
    kept = read_kept(tmp_path)
    assert [path.name for path in kept.normal] == [files[0].name, files[3].name]
    assert [path.name for path in sampled_normals(tmp_path)] == [files[0].name]
    assert [path.name for path in labelled_anomalous(tmp_path)] == [files[1].name]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="could not be written because"):
        open_folder(tmp_path / "file", bundle)
    with pytest.raises(UsageError, match=r"holds file, which is not a kept picture"):
        open_folder(tmp_path, bundle)
    with (
        open_folder(tmp_path / "kept", bundle),
        pytest.raises(UsageError, match="another vae-run keeps pictures in"),
    ):
        open_folder(tmp_path / "kept", bundle)
    open_folder(tmp_path / "kept", bundle).close()


def test_a_file_that_is_gone_is_passed_over(tmp_path: Path, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    sink = open_folder(tmp_path / "kept", bundle)
    with sink:
        for name in ("a.png", "b.png"):
            picture = picture_of(tmp_path / name)
            if name == "a.png":
                candidate = kept_pictures._candidate(picture, dark_image(0), {"time_utc": "2026-01-01T00:00:00+00:00"})
                Path(picture.source).unlink()
                sink._keep(candidate, ["near"])
            else:
                sink.write(inspected(picture))
    assert [line["source"] for line in lines(tmp_path / "kept")] == ["b.png"]
    assert not caplog.records


@pytest.mark.parametrize("line", ["[" * 100_000, '{"name": "a.png", "rules": 5}', '{"name": 1}', "[1]", "\x00\x01"])
def test_a_line_that_is_none_of_a_kept_picture_costs_nothing(tmp_path: Path, line: str) -> None:
    for label in ("unlabelled", "normal", "anomalous"):
        (tmp_path / label).mkdir()
    (tmp_path / "normal" / "a.png").write_bytes(b"x")
    (tmp_path / "kept.jsonl").write_text(f'{line}\n{{"name": "a.png", "rules": ["1/2"]}}\n{line}\n')
    assert [path.name for path in read_kept(tmp_path).sampled_normal] == ["a.png"]


def test_pictures_larger_than_half_the_quota_are_counted(tmp_path: Path, bundle: Bundle) -> None:
    quota_bytes = 1000
    with KeptFolder(tmp_path, KeepRules.parse(["1/1"]), quota_bytes, bundle) as sink:
        sink.write(inspected(frame(0)))
        assert sink.summary()[0][1].endswith("unlabelled, 1 larger than half the quota left out")
    assert kept_files(tmp_path) == []
