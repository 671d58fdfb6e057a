"""The second subject: `vae-run BUNDLE -`, a long stream of paths in and of lines out, in order."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from tests.soak.ledger import ERROR
from tests.soak.pictures import BROKEN_EVERY, TORN_EVERY, encoded
from tests.soak.subject import Subject, vae_edge

_MOST_IN_FLIGHT = 64
_FILES = 200
_MISSING_EVERY = 40
"""One of so many paths leads to nothing, and is owed an error."""


class Stream(Subject):
    """Writes paths to its standard input and reads the lines; what was not answered goes to the next process again."""

    _reads_output = True

    def __init__(self, bundle: Path, folder: Path, *, environment: Mapping[str, str], per_s: float) -> None:
        super().__init__("stream", folder, environment, per_s)
        self._bundle = bundle
        self._lock = threading.Lock()
        self._waiting: deque[tuple[str, Path]] = deque()
        """Sent and not answered, in order."""
        self._room = threading.Semaphore(_MOST_IN_FLIGHT)
        self._n_lines = 0
        self._paths: list[tuple[Path, str]] = []
        self.n_out_of_order = 0
        """Lines about another picture than the one whose turn it was."""
        for number in range(_FILES):
            content, suffix, verdict = encoded(number)
            path = folder / "pictures" / f"{number}{suffix}"
            path.parent.mkdir(exist_ok=True)
            if number % _MISSING_EVERY == 0:
                self._paths.append((path.with_stem(f"{number}-missing"), ERROR))
                continue
            if number % TORN_EVERY == 0:
                content, verdict = content[: len(content) // 2], ERROR  # For ever: nobody completes it.
            path.write_bytes(content)
            self._paths.append((path, verdict))
        assert any(number % BROKEN_EVERY == BROKEN_EVERY - 1 for number in range(_FILES))

    def _command(self) -> list[str]:
        return vae_edge("run", self._bundle, "-")

    def _started(self, process: subprocess.Popen[bytes]) -> None:
        self._n_lines = 0
        with self._lock:
            self._input = process.stdin
            self._write([path for _, path in self._waiting])
        self._reading = threading.Thread(target=self._read, args=(process, self.generation), daemon=True)
        self._reading.start()

    def _ended(self) -> None:
        self._reading.join()

    def _write(self, paths: list[Path]) -> None:
        assert self._input is not None
        try:
            self._input.write(b"".join(f"{path}\n".encode() for path in paths))
            self._input.flush()
        except (OSError, ValueError):
            pass  # It was killed; the next process gets them.

    def _read(self, process: subprocess.Popen[bytes], generation: int) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # Torn by a kill: nobody can read that verdict.
            record = json.loads(line)
            with self._lock:
                if not self._waiting:
                    self.n_out_of_order += 1
                    continue
                name, path = self._waiting.popleft()
                self.n_out_of_order += record["source"] != str(path)
            self._n_lines += 1
            self.ledger.give(name, record.get("verdict", ERROR), generation)
            self._room.release()

    @property
    def is_ready(self) -> bool:
        """Whether it has written lines."""
        return self._n_lines > 0

    def _feed(self, number: int) -> None:
        if not self._room.acquire(timeout=1.0):
            return
        path, verdict = self._paths[number % _FILES]
        name = f"{number:07}"
        self.n_torn += verdict == ERROR
        self.ledger.owe(name, verdict)
        with self._lock:
            self._waiting.append((name, path))
            self._write([path])
