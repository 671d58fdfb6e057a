from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vae_edge.atomic import new_file, new_folder, sha256_file, write_text
from vae_edge.errors import InputError


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_folder_of_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="No space left"), new_folder(tmp_path / "bundle") as temporary:
        (temporary / "model").write_bytes(b"weights")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_older_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bundle"
    old.mkdir()
    (old / "marker").write_text("old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="could not be written"), new_folder(old, replaces="marker") as temporary:
        (temporary / "marker").write_text("new")
    assert (old / "marker").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_folder(tmp_path / "bundle") as temporary:
            (temporary / "model").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_readable_for_everyone(tmp_path: Path) -> None:
    with new_folder(tmp_path / "deep" / "bundle") as temporary:
        (temporary / "model").write_bytes(b"weights")
        assert not (tmp_path / "deep" / "bundle").exists()
    assert (tmp_path / "deep" / "bundle" / "model").read_bytes() == b"weights"
    assert (tmp_path / "deep" / "bundle").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bundle"]


def test_an_older_folder_with_the_marker_is_replaced_whole(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with new_folder(tmp_path / "bundle", replaces="marker") as temporary:
            (temporary / "marker").write_text(content)
            (temporary / content).touch()
    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["marker", "new"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("marker", [None, "marker"])
def test_a_folder_of_someone_else_is_refused_and_kept(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.jpg").write_bytes(b"beach")
    with pytest.raises(InputError, match="already there"), new_folder(tmp_path / "holiday", replaces=marker):
        pytest.fail("the block must not run")
    assert (tmp_path / "holiday" / "photo.jpg").read_bytes() == b"beach"


def test_a_dangling_link_is_no_free_name(tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match="already there"), new_folder(tmp_path / "bundle"):
        pytest.fail("the block must not run")


def test_text_on_a_full_disk_leaves_the_older_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match="could not be written"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_parent_that_is_a_file_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="could not be written"):
        write_text(tmp_path / "file" / "manifest.json", "text")
    with pytest.raises(InputError, match="could not be written"), new_folder(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_the_hash_of_an_empty_file_is_the_known_one(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_an_error_in_the_block_leaves_the_older_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_text(path, "old")

    def write_half() -> None:
        with new_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
