"""Records in JSON files, and the files that a record vouches for: what bundles, runs and reports have in common."""

from __future__ import annotations

import json
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
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise error_kind(f"{path} cannot be read ({error}); {advice}") from error
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
