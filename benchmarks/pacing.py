"""Images that become due at a fixed rate, as from a camera over a line that does not wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray


class PacedSource:
    """Gives image k at the time k / fps after the first one was asked for, or at once where that time has passed.

    Nothing is dropped and no due time moves: if the detector falls behind, images wait, as they would in a camera's
    buffer. So latency is to be counted from when an image was due and not from when it was taken: a source that waits
    for a slow detector and only then looks at the clock leaves out just the images that suffered ("coordinated
    omission", Gil Tene, "How NOT to Measure Latency", 2015).

    Args:
        images: given in rotation.
        fps: images a second.
        duration_s: images that are due later do not come.
    """

    def __init__(self, images: Sequence[NDArray[Any]], fps: float, duration_s: float) -> None:
        self._images = images
        self._period_ns = 1e9 / fps
        self._n = max(int(duration_s * fps), 1)
        self._stopped = threading.Event()
        self.due_ns: list[int] = []
        """When each image is due, by `time.perf_counter_ns`; known once the first one was asked for."""

    def __iter__(self) -> Iterator[NDArray[Any]]:
        """Give the images; called from several threads by turns, see `Detector.stream`."""
        begin = time.perf_counter_ns()
        self.due_ns = [begin + round(number * self._period_ns) for number in range(self._n)]
        for number, due in enumerate(self.due_ns):
            wait_s = (due - time.perf_counter_ns()) / 1e9
            if wait_s > 0 and self._stopped.wait(wait_s):
                return
            yield self._images[number % len(self._images)]

    def stop(self) -> None:
        """End the waiting."""
        self._stopped.set()
