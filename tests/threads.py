"""What tests of sources that wait need: a source that is read in another thread, as the detector does it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vae_edge.sources.pictures import Picture, Source


class Taking(threading.Thread):
    """Takes the pictures of a source one after the other; leaving the block stops the source and waits."""

    def __init__(self, source: Source) -> None:
        super().__init__(name="taking", daemon=True)
        self.source = source
        self.pictures: list[Picture] = []

    def run(self) -> None:
        for picture in self.source:
            self.pictures.append(picture)

    def wait_for(self, n: int, timeout_s: float = 20) -> list[Picture]:
        """Wait until there are that many pictures."""
        wait_until(lambda: len(self.pictures) >= n, timeout_s)
        return self.pictures

    def __enter__(self) -> Taking:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()
        self.join(20)
        assert not self.is_alive()


def wait_until(happened: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait until something has happened, and fail if it does not."""
    end_s = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.01)


def our_threads() -> list[str]:
    """Return the names of the threads that sources have begun and that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("vae-edge")]
