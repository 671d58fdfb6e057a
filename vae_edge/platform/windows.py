"""What only Windows does: its calls, and its habits that other systems do not have.

Everything here can be imported on every system. Elsewhere `patiently` and `decoded_path` do what is usual there, and
the functions that ask the system are not to be called.

`os.kill(pid, 0)`, which asks on POSIX whether a process runs, ends the process on Windows. So `process_start` asks the
system, and nothing else here may ask.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from contextlib import suppress
from ctypes import wintypes
from pathlib import Path
from typing import Any, TypeVar

_Result = TypeVar("_Result")

_IS_HERE = os.name == "nt"

LISTENING_WAIT_S: float | None = 0.2 if _IS_HERE else None
"""How long the main thread may wait at a time. On Windows, Ctrl-C does not end a wait for a lock: it is heard only
between two waits."""

ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Names of the signals that end a program, of which each system has some. SIGBREAK is Ctrl-Break, which also is the
only one that a program can send to another on Windows without ending it at once."""

_PATIENCE_S = 1.0
_LONGEST_USUAL_PATH = 259
_SUFFIX_LENGTH = 60
"""About what a temporary name adds to a path."""

_QUERY_LIMITED_INFORMATION = 0x1000
_SYNCHRONIZE = 0x100000
_ERROR_INVALID_PARAMETER = 87
_WAIT_OBJECT_0 = 0
_FILE_TYPE_PIPE = 3
_N_PROCESSOR_FEATURES = 64


def patiently(call: Callable[[], _Result], patience_s: float = _PATIENCE_S) -> _Result:
    """Return what a call returns that renames, replaces, deletes or opens a file, trying again on Windows.

    There a file that any program has open cannot be renamed or deleted, and a virus scanner or an indexer opens new
    files for a moment.

    Raises:
        OSError: what the call raised last, after `patience_s` seconds; elsewhere at once.
    """
    if not _IS_HERE:
        return call()
    end_s, pause_s = time.monotonic() + patience_s, 0.01
    while True:
        try:
            return call()
        except PermissionError:
            if time.monotonic() + pause_s > end_s:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.1)


def why_not_written(path: Path, error: OSError) -> str | None:
    """Return what to do about a file or folder that Windows refused to write, where the usual advice is no help."""
    if not _IS_HERE:
        return None
    n_characters = len(str(path.absolute()))
    if isinstance(error, FileNotFoundError) and n_characters + _SUFFIX_LENGTH > _LONGEST_USUAL_PATH:
        return (
            f"its path has {n_characters} characters, and Windows allows {_LONGEST_USUAL_PATH} with those of the files "
            "in it: choose a place with a shorter path, or enable long paths in Windows"
        )
    if isinstance(error, PermissionError):
        return "close the programs that have it or something in it open, or choose another place"
    return None


def reader_left(error: OSError) -> bool:
    """Return whether writing failed because the reader of a pipe has closed it, as `head` does."""
    # The C runtime of Windows has no better number for ERROR_NO_DATA.
    return isinstance(error, BrokenPipeError) or (_IS_HERE and error.errno == errno.EINVAL)


def decoded_path(line: bytes) -> Path:
    """Return the path that a shell or another program has written.

    UTF-8; elsewhere what is not stays what it is (surrogate escapes). On Windows, `dir /b` writes into a pipe in the
    console's code page and most other programs in that of the system: the one in which there is such a file counts.
    """
    if not _IS_HERE:
        return Path(line.decode("utf-8", "surrogateescape"))
    with suppress(UnicodeDecodeError):
        return Path(line.decode("utf-8"))
    kernel = _kernel32()
    readings = []
    for code_page in (kernel.GetACP(), kernel.GetConsoleOutputCP() or kernel.GetOEMCP()):
        with suppress(LookupError, UnicodeDecodeError):
            readings.append(Path(line.decode(f"cp{code_page}")))
    found = next((path for path in readings if path.exists()), None)
    return found or next(iter(readings), Path(line.decode("utf-8", "replace")))


_CRASHES = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC0000135: "a DLL was not found",
    0xC0000139: "a DLL lacks a function",
    0xC000013A: "Ctrl-C",
    0xC0000374: "heap corruption",
    0xC0000409: "stack buffer overrun",
}


def exit_code_text(code: int) -> str:
    """Return the exit code of a process as people look it up: `1`, or for Windows `0xC0000005, access violation`.

    Examples:
        >>> exit_code_text(1), exit_code_text(3221225477)
        ('1', '0xC0000005, access violation')
    """
    if code < 1 << 31:
        return str(code)
    name = _CRASHES.get(code)
    return f"0x{code:08X}" + (f", {name}" if name else "")


def has_input(descriptor: int) -> bool:
    """Return whether reading would not wait: bytes are there, or the end is, or it is no pipe and nobody can tell."""
    import msvcrt

    kernel, n_bytes = _kernel32(), wintypes.DWORD()
    handle = msvcrt.get_osfhandle(descriptor)  # type: ignore[attr-defined]  # only there on Windows
    if kernel.GetFileType(handle) != _FILE_TYPE_PIPE:
        return True
    # It fails where the writer has closed the pipe: reading tells the rest.
    return not kernel.PeekNamedPipe(handle, None, 0, None, ctypes.byref(n_bytes), None) or n_bytes.value > 0


def lock_byte(handle: int, at: int) -> None:
    """Lock one byte of an open file without waiting. The handle's position is then `at`.

    Locks are mandatory: nobody else can read or write that byte. It may lie beyond the end.

    Raises:
        OSError: EACCES: another handle has it.
    """
    import msvcrt

    os.lseek(handle, at, os.SEEK_SET)
    locking: Any = msvcrt.locking  # type: ignore[attr-defined]  # only there on Windows
    locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # as above


def process_start(pid: int) -> tuple[str, bool] | None:
    """Return when a process started, as hexadecimal digits (`0`: unknown), and whether it has ended.

    Returns:
        None: there is no such process.
    """
    kernel = _kernel32()
    handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION | _SYNCHRONIZE, False, pid)
    if not handle:
        # Any other error: it is there, and of another user or protected.
        return None if _last_error() == _ERROR_INVALID_PARAMETER else ("0", False)
    try:
        # Of a process that has ended there is something left as long as anybody has a handle.
        is_over = kernel.WaitForSingleObject(handle, 0) == _WAIT_OBJECT_0
        made, *others = [ctypes.c_ulonglong() for _ in range(4)]
        known = kernel.GetProcessTimes(handle, ctypes.byref(made), *map(ctypes.byref, others))
        return (f"{made.value:x}" if known else "0"), is_over
    finally:
        kernel.CloseHandle(handle)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("dwLength", wintypes.DWORD),
        ("dwMemoryLoad", wintypes.DWORD),
        ("ullTotalPhys", ctypes.c_ulonglong),
        ("rest", ctypes.c_ulonglong * 6),
    )


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("cb", wintypes.DWORD),
        ("PageFaultCount", wintypes.DWORD),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("rest", ctypes.c_size_t * 7),
    )


def memory_bytes() -> int | None:
    """Return the machine's physical memory; None: unknown."""
    status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
    return int(status.ullTotalPhys) if _kernel32().GlobalMemoryStatusEx(ctypes.byref(status)) else None


def peak_memory_bytes(pid: int) -> int | None:
    """Return the most physical memory that a process has held; None: it has ended, or it is another user's."""
    kernel = _kernel32()
    handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        return None
    try:
        counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
        known = kernel.K32GetProcessMemoryInfo(handle, ctypes.byref(counters), ctypes.sizeof(counters))
        return int(counters.PeakWorkingSetSize) or None if known else None
    finally:
        kernel.CloseHandle(handle)


def processor_features() -> list[str]:
    """Return the numbers of the instruction sets (PF_...) that Windows sees in this processor."""
    kernel = _kernel32()
    return [str(number) for number in range(_N_PROCESSOR_FEATURES) if kernel.IsProcessorFeaturePresent(number)]


def processor_name() -> str | None:
    """Return the processor's name as its maker calls it; None: unknown."""
    try:
        import winreg

        registry: Any = winreg
        with registry.OpenKey(registry.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            return str(registry.QueryValueEx(key, "ProcessorNameString")[0]).strip() or None
    except (ImportError, OSError):
        return None


def _kernel32() -> Any:
    library: Any = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]  # only there on Windows
    library.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    library.OpenProcess.restype = wintypes.HANDLE
    library.CloseHandle.argtypes = (wintypes.HANDLE,)
    library.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
    library.WaitForSingleObject.restype = wintypes.DWORD
    library.GetProcessTimes.argtypes = (wintypes.HANDLE, *[ctypes.c_void_p] * 4)
    library.K32GetProcessMemoryInfo.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD)
    library.GetFileType.argtypes = (wintypes.HANDLE,)
    library.PeekNamedPipe.argtypes = (wintypes.HANDLE, ctypes.c_void_p, wintypes.DWORD, *[ctypes.c_void_p] * 3)
    return library


def _last_error() -> int:
    return int(ctypes.get_last_error())  # type: ignore[attr-defined]  # only there on Windows
