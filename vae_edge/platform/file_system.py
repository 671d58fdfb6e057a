"""What operating systems and file systems do differently: exchanging two names, locks, flushing, and who is alive."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from vae_edge.platform import windows
from vae_edge.platform.windows import patiently

if sys.platform != "win32":
    import fcntl

_REFUSED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EBADF}
"""What file systems answer that do not know a call, or do not allow it: FUSE, CIFS, 9p, a container's filter."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux: the same value as macOS's RENAME_SWAP
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "armv7l": 382}
_UNKNOWN_MAY_BE_NEW_S = 60.0
_UNKNOWN_WITHOUT_LOCK_S = 24 * 3600.0
"""On Windows, where nobody can lock a folder: see `is_abandoned`."""
_LOCKED_BYTE = 1 << 30
"""On Windows, which lets nobody read a byte that is locked: far beyond the text, which others may read."""

_RELEASE_TAKES_S = 0.1

_BLOCK_BYTES = 1 << 20

OWNER = re.compile(r"(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<start>[0-9a-f]+)")
"""What `owner` returns."""


def exchange(first: Path, second: Path) -> bool:
    """Exchange what two names stand for, in one step that nothing can come between.

    Returns:
        False where the system or the file system has no such call; then nothing was changed. Linux has it on ext4,
        XFS, Btrfs, tmpfs and others, macOS on APFS; Windows has none.

    Raises:
        OSError: any other failure. Nothing was changed.
    """
    call = _exchange_call()
    if call is None or call(os.fsencode(first), os.fsencode(second)) == 0:
        return call is not None
    code = ctypes.get_errno()
    if code in _REFUSED:
        return False
    raise OSError(code, os.strerror(code), str(second))


@cache
def _exchange_call() -> Callable[[bytes, bytes], int] | None:
    if sys.platform not in ("linux", "darwin"):
        return None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
    except OSError:
        return None
    if sys.platform == "darwin":
        swap = getattr(libc, "renamex_np", None)
        return None if swap is None else lambda first, second: swap(first, second, _RENAME_EXCHANGE)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is not None:
        return lambda first, second: renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
    number = _RENAMEAT2.get(os.uname().machine)
    if number is None:  # a libc older than 2.28 on another processor
        return None
    return lambda first, second: libc.syscall(number, _AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)


def allocate(path: Path, n_bytes: int) -> None:
    """Make a file of zeros that has its room on the disk, or replace an older one by it.

    Whoever writes into a file through a map of it, without room on the disk, is killed by the system (SIGBUS).

    Args:
        path: of the file; its folder is there.
        n_bytes: 1 or more.

    Raises:
        OSError: there is no room, or the file cannot be written. Then it is deleted.
    """
    try:
        with path.open("wb") as file:
            try:
                _allocate(file.fileno(), n_bytes)
            except OSError as error:
                if error.errno not in _REFUSED:
                    raise
                zeros = bytes(_BLOCK_BYTES)
                for start in range(0, n_bytes, _BLOCK_BYTES):
                    file.write(zeros[: n_bytes - start])
    except OSError:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def _allocate(handle: int, n_bytes: int) -> None:
    call = getattr(os, "posix_fallocate", None)
    if call is None:  # macOS, Windows
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    call(handle, 0, n_bytes)


def sync_file(path: Path) -> None:
    """Flush a file to disk. A file system that knows no flushing is left to its ways.

    Raises:
        OSError: the disk is full or broken.
    """
    try:
        # Windows flushes nothing that was opened for reading.
        handle = os.open(path, os.O_RDWR)
    except PermissionError:
        handle = os.open(path, os.O_RDONLY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk, where the system can.

    Raises:
        OSError: the disk is full or broken.
    """
    if sys.platform == "win32":
        return  # It opens no folders, and needs no such call.
    try:
        folder = os.open(path, os.O_RDONLY)
    except OSError:
        return  # A folder that may be written and not read.
    try:
        _sync(folder)
    finally:
        os.close(folder)


def _sync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise


def owner() -> str:
    """Return what names this process among all that may see a file: machine or container, number, and start."""
    start = (windows.process_start(os.getpid()) or ("0",))[0] if sys.platform == "win32" else _start(os.getpid())[0]
    return f"{_host()}-{os.getpid()}-{start}"


def is_alive(name: str) -> bool | None:
    """Return whether the process that `owner` named still runs; None: it is of another machine or container."""
    found = OWNER.fullmatch(name)
    if found is None or found["host"] != _host():
        return None
    pid = int(found["pid"])
    if sys.platform == "win32":
        # Here os.kill would end the process.
        known = windows.process_start(pid) if pid < 1 << 32 else None
        if known is None:
            return False
        start, is_over = known
    else:
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            pass  # Another user's.
        start, is_over = _start(pid)
    return not is_over and (start == "0" or start == found["start"])


def is_abandoned(path: Path, name: str) -> bool:
    """Return whether nobody works on a temporary file or folder any more.

    One of another machine or container is when it is a minute old and not locked, on Windows when it is a day old.

    Args:
        path: the file or folder.
        name: the process that made it and locked it with `lock`, as `owner` named it.
    """
    alive = is_alive(name)
    if alive is not None:
        return not alive
    try:
        age_s = time.time() - path.stat().st_mtime
        if sys.platform == "win32":
            return age_s > _UNKNOWN_WITHOUT_LOCK_S
        if age_s < _UNKNOWN_MAY_BE_NEW_S:
            return False
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return lock(handle) is True
    finally:
        os.close(handle)


def lock(handle: int) -> bool | None:
    """Lock an open file or folder without waiting; it stays locked until it is closed, by a killed process too.

    Returns:
        Whether it is locked now; False: by another process; None: this file system has no locks (NFS without a lock
        daemon, some FUSE).
    """
    try:
        if sys.platform == "win32":
            windows.lock_byte(handle, _LOCKED_BYTE)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK) else None
    return True


class LockFile:
    """A file that one process at a time can hold. A process that was killed holds nothing.

    Where the file system has no locks a second file beside it, `NAME.owner`, names the holder. One that was killed
    there is recognised on its own machine only.

    Args:
        path: the file; it exists while a process holds it.
        or_by_name: whether the second file is made where it is needed; without it such a file system is an OSError.
    """

    def __init__(self, path: Path, *, or_by_name: bool = True) -> None:
        self.path = path
        self._or_by_name = or_by_name
        self._owner_path = path.with_name(f"{path.name}.owner")
        self._handle: int | None = None
        self._is_by_name = False

    def acquire(self) -> bool:
        """Take the file without waiting, and return whether it is this process's now.

        Raises:
            OSError: the folder cannot be written, or has no locks and none by name is wanted.
        """
        while self._handle is None:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            # Its holder may be deleting it, which on Windows takes until the last handle is closed.
            handle = patiently(partial(os.open, self.path, flags, 0o666))
            locked = lock(handle)
            if locked is None and not self._or_by_name:
                os.close(handle)
                self.path.unlink(missing_ok=True)
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK), str(self.path))
            try:
                is_free = self._acquire_by_name() if locked is None else locked
            except OSError:  # A full disk, for example; nobody has it then.
                os.close(handle)
                with suppress(OSError):
                    self.path.unlink()
                raise
            if not is_free:
                os.close(handle)
                return False
            # Its holder removes it: what was locked may have lost the name meanwhile.
            if locked is None or _is_same(handle, self.path):
                self._handle, self._is_by_name = handle, locked is None
                _held.add(handle)
                try:
                    os.ftruncate(handle, 0)
                    os.lseek(handle, 0, os.SEEK_SET)  # On Windows the lock has moved it.
                    os.write(handle, owner().encode())
                except OSError:  # A full disk, for example: this process would keep others out until its end.
                    self.release()
                    raise
            else:
                os.close(handle)
        return True

    def _acquire_by_name(self) -> bool:
        for _ in range(2):
            try:
                handle = os.open(self._owner_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                holder = _text(self._owner_path)
                if is_alive(holder) is not False and not self._owner_is_lost():
                    return False
                # Of two that find it at once only one renames what both have read.
                aside = self.path.with_name(f"{self.path.name}.{owner()}")
                with suppress(OSError):
                    self._owner_path.rename(aside)
                    if _text(aside) != holder:
                        aside.rename(self._owner_path)
                        return False
                    aside.unlink()
            else:
                try:
                    os.write(handle, owner().encode())
                except OSError:  # A full disk: without a name in it, it would keep everybody out.
                    os.close(handle)
                    self._owner_path.unlink()
                    raise
                os.close(handle)
                return True
        return False

    def _owner_is_lost(self) -> bool:
        """Return whether the second file is empty and not new: its process was killed in between, or the power cut."""
        try:
            found = self._owner_path.stat()
        except OSError:
            return False
        return found.st_size == 0 and time.time() - found.st_mtime > _UNKNOWN_MAY_BE_NEW_S

    def holder(self) -> str:
        """Say who holds it: `process 1234`, with the file where that may be out of date."""
        by_name = self._owner_path.exists()
        name = _text(self._owner_path if by_name else self.path)
        found = OWNER.fullmatch(name)
        who = "another process" if found is None else f"process {found['pid']}"
        if is_alive(name) is None and found is not None:
            who += " on another machine or in another container"
        return f"{who}; if it no longer runs, delete {self._owner_path}" if by_name else who

    def release(self) -> None:
        """Remove the file and let others have it."""
        handle, self._handle = self._handle, None
        if handle is None or handle not in _held:
            return
        _held.discard(handle)
        with suppress(OSError):
            if self._is_by_name:
                self._owner_path.unlink()
            if sys.platform == "win32":
                os.close(handle)
                # Those who wait for it have it open for a moment each time; the last one deletes it.
                patiently(self.path.unlink, _RELEASE_TAKES_S)
                return
            if _is_same(handle, self.path):
                self.path.unlink()
        with suppress(OSError):
            os.close(handle)


_held: set[int] = set()


def _forget_held() -> None:
    """A forked child must not keep its parent's locks when that ends."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_held)


def _is_same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


@cache
def _host() -> str:
    """Return what differs between machines, and between containers, which number their processes alike."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        space = ""
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def _start(pid: int) -> tuple[str, bool]:
    """Return what tells a process from a later one of the same number (`0`: unknown), and whether it has ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # After the command in brackets, which may hold anything: the state, and 19 fields on the start time.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return hashlib.sha256(f"{boot} {fields[19]}".encode()).hexdigest()[:8], fields[0] in "ZX"
    except (OSError, IndexError):
        return "0", False
