"""What an archive is: whose results of which source, in which parts, and which of these are there.

    OUT/_plan/archive.json              what is asked for, and the hash of the parts
    OUT/_plan/parts.jsonl.gz            the parts, one line each: a number of pictures and their names
    OUT/bundle_sha256=HASH/part-00017-of-00200.parquet

The source is listed once, and the plan is written before the first part. A part's file gets its name when it is whole.
So a run that was killed goes on with the parts whose names are missing: none can be lost, and none can be there twice.
Readers of Parquet (pyarrow, DuckDB, Spark) pass over `_plan` and make a column of the folder's name.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from pydantic import Field

from vae_edge import __version__
from vae_edge.archive.listing import Kind, Part, Source
from vae_edge.archive.places import Place
from vae_edge.archive.rows import count_rows
from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.records import RECORD_LIMITS, FileRecord, Record, Sha256, parse_json, parse_record
from vae_edge.wording import count

PLAN_FOLDER = "_plan"
RECORD_FILE = f"{PLAN_FOLDER}/archive.json"
PARTS_FILE = f"{PLAN_FOLDER}/parts.jsonl.gz"
SCHEMA_VERSION = 1

_ADVICE = "choose another --out"
_DAMAGED_ADVICE = "if it is damaged, remove it: the same command scores its part again"


class ScoringSettings(Record):
    """What the verdicts depend on beside bundle and picture."""

    false_alarm_rate: float | None = None
    """None: the bundle's."""
    gate: bool = True
    max_pixels: int = Field(ge=1)
    arithmetic: str = "fp32"


class ArchiveRecord(Record):
    """What an archive is."""

    schema_version: int = SCHEMA_VERSION
    vae_edge_version: str
    created_utc: str
    source: str
    """A path or a URI without keys."""
    kind: Kind
    picture_column: str | None = None
    id_column: str | None = None
    bundle: str
    """Name of its folder."""
    bundle_sha256: Sha256
    """Of its manifest, which has the hashes of all its files; see `bundle_sha256`."""
    settings: ScoringSettings
    n_parts: int = Field(ge=1)
    n_pictures: int | None
    """None: nobody has counted them, as in WebDataset files."""
    parts: FileRecord


@dataclass(frozen=True)
class Archive:
    """An archive whose plan is written."""

    place: Place
    record: ArchiveRecord
    parts: tuple[Part, ...]

    @property
    def folder(self) -> str:
        """The folder of the results, relative to the place."""
        return f"bundle_sha256={self.record.bundle_sha256}"

    def name_of(self, number: int) -> str:
        """Return the name of a part's file."""
        digits = max(5, len(str(self.record.n_parts)))
        return f"part-{number:0{digits}}-of-{self.record.n_parts:0{digits}}.parquet"

    def missing(self) -> list[Part]:
        """Return the parts that are not there; one without pictures has no file.

        Raises:
            InputError: the place cannot be listed.
        """
        there = self.place.names_in(self.folder)
        return [part for part in self.parts if part.n_pictures != 0 and self.name_of(part.number) not in there]

    def count(self, number: int) -> Counter[str]:
        """Count the rows of a part that is there, by verdict, and `error`.

        Raises:
            InputError: its file cannot be read, or is damaged.
        """
        name = f"{self.folder}/{self.name_of(number)}"
        try:
            with self.place.open(name) as file:
                return count_rows(file)
        except (OSError, ValueError) as error:
            raise self.place.cannot_read(name, error, _DAMAGED_ADVICE) from error

    def write(self, number: int, content: bytes) -> None:
        """Write a part's file, completely or not at all.

        Raises:
            InputError: it cannot be written.
        """
        self.place.write(f"{self.folder}/{self.name_of(number)}", content)


def bundle_sha256(bundle: Bundle) -> str:
    """Return the hash of what decides an open bundle's verdicts: the SHA-256 of its manifest.

    Of a signed bundle that was fitted again it is that of the manifest's and of the record's hash (`Seen.identity`).
    """
    assert bundle.seen is not None
    if bundle.seen.local_sha256 is None:
        return bundle.seen.manifest_sha256
    return hashlib.sha256(bundle.seen.identity.encode()).hexdigest()


def begin_archive(
    place: Place, source: Source, parts: Sequence[Part], bundle: Bundle, settings: ScoringSettings
) -> Archive:
    """Write the plan of a new archive; its record last, so that without it there is none.

    Raises:
        InputError: the place cannot be written.
    """
    content = _packed(parts)
    sizes = [part.n_pictures for part in parts]
    known = [size for size in sizes if size is not None]
    name = PARTS_FILE.rpartition("/")[2]
    record = ArchiveRecord(
        vae_edge_version=__version__,
        created_utc=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        source=source.shown.encode("utf-8", "backslashreplace").decode(),
        kind=source.kind,
        picture_column=source.picture_column,
        id_column=source.id_column,
        bundle=bundle.folder.name,
        bundle_sha256=bundle_sha256(bundle),
        settings=settings,
        n_parts=len(parts),
        n_pictures=sum(known) if len(known) == len(sizes) else None,
        parts=FileRecord(name=name, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()),
    )
    place.write(PARTS_FILE, content)
    place.write(RECORD_FILE, (record.model_dump_json(indent=2) + "\n").encode())
    return Archive(place, record, tuple(parts))


def read_record(place: Place) -> ArchiveRecord | None:
    """Return the record of the archive in a place; None: there is none, and the place is free for one.

    Raises:
        InputError: the place cannot be read, its record is damaged, or it holds something else.
    """
    names = place.names_in(PLAN_FOLDER)
    path = place.path_of(RECORD_FILE)
    if RECORD_FILE.rpartition("/")[2] not in names:
        foreign = sorted(name for name in place.names_in("") if name != PLAN_FOLDER and not name.startswith("."))
        if foreign:
            raise InputError(f"{place.shown} holds {foreign[0]} and no archive; {_ADVICE}")
        return None
    try:
        content = parse_json(place.read(RECORD_FILE), RECORD_LIMITS)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error}); {_ADVICE}") from error
    return parse_record(content, Path(path), ArchiveRecord, SCHEMA_VERSION, advice=_ADVICE, error_kind=InputError)


def read_archive(place: Place, record: ArchiveRecord) -> Archive:
    """Read the parts of an archive.

    Raises:
        InputError: they cannot be read, or are not those of the record.
    """
    content = place.read(PARTS_FILE)
    if hashlib.sha256(content).hexdigest() != record.parts.sha256:
        raise InputError(f"{place.path_of(PARTS_FILE)} is not the one that the archive began with; {_ADVICE}")
    parts = tuple(_unpacked(content))
    if len(parts) != record.n_parts:
        raise InputError(
            f"{place.path_of(RECORD_FILE)} says {count(record.n_parts, 'part')}, and {place.path_of(PARTS_FILE)} has "
            f"{len(parts)}; {_ADVICE}"
        )
    return Archive(place, record, parts)


def check_same(record: ArchiveRecord, place: Place, bundle: Bundle, source: str, settings: ScoringSettings) -> None:
    """Refuse to go on with an archive for something else.

    Raises:
        InputError: it is that of another bundle or another source.
        UsageError: its verdicts depend on other options.
    """
    if record.bundle_sha256 != bundle_sha256(bundle):
        raise InputError(
            f"{place.shown} is the archive of another bundle ({record.bundle}, SHA-256 {record.bundle_sha256[:12]}..., "
            f"not {bundle_sha256(bundle)[:12]}...); {_ADVICE}"
        )
    if record.source != source:
        raise InputError(f"{place.shown} is the archive of another source, {record.source}; {_ADVICE}")
    asked, begun = settings.model_dump(), record.settings.model_dump()
    for name, value in begun.items():
        if asked[name] != value:
            raise UsageError(
                f"{place.shown} was begun with {name} {_said(value)} and not {_said(asked[name])}; use the same, or "
                f"{_ADVICE}"
            )


def _said(value: object) -> str:
    return "as in the bundle" if value is None else str(value)


def _packed(parts: Sequence[Part]) -> bytes:
    packed = io.BytesIO()
    # Without a time: the same parts are the same bytes.
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as file:
        for part in parts:
            file.write(f"{'' if part.n_pictures is None else part.n_pictures}\t{part.content}\n".encode())
    return packed.getvalue()


def _unpacked(content: bytes) -> list[Part]:
    parts: list[Part] = []
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        for line in file:
            number, _, rest = line.decode().rstrip("\n").partition("\t")
            parts.append(Part(len(parts) + 1, rest, int(number) if number else None))
    return parts


def describe(archive: Archive) -> str:
    """Return what an archive is, in a few words, for people."""
    record = archive.record
    pictures = "pictures" if record.n_pictures is None else count(record.n_pictures, "picture")
    return f"{pictures} of {record.source} in {count(record.n_parts, 'part')}"
