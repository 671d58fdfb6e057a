from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
import pytest

from tests.threads import our_threads
from tests.tiny_bundles import dark_image, write_image
from vae_edge import InputError
from vae_edge.sources.opening import image_files, open_sources, open_watch
from vae_edge.sources.pictures import AtMost, Picture
from vae_edge.sources.video import is_video_content
from vae_edge.sources.watch import WatchOptions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.jpg", "deep/c.bmp"):
        write_image(tmp_path / "pieces" / name, dark_image(1))
    (tmp_path / "pieces" / "notes.txt").write_text("no image")
    (tmp_path / "pieces" / "._a.jpg").write_bytes(b"left by macOS")
    return tmp_path / "pieces"


def write_video(path: Path, n_frames: int = 20) -> Path:
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    if not video.isOpened():
        pytest.skip("this OpenCV cannot write MJPG videos")
    for frame in range(n_frames):
        video.write(np.full((48, 64, 3), (10, 10, 10 * frame), dtype=np.uint8))  # BGR: red grows
    video.release()
    return path


def names(pictures: list[Picture]) -> list[str]:
    return [Path(picture.source).name for picture in pictures]


def pixels(picture: Picture) -> np.ndarray:
    assert isinstance(picture.image, np.ndarray)
    return picture.image


def test_a_folder_gives_its_images_by_name(folder: Path) -> None:
    source = open_sources([str(folder)])
    pictures = list(source)
    assert names(pictures) == ["a.jpg", "b.png"]
    assert source.n_pictures == 2
    assert [picture.name for picture in pictures] == ["pieces-a", "pieces-b"]
    assert pixels(pictures[1]).shape == (32, 32, 3)
    assert pictures[0].frame is None


def test_a_folder_gives_its_sub_folders_only_when_asked(folder: Path) -> None:
    pictures = list(open_sources([str(folder)], recursive=True))
    assert names(pictures) == ["a.jpg", "b.png", "c.bmp"]
    assert pictures[2].name == "pieces-deep-c"


def test_a_glob_gives_what_it_matches(folder: Path) -> None:
    assert names(list(open_sources([f"{folder}/*.png"]))) == ["b.png"]
    assert names(list(open_sources([f"{folder}/**/*"]))) == ["a.jpg", "b.png", "c.bmp"]
    assert names(list(open_sources([f"{folder}/d*"]))) == ["c.bmp"]


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    path = write_image(tmp_path / "piece[1].png", dark_image(1))
    assert names(list(open_sources([str(path)]))) == ["piece[1].png"]


def test_sources_come_in_the_order_given_and_twice_if_named_twice(folder: Path) -> None:
    assert names(list(open_sources([f"{folder}/b.png", str(folder)]))) == ["b.png", "a.jpg", "b.png"]


@pytest.mark.parametrize("target", ["nowhere.png", "b-link.png"])
def test_a_link_to_nowhere_is_left_out_and_named(folder: Path, target: str, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "b-link.png").symlink_to(target)
    assert names(list(open_sources([str(folder)], except_in=folder / "out"))) == ["a.jpg", "b.png"]
    assert "broken links, skipped: 1 (b-link.png)" in caplog.text
    assert names(list(open_sources([f"{folder}/?*.*"]))) == ["a.jpg", "b.png"]
    assert "b-link.png is a broken link and was skipped" in caplog.text


def test_a_damaged_image_is_an_error_in_its_place(folder: Path) -> None:
    (folder / "aa.png").write_bytes(b"not an image")
    (folder / "ab.png").touch()
    pictures = list(open_sources([str(folder)]))
    assert names(pictures) == ["a.jpg", "aa.png", "ab.png", "b.png"]
    assert [isinstance(picture.image, InputError) for picture in pictures] == [False, True, True, False]


def test_a_file_named_itself_is_tried_whatever_its_ending(folder: Path) -> None:
    [picture] = open_sources([str(folder / "notes.txt")])
    assert isinstance(picture.image, InputError)


def test_a_16_bit_image_is_scaled_by_the_white_level(tmp_path: Path) -> None:
    path = write_image(tmp_path / "deep.png", np.full((4, 4), 4095, dtype=np.uint16))
    [picture] = open_sources([str(path)], white_level=4095)
    assert (pixels(picture) == 255).all()


def test_pictures_of_an_earlier_run_are_left_out(folder: Path) -> None:
    found = open_sources([str(folder)], recursive=True, except_in=folder / "deep")
    assert names(list(found)) == ["a.jpg", "b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("nowhere/*.png", "matches no image"),
        ("", "does not exist|has no image"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_decoded(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_sources([text])


def test_a_folder_without_images_says_how_to_look_deeper(tmp_path: Path) -> None:
    write_image(tmp_path / "deep" / "a.png", dark_image(1))
    with pytest.raises(InputError, match="add --recursive"):
        open_sources([str(tmp_path)])


@pytest.mark.parametrize("numbers", [{"every": 0}, {"max_frames": 0}, {"every": -2}])
def test_numbers_below_one_are_refused(folder: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected 1 or more"):
        open_sources([str(folder)], **numbers)  # type: ignore[arg-type]  # only numbers are passed


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="no source"):
        open_sources([])


def test_a_video_gives_every_frame_in_rgb_with_its_time(tmp_path: Path) -> None:
    source = open_sources([str(write_video(tmp_path / "belt.avi"))])
    pictures = list(source)
    assert source.n_pictures == len(pictures) == 20
    assert [picture.frame for picture in pictures] == list(range(20))
    assert pictures[7].time_s == pytest.approx(0.7)
    assert pictures[7].name == "belt-frame000007"
    red, green, blue = pixels(pictures[19]).reshape(-1, 3).mean(axis=0)
    assert red > 170
    assert green < 30
    assert blue < 30


def test_every_third_frame_of_a_video_at_most_four(tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "belt.avi"))
    source = open_sources([path], every=3)
    assert source.n_pictures == 7
    assert [picture.frame for picture in source] == [0, 3, 6, 9, 12, 15, 18]
    source = open_sources([path], every=3, max_frames=4)
    assert source.n_pictures == 4
    assert [picture.frame for picture in source] == [0, 3, 6, 9]


def test_images_and_videos_can_be_mixed(folder: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "belt.avi", 3)
    source = open_sources([str(folder), str(video), f"{folder}/b.png"])
    assert source.n_pictures == 6
    assert names(list(source)) == ["a.jpg", "b.png", "belt.avi", "belt.avi", "belt.avi", "b.png"]


def test_a_video_that_breaks_off_ends_with_an_error(tmp_path: Path) -> None:
    path = write_video(tmp_path / "belt.avi", 200)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    pictures = list(open_sources([str(path)]))
    assert isinstance(pictures[-1].image, InputError)
    assert not any(isinstance(picture.image, InputError) for picture in pictures[:-1])


def test_a_file_that_is_no_video_is_an_error_in_its_place(folder: Path) -> None:
    (folder / "belt.mp4").write_bytes(b"no video")
    first, second, third = open_sources([str(folder / name) for name in ("a.jpg", "belt.mp4", "b.png")])
    assert [first.name, second.name, third.name] == ["a", "belt", "b"]
    assert isinstance(second.image, InputError)
    assert "belt.mp4 could not be opened; expected MP4" in str(second.image)
    assert not isinstance(third.image, InputError)


@pytest.mark.parametrize("name", ["belt.wmv", "belt", "belt.png", "belt.txt"])
def test_a_video_is_told_by_its_content_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "belt.avi", 3).rename(tmp_path / name)
    assert [picture.frame for picture in open_sources([str(tmp_path / name)])] == [0, 1, 2]


def test_a_picture_called_like_a_video_is_a_picture(folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").rename(tmp_path / "b.mp4")
    (picture,) = open_sources([str(tmp_path / "b.mp4")])
    assert picture.frame is None
    assert pixels(picture).shape[2] == 3


@pytest.mark.parametrize(
    ("head", "is_video"),
    [
        (b"\0\0\0\x20ftypisom", True),
        (b"\0\0\0\x20ftypavif", False),
        (b"G" + bytes(187) + b"G" + bytes(187) + b"G" + bytes(200), True),
        (bytes(4) + b"G" + bytes(191) + b"G" + bytes(191) + b"G" + bytes(200), True),
        (b"\x1a\x45\xdf\xa3", True),
        (b"#EXTM3U\nhttp://elsewhere/", False),
        (b"GG", False),
        (b"", False),
    ],
)
def test_containers_of_videos_are_told_by_their_first_bytes(head: bytes, is_video: bool) -> None:
    assert is_video_content(head) is is_video


def test_a_playlist_called_like_a_video_is_not_followed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        (tmp_path / "belt.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n")
        (picture,) = open_sources([str(tmp_path / "belt.mp4")])
        assert isinstance(picture.image, InputError)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes in the file system are POSIX's")
@pytest.mark.parametrize("named_by", ["itself", "its folder", "a glob", "a link", "standard input"])
def test_a_named_pipe_is_an_error_in_its_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (folder / "aa.png").symlink_to(tmp_path / "pipe")
    if named_by == "standard input":
        monkeypatch.setattr("sys.stdin", paths_from(tmp_path, [folder / name for name in ("a.jpg", "aa.png", "b.png")]))
    words: dict[str, list[Path | str]] = {
        "itself": [folder / "a.jpg", tmp_path / "pipe", folder / "b.png"],
        "its folder": [folder],
        "a glob": [folder / "*.[jp]*g"],
        "a link": [folder / "a.jpg", folder / "aa.png", folder / "b.png"],
        "standard input": ["-"],
    }
    begin_s = time.perf_counter()
    first, second, third = open_sources([str(word) for word in words[named_by]])
    assert time.perf_counter() - begin_s < 2
    assert isinstance(second.image, InputError)
    assert "is a named pipe; expected an image file" in str(second.image)
    assert pixels(first).size == pixels(third).size


def test_the_limit_of_pixels_holds_for_every_way_to_name_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", paths_from(tmp_path, [folder / "b.png"]))
    for source in (
        open_sources([str(folder)], max_pixels=10),
        open_sources(["-"], max_pixels=10),
        AtMost(open_watch([str(folder)], max_pixels=10, options=WatchOptions(0.01, 0.0, 0.0)), 1),
        open_sources([(folder / "b.png").as_uri()], max_pixels=10),
    ):
        picture = next(iter(source))
        assert isinstance(picture.image, InputError)
        assert "expected at most 1e-05 million" in str(picture.image)
        source.stop()


def test_a_file_address_is_a_file(folder: Path) -> None:
    path = folder / "b c%.png"
    (folder / "b.png").rename(path)
    (picture,) = open_sources([path.as_uri()])
    assert (picture.source, picture.frame) == (str(path), None)
    assert pixels(picture).shape[2] == 3
    with pytest.raises(InputError, match="another machine"):
        open_sources(["file://elsewhere/b.png"])


def paths_from(tmp_path: Path, paths: list[Path]) -> TextIO:
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in paths))
    return (tmp_path / "list.txt").open()


def test_a_file_that_is_called_like_a_camera_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.png", dark_image(1)).rename(tmp_path / "0")
    assert names(list(open_sources(["0"]))) == ["0"]


def test_a_consumer_that_stops_early_leaves_no_thread(folder: Path) -> None:
    pictures = iter(open_sources([str(folder)] * 20))
    next(pictures)
    del pictures
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vae-edge-read")]


def test_a_source_that_was_stopped_gives_no_more(folder: Path, tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "belt.avi"))
    for texts, n in (([str(folder)] * 20, 3), ([video, str(folder)], 3), ([str(folder), video], 4)):
        source = open_sources(texts)
        pictures = iter(source)
        for _ in range(n):
            next(pictures)
        source.stop()
        source.stop()
        assert list(pictures) == []
        assert list(source) == []
        assert our_threads() == []


def test_a_limit_is_for_all_sources_together(folder: Path, tmp_path: Path) -> None:
    source = AtMost(open_sources([str(folder), str(write_video(tmp_path / "belt.avi"))]), 5)
    assert source.n_pictures == 5
    assert source.has_frames
    assert names(list(source)) == ["a.jpg", "b.png", "belt.avi", "belt.avi", "belt.avi"]
    assert AtMost(open_sources([str(folder)]), 5).n_pictures == 2


def test_image_files_are_listed_without_videos(folder: Path, tmp_path: Path) -> None:
    assert [path.name for path in image_files([str(folder)], recursive=True)] == ["a.jpg", "b.png", "c.bmp"]
    with pytest.raises(InputError, match="is a video"):
        image_files([str(write_video(tmp_path / "belt.avi", 2))])
    with pytest.raises(InputError, match="no images"):
        image_files([])
