"""The content of the cache of compiled models: keys, their records, the list of entries, and their removal."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from vae_edge.cache.folders import compiled_cache_folder
from vae_edge.errors import BundleError, InputError
from vae_edge.records import FileRecord, JsonLimits, Record, read_record

_log = logging.getLogger(__name__)

ADVICE = "it is compiled again"
"""What a message about a damaged record says of it."""

ENTRY_LIMITS = JsonLimits(100_000, 1000)
"""Of the JSON file of an entry."""

_LEFT_OVER_AFTER_S = 3600.0
"""A file without its JSON may still get it for this long; writing takes seconds, and starts after a build."""

_HASH_LENGTH = 32
_NAME = re.compile(rf"\.?(?P<hash>[0-9a-f]{{{_HASH_LENGTH}}})(?:-[0-9a-f]+\.bin|\.json)(?P<unfinished>\..*\.tmp)?")


@dataclass(frozen=True)
class CompiledKey:
    """All that decides what comes out of compiling; an entry is given for exactly its own key."""

    kind: str
    """`openvino`, `tensorrt` or `tensorrt-timings`; also the sub-folder."""
    model_sha256: str
    """Hash of the model's files; empty for what belongs to no one model."""
    runtime: str
    """Such as `OpenVINO 2026.4.1`."""
    device: str
    """The device's full name, such as `NVIDIA Orin (8.7)`."""
    settings: tuple[tuple[str, str], ...] = ()
    """Whatever else decides what comes out: input shapes, number of streams, precision hint, processor features."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9\-]*", self.kind):
            raise ValueError(f"the kind is {self.kind!r}; expected a plain folder name")

    @property
    def hash(self) -> str:
        """Name of this key's files: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:_HASH_LENGTH]


class EntryRecord(Record):
    """The JSON file of an entry."""

    schema_version: Literal[1] = 1
    key: CompiledKey
    content: FileRecord
    created_utc: str


@dataclass(frozen=True)
class CompiledEntry:
    """What the cache holds for one key, or files that belong to no whole entry."""

    kind: str
    key: CompiledKey | None
    """None: the JSON file is missing or cannot be read."""
    size_bytes: int
    created_utc: str | None
    last_used_utc: str
    files: tuple[Path, ...]

    @property
    def age_s(self) -> float:
        """Seconds since it was last used."""
        return time.time() - datetime.fromisoformat(self.last_used_utc).timestamp()

    @property
    def is_unfinished(self) -> bool:
        """Whether a process may be writing it at this moment."""
        has_json = any(path.suffix == ".json" for path in self.files)
        return self.key is None and not has_json and self.age_s < _LEFT_OVER_AFTER_S

    def remove(self) -> bool:
        """Remove it and return whether that worked; a process that has it open keeps it until it is closed."""
        return remove_files(self.files)


def entries() -> list[CompiledEntry]:
    """List what the cache holds, by kind, the latest used first; what cannot be read as well."""
    found: list[CompiledEntry] = []
    with suppress(OSError, InputError):  # There is none, or it is another user's, or the user has no home.
        for kind_folder in sorted(path for path in compiled_cache_folder().iterdir() if path.is_dir()):
            found.extend(_entries_in(kind_folder))
    return found


def _entries_in(folder: Path) -> list[CompiledEntry]:
    """List one kind's entries; files without a JSON file that names them are put together by their hash."""
    files: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            files.setdefault(match["hash"], []).append(path)
    found: list[CompiledEntry | None] = []
    for hash_, paths in files.items():
        rest = sorted(paths)
        record_path = folder / f"{hash_}.json"
        if record_path in rest:
            with suppress(BundleError):
                record = read_record(record_path, EntryRecord, 1, advice=ADVICE, limits=ENTRY_LIMITS)
                content_path = folder / record.content.name
                if record.key.hash == hash_ and content_path in rest:
                    found.append(_entry(folder.name, (record_path, content_path), record))
                    rest = [path for path in rest if path not in (record_path, content_path)]
        found.append(_entry(folder.name, tuple(rest), None))
    return sorted((entry for entry in found if entry), key=lambda entry: entry.last_used_utc, reverse=True)


def _entry(kind: str, files: tuple[Path, ...], record: EntryRecord | None) -> CompiledEntry | None:
    facts = [fact for fact in (stat_or_none(path) for path in files) if fact is not None]
    if not facts:
        return None  # Removed meanwhile, or nothing was left over.
    last_used = facts[0].st_mtime if record is not None else max(fact.st_mtime for fact in facts)
    return CompiledEntry(
        kind=kind,
        key=None if record is None else record.key,
        size_bytes=sum(fact.st_size for fact in facts),
        created_utc=None if record is None else record.created_utc,
        last_used_utc=datetime.fromtimestamp(last_used, timezone.utc).isoformat(timespec="milliseconds"),
        files=files,
    )


def shrink(limit: int, *, spared: Path) -> None:
    """Remove what killed processes left, then what was not used for the longest time, until the rest fits."""
    there = entries()
    left_over = [entry for entry in there if entry.key is None and not entry.is_unfinished]
    for entry in left_over:
        entry.remove()
    whole = [entry for entry in there if entry.key is not None]
    total_bytes = sum(entry.size_bytes for entry in whole)
    for entry in sorted(whole, key=lambda entry: entry.last_used_utc):
        if total_bytes <= limit:
            return
        if spared not in entry.files and entry.remove():
            _log.info("removed %s from the cache of compiled models, which is full", entry.key)
            total_bytes -= entry.size_bytes


def remove_files(files: Iterable[Path]) -> bool:
    """Remove an entry's files, the JSON file first, and return whether all were removed."""
    gone = True
    for path in sorted(files, key=lambda path: path.suffix != ".json"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # Read-only, or open in another process on Windows.
            _log.debug("%s could not be removed: %s", path, error)
            gone = False
    return gone


def stat_or_none(path: Path) -> os.stat_result | None:
    """Return what the system knows of a file; None where there is none or it may not be seen."""
    try:
        return path.stat()
    except OSError:
        return None
