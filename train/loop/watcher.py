"""How a run tells what it is doing, without knowing who listens; and the listener that shows it in a terminal."""

from __future__ import annotations

import re
import time

from rich.progress import TaskID, TextColumn

from vae_edge.cli.console import notes_console
from vae_edge.cli.progress import new_bars
from vae_edge.platform.work import Progress


class Watcher:
    """Receives the progress of a run; this one ignores it. Subclass it to show progress."""

    def say(self, sentence: str) -> None:
        """Take a sentence about the data or the run."""

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take the progress of a stage, such as "training": so much of so much is done."""

    def progress_of(self, stage: str) -> Progress:
        """Return a function that takes a stage's progress."""
        return lambda done, total: self.progress(stage, done, total)


class Stopwatch(Watcher):
    """Passes everything on to another watcher and keeps the time that each stage takes.

    The time up to a stage's progress counts for that stage. Stages that differ by a number, as in "training fold 2 of
    5", count together.

    Args:
        watcher: receives everything.
    """

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def say(self, sentence: str) -> None:
        """Pass a sentence on."""
        self._watcher.say(sentence)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Pass a stage's progress on."""
        now = time.monotonic()
        name = _NUMBERED.sub("", stage)
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
        self._watcher.progress(stage, done, total, note)

    def sentence(self) -> str:
        """Say how long everything took, and the share of each stage, the longest first."""
        total = sum(self.seconds.values())
        if total <= 0:
            return "took no time"
        shares = {name: seconds / total for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])}
        shown = {name: share for name, share in shares.items() if share >= _LEAST_SHOWN}
        rest = 1 - sum(shown.values())
        if rest >= _LEAST_SHOWN:
            shown["others"] = rest
        return f"took {total:.0f} s: " + ", ".join(f"{name} {share:.0%}" for name, share in shown.items())


_NUMBERED = re.compile(r" \d+ of \d+")
_LEAST_SHOWN = 0.01

_LINE_EVERY_S = 20.0  # Where stderr is a file: often enough to see that it is alive, seldom enough to read.


class TerminalWatcher(Watcher):
    """Shows each stage as a bar on a terminal, and as a line now and then where stderr is a file."""

    def __init__(self) -> None:
        self.console = notes_console()
        self.stage = ""
        self._task: TaskID | None = None
        self._bars = new_bars(self.console, TextColumn("{task.fields[note]}", markup=False), count=False)
        self._line_at = 0.0

    def __enter__(self) -> TerminalWatcher:
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *details: object) -> None:
        if self.console.is_terminal:  # Elsewhere it would print an empty line.
            self._bars.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(" ".join(sentence.split()), soft_wrap=not self.console.is_terminal)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Move the stage's bar."""
        if not self.console.is_terminal:
            self._line(stage, done, total, note)
            return
        if stage != self.stage or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self.stage, self._task = stage, self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._task, completed=done, total=total, note=note)

    def _line(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self._line_at = stage, now
        if now - self._line_at >= _LINE_EVERY_S:
            self._line_at = now
            self.say(f"{stage}: {done / max(total, 1):.0%}{', ' + note if note else ''}")
