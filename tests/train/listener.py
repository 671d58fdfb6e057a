"""A watcher that remembers, and interrupts a run where a test wants it."""

from __future__ import annotations

import os
import re
import signal

from vae_edge.train.loop.watcher import Watcher


class Listener(Watcher):
    """Remembers what a run says and the names of its stages.

    Args:
        stop_at: pattern of the stage in which the run is interrupted; empty: in none.
        step: of that stage, after which it is; None: as soon as the stage begins.
        number: of the signal, by default Ctrl-C's; None: by Ctrl-C's exception, without a signal.
    """

    def __init__(self, stop_at: str = "", step: int | None = None, *, number: int | None = signal.SIGINT) -> None:
        self.stop_at, self.step, self.number = stop_at, step, number
        self.stages: list[str] = []
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def heard(self, words: str) -> bool:
        return any(words in sentence for sentence in self.said)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        begins = stage not in self.stages
        if begins:
            self.stages.append(stage)
        if re.fullmatch(self.stop_at, stage) and (begins if self.step is None else done == self.step):
            if self.number is None:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.number)
