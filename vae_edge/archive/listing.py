"""What a source holds: picture files, Parquet files with a column of pictures, or WebDataset files; and its parts.

A part is what one worker scores at once and what one file of results holds. Picture files are divided among the parts
by their names, as `vae-run --shard` divides them; Parquet files are cut between row groups; a WebDataset file is one
part, for it can only be read from its beginning.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vae_edge.archive.places import LocalPlace, Place, RemotePlace, is_uri, open_place
from vae_edge.errors import InputError, UsageError
from vae_edge.picture_files.listing import IMAGE_SUFFIXES, list_images
from vae_edge.platform.outside import user_path
from vae_edge.platform.work import Progress
from vae_edge.sources.addresses import file_of_url
from vae_edge.sources.division import MAX_SHARDS, shard_of
from vae_edge.text_enum import TextEnum
from vae_edge.wording import count

_log = logging.getLogger(__name__)

_USUAL_COLUMNS = ("image", "picture", "img", "bytes")
"""Names of the column of pictures, where a file has several of bytes; the first that is there is taken."""


class Kind(TextEnum):
    """What a source consists of."""

    PICTURES = "pictures"
    PARQUET = "parquet"
    WEBDATASET = "webdataset"


_ENDINGS = {Kind.PARQUET: (".parquet", ".pq"), Kind.WEBDATASET: (".tar", ".tar.gz", ".tgz")}
_CALLED = {Kind.PICTURES: "picture", Kind.PARQUET: "Parquet file", Kind.WEBDATASET: "WebDataset file"}


@dataclass(frozen=True)
class Source:
    """Where pictures come from."""

    place: Place
    kind: Kind
    picture_column: str | None = None
    """Of Parquet files: bytes of picture files, or a struct with these as `bytes`."""
    id_column: str | None = None
    only: str | None = None
    """The one file of the place that was named."""

    @property
    def shown(self) -> str:
        """Its address as records and messages have it."""
        return shown(self.place, self.only)


class Part(NamedTuple):
    """A part of a source, small enough to hold millions of pictures' names in memory."""

    number: int
    """From 1."""
    content: str
    """JSON with `names`, those of its files; of Parquet also `groups`, the first row group and the one after the last,
    and `first_row` in the file. Without groups the file could not be opened."""
    n_pictures: int | None
    """None for WebDataset: nobody has counted them."""

    @property
    def values(self) -> dict[str, Any]:
        """The content."""
        found: dict[str, Any] = json.loads(self.content)
        return found


@dataclass(frozen=True)
class SourceOptions:
    """What was asked for about a source."""

    kind: Kind | None = None
    """None: whichever its files are of."""
    picture_column: str | None = None
    id_column: str | None = None
    rows_per_part: int = 500


def shown(place: Place, only: str | None) -> str:
    """Return the address of a source that `open_source` opened, without keys."""
    return place.shown if only is None else place.path_of(only)


def list_source(
    place: Place,
    only: str | None,
    options: SourceOptions,
    *,
    except_in: Place | None = None,
    progress: Progress | None = None,
) -> tuple[Source, list[Part]]:
    """List a source and cut it into parts; only the ends of Parquet files are read.

    Args:
        place: with all that lies below.
        only: take this file of it only.
        options: what was asked for.
        except_in: leave out what lies in this place, such as the results of an earlier run.
        progress: called with the Parquet files that were looked into and all of them.

    Raises:
        UsageError: it holds files of several kinds, or a column has to be chosen; or the columns that were chosen are
            for another kind.
        InputError: it cannot be read, holds nothing, or a Parquet file has no column of pictures.
    """
    names, kind = _names(place, only, options.kind, except_in)
    if kind is not Kind.PARQUET and (options.picture_column or options.id_column):
        raise UsageError(f"columns are for Parquet files, but {place.shown} holds {_CALLED[kind]}s: leave them out")
    if kind is Kind.PICTURES:
        return Source(place, kind, only=only), _divided(names, options.rows_per_part)
    if kind is Kind.WEBDATASET:
        contents = [json.dumps({"names": [name]}) for name in names]
        return Source(place, kind, only=only), [
            Part(number, content, None) for number, content in enumerate(contents, 1)
        ]
    column, parts = _parquet_parts(place, names, options, progress)
    return Source(place, kind, column, options.id_column, only), parts


def open_source(text: str) -> tuple[Place, str | None]:
    """Open what a word of the command line names: a folder, a file, or a URI of one of them.

    Returns:
        The place, and the one file of it that was named; None: all of them.

    Raises:
        UsageError: it is an address that nobody knows.
        InputError: it is not there, or cannot be read.
    """
    written = file_of_url(text)
    if is_uri(written):
        found = RemotePlace(written)
        if not found.is_file():
            found.check_readable()
            return found, None
        address, _, query = written.partition("?")
        folder, _, name = address.rpartition("/")
        return open_place(f"{folder}?{query}" if query else folder), name
    path = user_path(written)
    if path.is_dir():
        return LocalPlace(path), None
    if path.is_file():
        return LocalPlace(path.absolute().parent), path.name
    raise InputError(f"{text} does not exist; expected a folder of pictures, Parquet or WebDataset files, or a URI")


def _names(place: Place, only: str | None, asked: Kind | None, except_in: Place | None) -> tuple[list[str], Kind]:
    if only is not None:
        return [only], asked or next(iter(_kinds_of([only])), Kind.PICTURES)
    files = place.files()
    if isinstance(place, LocalPlace) and isinstance(except_in, LocalPlace):
        inside = _below(except_in.folder, place.folder)
        files = [name for name in files if inside is None or not name.startswith(inside)]
    found = _kinds_of(files)
    if isinstance(place, LocalPlace) and (Kind.PICTURES in found or asked is Kind.PICTURES):
        # By the one rule for pictures on disk, as vae-run takes them.
        listing = list_images(place.folder, except_in=except_in.folder if isinstance(except_in, LocalPlace) else None)
        paths = sorted([*listing.images(), *listing.special])
        for remark in listing.remarks():
            _log.warning("%s: %s", place.shown, remark)
        found[Kind.PICTURES] = [path.relative_to(place.folder).as_posix() for path in paths]
    there = {kind: names for kind, names in found.items() if names and asked in (None, kind)}
    if not there:
        what = "picture, Parquet or WebDataset file" if asked is None else _CALLED[asked]
        raise InputError(f"{place.shown} holds no {what} ({count(len(files), 'file')} in all); check the address")
    if len(there) > 1:
        numbers = " and ".join(count(len(names), _CALLED[kind]) for kind, names in there.items())
        raise UsageError(f"{place.shown} holds {numbers}; choose with --kind {' or '.join(map(str, there))}")
    ((kind, names),) = there.items()
    return names, kind


def _kinds_of(names: Sequence[str]) -> dict[Kind, list[str]]:
    found: dict[Kind, list[str]] = {}
    for name in names:
        lower = name.lower()
        if lower[lower.rfind(".") :] in IMAGE_SUFFIXES:
            found.setdefault(Kind.PICTURES, []).append(name)
            continue
        for kind, endings in _ENDINGS.items():
            if lower.endswith(endings):
                found.setdefault(kind, []).append(name)
    return found


def _below(folder: Path, root: Path) -> str | None:
    """Return the beginning of the names of what lies in a folder below the root; None: it does not lie there."""
    try:
        return folder.resolve().relative_to(root.resolve()).as_posix() + "/"
    except ValueError:
        return None


def _divided(names: Sequence[str], rows_per_part: int) -> list[Part]:
    n_parts = min(max(1, math.ceil(len(names) / rows_per_part)), MAX_SHARDS)
    shares: list[list[str]] = [[] for _ in range(n_parts)]
    for name in names:
        shares[shard_of(name, n_parts) - 1].append(name)
    return [Part(number, json.dumps({"names": share}), len(share)) for number, share in enumerate(shares, 1)]


def _parquet_parts(
    place: Place, names: Sequence[str], options: SourceOptions, progress: Progress | None
) -> tuple[str, list[Part]]:
    from vae_edge.archive.parquet_files import look_into

    column: str | None = options.picture_column
    parts: list[Part] = []
    for done, name in enumerate(names, 1):
        groups = look_into(place, name, column, options.id_column, choose=_chosen_column)
        if groups is None:  # One broken file of thousands gets a row with the error.
            parts.append(Part(len(parts) + 1, json.dumps({"names": [name]}), 1))
        else:
            column, sizes = groups
            for begin, end in _cuts(sizes, options.rows_per_part):
                content = {"names": [name], "groups": [begin, end], "first_row": sum(sizes[:begin])}
                parts.append(Part(len(parts) + 1, json.dumps(content), sum(sizes[begin:end])))
        if progress is not None:
            progress(done, len(names))
    if column is None:
        raise InputError(f"{place.shown}: no Parquet file can be opened; expected at least one to tell its columns")
    return column, parts


def _cuts(sizes: Sequence[int], rows_per_part: int) -> list[tuple[int, int]]:
    """Put consecutive row groups together up to the size of a part; a larger group is a part of its own."""
    cuts: list[tuple[int, int]] = []
    begin, rows = 0, 0
    for group, size in enumerate(sizes):
        if group > begin and rows + size > rows_per_part:
            cuts.append((begin, group))
            begin, rows = group, 0
        rows += size
    if rows:
        cuts.append((begin, len(sizes)))
    return cuts


def _chosen_column(candidates: Sequence[str], all_columns: Sequence[str], where: str) -> str:
    """Choose the column of pictures of a Parquet file, of those that hold bytes."""
    if not candidates:
        raise InputError(
            f"{where} has no column of pictures (its columns: {', '.join(all_columns) or 'none'}); expected bytes of "
            "picture files, or a struct with them as bytes"
        )
    usual = [name for name in _USUAL_COLUMNS if name in candidates]
    if len(candidates) > 1 and not usual:
        raise UsageError(
            f"{where} has several columns of bytes ({', '.join(candidates)}); choose: --picture-column NAME"
        )
    return usual[0] if usual else candidates[0]


def is_picture_name(name: str) -> bool:
    """Return whether the name of a file within a WebDataset file ends like a picture's."""
    return bool(re.search(r"\.[A-Za-z]+$", name)) and name[name.rfind(".") :].lower() in IMAGE_SUFFIXES
