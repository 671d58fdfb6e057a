from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.threads import Taking, our_threads
from tests.tiny_bundles import dark_image, write_image
from vae_edge import InputError
from vae_edge.sources.path_lines import PathLines
from vae_edge.sources.pictures import Picture

Pipe = tuple[BinaryIO, BinaryIO]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as source, open(write, "wb", buffering=0) as end:  # noqa: PTH123 - descriptors
        yield source, end


def named(pictures: list[Picture]) -> list[tuple[str, bool]]:
    return [(Path(picture.source).name, isinstance(picture.image, InputError)) for picture in pictures]


def test_a_path_is_given_without_waiting_for_the_next_line(pipe: Pipe, tmp_path: Path) -> None:
    source, end = pipe
    with Taking(PathLines(source)) as taking:
        for number in range(3):
            end.write(f"{write_image(tmp_path / f'ü {number}.png', dark_image(1))}\n".encode())
            taking.wait_for(number + 1)
        end.close()
        taking.join(5)
        assert not taking.is_alive()
    assert named(taking.pictures) == [(f"ü {number}.png", False) for number in range(3)]
    assert our_threads() == []


def test_lines_may_end_as_on_windows_and_the_last_not_at_all(pipe: Pipe, tmp_path: Path) -> None:
    source, end = pipe
    path = str(write_image(tmp_path / "a.png", dark_image(1))).encode()
    end.write(b"\xef\xbb\xbf" + path + b"\r\n\r\n  \n" + b"nowhere.png\n" + path)
    end.close()
    assert named(list(PathLines(source))) == [("a.png", False), ("nowhere.png", True), ("a.png", False)]


@pytest.mark.skipif(os.name != "posix", reason="no name has a line's end on Windows")
def test_paths_may_be_separated_by_nul_and_hold_line_ends(pipe: Pipe, tmp_path: Path) -> None:
    source, end = pipe
    path = write_image(tmp_path / "two\nlines.png", dark_image(1))
    end.write(os.fsencode(path) + b"\0\0" + os.fsencode(path) + b"\0")
    end.close()
    assert named(list(PathLines(source, null_separated=True))) == [("two\nlines.png", False)] * 2


def test_stopping_ends_a_source_that_waits_for_a_line(pipe: Pipe) -> None:
    paths = PathLines(pipe[0])
    with Taking(paths) as taking:
        time.sleep(0.05)
        begin_s = time.monotonic()
        paths.stop()
        taking.join(5)
        assert time.monotonic() - begin_s < 0.3
    assert our_threads() == []


def test_input_that_is_no_list_of_paths_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.raw").write_bytes(bytes(200_000))
    with (tmp_path / "picture.raw").open("rb") as file, pytest.raises(InputError, match="not a list of paths"):
        list(PathLines(file))
