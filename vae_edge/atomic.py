"""Writing that either happens whole or not at all: temporary name, flush to disk, rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vae_edge.errors import InputError


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the SHA-256 of what is left to read of a file."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; see `new_file`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes, whole or not at all; see `new_file`."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """Give the name of an empty file that becomes `final` when the block ends without an error.

    It lies in the same folder and is flushed to disk before it gets the name.

    Raises:
        InputError: the folder cannot be written or the disk is full; an older file of that name is left as it was.
    """
    temporary: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(final)
    except OSError as error:
        raise _cannot_write(final, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(final: Path, *, replaces: str | None = None) -> Iterator[Path]:
    """Give a temporary folder that becomes `final` when the block ends without an error.

    Args:
        final: the folder's name once it is whole.
        replaces: name of the file that marks an older folder which may be replaced; None: nothing is replaced.

    Raises:
        InputError: `final` holds something else, cannot be written, or the disk is full. Then `final` is as it was.
    """
    check_replaceable(final, replaces)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        temporary.chmod(0o755)
    except OSError as error:
        raise _cannot_write(final, error) from error
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        _rename(temporary, final)
    except OSError as error:
        raise _cannot_write(final, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_place(folder: Path) -> None:
    """Refuse, before any work is done for it, a folder that cannot be made or written.

    Raises:
        InputError: a file stands where it or a folder above it should be, or the folder is read-only.
    """
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise InputError(f"{folder} could not be written, {above} is a file; expected a folder: choose another place")
    if not os.access(above, os.W_OK):
        raise InputError(f"{folder} could not be written, {above} is read-only; choose another place")


def check_replaceable(final: Path, marker: str | None) -> None:
    """Refuse a folder name that is taken by something that may not be replaced, or that cannot be made.

    Raises:
        InputError: `final` exists and is neither an empty folder nor one that holds the file `marker`; or it could not
            be written.
    """
    check_place(final.parent)
    if not final.exists() and not final.is_symlink():
        return
    if final.is_dir() and (not any(final.iterdir()) or (marker is not None and (final / marker).is_file())):
        return
    raise InputError(f"{final} is already there and is not something to replace; choose another name or move it away")


def _rename(temporary: Path, final: Path) -> None:
    old: Path | None = None
    if final.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".old", dir=final.parent))
        final.rename(old / "replaced")
    try:
        temporary.rename(final)
    except OSError:
        if old is not None:
            (old / "replaced").rename(final)
        raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    if os.name != "posix":
        return  # Windows opens no folders, and needs no such call.
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _cannot_write(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"{path} could not be written ({reason}); nothing was changed: make room or choose another place")
