"""The first subject: `vae-run --watch` on a folder into which pictures come, with MQTT and kept pictures."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.soak.ledger import ERROR, Arrived
from tests.soak.pictures import TORN_EVERY, encoded, write_torn
from tests.soak.subject import Subject, vae_edge

_TORN_FOR_S = 1.2
"""Longer than a file has to rest before it is read (0.3 s), and shorter than the patience with it (10 s)."""


class Watch(Subject):
    """The folder's operator, too: takes away each picture whose line it has read.

    Args:
        bundle: what judges.
        folder: for everything.
        results: where each process gets a folder of its own for its lines.
        kept: for kept pictures.
        mqtt: address of a broker; None: none.
        environment: of the processes.
        per_s: pictures a second.
    """

    def __init__(
        self,
        bundle: Path,
        folder: Path,
        *,
        results: Path,
        kept: Path,
        mqtt: str | None,
        environment: Mapping[str, str],
        per_s: float,
    ) -> None:
        super().__init__("watch", folder, {**environment, "VAE_EDGE_LINE_FOLDER": str(folder / "undelivered")}, per_s)
        self._bundle = bundle
        self._results = results
        self._kept = kept
        self._mqtt = mqtt
        self._reader: _Reader | None = None
        self._lock = threading.Lock()
        self.lines: dict[int, list[str]] = {}
        """Names of the pictures in the order of the lines, by process."""
        self.incoming = folder / "incoming"
        self.incoming.mkdir()

    def _command(self) -> list[str]:
        self.out = self._results / f"out-{self.generation}"
        words = ["run", self._bundle, self.incoming, "--watch", "--out", self.out, "--overlays", "none"]
        words += ["--poll", "0.1", "--settle", "0.3", "--keep", "1/2,anomalous"]
        words += ["--keep-dir", self._kept, "--keep-quota", "1MB"]
        if self._mqtt is not None:
            words += ["--mqtt", self._mqtt, "--sink-optional"]
        return vae_edge(*words)

    def _started(self, process: object) -> None:
        with self._lock:
            self._reader = _Reader(self.out / "predictions.jsonl")
            self.lines[self.generation] = []
        if self.generation == 1:
            self._run(self._read)

    def _ended(self) -> None:
        with self._lock:
            self._take_lines()

    def _read(self) -> None:
        while not self._done.wait(0.05):
            with self._lock:
                self._take_lines()

    def _take_lines(self) -> None:
        if self._reader is None or self.generation not in self.lines:
            return  # The next process is just being started.
        for line in self._reader.lines():
            record = json.loads(line)
            path = Path(record["source"])
            self.lines[self.generation].append(path.name)
            self.ledger.give(path.name, record.get("verdict", ERROR), self.generation)
            with suppress(OSError):
                path.unlink()

    @property
    def is_ready(self) -> bool:
        """Whether it has written lines."""
        return bool(self.lines.get(self.generation))

    def _feed(self, number: int) -> None:
        content, suffix, verdict = encoded(number)
        path = self.incoming / f"{number:06}{suffix}"
        self.ledger.owe(path.name, verdict)
        if number % TORN_EVERY == 0:
            self.n_torn += 1
            threading.Thread(target=write_torn, args=(path, content, _TORN_FOR_S), daemon=True).start()
            return
        # Whole from the start: under another name first.
        hidden = self.incoming / f".{path.name}.part"
        hidden.write_bytes(content)
        hidden.rename(path)


class _Reader:
    """Reads a growing file; a line without its end is none yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0

    def lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._place)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._place += len(whole)
        return whole.splitlines()


def arrivals(verdicts: list[dict[str, object]]) -> list[Arrived]:
    """Return the messages that a subscriber got, as far as they are verdicts."""
    found = []
    for each in verdicts:
        run, _, number = str(each["id"]).rpartition("-")
        found.append(Arrived(run, int(number), Path(str(each["source"])).name))
    return found
