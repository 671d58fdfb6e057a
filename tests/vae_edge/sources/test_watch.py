from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.threads import Taking, our_threads, wait_until
from tests.tiny_bundles import dark_image, write_image
from vae_edge import InputError
from vae_edge.sources.pictures import AtMost, Picture
from vae_edge.sources.watch import WatchedFolders, WatchOptions

QUICK = WatchOptions(poll_s=0.02, settle_s=0.06, patience_s=0.3)
UNTIL_IDLE = WatchOptions(poll_s=0.02, settle_s=0.06, patience_s=0.3, idle_timeout_s=0.2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def names(pictures: list[Picture]) -> list[str]:
    return [Path(picture.source).name for picture in pictures]


def encoded(tmp_path: Path, seed: int = 1) -> bytes:
    return write_image(tmp_path / "elsewhere" / f"{seed}.png", dark_image(seed, 64)).read_bytes()


def test_what_is_there_comes_by_name_and_what_arrives_comes_after_it(folder: Path) -> None:
    for name in ("b.png", "a.jpg"):
        write_image(folder / name, dark_image(1))
    with Taking(WatchedFolders([folder], options=QUICK)) as taking:
        assert names(taking.wait_for(2)) == ["a.jpg", "b.png"]
        write_image(folder / "0.bmp", dark_image(2))
        assert names(taking.wait_for(3))[2] == "0.bmp"
        write_image(folder / "1.png", dark_image(3))
        assert names(taking.wait_for(4))[3] == "1.png"
    assert [picture.name for picture in taking.pictures] == ["in-a", "in-b", "in-0", "in-1"]
    assert our_threads() == []


def test_a_folder_may_be_empty_and_the_watch_ends_when_nothing_comes(folder: Path) -> None:
    source = WatchedFolders([folder], options=UNTIL_IDLE)
    assert source.n_pictures is None
    begin_s = time.monotonic()
    assert list(source) == []
    assert 0.2 <= time.monotonic() - begin_s < 5


def test_a_file_written_in_two_halves_is_given_once_and_whole(folder: Path, tmp_path: Path) -> None:
    content = encoded(tmp_path)
    with Taking(WatchedFolders([folder], options=QUICK)) as taking:
        with (folder / "slow.png").open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            time.sleep(0.15)  # longer than it takes to settle, shorter than the patience
            assert taking.pictures == []
            file.write(content[len(content) // 2 :])
        [picture] = taking.wait_for(1)
        assert not isinstance(picture.image, InputError)
        time.sleep(0.1)
    assert names(taking.pictures) == ["slow.png"]


def test_a_broken_file_gets_one_error_after_the_patience_and_holds_nobody_up(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(encoded(tmp_path)[:50])
    (folder / "empty.png").touch()
    write_image(folder / "whole.png", dark_image(1))
    begin_s = time.monotonic()
    pictures = list(WatchedFolders([folder], options=UNTIL_IDLE))
    assert time.monotonic() - begin_s >= 0.3
    assert names(pictures) == ["whole.png", "broken.png", "empty.png"]
    assert [isinstance(picture.image, InputError) for picture in pictures] == [False, True, True]


def test_a_file_that_is_renamed_when_it_is_whole_is_given_and_its_earlier_names_are_not(
    folder: Path, tmp_path: Path
) -> None:
    with Taking(WatchedFolders([folder], options=QUICK)) as taking:
        for number, temporary in enumerate((".hidden.png", "upload.png.part")):
            (folder / temporary).write_bytes(encoded(tmp_path))
            time.sleep(0.1)
            assert len(taking.pictures) == number
            (folder / temporary).rename(folder / f"{number}.png")
            taking.wait_for(number + 1)
    assert names(taking.pictures) == ["0.png", "1.png"]


def test_a_file_is_given_once_even_if_it_changes_later_and_again_if_the_name_is_used_anew(folder: Path) -> None:
    path = write_image(folder / "piece.png", dark_image(1))
    with Taking(WatchedFolders([folder], options=QUICK)) as taking:
        taking.wait_for(1)
        os.utime(path, ns=(1, 1))
        time.sleep(0.15)
        path.unlink()
        time.sleep(0.15)
        assert len(taking.pictures) == 1
        write_image(path, dark_image(2))
        taking.wait_for(2)


def test_sub_folders_are_watched_only_when_asked_and_results_never(folder: Path) -> None:
    for name in ("a.png", "deep/b.png", "out/overlays/c.png", ".trash/d.png"):
        write_image(folder / name, dark_image(1))
    (folder / "e.png").mkdir()
    assert names(list(WatchedFolders([folder], options=UNTIL_IDLE))) == ["a.png"]
    pictures = list(WatchedFolders([folder], recursive=True, except_in=folder / "out", options=UNTIL_IDLE))
    assert [picture.name for picture in pictures] == ["in-a", "in-deep-b"]


def test_a_folder_that_vanishes_and_comes_back_is_said_once_and_nothing_is_given_twice(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_image(folder / "a.png", dark_image(1))
    with caplog.at_level(logging.WARNING), Taking(WatchedFolders([folder], options=QUICK)) as taking:
        taking.wait_for(1)
        folder.rename(folder.with_name("away"))
        wait_until(lambda: "waiting until it is available again" in caplog.text)
        time.sleep(0.1)
        folder.with_name("away").rename(folder)
        wait_until(lambda: "is available again" in caplog.text)
        write_image(folder / "b.png", dark_image(2))
        taking.wait_for(2)
    assert names(taking.pictures) == ["a.png", "b.png"]
    assert len(caplog.records) == 2


def test_a_share_whose_empty_place_remains_gives_nothing_twice(folder: Path, tmp_path: Path) -> None:
    write_image(folder / "a.png", dark_image(1))
    with Taking(WatchedFolders([folder], options=QUICK)) as taking:
        taking.wait_for(1)
        shutil.copytree(folder, tmp_path / "kept")
        (folder / "a.png").unlink()
        time.sleep(0.1)
        # In one step: a copy gets its old time only after its content, and is a new picture in between.
        (tmp_path / "kept" / "a.png").rename(folder / "a.png")
        write_image(folder / "b.png", dark_image(2))
        taking.wait_for(2)
    assert names(taking.pictures) == ["a.png", "b.png"]


def test_names_that_are_gone_are_forgotten_in_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_edge.sources.watch._REMEMBERED", 2)
    for name in "abcde":
        write_image(folder / f"{name}.png", dark_image(1))
    source = WatchedFolders([folder], options=QUICK)
    with Taking(source) as taking:
        taking.wait_for(5)
        for name in "abcd":
            (folder / f"{name}.png").unlink()
        [state] = source._folders
        wait_until(lambda: len(state.gone) == 2 and len(state.seen) == 1)


def test_a_file_deleted_before_it_is_whole_is_not_given(folder: Path) -> None:
    with Taking(WatchedFolders([folder], options=QUICK)) as taking:
        (folder / "short-lived.png").write_bytes(b"half")
        time.sleep(0.1)
        (folder / "short-lived.png").unlink()
        time.sleep(0.4)
        assert taking.pictures == []


def test_stopping_ends_a_watch_that_waits_at_once_and_one_that_has_not_begun(folder: Path) -> None:
    source = WatchedFolders([folder], options=WatchOptions(poll_s=30))
    with Taking(source) as taking:
        time.sleep(0.05)
        begin_s = time.monotonic()
        source.stop()
        taking.join(5)
        assert time.monotonic() - begin_s < 0.2
    source.stop()
    write_image(folder / "a.png", dark_image(1))
    assert list(source) == []
    assert our_threads() == []


def test_after_enough_pictures_the_watch_is_over(folder: Path) -> None:
    for name in "abc":
        write_image(folder / f"{name}.png", dark_image(1))
    assert names(list(AtMost(WatchedFolders([folder], options=QUICK), 2))) == ["a.png", "b.png"]
    assert our_threads() == []


def test_what_cannot_be_watched_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        WatchedFolders([folder / "nowhere"])
    with pytest.raises(InputError, match="choose another --out"):
        WatchedFolders([folder], except_in=folder.parent)


@pytest.mark.parametrize(
    "times", [{"poll_s": 0}, {"settle_s": -1}, {"settle_s": float("nan")}, {"patience_s": 0.5}, {"idle_timeout_s": -1}]
)
def test_times_that_make_no_sense_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"or more seconds|patience of at least settle"):
        WatchOptions(**times)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes in the file system are POSIX's")
def test_a_named_pipe_in_a_watched_folder_is_an_error_at_once_and_holds_up_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", dark_image(1))
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "b.png")
    write_image(tmp_path / "d.png", dark_image(1))
    begin_s = time.monotonic()
    pictures = list(AtMost(WatchedFolders([tmp_path], options=WatchOptions(0.02, 0.1, 60.0)), 4))
    assert time.monotonic() - begin_s < 5
    assert [Path(picture.source).name for picture in pictures] == ["a.png", "b.png", "c.png", "d.png"]
    assert ["is a named pipe" in str(picture.image) for picture in pictures] == [False, True, True, False]
