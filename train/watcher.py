"""How a run tells what it is doing, without knowing who listens."""

from __future__ import annotations

from vae_edge.progress import Progress


class Watcher:
    """Is told how a run goes; this one does not care. Subclass it to show progress."""

    def say(self, sentence: str) -> None:
        """Take a sentence about the data or the run."""

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Take the progress of a stage, such as "training": so much of so much is done."""

    def progress_of(self, stage: str) -> Progress:
        """Return a function that takes a stage's progress."""
        return lambda done, total: self.progress(stage, done, total)
