"""What the code of `vae_edge` and of the tests is told about the system; see `plugin`."""

from __future__ import annotations

import builtins
import ctypes
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from tests.windows_semantics.files import Msvcrt

VIOLATIONS = "VAE_EDGE_WINDOWS_VIOLATIONS"
"""Variable with the file that violations are added to, a line for each."""

_ABSENT = {
    "os": frozenset(
        (
            *("chown", "chroot", "fchmod", "fchown", "lchown", "lockf", "mkfifo", "mknod", "pread", "pwrite"),
            *("fork", "forkpty", "kill", "killpg", "nice", "register_at_fork", "wait", "wait3", "wait4"),
            *("getegid", "geteuid", "getgid", "getgroups", "getpgid", "getpgrp", "getsid", "getuid"),
            *("setgid", "setpgid", "setsid", "setuid", "sched_getaffinity", "sched_setaffinity", "sysconf", "uname"),
            *("O_CLOEXEC", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_TMPFILE"),
        )
    ),
    "signal": frozenset(("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "alarm", "pthread_kill")),
}
SIGBREAK = 21
_DOUBLES = tuple(f"tests.windows_semantics.{name}" for name in ("files", "system", "plugin"))
_STEPS_OF_PYTHON = ("threading", "concurrent.futures", "queue", "pathlib", "contextlib", "tempfile", "io")


def impose() -> None:
    """Tell our own code that it runs on Windows."""
    told: dict[ModuleType, dict[str, object]] = {
        os: {"name": "nt", "O_BINARY": 0},
        sys: {"platform": "win32"},
        signal: {},
    }
    for module, shown in told.items():
        module.__class__ = _told(module, shown)
    signal.SIGBREAK = SIGBREAK  # type: ignore[attr-defined]  # only there on Windows
    builtins.__import__ = _import
    ctypes.WinDLL = _Kernel32  # type: ignore[attr-defined]  # only there on Windows
    ctypes.get_last_error = lambda: _Kernel32.last_error  # type: ignore[attr-defined]  # as above
    select.select = _select
    _decode_as_cp1252()
    _note_untimed_waits()


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    """Import a module, of which msvcrt is there for our own code only: others ask for it to know where they are."""
    if name == "msvcrt" and globals is not None and str(globals.get("__name__", "")).startswith("vae_edge"):
        return Msvcrt
    return _real_import(name, globals, locals, fromlist, level)


_real_import = builtins.__import__


def _is_ours(frame: FrameType | None) -> bool:
    name = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    return name.split(".")[0] in ("vae_edge", "tests", "__main__") and name not in _DOUBLES


def _told(module: ModuleType, shown: dict[str, object]) -> type[ModuleType]:
    absent = _ABSENT.get(module.__name__, frozenset())

    class Told(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            if (name in shown or name in absent) and _is_ours(sys._getframe(1)):
                if name in shown:
                    return shown[name]
                raise AttributeError(f"Windows has no {module.__name__}.{name}")
            return super().__getattribute__(name)

    return Told


def violation(what: str) -> None:
    """Write down what never fails but is wrong on Windows."""
    place = os.environ.get(VIOLATIONS)
    if place is not None:
        handle = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(handle, f"{what}\n".encode())
        os.close(handle)


def _caller(*, depth: int) -> FrameType | None:
    """Return the first frame above that is not one of Python's own modules."""
    frame: FrameType | None = sys._getframe(depth)
    while frame is not None and str(frame.f_globals.get("__name__", "")).startswith(_STEPS_OF_PYTHON):
        frame = frame.f_back
    return frame


def note_encoding(mode: str, encoding: str | None) -> None:
    """Note that a text file is opened in the system's encoding, cp1252 there, by the caller of the caller."""
    if "b" in mode or encoding not in (None, "locale"):
        return
    frame = _caller(depth=3)
    if frame is not None and str(frame.f_globals.get("__name__", "")).startswith("vae_edge"):
        violation(f"{frame.f_code.co_filename}:{frame.f_lineno} opens a text file without an encoding")


def _note_untimed_waits() -> None:
    plain = threading.Condition.wait

    def wait(self: threading.Condition, timeout: float | None = None) -> bool:
        if timeout is None and threading.current_thread() is threading.main_thread():
            frame = _caller(depth=2)
            if frame is not None and str(frame.f_globals.get("__name__", "")).startswith("vae_edge"):
                where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                begin = time.monotonic()
                try:
                    return plain(self, timeout)
                finally:
                    if time.monotonic() - begin > 1.0:
                        violation(f"{where} waits in the main thread without a time limit: Ctrl-C is not heard")
        return plain(self, timeout)

    threading.Condition.wait = wait  # type: ignore[method-assign]  # for the whole process


def _decode_as_cp1252() -> None:
    """Let the text of programs be cp1252 where no encoding is given."""
    plain = subprocess.Popen.__init__

    def begin(self: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:
        if kwargs.get("encoding") is None and (kwargs.get("text") or kwargs.get("universal_newlines")):
            kwargs["encoding"] = "cp1252"
        plain(self, *args, **kwargs)

    subprocess.Popen.__init__ = begin  # type: ignore[method-assign]  # for the whole process


def _select(*args: Any) -> Any:
    if _is_ours(sys._getframe(1)):
        raise OSError(10038, "select takes sockets only")
    return _real_select(*args)


_real_select = select.select


class _Function:
    """A function of kernel32; its types may be declared."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.argtypes: Any = None
        self.restype: Any = None

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


class _Kernel32:
    """The functions of kernel32 that are in use, over /proc; a handle is a process's number."""

    last_error = 0

    def __init__(self, name: str, use_last_error: bool = False) -> None:
        assert name == "kernel32", name
        assert use_last_error
        for function in (
            self.OpenProcess,
            self.CloseHandle,
            self.WaitForSingleObject,
            self.GetProcessTimes,
            self.GlobalMemoryStatusEx,
            self.K32GetProcessMemoryInfo,
            self.IsProcessorFeaturePresent,
            self.GetCurrentProcess,
            self.GetConsoleOutputCP,
            self.GetACP,
            self.GetOEMCP,
            self.GetFileType,
            self.PeekNamedPipe,
        ):
            setattr(self, function.__name__, _Function(function))

    def OpenProcess(self, access: int, inherit: bool, pid: int) -> int | None:
        assert access & 0x1000, "PROCESS_QUERY_LIMITED_INFORMATION"
        if not Path(f"/proc/{pid}").exists():
            type(self).last_error = 87
            return None
        return pid

    def CloseHandle(self, handle: int) -> int:
        return 1

    def GetCurrentProcess(self) -> int:
        return os.getpid()

    def GetConsoleOutputCP(self) -> int:
        return 850

    def GetACP(self) -> int:
        return 1252

    def GetOEMCP(self) -> int:
        return 850

    def GetFileType(self, handle: int) -> int:
        return 3 if stat.S_ISFIFO(os.fstat(handle).st_mode) else 1

    def PeekNamedPipe(self, handle: int, buffer: None, size: int, n_read: None, available: Any, left: None) -> int:
        """Say how many bytes are there; 0 (failure): the writer has gone."""
        n_bytes = int.from_bytes(fcntl.ioctl(handle, termios.FIONREAD, bytes(4)), "little")
        available._obj.value = n_bytes
        poll = select.poll()
        poll.register(handle, select.POLLHUP)
        return int(bool(n_bytes) or not any(event & select.POLLHUP for _, event in poll.poll(0)))

    def WaitForSingleObject(self, handle: int, milliseconds: int) -> int:
        assert milliseconds == 0
        return 0 if _stat_fields(handle)[0] in "ZX" else 258

    def GetProcessTimes(self, handle: int, *times: Any) -> int:
        times[0]._obj.value = int(_stat_fields(handle)[19])
        return 1

    def GlobalMemoryStatusEx(self, status: Any) -> int:
        assert status._obj.dwLength == ctypes.sizeof(status._obj)
        status._obj.ullTotalPhys = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return 1

    def K32GetProcessMemoryInfo(self, handle: int, counters: Any, size: int) -> int:
        assert size == ctypes.sizeof(counters._obj)
        for line in Path(f"/proc/{handle}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                counters._obj.PeakWorkingSetSize = int(line.split()[1]) * 1024
                return 1
        return 0

    def IsProcessorFeaturePresent(self, number: int) -> int:
        return int(number in (6, 10, 40))


def _stat_fields(pid: int) -> list[str]:
    text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return text.rpartition(")")[2].split()
