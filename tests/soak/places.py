"""Places of limited size, which can be filled and freed: a file system of their own in memory where root may mount one.

Elsewhere, on Linux, a limit on the size of a process's files takes the place of the full disk.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class Place:
    """A folder, on a file system of its own if that can be had.

    Args:
        folder: where it is to be; it is made.
        size_mb: of the file system.
    """

    def __init__(self, folder: Path, size_mb: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.is_mounted = False
        if sys.platform == "linux" and os.geteuid() == 0:
            words = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=700", "tmpfs", str(folder)]
            with suppress(OSError):
                self.is_mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0

    def fill(self) -> None:
        """Leave no byte free."""
        assert self.is_mounted
        with (self.folder / ".filler").open("ab", buffering=0) as file, suppress(OSError):
            for size in (1 << 16, 1 << 10, 1):
                while True:
                    try:
                        file.write(bytes(size))
                    except OSError:
                        break

    def free(self) -> None:
        """Make room again."""
        (self.folder / ".filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)
            self.is_mounted = False


def can_limit_files() -> bool:
    """Return whether the size of another process's files can be limited here."""
    return hasattr(resource, "prlimit")


def limit_files(pid: int, most_bytes: int) -> None:
    """Let a process write no file beyond a size from now on: the write fails as on a full disk."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most_bytes, hard))
