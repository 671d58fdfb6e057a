from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny_bundles import dark_image
from vae_edge import InputError, Prediction
from vae_edge.sinks.annotated_video import AnnotatedVideos
from vae_edge.sinks.sink import Inspected
from vae_edge.sources.pictures import Picture

ANOMALOUS = Prediction(0.5, 0.01, 0.25, True, np.eye(32, dtype=np.float32), 0.5)


@pytest.fixture
def videos(tmp_path: Path) -> AnnotatedVideos:
    try:
        return AnnotatedVideos(tmp_path / "annotated")
    except InputError:
        pytest.skip("this OpenCV cannot write videos")


def frame(number: int, *, source: str = "belt.mp4", size: int = 64, rate: float | None = 12.5) -> Inspected:
    picture = Picture(source, f"{source}-frame{number}", dark_image(0, size), number, frame_rate=rate)
    return Inspected(picture, ANOMALOUS)


def opened(path: Path) -> tuple[int, float, tuple[int, ...]]:
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    n, shape = 0, (0, 0)
    while (read := video.read())[0]:
        n, shape = n + 1, read[1].shape[:2]
    video.release()
    return n, rate, shape


def written(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "annotated").iterdir(), key=lambda path: path.stem)


def test_a_video_has_the_judged_frames_at_their_rate(videos: AnnotatedVideos, tmp_path: Path) -> None:
    with videos:
        for number in range(0, 12, 2):
            videos.write(frame(number))
        assert [path.name[0] for path in written(tmp_path)] == ["."]
    [path] = written(tmp_path)
    assert path.stem == "belt"
    assert opened(path) == (6, 12.5, (64, 64))
    assert videos.summary() == [("annotated video", f"6 frames in {path}")]


def test_the_verdict_is_drawn_in(videos: AnnotatedVideos, tmp_path: Path) -> None:
    with videos:
        videos.write(frame(0, size=256))
    ok, pixels = cv2.VideoCapture(str(written(tmp_path)[0])).read()
    assert ok
    red = pixels[:, :, 2].astype(int) - pixels[:, :, 0]
    assert np.diagonal(red).mean() > 60


def test_every_source_gets_its_own_video_and_one_named_twice_two(videos: AnnotatedVideos, tmp_path: Path) -> None:
    with videos:
        for source in ("left/belt.mp4", "left/belt.mp4", "right/belt.mp4", "0"):
            for number in range(3):
                videos.write(frame(number, source=source))
    assert [path.stem for path in written(tmp_path)] == ["0", "belt", "belt-2", "belt-3"]
    assert all(opened(path)[0] == 3 for path in written(tmp_path))


def test_a_new_size_begins_a_new_video(videos: AnnotatedVideos, tmp_path: Path) -> None:
    with videos:
        for number, size in enumerate((64, 64, 48, 48, 48)):
            videos.write(frame(number, size=size))
    assert [(path.stem, opened(path)[0], opened(path)[2]) for path in written(tmp_path)] == [
        ("belt", 2, (64, 64)),
        ("belt-2", 3, (48, 48)),
    ]


def test_frames_without_a_verdict_and_images_are_left_out(videos: AnnotatedVideos, tmp_path: Path) -> None:
    with videos:
        videos.write(Inspected(Picture("piece.png", "piece", dark_image(0)), ANOMALOUS))
        assert videos.summary() == [("annotated video", "none: no frame got a verdict")]
        videos.write(frame(0))
        videos.write(Inspected(Picture("belt.mp4", "belt", InputError("broken"), 1), InputError("broken")))
        videos.write(frame(2))
    assert videos.summary()[1] == ("left out of it", "1 frame without a verdict")
    assert opened(written(tmp_path)[0])[0] == 2


@pytest.mark.parametrize(("rate", "expected"), [(None, 25), (29.97, 29.97), (0.25, 0.25)])
def test_a_rate_that_is_not_known_is_the_usual_one(
    videos: AnnotatedVideos, tmp_path: Path, rate: float | None, expected: float
) -> None:
    with videos:
        for number in range(3):
            videos.write(frame(number, rate=rate))
    assert opened(written(tmp_path)[0])[1] == pytest.approx(expected, rel=0.001)


@pytest.mark.skipif(os.name != "posix", reason="Windows deletes no file that is open")
def test_a_video_that_did_not_get_onto_the_disk_is_an_error(videos: AnnotatedVideos, tmp_path: Path) -> None:
    videos.write(frame(0))
    written(tmp_path)[0].unlink()
    with pytest.raises(InputError, match="could not be written completely"):
        videos.close()
    videos.close()


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        AnnotatedVideos(tmp_path / "file" / "annotated").write(frame(0))


def test_an_opencv_that_can_write_no_video_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_edge.sinks.annotated_video._CODECS", ((".mp4", "????"), (".nothing", "????")))
    with pytest.raises(InputError, match="cannot write videos"):
        AnnotatedVideos(tmp_path)
