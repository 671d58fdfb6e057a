"""Whatever fails in between: every part is written once, or named."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from tests.tiny_bundles import make_bundle
from vae_edge.archive.filling import Filled, count_there, fill
from vae_edge.archive.listing import Kind, Part, Source
from vae_edge.archive.places import LocalPlace
from vae_edge.archive.plan import Archive, ScoringSettings, begin_archive
from vae_edge.archive.rows import to_parquet
from vae_edge.archive.scoring import Outcome
from vae_edge.errors import InputError
from vae_edge.targets import Target

Outcomes = Generator[Outcome, None, None]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    pytest.importorskip("onnx")
    bundle = make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)
    parts = [Part(number, '{"names": []}', 3) for number in range(1, 13)]
    source = Source(LocalPlace(tmp_path), Kind.PICTURES)
    return begin_archive(LocalPlace(tmp_path / "out"), source, parts, bundle, ScoringSettings(max_pixels=100))


def done(part: Part) -> Outcome:
    return Outcome(part.number, f"rows of {part.number}".encode(), {"normal": 2, "error": 1}, worker="here:1")


def test_all_parts_are_written_and_counted(archive: Archive) -> None:
    filled, seen = Filled(), []

    def score(parts: Sequence[Part]) -> Outcomes:
        yield from map(done, parts)

    fill(archive, archive.missing(), score, filled, lambda so_far: seen.append(so_far.n_pictures))
    assert archive.missing() == []
    assert (filled.n_parts, filled.n_pictures, filled.counts["error"]) == (12, 36, 12)
    assert seen == list(range(3, 37, 3))


@pytest.mark.parametrize("seed", range(8))
def test_lost_repeated_and_failed_parts_are_made_up_for(archive: Archive, seed: int) -> None:
    chance = random.Random(seed)

    def score(parts: Sequence[Part]) -> Outcomes:
        given = [part for part in parts if chance.random() < 0.6] or list(parts[:1])
        for part in chance.sample(given, len(given)):
            if len(given) > 1 and chance.random() < 0.2:
                yield Outcome(part.number, problem="the runtime failed")
                continue
            yield done(part)
            if chance.random() < 0.3:
                yield done(part)  # Its worker died just after it.

    filled = Filled()
    try:
        fill(archive, archive.missing(), score, filled)
    except InputError:  # An attempt without any success.
        assert archive.missing()
        fill(archive, archive.missing(), lambda parts: (done(part) for part in parts), filled)
    folder = Path(archive.place.shown, archive.folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        archive.name_of(number): f"rows of {number}" for number in range(1, 13)
    }
    assert filled.n_pictures == 36


def test_a_killed_run_is_continued_with_what_is_missing(archive: Archive) -> None:
    asked: list[list[int]] = []

    def score(parts: Sequence[Part]) -> Outcomes:
        asked.append([part.number for part in parts])
        for part in parts:
            if part.number == 5 and len(asked) == 1:
                raise KeyboardInterrupt
            yield done(part)

    with pytest.raises(KeyboardInterrupt):
        fill(archive, archive.missing(), score, Filled())
    fill(archive, archive.missing(), score, Filled())
    assert asked == [list(range(1, 13)), list(range(5, 13))]


def test_a_part_that_always_fails_is_named_with_the_reason(archive: Archive) -> None:
    def score(parts: Sequence[Part]) -> Outcomes:
        for part in parts:
            yield Outcome(part.number, problem="the runtime failed") if part.number == 7 else done(part)

    with pytest.raises(InputError, match=r"1 part could not be scored \(7\): the runtime failed; run the same command"):
        fill(archive, archive.missing(), score, Filled())
    assert [part.number for part in archive.missing()] == [7]


def test_parts_whose_worker_dies_each_time_are_named(archive: Archive) -> None:
    def score(parts: Sequence[Part]) -> Outcomes:
        yield from (done(part) for part in parts if part.number > 4)

    with pytest.raises(InputError, match=r"4 parts could not be scored \(1, 2, 3, \.\.\.\): the worker died each time"):
        fill(archive, archive.missing(), score, Filled())


def test_what_is_wrong_with_every_worker_ends_the_run(archive: Archive) -> None:
    closed = []

    def score(parts: Sequence[Part]) -> Outcomes:
        try:
            yield done(parts[0])
            yield Outcome(2, problem="/data is not a folder on the machine b", is_fatal=True, worker="b:7")
            raise AssertionError("it went on")
        finally:
            closed.append(True)

    with pytest.raises(InputError, match=r"/data is not a folder on the machine b \(worker b:7\)"):
        fill(archive, archive.missing(), score, Filled())
    assert closed == [True]
    assert len(archive.missing()) == 11


def test_a_place_that_cannot_be_written_ends_the_run(archive: Archive) -> None:
    score: Callable[[Sequence[Part]], Outcomes] = lambda parts: (done(part) for part in parts)  # noqa: E731
    Path(archive.place.shown, archive.folder).write_text("a file where the folder should be")
    with pytest.raises(InputError, match="could not be written"):
        fill(archive, list(archive.parts), score, Filled())


def test_what_an_earlier_run_wrote_is_counted(archive: Archive) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: vae-edge[archive]")
    rows = [{"verdict": "normal"}, {"verdict": "anomalous"}, {"error": "it is no picture"}]
    for number in range(1, 6):
        archive.write(number, to_parquet(rows[: 1 + number % 3], {}))
    seen: list[tuple[int, int]] = []
    there = count_there(archive, archive.missing(), lambda done, total: seen.append((done, total)))
    assert there == {"normal": 5, "anomalous": 4, "error": 2}
    assert seen == [(number, 5) for number in range(1, 6)]
    filled = Filled(there)
    fill(archive, archive.missing(), lambda parts: (done(part) for part in parts), filled)
    assert filled.all_counts == {"normal": 5 + 14, "anomalous": 4, "error": 2 + 7}


@pytest.mark.parametrize("content", [b"", b"no Parquet", None])
def test_a_damaged_part_is_named(archive: Archive, content: bytes | None) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: vae-edge[archive]")
    parquet = pytest.importorskip("pyarrow.parquet")
    archive.write(3, content or b"")
    if content is None:
        parquet.write_table(pyarrow.table({"a": [1]}), Path(archive.place.path_of(archive.folder), archive.name_of(3)))
    with pytest.raises(InputError, match=r"part-00003-of-00012\.parquet could not be read .*remove it"):
        count_there(archive, archive.missing())
