"""Records in JSON files, and the files that a record vouches for: what bundles, runs and reports have in common."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vae_edge.atomic import sha256_file
from vae_edge.errors import BundleError, InputError, UsageError, VaeEdgeError

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
"""Of a whole number: as many as one of 64 bits has."""

_Kind = TypeVar("_Kind", bound=BaseModel)


def read_record(
    path: Path, kind: type[_Kind], newest_schema: int, *, advice: str, error_kind: type[VaeEdgeError] = BundleError
) -> _Kind:
    """Read a record from a JSON file.

    Args:
        path: the file.
        kind: what it should hold.
        newest_schema: the latest `schema_version` that this version of the package knows.
        advice: what to do about a damaged file, for the message.
        error_kind: the error to raise.

    Raises:
        VaeEdgeError: of that kind: the file cannot be read, is damaged, or was written by a newer version.
    """
    content = read_json(path, advice=advice, error_kind=error_kind)
    return parse_record(content, path, kind, newest_schema, advice=advice, error_kind=error_kind)


def read_json(path: Path, *, advice: str, error_kind: type[VaeEdgeError] = BundleError) -> Any:
    """Read a JSON file strictly: in UTF-8, every key once in its object, every number finite and of sane length.

    Raises:
        VaeEdgeError: of the kind `error_kind`: it cannot be read or is no such JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
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
        return content
    except (OSError, ValueError, RecursionError) as error:
        raise error_kind(f"{path} cannot be read ({error}); {advice}") from error


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
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or path.stem
        raise error_kind(f"{path} is damaged: {place}: {first['msg']}; {advice}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The last of several would win here and the first elsewhere.
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key {twice[:50]!r} is there twice")
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
    raise ValueError(f"{text} is no number")


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


def check_recordable(path: Path) -> None:
    """Refuse a path that no record can hold: JSON is Unicode, and a file name may be any bytes.

    Raises:
        InputError: the name is no UTF-8, or the locale is not one of UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"the name {str(path)!a} is no UTF-8; rename the file, or set PYTHONUTF8=1 if it looks right elsewhere"
        ) from None


def file_record(path: Path) -> FileRecord:
    """Describe a file."""
    return FileRecord(name=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path))


def check_recorded_files(folder: Path, records: tuple[FileRecord, ...], *, said_by: str, advice: str) -> None:
    """Compare files with what a record says of them.

    Args:
        folder: where they lie.
        records: what they should be.
        said_by: what to call the record, such as `the manifest`.
        advice: what to do about another file, for the message.

    Raises:
        BundleError: a file is missing or was changed.
    """
    for record in records:
        path = folder / record.name
        if not path.is_file():
            raise BundleError(f"{path} is missing; {advice}")
        size_bytes = path.stat().st_size
        if size_bytes != record.size_bytes:
            raise BundleError(
                f"{path} was changed: it has {size_bytes} bytes, {said_by} says {record.size_bytes}; {advice}"
            )
        if sha256_file(path) != record.sha256:
            raise BundleError(f"{path} was changed: {said_by} has another SHA-256; {advice}")
