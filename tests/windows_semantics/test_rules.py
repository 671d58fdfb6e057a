"""The rules that the product is tested under, held against Windows itself in CI, and against the double elsewhere."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="the rules of Windows")


def refused(error: pytest.ExceptionInfo[OSError]) -> int:
    number = getattr(error.value, "winerror", None)
    assert number is not None
    return int(number)


def test_what_is_open_is_neither_renamed_nor_replaced_nor_deleted(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"weights")
    (tmp_path / "new").write_bytes(b"new")
    with path.open("rb"):
        for change in (lambda: path.rename(tmp_path / "other"), path.unlink, lambda: (tmp_path / "new").replace(path)):
            with pytest.raises(PermissionError) as error:
                change()
            assert refused(error) in (5, 32)
    path.unlink()


def test_a_folder_is_not_renamed_while_something_in_it_is_open(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "deep").mkdir(parents=True)
    (tmp_path / "bundle" / "deep" / "model").touch()
    with (tmp_path / "bundle" / "deep" / "model").open("rb"), pytest.raises(PermissionError) as error:
        (tmp_path / "bundle").rename(tmp_path / "old")
    assert refused(error) in (5, 32)
    (tmp_path / "bundle").rename(tmp_path / "old")


def test_what_is_mapped_is_open(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with pytest.raises(PermissionError):
        path.unlink()
    mapped.close()
    path.unlink()


def test_what_another_process_has_open_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.touch()
    hold = f"import sys; file = open({str(path)!r}, 'rb'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(PermissionError):
            path.unlink()
        holder.stdin.close()
    path.unlink()


def test_a_rename_replaces_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).touch()
    with pytest.raises(FileExistsError):
        (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").replace(tmp_path / "b")


def test_folders_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)


def test_names_with_another_case_are_one_name(tmp_path: Path) -> None:
    (tmp_path / "Part.png").write_bytes(b"first")
    assert (tmp_path / "pART.PNG").read_bytes() == b"first"
    with pytest.raises(FileExistsError):
        (tmp_path / "part.png").mkdir()
    (tmp_path / "part.PNG").write_bytes(b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["Part.png"]


@pytest.mark.parametrize("name", ["a:b*", "a?", "a|b", "<a>", 'a"b', "a\nb"])
def test_some_characters_are_in_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as error:  # noqa: PT011 - its number is checked
        (tmp_path / name).write_bytes(b"")
    assert refused(error) in (123, 267, 161)
    assert not (tmp_path / name).exists()


def test_a_handle_that_reads_is_not_flushed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    handle = os.open(tmp_path / "a", os.O_RDONLY)
    with pytest.raises(OSError) as error:  # noqa: PT011 - its number is checked
        os.fsync(handle)
    assert error.value.errno == errno.EBADF
    os.close(handle)


def test_a_read_only_file_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(0o444)
    with pytest.raises(PermissionError):
        (tmp_path / "a").unlink()
    (tmp_path / "a").chmod(0o666)
    (tmp_path / "a").unlink()


def test_no_process_is_asked_with_a_signal() -> None:
    if os.environ.get("VAE_EDGE_WINDOWS_VIOLATIONS"):
        assert not hasattr(os, "kill")
    assert not hasattr(os, "fork")
    assert not hasattr(os, "pwrite")
