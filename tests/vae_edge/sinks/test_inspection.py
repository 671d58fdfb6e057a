from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.threads import our_threads
from tests.tiny_bundles import dark_image, spotted_image, write_image
from vae_edge import Bundle, Detector, InputError
from vae_edge.sinks.inspection import Tally, decide, inspect_all
from vae_edge.sinks.sink import Inspected, Sink
from vae_edge.sources.pictures import Chain, ImageFiles, Picture, Source


class Collected(Sink):
    def __init__(self, stop_after: int | None = None) -> None:
        self.inspected: list[Inspected] = []
        self.stop_after = stop_after

    def write(self, inspected: Inspected) -> None:
        if len(self.inspected) == self.stop_after:
            raise InputError("the disk is full")
        self.inspected.append(inspected)


class Noted(Source):
    """Pictures of which some cannot be read, and whether somebody said that it is enough."""

    n_pictures = 6
    stopped = False

    def __iter__(self) -> Iterator[Picture]:
        for number in range(self.n_pictures):
            image = InputError(f"{number} is broken") if number in (0, 1, 5) else dark_image(number)
            yield Picture(f"{number}.png", str(number), image, number, skipped=number)

    def stop(self) -> None:
        super().stop()
        self.stopped = True


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_picture_is_paired_with_its_own_verdict_or_error(onnx_bundle: Bundle, batch_size: int) -> None:
    source = Noted()
    with Detector.open(onnx_bundle) as detector:
        decided = list(decide(detector, source, batch_size))
        expected = [None if n in (0, 1, 5) else detector.predict(dark_image(n)).score for n in range(6)]
    assert [picture.source for picture, _ in decided] == [f"{number}.png" for number in range(6)]
    for (picture, result), score in zip(decided, expected, strict=True):
        if isinstance(result, Exception):
            assert score is None
            assert result is picture.image
        else:
            assert result.score == pytest.approx(score)
    assert source.stopped


def test_every_sink_gets_every_verdict_and_they_are_counted(onnx_bundle: Bundle, tmp_path: Path) -> None:
    files = [write_image(tmp_path / f"{n}.png", spotted_image(n) if n == 2 else dark_image(n)) for n in range(4)]
    source = Chain([ImageFiles([(path, path.stem) for path in files]), Noted()])
    sinks, tally, bar = [Collected(), Collected()], Tally(), []
    with Detector.open(onnx_bundle) as detector:
        inspect_all(detector, source, sinks, tally, progress=lambda done, total: bar.append((done, total)))
    assert len(sinks[0].inspected) == len(sinks[1].inspected) == tally.n_pictures == 10
    assert sinks[0].inspected[4].record == {"source": "0.png", "frame": 0, "skipped": 0, "error": "0 is broken"}
    assert tally.counts == {"anomalous": 1, "normal": 6, "error": 3}
    assert (tally.n_live, tally.n_skipped) == (6, 15)
    assert tally.first_errors == ["0 is broken", "1 is broken", "5 is broken"]
    assert bar[-1] == (10, 10)


def test_a_sink_that_fails_stops_the_source(onnx_bundle: Bundle, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", dark_image(1))
    source, tally = ImageFiles([(path, "a")] * 50), Tally()
    with Detector.open(onnx_bundle) as detector, pytest.raises(InputError, match="disk is full"):
        inspect_all(detector, source, [Collected(stop_after=3)], tally)
    assert tally.n_pictures == 3
    assert list(source) == []
    assert our_threads() == []
