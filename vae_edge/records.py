"""Records in JSON files, and the files that a record vouches for: what bundles, runs and reports have in common.

Such files come from anywhere. So what kind of file it is and how large is known before a byte is read, how many values
it holds before they are made, and what JSON leaves open, such as a key that is there twice, is refused.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vae_edge.errors import BundleError, InputError, UsageError, VaeEdgeError
from vae_edge.platform.atomic import sha256_file, sha256_of

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$")]
"""A plain file name: a record cannot point outside its own folder."""


class Record(BaseModel):
    """Base of every record: unknown keys and later changes are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileRecord(Record):
    """One file that lies beside the record."""

    name: FileName
    size_bytes: int = Field(ge=0)
    sha256: Sha256


_MAX_DIGITS = 20
"""Digits of an integer: as many as 64 bits need."""
_MAX_NAMED = 300
"""Characters of a file's own words in a message."""

_Kind = TypeVar("_Kind", bound=BaseModel)


class JsonLimits(NamedTuple):
    """How much a JSON file may hold; what is larger is refused before it is parsed."""

    size_bytes: int
    n_values: int
    """Numbers, texts, lists and objects together; also the separators within texts are counted."""


RECORD_LIMITS = JsonLimits(256_000_000, 20_000_000)
"""Of what a user's own work leaves: runs and reports, which grow with the number of images."""


def read_record(
    path: Path,
    kind: type[_Kind],
    newest_schema: int,
    *,
    advice: str,
    limits: JsonLimits = RECORD_LIMITS,
) -> _Kind:
    """Read a record from a JSON file.

    Args:
        path: the file.
        kind: what it should hold.
        newest_schema: the latest `schema_version` that this version of the package knows.
        advice: what to do about a damaged file, for the message.
        limits: how much the file may hold.

    Raises:
        BundleError: the file cannot be read, is damaged, or was written by a newer version.
    """
    try:
        with open_regular(path) as file:
            content = parse_json(read_bounded(file, limits.size_bytes), limits)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); {advice}") from error
    return parse_record(content, path, kind, newest_schema, advice=advice)


@contextmanager
def open_regular(path: Path, *, links: bool = True) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Whatever else has the name is refused, and nothing is waited for.

    Args:
        path: the file.
        links: whether the name may be a symbolic link.

    Raises:
        OSError: there is none, it may not be read, or it is something else: a FIFO, a device, a folder, a link.
    """
    _refuse_special(path.stat() if links else path.lstat())
    # It may be another file by now: opening a FIFO would wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    if not links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        _refuse_special(os.fstat(file.fileno()))
        yield file


_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _refuse_special(facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "special file")
        raise OSError(errno.EINVAL, f"it is a {kind}; expected a regular file")


def read_bounded(file: BinaryIO, most_bytes: int) -> bytes:
    """Return the rest of a file.

    Raises:
        ValueError: it is larger than that.
    """
    content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return content


def check_n_values(data: bytes, most: int) -> None:
    """Refuse JSON with more values, by counting separators; those within texts are counted too.

    Raises:
        ValueError: with the number.
    """
    n_values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if n_values > most:
        raise ValueError(f"it has about {n_values} values; expected at most {most}")


def parse_json(data: bytes, limits: JsonLimits) -> Any:
    """Parse JSON strictly: in UTF-8, every key once in its object, every number finite and of sane length.

    Raises:
        ValueError: it is not such JSON, is nested too deeply, or holds more than it may.
    """
    if len(data) > limits.size_bytes:
        raise ValueError(f"it has {len(data)} bytes; expected at most {limits.size_bytes}")
    if data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it begins with a byte order mark; expected UTF-8 without one")
    # A value of three bytes takes up to a hundred once it is parsed.
    check_n_values(data, limits.n_values)
    text = data.decode()
    try:
        content = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_float=_finite,
            parse_int=_short_integer,
            parse_constant=_no_constant,
        )
        if re.search(r"\\u[dD][89a-fA-F]", text):
            # Half of a pair of surrogates is what JSON can spell and nothing can print or hash.
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("its lists or objects are nested too deeply") from None
    return content


def parse_record(
    content: Any,
    path: Path,
    kind: type[_Kind],
    newest_schema: int,
    *,
    advice: str,
    error_kind: type[VaeEdgeError] = BundleError,
) -> _Kind:
    """Make a record of the content of a JSON file; the arguments and errors are those of `read_record`."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > newest_schema:
        raise error_kind(
            f"{path} has schema {version}, this vae-edge reads up to {newest_schema}; "
            "run: pip install --upgrade vae-edge"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:_MAX_NAMED] or path.stem
        raise error_kind(f"{path} is damaged: {place}: {problem_of(dict(first))[:_MAX_NAMED]}; {advice}") from error


def problem_of(found: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, in the words of JSON.

    Args:
        found: one of a `ValidationError`'s errors.
    """
    other = {"model_type": "object", "tuple_type": "list", "dict_type": "object"}.get(found["type"])
    return str(found["msg"]).removeprefix("Value error, ") if other is None else f"Input should be a valid {other}"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The last of several would win here and the first elsewhere.
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice[:50]!r} occurs twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _short_integer(text: str) -> int:
    # Python takes a time that grows with the square of the length.
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a whole number has {len(text)} digits; expected at most {_MAX_DIGITS}")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def make_record(kind: type[_Kind], values: Mapping[str, Any]) -> _Kind:
    """Make a record from what a user gave.

    Raises:
        InputError: a value is out of range; with its name and the value. Where values do not fit together, it is the
            record's own sentence.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        own = first.get("ctx", {}).get("error")
        if isinstance(own, UsageError):
            raise UsageError(str(own)) from error
        place = ".".join(map(str, first["loc"])) or kind.__name__
        raise UsageError(f"{place} is {first['input']!r}: {first['msg'].lower()}") from error


def recorded_names(folder: Path, record_name: str) -> set[str]:
    """Return the names of the files that a folder's record lists, and the record's own; none if it is not a record."""
    try:
        with open_regular(folder / record_name) as file:
            content = parse_json(read_bounded(file, RECORD_LIMITS.size_bytes), RECORD_LIMITS)
        return {record_name, *(str(each["name"]) for each in content["files"])}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def with_texts(record: _Kind, change: Callable[[str], str]) -> _Kind:
    """Return a record with every text in it changed, names of dictionaries too, as before it is shown somewhere."""

    def changed(value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value.model_copy(update={name: changed(getattr(value, name)) for name in type(value).model_fields})
        if isinstance(value, dict):
            return {changed(key): changed(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(map(changed, value))
        return change(value) if type(value) is str else value

    copied: _Kind = changed(record)
    return copied


def check_recordable(path: Path) -> None:
    """Refuse a path that no record can hold: JSON is Unicode, and a file name may be any bytes.

    Raises:
        InputError: the name is not UTF-8, or the locale is not one of UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the name {str(path)!a} is not UTF-8; rename the file, or set PYTHONUTF8=1 if it looks right elsewhere"
        ) from None


def file_record(path: Path) -> FileRecord:
    """Describe a file."""
    return FileRecord(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path))


def check_recorded_files(
    folder: Path, records: tuple[FileRecord, ...], *, said_by: str, advice: str, links: bool = True
) -> None:
    """Compare files with what a record says of them.

    Args:
        folder: where they lie.
        records: what they should be.
        said_by: what to call the record, such as `the manifest`.
        advice: what to do about another file, for the message.
        links: whether they may be symbolic links.

    Raises:
        BundleError: a file is missing or was changed, or is not a regular file.
    """
    for record in records:
        path = folder / record.name
        try:
            with open_regular(path, links=links) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                sha256 = sha256_of(file) if size_bytes == record.size_bytes else None
        except FileNotFoundError:
            raise BundleError(f"{path} is missing; {advice}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror or error}); {advice}") from error
        if sha256 is None:
            raise BundleError(
                f"{path} was changed: it has {size_bytes} bytes, but {said_by} lists {record.size_bytes}; {advice}"
            )
        if sha256 != record.sha256:
            raise BundleError(f"{path} was changed: {said_by} lists another SHA-256; {advice}")
