"""A program under the soak: its processes one after the other, what they said, and how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.soak.growth import Sample, sample
from tests.soak.ledger import Ledger

PATIENCE_S = 120.0
"""For a start, an end, or a verdict on a busy machine; a subject that takes longer has failed."""


@dataclass(frozen=True)
class Ending:
    """How one process ended."""

    subject: str
    generation: int
    code: int
    """Below 0: by this signal."""
    explained_by: str | None
    """None: nothing explains it."""
    said: str
    """The end of what it wrote to stderr."""

    @property
    def problem(self) -> str:
        """What is wrong, in words."""
        return (
            f"process {self.generation} of {self.subject} ended with {self.code}, which no fault explains: {self.said}"
        )


class Subject(ABC):
    """Starts the program and starts it again when it ended; a thread of its own gives it pictures until `finish`.

    Args:
        name: for people.
        folder: for its files.
        environment: of its processes, beside this process's.
        per_s: how many pictures it is given in a second.
    """

    _reads_output = False
    """Whether something reads what its processes write to stdout."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], per_s: float) -> None:
        self.name = name
        self.folder = folder
        self.ledger = Ledger()
        self.samples: list[Sample] = []
        self.endings: list[Ending] = []
        self.generation = 0
        self.n_torn = 0
        """Pictures that were half-written, or not whole, when they were given first."""
        self.is_held = False
        """The next process waits until this is false."""
        self._environment = {**os.environ, **environment}
        self._per_s = per_s
        self._expected: dict[int, str] = {}
        self._giving = threading.Event()
        self._done = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False
        self._threads: list[threading.Thread] = []
        folder.mkdir(parents=True)

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the words of the next process, whose number is `generation`."""

    @abstractmethod
    def _feed(self, number: int) -> None:
        """Give one picture, from 0, and write it down as owed."""

    def _started(self, process: subprocess.Popen[bytes]) -> None:  # noqa: B027 - most need nothing
        """Called with a new process."""

    def _ended(self) -> None:  # noqa: B027 - most need nothing
        """Called when a process has ended, before the next one starts."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the current process gives verdicts."""

    @property
    def pid(self) -> int:
        """Of the current process."""
        assert self._process is not None
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the current process has, and the next one is not started yet."""
        return self._process is not None and self._process.poll() is not None

    @property
    def log(self) -> Path:
        """What the current process writes to stderr."""
        return self.folder / f"stderr-{self.generation}.txt"

    @property
    def said(self) -> str:
        """Everything that the current process has written to stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def start(self) -> None:
        """Start a process, and with the first one begin to give pictures."""
        self.generation += 1
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                self._command(),
                cwd=Path(__file__).parents[2],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if self._reads_output else subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the soak, which ends its processes itself.
            )
        self._process, self._is_closed = process, False
        self._started(process)
        if self.generation == 1:
            self._giving.set()
            self._run(self._give)

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, name=f"{self.name}-{len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _give(self) -> None:
        begin_s, number = time.monotonic(), 0
        while self._giving.is_set():
            self._done.wait(max(0.0, begin_s + number / self._per_s - time.monotonic()))
            if self._giving.is_set():
                self._feed(number)
                number += 1

    def expect(self, code: int, why: str) -> None:
        """Say how the current process may end because of a fault."""
        self._expected[code] = why

    def kill(self) -> None:
        """End the current process without a word to it; `look` starts the next one."""
        assert self._process is not None
        self.expect(-signal.SIGKILL, "killed by the soak")
        self._process.kill()

    def look(self, at_s: float) -> None:
        """Take a sample; where the process has ended, write down how and start the next one."""
        assert self._process is not None
        code = self._process.poll()
        if code is None:
            found = sample(self._process.pid, at_s, self.generation)
            if found is not None and self.is_ready:
                self.samples.append(found)
            return
        self._close(code)
        if not self.is_held:
            self.start()

    def _close(self, code: int) -> None:
        assert self._process is not None
        if self._is_closed:
            return
        self._is_closed = True
        why = self._expected.get(code)
        self._expected.clear()
        self._ended()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self.endings.append(Ending(self.name, self.generation, code, why, self.said[-500:].strip()))
        if why is not None:
            self.ledger.excuse(self.generation)

    def finish(self) -> None:
        """Give no more pictures, wait for the verdicts that are owed, and end the program politely."""
        self._giving.clear()
        end_s = time.monotonic() + PATIENCE_S
        while self.ledger.missing and time.monotonic() < end_s:
            time.sleep(0.2)
            if self._process is not None and self._process.poll() is not None:
                self.look(0.0)
        assert self._process is not None
        for code in self._polite_codes():
            self.expect(code, "told to end")
        self._process.send_signal(signal.SIGINT)
        try:
            code = self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._done.set()
        self._close(code)
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _polite_codes(self) -> tuple[int, ...]:
        return (130,)

    def drop(self) -> None:
        """End everything at once, because the soak itself ends early."""
        self._giving.clear()
        self._done.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def vae_edge(*words: object, python: str = sys.executable) -> list[str]:
    """Return the words of a command of this repository."""
    return [python, "-m", "vae_edge", *map(str, words)]
