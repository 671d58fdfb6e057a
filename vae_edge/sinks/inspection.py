"""A run over a source: every picture paired with its verdict, handed to the sinks and counted."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vae_edge.detector import Detector
from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.prediction import Prediction
from vae_edge.sinks.sink import Inspected, Sink, record_of
from vae_edge.sources.pictures import Picture, Source

_log = logging.getLogger(__name__)

_NAMED_ERRORS = 5

_NO_PIXELS = np.empty((0, 0, 3), dtype=np.uint8)
"""What the detector gets instead of a picture that could not be read: it answers with an error, in order."""


@dataclass
class Tally:
    """What a run has done so far."""

    counts: Counter[str] = field(default_factory=Counter)
    n_live: int = 0
    """Pictures of cameras and streams."""
    n_skipped: int = 0
    """Frames of cameras and streams that were left out because a newer one had come."""
    first_errors: list[str] = field(default_factory=list)
    not_made: Counter[str] = field(default_factory=Counter)
    """By-products that could not be written, by what they are: `Sink.what`."""
    largest_16_bit: int | None = None
    """Largest value in all image files of 16 bits; None where there was none."""
    begin_s: float = field(default_factory=time.perf_counter)

    def add(self, picture: Picture, result: Prediction | VaeEdgeError) -> None:
        """Count a picture; of those without a verdict the first few are named at the end."""
        if picture.largest_16_bit is not None:
            self.largest_16_bit = max(picture.largest_16_bit, self.largest_16_bit or 0)
        if picture.skipped is not None:
            self.n_live += 1
            self.n_skipped += picture.skipped
        if not isinstance(result, VaeEdgeError):
            self.counts[result.verdict] += 1
            return
        self.counts["error"] += 1
        if len(self.first_errors) < _NAMED_ERRORS:
            self.first_errors.append(str(result))

    @property
    def n_pictures(self) -> int:
        """Pictures that have a record."""
        return sum(self.counts.values())

    @property
    def pictures_per_s(self) -> float:
        """Rate over everything: reading, deciding, drawing and writing."""
        return self.n_pictures / max(time.perf_counter() - self.begin_s, 1e-9)


def inspect_all(
    detector: Detector,
    pictures: Source,
    sinks: Sequence[Sink],
    tally: Tally,
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> None:
    """Decide about every picture of a source and give each verdict to every sink, in the sinks' order.

    Where a by-product such as an overlay fails, the record gets a `note` and the run continues. However it ends, the
    source is stopped then, and every picture that `tally` counts has been written.

    Raises:
        InputError: the source gives no more, or a sink cannot be written.
    """
    total = pictures.n_pictures
    with closing(decide(detector, pictures, batch_size)) as decided:
        for picture, result in decided:
            inspected = Inspected(picture, result, record_of(picture, result))
            for sink in sinks:
                _write(sink, inspected, tally)
            tally.add(picture, result)
            if progress is not None:
                progress(tally.n_pictures, total)


def _write(sink: Sink, inspected: Inspected, tally: Tally) -> None:
    """Give a verdict to a sink; a by-product may fail in any way."""
    if not sink.is_by_product:
        sink.write(inspected)
        return
    try:
        sink.write(inspected)
    except Exception as error:  # noqa: BLE001 - whatever it is, the verdict was given
        note_failure(sink, error, tally)
        said = str(error) or type(error).__name__
        inspected.record["note"] = "; ".join([*filter(None, [inspected.record.get("note")]), said])


def note_failure(sink: Sink, error: Exception, tally: Tally) -> None:
    """Count a by-product that failed, and say why as long as it is not the same again and again."""
    if tally.not_made[sink.what] < _NAMED_ERRORS:
        _log.warning("%s", str(error) or type(error).__name__)
    tally.not_made[sink.what] += 1


def close_sink(sink: Sink, tally: Tally) -> None:
    """Finish what a sink has begun; a by-product may fail.

    Raises:
        InputError: the verdicts themselves are not all there.
    """
    try:
        sink.close()
    except Exception as error:
        if not sink.is_by_product:
            raise
        note_failure(sink, error, tally)


def decide(
    detector: Detector, pictures: Source, batch_size: int | None = None
) -> Generator[tuple[Picture, Prediction | VaeEdgeError], None, None]:
    """Pair every picture, in order, with its verdict or its error; each picture is decoded once.

    Only the few pictures that the detector has taken ahead are held. At the end the source is stopped.
    """
    feed = _Feed(pictures)
    results = detector.stream(feed, batch_size=batch_size, errors="return")
    try:
        for result in results:
            picture = feed.taken.popleft()
            yield picture, picture.image if isinstance(picture.image, InputError) else result
    finally:
        feed.stop()
        if isinstance(results, Generator):
            results.close()


class _Feed:
    """The images of a source for the detector, which may take them in another thread; what it has taken is noted."""

    def __init__(self, pictures: Source) -> None:
        self._pictures = pictures
        self.taken: deque[Picture] = deque()
        """Pictures without a result yet: one thread adds at the end and another takes away at the front."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for picture in self._pictures:
            self.taken.append(picture)
            yield _NO_PIXELS if isinstance(picture.image, InputError) else picture.image

    def stop(self) -> None:
        self._pictures.stop()
