"""What an archive is, which of its parts are missing, and what it refuses to be continued with."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.tiny_bundles import dark_image, make_bundle, write_image
from vae_edge.archive.listing import Kind, Part, Source, SourceOptions, list_source, open_source
from vae_edge.archive.places import LocalPlace
from vae_edge.archive.plan import (
    PARTS_FILE,
    RECORD_FILE,
    Archive,
    ScoringSettings,
    begin_archive,
    bundle_sha256,
    check_same,
    read_archive,
    read_record,
)
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.sources.division import shard_of
from vae_edge.targets import Target

SETTINGS = ScoringSettings(max_pixels=10**6)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    pytest.importorskip("onnx")
    return make_bundle(tmp_path / "toy-onnx-fp32", Target.ONNX)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(20):
        write_image(tmp_path / "pictures" / str(number % 2) / f"{number}.png", dark_image(number))
    return tmp_path / "pictures"


def listed(text: Path, rows_per_part: int = 4) -> tuple[Source, list[Part]]:
    return list_source(*open_source(str(text)), SourceOptions(rows_per_part=rows_per_part))


def begin(pictures: Path, bundle: Bundle, out: Path) -> Archive:
    return begin_archive(LocalPlace(out), *listed(pictures), bundle, SETTINGS)


def test_a_part_holds_what_the_shard_of_its_number_takes(pictures: Path) -> None:
    _, parts = listed(pictures)
    assert [part.number for part in parts] == [1, 2, 3, 4, 5]
    for part in parts:
        assert all(shard_of(name, 5) == part.number for name in part.values["names"])
        assert part.n_pictures == len(part.values["names"])
    assert sorted(name for part in parts for name in part.values["names"]) == sorted(
        f"{number % 2}/{number}.png" for number in range(20)
    )


def test_what_was_begun_is_read_again(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    begun = begin(pictures, bundle, tmp_path / "out")
    record = read_record(LocalPlace(tmp_path / "out"))
    assert record == begun.record
    assert record is not None
    assert read_archive(LocalPlace(tmp_path / "out"), record).parts == begun.parts
    assert (record.n_parts, record.n_pictures, record.kind) == (5, 20, Kind.PICTURES)
    assert record.bundle_sha256 == bundle_sha256(bundle)
    check_same(record, begun.place, bundle, str(pictures), SETTINGS)


def test_names_that_are_not_utf_8_are_kept(bundle: Bundle, tmp_path: Path) -> None:
    source = Source(LocalPlace(tmp_path), Kind.PICTURES)
    parts = [Part(1, json.dumps({"names": ["bad\udcff.png", "größe.png"]}), 2)]
    begun = begin_archive(LocalPlace(tmp_path / "out"), source, parts, bundle, SETTINGS)
    assert read_archive(begun.place, begun.record).parts[0].values["names"] == ["bad\udcff.png", "größe.png"]


def test_the_same_listing_is_the_same_plan(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    first, second = (begin(pictures, bundle, tmp_path / name) for name in ("a", "b"))
    assert first.record.parts == second.record.parts


def test_a_part_is_missing_until_its_file_has_its_name(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    archive = begin(pictures, bundle, tmp_path / "out")
    owed = [part.number for part in archive.parts if part.n_pictures]
    assert [part.number for part in archive.missing()] == owed
    archive.write(owed[1], b"rows")
    folder = tmp_path / "out" / archive.folder
    (folder / f".{archive.name_of(owed[0])}.00000000-1-0-00000000.tmp").write_bytes(b"half")
    assert [part.number for part in archive.missing()] == [owed[0], *owed[2:]]
    assert archive.name_of(2) == "part-00002-of-00005.parquet"
    archive.write(owed[1], b"the same")  # As after a driver that was killed: in place of the other.
    assert len(list(folder.glob("part-*"))) == 1


def test_without_its_record_there_is_no_archive(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    # Killed while the plan was written.
    begin(pictures, bundle, tmp_path / "out")
    (tmp_path / "out" / RECORD_FILE).unlink()
    assert read_record(LocalPlace(tmp_path / "out")) is None
    assert read_record(LocalPlace(tmp_path / "nothing")) is None


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"holds predictions\.jsonl and no archive; choose another --out"):
        read_record(LocalPlace(tmp_path))


def test_another_bundle_source_or_setting_is_refused(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    archive = begin(pictures, bundle, tmp_path / "out")
    other = make_bundle(tmp_path / "other-onnx-fp32", Target.ONNX, n_normals=60)
    with pytest.raises(InputError, match=r"is the archive of another bundle \(toy-onnx-fp32, .*choose another --out"):
        check_same(archive.record, archive.place, other, str(pictures), SETTINGS)
    with pytest.raises(InputError, match="is the archive of another source"):
        check_same(archive.record, archive.place, bundle, "/elsewhere", SETTINGS)
    with pytest.raises(UsageError, match=r"begun with false_alarm_rate as in the bundle and not 0\.1; use the same"):
        check_same(
            archive.record, archive.place, bundle, str(pictures), SETTINGS.model_copy(update={"false_alarm_rate": 0.1})
        )


def test_a_changed_plan_is_refused(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    archive = begin(pictures, bundle, tmp_path / "out")
    parts = tmp_path / "out" / PARTS_FILE
    parts.write_bytes(gzip.compress(gzip.decompress(parts.read_bytes()).replace(b".png", b".jpg")))
    with pytest.raises(InputError, match="is not the one that the archive began with"):
        read_archive(archive.place, archive.record)
    (tmp_path / "out" / RECORD_FILE).write_text('{"schema_version": 1}')
    with pytest.raises(InputError, match=r"archive\.json is damaged"):
        read_record(archive.place)
    (tmp_path / "out" / RECORD_FILE).write_text("{")
    with pytest.raises(InputError, match=r"archive\.json is damaged"):
        read_record(archive.place)


def test_a_record_with_another_number_of_parts_is_refused(pictures: Path, bundle: Bundle, tmp_path: Path) -> None:
    """The number is in the names of the parts: with another one, all rows would be there twice."""
    archive = begin(pictures, bundle, tmp_path / "out")
    record = archive.record.model_copy(update={"n_parts": 99})
    with pytest.raises(InputError, match=r"archive\.json says 99 parts, and .*parts\.jsonl\.gz has 5; choose another"):
        read_archive(archive.place, record)
