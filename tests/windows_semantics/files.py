"""Files as Windows has them; see `plugin`."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

SHARING_VIOLATION: Final = 32
_ACCESS_DENIED, _FILE_NAME_TOO_LONG, _INVALID_NAME, _NO_PRIVILEGE, _ALREADY_EXISTS = 5, 206, 123, 1314, 183
_MOST_CHARACTERS = 259
_REFUSED = re.compile(r'[<>:"|?*\x00-\x1f\\]|[. ]$')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*)?", re.IGNORECASE)

_real: dict[str, Any] = {}
"""The functions as they are."""
_scope = ""
"""Only paths in here are Windows': the system's folder for temporary files, with a slash at its end."""


def impose() -> None:
    """Put Windows' rules in place of Linux's for everything in the folder for temporary files."""
    global _scope
    _scope = os.path.realpath(tempfile.gettempdir()) + "/"
    for name in ("stat", "lstat", "access", "readlink", "listdir", "scandir", "utime", "chdir"):
        _replace(os, name, _looking(name))
    for name, function in (
        ("open", _os_open),
        ("mkdir", _mkdir),
        ("rename", _rename),
        ("replace", _os_replace),
        ("unlink", _unlink),
        ("remove", _unlink),
        ("rmdir", _rmdir),
        ("symlink", _symlink),
        ("fsync", _fsync),
        ("chmod", _chmod),
    ):
        _replace(os, name, function)
    _replace(io, "open", _io_open)
    builtins.open = io.open
    _real["builtins.open"] = _real["io.open"]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # Windows has no such functions.


def lift() -> None:
    """Put Linux's rules back."""
    for place, function in _real.items():
        module, _, name = place.partition(".")
        setattr({"os": os, "io": io, "builtins": builtins}[module], name, function)


def _replace(module: Any, name: str, function: Callable[..., Any]) -> None:
    _real[f"{module.__name__}.{name}"] = getattr(module, name)
    setattr(module, name, function)
    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if _real[f"{module.__name__}.{name}"] in known:
            known.add(function)


def error(number: int, winerror: int, path: object, second: object = None) -> OSError:
    """Return an error as Python makes it of one of Windows'."""
    made = OSError(number, f"{os.strerror(number)} (WinError {winerror})", path, None, second)
    made.winerror = winerror  # type: ignore[attr-defined]  # only there on Windows
    return made


def _in_scope(path: Any) -> str | None:
    """Return the absolute path of what lies in the scope; None: it does not, or is a descriptor."""
    if isinstance(path, int) or path is None:
        return None
    text = os.fsdecode(path)
    if not text.startswith("/"):
        text = os.path.join(os.getcwd(), text)
    text = os.path.normpath(text)
    return text if text.startswith(_scope) else None


def _found(path: Any) -> Any:
    """Return what a path stands for: the one with another case where there is one.

    Raises:
        OSError: no file can have the name.
    """
    text = _in_scope(path)
    if text is None:
        return path
    parts = text[len(_scope) :].split("/")
    if len(text) > _MOST_CHARACTERS:
        raise error(errno.ENOENT, _FILE_NAME_TOO_LONG, path)
    for part in parts:
        if _REFUSED.search(part) or _RESERVED.fullmatch(part):
            raise error(errno.EINVAL, _INVALID_NAME, path)
    try:
        _real["os.lstat"](text)
        return path
    except OSError:
        pass
    here = _scope.rstrip("/")
    changed = False
    for part in parts:
        below = f"{here}/{part}"
        try:
            _real["os.lstat"](below)
        except OSError:
            try:
                names = _real["os.listdir"](here)
            except OSError:
                names = []
            same = next((name for name in names if name.casefold() == part.casefold()), None)
            changed |= same is not None
            below = below if same is None else f"{here}/{same}"
        here = below
    return (os.fsencode(here) if isinstance(path, bytes) else here) if changed else path


def _looking(name: str) -> Callable[..., Any]:
    def look(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        return _real[f"os.{name}"](path if kwargs.get("dir_fd") is not None else _found(path), *args, **kwargs)

    return look


def _processes() -> Iterator[str]:
    """Yield this process and those that it has started, as /proc names them."""
    waiting = ["self"]
    while waiting:
        process = waiting.pop()
        yield process
        try:
            for thread in _real["os.listdir"](f"/proc/{process}/task"):
                with _real["io.open"](f"/proc/{process}/task/{thread}/children", encoding="ascii") as file:
                    waiting += file.read().split()
        except OSError:
            continue


def in_use(path: str, *, mapped_only: bool = False) -> bool:
    """Return whether a file, or something in a folder, is open or mapped, or is the current folder of a process."""
    real = os.path.realpath(path)

    def is_it(place: str) -> bool:
        return place == real or place.startswith(f"{real}/")

    for process in _processes():
        places = [] if mapped_only else [f"/proc/{process}/cwd"]
        try:
            with _real["io.open"](f"/proc/{process}/maps", encoding="utf-8", errors="replace") as maps:
                if any(_scope in line and is_it(line[line.index("/") :].rstrip("\n")) for line in maps):
                    return True
            if not mapped_only:
                places += [f"/proc/{process}/fd/{number}" for number in _real["os.listdir"](f"/proc/{process}/fd")]
        except OSError:
            continue
        for place in places:
            try:
                if is_it(_real["os.readlink"](place)):
                    return True
            except OSError:
                continue
    return False


def _refuse_in_use(path: Any, named: Any) -> None:
    text = _in_scope(path)
    if text is not None and in_use(text):
        raise error(errno.EACCES, SHARING_VIOLATION, named)


def _os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    if dir_fd is not None:
        return int(_real["os.open"](path, flags, mode, dir_fd=dir_fd))
    found = _found(path)
    if _in_scope(path) is not None and os.path.isdir(found):
        raise error(errno.EACCES, _ACCESS_DENIED, path)
    return int(_real["os.open"](found, flags, mode))


def _io_open(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    from tests.windows_semantics.system import note_encoding

    note_encoding(mode, args[1] if len(args) > 1 else kwargs.get("encoding"))
    text = _in_scope(file)
    if text is None or kwargs.get("opener") is not None:
        return _real["io.open"](file, mode, *args, **kwargs)
    found = _found(file)
    if os.path.isdir(found):
        raise error(errno.EACCES, _ACCESS_DENIED, file)
    if "w" in mode and os.path.exists(found) and in_use(text, mapped_only=True):
        raise error(errno.EINVAL, 1224, file)
    opened = _real["io.open"](found, mode, *args, **kwargs)
    if "r" in mode and _is_locked_by_another(opened.fileno()):
        opened.close()
        raise error(errno.EACCES, 33, file)
    return opened


def _mkdir(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    found = path if dir_fd is not None else _found(path)
    _real["os.mkdir"](found, mode, **({} if dir_fd is None else {"dir_fd": dir_fd}))


def _rename(source: Any, target: Any, **kwargs: Any) -> None:
    _move(source, target, kwargs, replaces=False)


def _os_replace(source: Any, target: Any, **kwargs: Any) -> None:
    _move(source, target, kwargs, replaces=True)


def _move(source: Any, target: Any, kwargs: dict[str, Any], *, replaces: bool) -> None:
    if any(value is not None for value in kwargs.values()) or _in_scope(source) is None:
        _real["os.replace"](source, target, **kwargs)
        return
    old, new = _found(source), _found(target)
    _refuse_in_use(old, source)
    if os.path.lexists(new) and not os.path.samefile(old, new):
        if not replaces:
            raise error(errno.EEXIST, _ALREADY_EXISTS, source, target)
        if os.path.isdir(new):
            raise error(errno.EACCES, _ACCESS_DENIED, source, target)
        _refuse_in_use(new, target)
        _refuse_read_only(new)
    elif os.path.lexists(new):
        new = target  # Another case of the same name.
    _real["os.replace"](old, new)


def _unlink(path: Any, *, dir_fd: int | None = None) -> None:
    if dir_fd is not None or _in_scope(path) is None:
        _real["os.unlink"](path, dir_fd=dir_fd)
        return
    found = _found(path)
    if os.path.isdir(found) and not os.path.islink(found):
        raise error(errno.EACCES, _ACCESS_DENIED, path)
    if os.path.lexists(found):
        _refuse_in_use(found, path)
        _refuse_read_only(found)
    _real["os.unlink"](found)


def _refuse_read_only(path: Any) -> None:
    if not _real["os.lstat"](path).st_mode & 0o200:
        raise error(errno.EACCES, _ACCESS_DENIED, path)


def _rmdir(path: Any, *, dir_fd: int | None = None) -> None:
    if dir_fd is not None or _in_scope(path) is None:
        _real["os.rmdir"](path, dir_fd=dir_fd)
        return
    found = _found(path)
    _refuse_in_use(found, path)
    _real["os.rmdir"](found)


def _symlink(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
    if _in_scope(target) is not None:
        raise error(errno.EINVAL, _NO_PRIVILEGE, source, target)
    _real["os.symlink"](source, target, *args, **kwargs)


def _fsync(handle: Any) -> None:
    number = handle if isinstance(handle, int) else handle.fileno()
    if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    _real["os.fsync"](number)


def _chmod(path: Any, mode: int, **kwargs: Any) -> None:
    """Change what Windows has of a mode: whether a file is read-only."""
    found = path if kwargs.get("dir_fd") is not None else _found(path)
    if _in_scope(path) is not None:
        if os.path.isdir(found):
            return
        mode = 0o666 if mode & 0o200 else 0o444
    _real["os.chmod"](found, mode, **kwargs)


_FLOCK = "hhqqi4x"


class Msvcrt:
    """Stands for the module msvcrt: locks on regions of files, which hold against this process's other handles too."""

    LK_UNLCK, LK_LOCK, LK_NBLCK, LK_RLCK, LK_NBRLCK = range(5)

    @staticmethod
    def get_osfhandle(descriptor: int) -> int:
        """Return the handle of a descriptor; for the double of kernel32 it is the descriptor."""
        return descriptor

    @staticmethod
    def locking(handle: int, mode: int, n_bytes: int) -> None:
        """Lock or unlock the bytes from the handle's position on."""
        kind = fcntl.F_UNLCK if mode == Msvcrt.LK_UNLCK else fcntl.F_WRLCK
        begin = os.lseek(handle, 0, os.SEEK_CUR)
        try:
            fcntl.fcntl(handle, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, begin, n_bytes, 0))
        except OSError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES)) from None


def _is_locked_by_another(handle: int) -> bool:
    """Return whether reading all of a file would meet a region that another handle has locked."""
    size_bytes = os.fstat(handle).st_size
    if not size_bytes:
        return False
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, size_bytes, 0)
    try:
        answer = fcntl.fcntl(handle, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False  # A file system without them.
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def is_in_scope(path: Path) -> bool:
    """Return whether Windows' rules hold for a path."""
    return _in_scope(path) is not None
