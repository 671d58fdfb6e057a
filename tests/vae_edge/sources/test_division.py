"""Every picture belongs to one shard, whatever lies beside it and wherever the folder lies."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import cv2
import pytest

from tests.tiny_bundles import dark_image, write_image
from vae_edge.errors import UsageError
from vae_edge.sources.division import Shard, shard_of
from vae_edge.sources.opening import open_sources


def taken(texts: list[str], shard: Shard | None, base: Path) -> list[str]:
    source = open_sources(texts, recursive=True, shard=shard)
    return [Path(picture.source).relative_to(base).as_posix() for picture in source]


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    for number in range(24):
        write_image(tmp_path / "pieces" / f"line-{number % 3}" / f"{number}.png", dark_image(number))
    return tmp_path / "pieces"


def test_the_division_stays_what_it_was() -> None:
    # Runs of other versions and on other machines divide the same archive.
    names = ("a.png", "left/0.png", "größe.png", "bad\udcff.png")
    assert [shard_of(name, 1000) for name in names] == [983, 309, 285, 19]


def test_shards_are_about_equal() -> None:
    sizes = Counter(shard_of(f"2026/{number:07d}.png", 8) for number in range(8000))
    assert sorted(sizes) == list(range(1, 9))
    assert all(850 < n < 1150 for n in sizes.values())


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "-1/4", "1/4/2", "a/b", "1/2000000", "¹/4"])
def test_what_is_not_a_shard_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a shard; expected I/N"):
        Shard.parse(text)


def test_the_shards_of_a_folder_are_the_whole_and_have_nothing_in_common(pieces: Path) -> None:
    everything = taken([str(pieces)], None, pieces)
    shards = [taken([str(pieces)], Shard(number, 5), pieces) for number in range(1, 6)]
    assert sorted(name for shard in shards for name in shard) == everything
    assert len(everything) == 24
    assert max(map(len, shards)) < 24


def test_a_new_picture_and_another_place_of_the_folder_change_no_shard(pieces: Path, tmp_path: Path) -> None:
    before = [taken([str(pieces)], Shard(number, 3), pieces) for number in range(1, 4)]
    write_image(pieces / "line-0" / "000-new.png", dark_image(99))
    moved = pieces.rename(tmp_path / "elsewhere")
    after = [taken([str(moved)], Shard(number, 3), moved) for number in range(1, 4)]
    assert [[name for name in shard if "new" not in name] for shard in after] == before


def test_a_glob_divides_like_the_folder_that_it_spells_out(pieces: Path) -> None:
    for number in (1, 2):
        shard = Shard(number, 2)
        assert taken([str(pieces / "*" / "*.png")], shard, pieces) == taken([str(pieces)], shard, pieces)
        assert taken([str(pieces / "line-*")], shard, pieces) == taken([str(pieces)], shard, pieces)


def test_a_shard_may_be_empty(pieces: Path) -> None:
    sizes = [open_sources([str(pieces / "line-0" / "0.png")], shard=Shard(n, 3)).n_pictures for n in (1, 2, 3)]
    assert sorted(size or 0 for size in sizes) == [0, 0, 1]


@pytest.mark.parametrize("text", ["-", "0", "rtsp://127.0.0.1/stream"])
def test_cameras_streams_and_lists_are_not_divided(text: str) -> None:
    with pytest.raises(UsageError, match="--shard divides image files"):
        open_sources([text], shard=Shard(1, 2))


@pytest.mark.skipif(sys.platform == "win32", reason="some builds of OpenCV for Windows write no MJPG")
def test_a_video_is_not_divided(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    video.write(dark_image(1, 64)[:48])
    video.release()
    with pytest.raises(UsageError, match=r"film\.avi is none"):
        open_sources([str(path)], shard=Shard(1, 2))
