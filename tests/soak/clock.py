"""The wall clock of the programs, which can be moved while they run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

_SOURCE = Path(__file__).with_name("wall_clock.c")


class WallClock:
    """A library for LD_PRELOAD and the file that it reads.

    Debian's libfaketime 0.9.10 is no help here: with the monotonic clock left alone, every `time.sleep` of Python 3.11
    fails in it with EINVAL.

    Args:
        folder: for both.

    Raises:
        OSError: there is no C compiler, or this is not Linux.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if sys.platform != "linux" or compiler is None:
            raise OSError("the wall clock, which needs Linux and a C compiler")
        self._library, self._file = folder / "wall_clock.so", folder / "wall_clock"
        words = [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE), "-ldl"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"the wall clock, because its library cannot be compiled: {done.stderr[-300:]}")
        self._file.write_bytes(bytes(8))

    @property
    def environment(self) -> dict[str, str]:
        """For the processes whose clock this is."""
        return {"LD_PRELOAD": str(self._library), "SOAK_CLOCK": str(self._file)}

    def move(self, seconds: int) -> None:
        """Let the time of day be wrong by that much from now on."""
        with self._file.open("r+b", buffering=0) as file:
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))
