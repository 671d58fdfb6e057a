"""The pictures of a part: each in its place, or the error in its place."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny_bundles import dark_image, write_image
from vae_edge.archive import pictures
from vae_edge.archive.listing import Kind, Part, Source
from vae_edge.archive.pictures import pictures_of
from vae_edge.archive.places import GoneError, LocalPlace, Place
from vae_edge.errors import InputError


def part(*names: str) -> Part:
    return Part(1, json.dumps({"names": names}), None)


def found(source: Source, of: Part, max_pixels: int = 10**6) -> dict[str, Any]:
    return {
        name: str(picture.image) if isinstance(picture.image, InputError) else picture.image
        for name, picture in pictures_of(source, of, white_level=65535, max_pixels=max_pixels)
    }


class InMemory(Place):
    """A store, whose reading may fail."""

    def __init__(self, files: dict[str, bytes], failures: int = 0) -> None:
        super().__init__("mem://bucket")
        self._content = files
        self.failures = failures
        self.is_gone = False

    def files(self) -> list[str]:
        return sorted(self._content)

    def names_in(self, folder: str) -> set[str]:
        raise NotImplementedError

    def write(self, name: str, content: bytes) -> None:
        raise NotImplementedError

    def check_readable(self) -> None:
        if self.is_gone:
            raise GoneError("mem://bucket does not answer")

    @contextmanager
    def open(self, name: str) -> Iterator[Any]:
        if self.failures or self.is_gone:
            self.failures -= 1
            raise OSError("the network failed")
        if name not in self._content:
            raise FileNotFoundError(2, "No such file or directory")
        yield io.BytesIO(self._content[name])


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_PATIENCE_S", 0.0)


@pytest.fixture
def encoded(tmp_path: Path) -> list[bytes]:
    return [write_image(tmp_path / "one.png", dark_image(seed)).read_bytes() for seed in range(9)]


def as_tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:  # type: ignore[call-overload]  # any mode
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def test_files_on_disk_come_in_order_with_the_errors_in_between(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", dark_image(0))
    (tmp_path / "b.png").write_bytes(b"")
    write_image(tmp_path / "d" / "c.png", dark_image(2))
    source = Source(LocalPlace(tmp_path), Kind.PICTURES)
    seen = found(source, part("a.png", "b.png", "gone.png", "d/c.png"))
    assert list(seen) == ["a.png", "b.png", "gone.png", "d/c.png"]
    assert np.array_equal(seen["d/c.png"], dark_image(2))
    assert seen["b.png"].startswith(f"{tmp_path / 'b.png'} is empty")
    assert "could not be read (No such file or directory)" in seen["gone.png"]


def test_a_folder_that_is_gone_is_no_pictures_fault(tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "a.png", dark_image(0))
    source = Source(LocalPlace(tmp_path / "pictures"), Kind.PICTURES)
    shutil.rmtree(tmp_path / "pictures")
    with pytest.raises(GoneError, match="is not a folder on the machine"):
        found(source, part("a.png"))


def test_objects_of_a_store_are_decoded_and_named_by_their_address(encoded: list[bytes]) -> None:
    place = InMemory({f"{n}.png": content for n, content in enumerate(encoded)} | {"bad.png": b"no picture"})
    source = Source(place, Kind.PICTURES)
    names = [*(f"{n}.png" for n in range(9)), "bad.png", "gone.png"]
    seen = found(source, part(*names))
    assert list(seen) == names
    assert all(np.array_equal(seen[f"{n}.png"], dark_image(n)) for n in range(9))
    assert seen["bad.png"].startswith("mem://bucket/bad.png ")
    assert seen["gone.png"].startswith("mem://bucket/gone.png could not be read (No such file or directory)")


def test_a_store_that_fails_once_is_asked_again_and_one_that_is_gone_ends_the_part(encoded: list[bytes]) -> None:
    place = InMemory({"0.png": encoded[0]}, failures=1)
    assert np.array_equal(found(Source(place, Kind.PICTURES), part("0.png"))["0.png"], dark_image(0))
    place.failures = 2
    assert "the network failed" in found(Source(place, Kind.PICTURES), part("0.png"))["0.png"]
    place.is_gone = True
    for kind in (Kind.PICTURES, Kind.WEBDATASET):
        with pytest.raises(GoneError):
            found(Source(place, kind), part("0.png"))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_picture_of_a_sample_in_a_tar_file_is_judged(encoded: list[bytes], mode: str) -> None:
    members = {"d/1.left.png": encoded[1], "d/1.right.png": encoded[2], "d/1.cls": b"3", "d/._1.png": b"left by macOS"}
    place = InMemory({"a.tar": as_tar({**members, "d/2.png": b"no picture", "d/3.jpg": encoded[3]}, mode)})
    seen = found(Source(place, Kind.WEBDATASET), part("a.tar"))
    assert list(seen) == ["a.tar/d/1.left.png", "a.tar/d/1.right.png", "a.tar/d/2.png", "a.tar/d/3.jpg"]
    assert np.array_equal(seen["a.tar/d/1.right.png"], dark_image(2))
    assert np.array_equal(seen["a.tar/d/3.jpg"], dark_image(3))
    assert seen["a.tar/d/2.png"].startswith("mem://bucket/a.tar/d/2.png ")


def test_a_tar_file_that_breaks_off_gives_what_came_before_and_says_so(encoded: list[bytes]) -> None:
    whole = as_tar({f"{n}.png": encoded[n] for n in range(4)})
    place = InMemory({"a.tar": whole[: 2 * 512 + 2 * len(encoded[0])], "b.tar": b"\1" * 2000})
    seen = found(Source(place, Kind.WEBDATASET), part("a.tar"))
    assert [name for name in seen if name != "a.tar"] == ["a.tar/0.png"]
    assert seen["a.tar"].startswith("mem://bucket/a.tar is damaged from here on")
    assert list(found(Source(place, Kind.WEBDATASET), part("b.tar"))) == ["b.tar"]


def test_what_is_too_large_is_not_read(encoded: list[bytes]) -> None:
    huge = b"\x89PNG" + b"\0" * 70_000_000
    place = InMemory({"a.tar": as_tar({"0.png": huge, "1.png": encoded[1]}), "0.png": huge})
    seen = found(Source(place, Kind.WEBDATASET), part("a.tar"), max_pixels=1100)
    assert "has 70 MB; expected at most 67 MB" in seen["a.tar/0.png"]
    assert np.array_equal(seen["a.tar/1.png"], dark_image(1))
    assert "has more than 67 MB" in found(Source(place, Kind.PICTURES), part("0.png"), 1100)["0.png"]
    small = found(Source(place, Kind.WEBDATASET), part("a.tar"), max_pixels=1000)
    assert "has 32x32 pixels" in small["a.tar/1.png"]
