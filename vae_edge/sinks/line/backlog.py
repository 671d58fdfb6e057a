"""Messages that wait for a channel: a few in memory, the others in files up to a cap."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import threading
from array import array
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from vae_edge.sinks.line.channel import Message

_log = logging.getLogger(__name__)

IN_MEMORY = 256
"""Messages, of about 400 bytes each."""
MOST_BYTES = 64_000_000
"""Of all files together: about 150,000 verdicts."""
_FILE_BYTES = 250_000
_LONGEST_LINE = 1_000_000


@dataclass
class _File:
    path: Path
    times: array[float] | None = field(default_factory=lambda: array("d"))
    """`Message.written_s` of every line; None for a file of an earlier run."""
    size: int = 0
    n: int = 0


class Backlog:
    """First in, first out. One thread puts messages in, one takes them out; neither waits for the other.

    Where the cap is reached, the oldest file is dropped: for the line the newest verdicts count most. A file that
    cannot be written costs the message. What is dropped is counted.

    Args:
        folder: where the files lie, and stay if they are not delivered, for the next run; those of an earlier run come
            first. None: a temporary folder, which is removed.
        in_memory: most messages in memory before files are written.
        most_bytes: cap of all files together.
    """

    def __init__(self, folder: Path | None, *, in_memory: int = IN_MEMORY, most_bytes: int = MOST_BYTES) -> None:
        self.folder = folder
        self._is_temporary = folder is None
        self._in_memory = in_memory
        self._most_bytes = max(most_bytes, 1)
        self._changed = threading.Condition()
        self._head: deque[Message] = deque()
        self._read: tuple[_File, int] | None = None
        """The file that the head was read from, and how many of its messages are left."""
        self._is_reading = False
        self._files: deque[_File] = deque()
        self._open: BinaryIO | None = None
        self._next_number = 1
        self._is_closing = False
        self.n_dropped = 0
        self.n_spilled = 0
        """Messages that were written to files."""
        self.n_earlier = 0
        """Messages that an earlier run left."""
        self.most_waiting = 0
        self._n_waiting = 0
        self._n_bytes = 0
        """Of the files that wait to be read."""
        if folder is not None:
            self._find_earlier(folder)

    def __len__(self) -> int:
        return self._n_waiting

    def put(self, message: Message) -> None:
        """Add a message; this never waits for the receiver."""
        with self._changed:
            if len(self._head) < self._in_memory and not self._files and not self._is_reading:
                self._head.append(message)
            elif not self._write(message):
                self.n_dropped += 1
                return
            self._n_waiting += 1
            self.most_waiting = max(self.most_waiting, self._n_waiting)
            self._changed.notify_all()

    def peek(self, most: int, timeout_s: float) -> list[Message]:
        """Return the oldest messages, without removing them; none if there are none within the time, or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._head or self._files or self._is_closing, timeout_s)
            if self._head or not self._files:
                return list(islice(self._head, most))
            file = self._files.popleft()
            self._n_bytes -= file.size
            if not self._files:
                self._close_file()
            self._is_reading = True
        messages = self._messages_of(file)
        with self._changed:
            self._is_reading = False
            self._n_waiting -= file.n - len(messages)
            self.n_dropped += file.n - len(messages)
            self._head.extend(messages)
            self._read = (file, len(messages))
            if not messages:
                self._forget_file()
            return list(islice(self._head, most))

    def remove(self, n: int) -> None:
        """Remove the oldest messages: they were delivered, or refused."""
        with self._changed:
            for _ in range(n):
                self._head.popleft()
            self._n_waiting -= n
            if self._read is not None:
                file, left = self._read
                self._read = (file, left - n)
                if left <= n:
                    self._forget_file()

    def finish(self) -> None:
        """Let `peek` no longer wait."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def keep_rest(self) -> int:
        """Leave what was not delivered in the folder for the next run, and return how many that are.

        Without a folder that stays they are dropped, and 0 is returned.
        """
        with self._changed:
            if self._is_temporary:
                self.n_dropped += self._n_waiting
                self._close_file()
                if self.folder is not None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                return 0
            # What was read from a file is still there, the first of it perhaps already delivered: it comes twice then.
            unread = list(self._head)[self._read[1] if self._read else 0 :]
            self._close_file()
            if unread:
                # Before all other files, but after the one that the head was read from.
                path = self._path(int(self._files[0].path.stem) - 1 if self._files else self._next_number)
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(b"".join(message.payload + b"\n" for message in unread))
                except OSError as error:
                    self._could_not_write(error)
                    self.n_dropped += len(unread)
                    self._n_waiting -= len(unread)
            if self._n_waiting == 0 and self.folder is not None:
                with suppress(OSError):
                    self.folder.rmdir()
            return self._n_waiting

    def _write(self, message: Message) -> bool:
        """Append a message to the newest file; return whether that was possible."""
        data = message.payload + b"\n"
        try:
            if self._open is None or self._files[-1].size + len(data) > _FILE_BYTES:
                self._new_file()
            assert self._open is not None
            self._open.write(data)
        except OSError as error:
            self._could_not_write(error)
            self._close_file()
            return False
        file = self._files[-1]
        assert file.times is not None
        file.times.append(message.written_s or 0.0)
        file.size += len(data)
        file.n += 1
        self._n_bytes += len(data)
        self.n_spilled += 1
        while self._n_bytes > self._most_bytes and len(self._files) > 1:
            self._drop_oldest()
        return True

    def _new_file(self) -> None:
        self._close_file()
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="vae-edge-line-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        # Every other number is free, for what is in memory at the end.
        path = self._path(self._next_number + 1)
        self._open = path.open("wb", buffering=0)
        self._next_number += 2
        self._files.append(_File(path))

    def _drop_oldest(self) -> None:
        file = self._files.popleft()
        self._n_bytes -= file.size
        self.n_dropped += file.n
        self._n_waiting -= file.n
        with suppress(OSError):
            file.path.unlink()

    def _close_file(self) -> None:
        if self._open is not None:
            with suppress(OSError):
                self._open.close()
            self._open = None

    def _forget_file(self) -> None:
        assert self._read is not None
        with suppress(OSError):
            self._read[0].path.unlink()
        self._read = None

    def _messages_of(self, file: _File) -> list[Message]:
        """Read a file; a line that a crash cut short is left out."""
        try:
            with file.path.open("rb") as opened:
                lines = opened.read(_FILE_BYTES + _LONGEST_LINE).splitlines()
        except OSError as error:
            _log.warning("%s could not be read (%s); its verdicts are lost", file.path, error.strerror or error)
            return []
        messages = []
        for position, line in enumerate(lines):
            try:
                text = line.decode()
                name = json.loads(text)["id"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            messages.append(Message(str(name), text, file.times[position] if file.times else None))
        return messages

    def _find_earlier(self, folder: Path) -> None:
        for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else ():
            with suppress(OSError):
                if not path.stem.isdigit():
                    continue
                self._next_number = max(self._next_number, int(path.stem) + 1)
                if path.stat().st_size > _FILE_BYTES + _LONGEST_LINE:
                    continue  # It was not written here.
                data = path.read_bytes()
                file = _File(path, None, len(data), len(data.splitlines()))
                self._files.append(file)
                self._n_waiting += file.n
                self._n_bytes += file.size
        self.n_earlier = self.most_waiting = self._n_waiting

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:012d}.jsonl"

    def _could_not_write(self, error: OSError) -> None:
        if not self.n_dropped:
            _log.warning("%s could not be written (%s); verdicts that wait are lost", self.folder, error.strerror)
