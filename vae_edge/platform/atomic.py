"""Writing that either happens completely or not at all: temporary name, flush to disk, rename.

What is being written has a name that starts with a dot and says which process writes it. What a killed process leaves
under such a name is removed by the next one that writes the same, and never while its process runs.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.platform.file_system import OWNER, LockFile, exchange, is_abandoned, lock, owner, sync_file, sync_folder
from vae_edge.platform.windows import patiently, why_not_written

LOCK_FILE = ".lock"
"""In a folder that a command is writing into; see `claim`."""

_LONGEST_NAME = 40 if sys.platform == "win32" else 150
"""Bytes of a name that its temporary name takes over; file systems allow 255 with all that is added, and Windows 259
characters for a whole path."""
_SWAP_TAKES_S = 1.0
_SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini", LOCK_FILE, f"{LOCK_FILE}.owner"}
"""What file managers leave in every folder, and what a killed process holds: see `LockFile`."""
_TEMPORARY = re.compile(rf"\.(?P<name>.+)\.(?P<owner>{OWNER.pattern})-[0-9a-f]{{8}}\.(?P<kind>tmp|old)", re.DOTALL)
_FULL_BYTES = 1 << 20
"""A disk with less room is full for whatever is written in a temporary folder."""


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
    """Write UTF-8 text, completely or not at all; see `new_file`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write bytes, completely or not at all; see `new_file`."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def rename(source: Path, target: Path) -> None:
    """Rename a file or folder; see `vae_edge.platform.windows.patiently`.

    Raises:
        OSError: it cannot be renamed, or on Windows the target exists.
    """
    patiently(lambda: source.rename(target))


def replace_file(source: Path, target: Path) -> None:
    """Give a file another's name, in one step; see `vae_edge.platform.windows.patiently`.

    Raises:
        OSError: it cannot be renamed, or on Windows a program has the target open.
    """
    patiently(lambda: source.replace(target))


@contextmanager
def new_file(final: Path, *, is_flushed: bool = True) -> Iterator[Path]:
    """Yield the name of an empty file that becomes `final` when the block ends without an error.

    It lies in the same folder. Its mode is what the umask leaves of 0666.

    Args:
        final: the file's name once it is complete.
        is_flushed: flush it to disk before it gets the name, so that a power cut cannot leave half of it. False for
            many small files that can be missed: a killed process leaves no half of them either way.

    Raises:
        InputError: the folder cannot be written or the disk is full; an older file of that name is not changed.
    """
    temporary: Path | None = None
    handle: int | None = None
    try:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            if is_flushed:
                remove_leftovers(final)
            temporary = _temporary_name(final, "tmp")
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode & 0o777
            handle = _held_open(temporary)
            yield temporary
            if is_flushed:
                sync_file(temporary)
            _set_mode(temporary, mode)
            replace_file(temporary, final)
        except OSError as error:
            raise _cannot_write(final, error) from error
        if is_flushed:
            _sync_name(final)
    finally:
        if handle is not None:
            os.close(handle)
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(
    final: Path, *, replaces: str | None = None, own: Callable[[Path], set[str]] | None = None, is_claimed: bool = False
) -> Iterator[Path]:
    """Yield a temporary folder that becomes `final` when the block ends without an error.

    An older folder is exchanged for it in one step: whoever opens `final`, at any moment, finds the one or the other,
    whole. Where the file system has no such step (Windows, some network shares) there is a moment without either; a
    process killed in it leaves the older folder beside, and `restore` puts it back.

    Args:
        final: the folder's name once it is complete.
        replaces: name of the file that marks an older folder which may be replaced; None: nothing is replaced.
        own: gives the names of the files that the older folder may hold; None: any. See `check_replaceable`.
        is_claimed: the caller holds `claim_name(final)`; otherwise it is held during the block.

    Raises:
        InputError: `final` holds something else, is being written by another process, cannot be written, or the disk
            is full. Then `final` is not changed.
    """
    with nullcontext() if is_claimed else claim_name(final):
        restore(final)
        check_replaceable(final, replaces, own)
        remove_leftovers(final)
        temporary = _temporary_name(final, "tmp")
        handle = None
        try:
            try:
                temporary.mkdir()
                mode = temporary.stat().st_mode & 0o777
                handle = _held_open(temporary)
                yield temporary
                for path in sorted(temporary.rglob("*"), reverse=True):
                    if path.is_symlink():
                        continue
                    if path.is_dir():
                        _set_mode(path, mode)
                        sync_folder(path)
                    elif path.is_file():
                        _set_mode(path, mode & 0o666)
                        sync_file(path)
                sync_folder(temporary)
                check_replaceable(final, replaces, own)
                _publish(temporary, final)
            except OSError as error:
                raise _cannot_write(final, error) from error
            _sync_name(final)
        finally:
            if handle is not None:
                os.close(handle)
            _remove(temporary)


@contextmanager
def claim(lock_path: Path, work: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other processes of this package from a place until the block ends, or this process does.

    Args:
        lock_path: the file that stands for the claim. It is removed at the end, and so are the folders that had to be
            made for it and are still empty.
        work: what another process is doing if it has the claim: `another training writes into runs/tile`.
        wait: wait for another process to end it.

    Raises:
        InputError: another process has it, or the file cannot be written.
    """
    missing = [folder for folder in lock_path.parents if not folder.exists()]
    file = LockFile(lock_path)
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        while not file.acquire():
            if not wait:
                raise InputError(f"{work} ({file.holder()}); wait until it ends, or choose another place")
            time.sleep(0.1)
    except OSError as error:
        raise _cannot_write(lock_path.parent, error) from error
    try:
        yield
    finally:
        file.release()
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def claim_name(final: Path, *, wait: bool = False) -> AbstractContextManager[None]:
    """Claim the name of a folder that `new_folder` makes, and make the one above it; see `claim`."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(final, error) from error
    return claim(_beside(final, "lock"), f"another process is writing {final}", wait=wait)


def restore(final: Path) -> None:
    """Put back a folder that a process was killed while it replaced it, where that takes two steps.

    It costs nothing where the folder is there.
    """
    deadline = time.monotonic() + _SWAP_TAKES_S
    while not os.path.lexists(final):
        olds = _leftovers(final, "old")
        abandoned = [path for path, made_by in olds if is_abandoned(path, made_by)]
        if abandoned:
            with suppress(OSError):
                rename(abandoned[0], final)
            return
        if not olds or time.monotonic() > deadline:
            return
        time.sleep(0.01)  # Its owner is between the two steps.


def remove_leftovers(final: Path) -> None:
    """Remove what killed processes left when they wrote `final`."""
    kinds = ("tmp", "old") if os.path.lexists(final) else ("tmp",)
    for path, made_by in _leftovers(final, *kinds):
        if is_abandoned(path, made_by):
            _remove(path)


def remove_leftovers_in(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder, whatever they wrote."""
    for path, made_by in _temporaries(folder):
        if path.suffix == ".tmp" and is_abandoned(path, made_by):
            _remove(path)


def check_place(folder: Path) -> None:
    """Refuse, before any work is done for it, a folder that cannot be made or written.

    Raises:
        InputError: a file stands where it or a folder above it should be, the folder is read-only, or there can be no
            such name.
    """
    try:
        above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _cannot_write(folder, error) from error
    if not above.is_dir():
        raise InputError(f"{folder} could not be written because {above} is a file, not a folder; choose another place")
    if not os.access(above, os.W_OK):
        raise InputError(f"{folder} could not be written because {above} is read-only; choose another place")


def check_replaceable(final: Path, marker: str | None, own: Callable[[Path], set[str]] | None = None) -> None:
    """Refuse a folder name that is taken by something that may not be replaced, or that cannot be made.

    Args:
        final: the name.
        marker: a file in a folder that may be replaced.
        own: gives the names of the files, relative to it, that such a folder may hold, with `/`; None: any.

    Raises:
        InputError: `final` exists and is neither an empty folder nor one with the file `marker`; it contains foreign
            files; or it could not be written.
    """
    check_place(final.parent)
    if not final.exists() and not final.is_symlink():
        return
    if not final.is_dir() or (any(final.iterdir()) and (marker is None or not (final / marker).is_file())):
        raise InputError(f"{final} already exists and cannot be replaced; choose another name or move it away")
    if own is not None and any(final.iterdir()):
        foreign = files_except(final, own(final))
        if foreign:
            more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
            raise InputError(
                f"{final} would be replaced, but it contains {foreign[0]}{more}, which vae-edge did not write; move "
                "it away, or choose another name"
            )


def files_except(folder: Path, own: Collection[str]) -> list[str]:
    """Return the files in a folder, by name relative to it, that are not its own, nor an operating system's."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [
        path.as_posix()
        for path in found
        if path.as_posix() not in own and path.name not in _SYSTEM_FILES and not _TEMPORARY.fullmatch(path.name)
    ]


def _publish(temporary: Path, final: Path) -> None:
    """Give a complete folder its final name; an older one then has the temporary name, or none.

    Raises:
        OSError: `final` is not changed.
        InputError: it is not.
    """
    if not os.path.lexists(final):
        rename(temporary, final)
        return
    if exchange(temporary, final):
        return
    old = _temporary_name(final, "old")
    rename(final, old)
    try:
        rename(temporary, final)
    except BaseException as error:
        try:
            rename(old, final)
        except OSError as second:
            raise InputError(
                f"{final} could not be replaced ({error}) nor restored ({second}); its previous content is in {old}"
            ) from error
        raise
    # A name that `restore` does not put back: from here on it is being deleted.
    rename(old, temporary)


def _sync_name(final: Path) -> None:
    try:
        sync_folder(final.parent)
    except OSError as error:
        raise InputError(
            f"{final} was written, but the disk did not confirm it ({error.strerror or error}): it may be lost in a "
            "power cut; check the disk and write it again"
        ) from error


def is_temporary_of(name: str, final: str) -> bool:
    """Return whether a file has a name under which `new_file` writes another."""
    found = _TEMPORARY.fullmatch(name)
    return found is not None and found["name"] == final


def _beside(final: Path, ending: str) -> Path:
    """Return a hidden name beside another; a long one is cut and told apart by its hash."""
    name = os.fsencode(final.name)
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 9] + b"~" + hashlib.sha256(name).hexdigest()[:8].encode()
    # A character that was cut in two is left out.
    return final.with_name(f".{os.fsdecode(name).encode('utf-8', 'ignore').decode()}.{ending}")


def _temporary_name(final: Path, kind: str) -> Path:
    return _beside(final, f"{owner()}-{secrets.token_hex(4)}.{kind}")


def _leftovers(final: Path, *kinds: str) -> list[tuple[Path, str]]:
    start = _beside(final, "").name
    return [
        (path, made_by)
        for path, made_by in _temporaries(final.parent)
        if path.name.startswith(start) and path.suffix[1:] in kinds
    ]


def _temporaries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the temporary files and folders in a folder and who made them."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is not None:
                yield folder / entry.name, found["owner"]


def _held_open(path: Path) -> int | None:
    """Open and lock a temporary file or folder, by which other machines and containers see that it is in use."""
    if os.name != "posix":
        return None  # Windows renames nothing that is open.
    handle = os.open(path, os.O_RDONLY)
    lock(handle)
    return handle


def _set_mode(path: Path, mode: int) -> None:
    """Open the mode of a file whose writer closed it. A file system that knows no modes is left to its ways."""
    with suppress(OSError):
        present = path.stat().st_mode
        if mode & ~present:
            path.chmod((present | mode) & 0o7777)


def _remove(path: Path) -> None:
    """Remove a temporary file, link or folder, as far as it can be."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    advice = why_not_written(path, error) or "make room or choose another place"
    return InputError(f"{path} could not be written ({reason}); nothing was changed: {advice}")


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder for what is needed during the block only, in the system's folder for temporary files.

    Raises:
        InputError: that folder cannot be used or is full; the message names it.
    """
    advice = "make room there, or set TMPDIR to another folder"
    try:
        scratch = tempfile.TemporaryDirectory(prefix=f"vae-edge-{purpose}-", ignore_cleanup_errors=True)
    except OSError as error:
        if tempfile.tempdir is None:  # Python tried several; its own sentence names them.
            raise InputError(f"no temporary folder is available: {error.strerror}; {advice}") from error
        raise InputError(
            f"the temporary folder {tempfile.gettempdir()} cannot be used ({error.strerror}); {advice}"
        ) from error
    with scratch as name:
        try:
            yield Path(name)
        except VaeEdgeError:
            raise
        except Exception as error:
            # Libraries say it in errors of their own, and often without the reason.
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if full or shutil.disk_usage(name).free < _FULL_BYTES:
                raise InputError(f"the temporary folder {tempfile.gettempdir()} is full ({error}); {advice}") from error
            raise
