"""What runtimes make of a model on this device, kept for the next start: compiled models, engines, kernel timings.

An entry is two files below `cache_folder()`: `compiled/KIND/HASH-TOKEN.bin`, the content under a name that is never
used twice, and `HASH.json`, which names the content with its size and SHA-256 and holds every field of the key. The
JSON file gets its name last and in one rename. So a reader sees the old entry or the new one, and two processes that
fill one key at once both succeed; what a process leaves that is killed in between is cleared away by later ones.

Runtimes execute what lies here. Hence the folder is the user's alone, and an entry whose bytes are not the ones that
were written is never given out. Nothing here is an error to a caller: without the cache, work is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from vae_edge.atomic import new_file, write_text
from vae_edge.cache import cache_folder
from vae_edge.errors import BundleError, InputError
from vae_edge.records import FileRecord, Record, check_recorded_files, file_record, read_record

_log = logging.getLogger(__name__)

DEFAULT_LIMIT_MB = 2000
"""Most that the entries may take together, in megabytes of 10^6 bytes; `$VAE_EDGE_CACHE_LIMIT_MB` sets another."""

_LEFT_OVER_AFTER_S = 3600.0
"""A file without its JSON may still get it for so long; writing takes seconds, and a build is done before it begins."""

_MAY_BE_OPENED_FOR_S = 60.0
"""Content that was replaced stays for so long: whoever was told its path may still have to open it."""

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
    """Whatever else decides what comes out: batch, number of streams, precision hint."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9\-]*", self.kind):
            raise ValueError(f"the kind is {self.kind!r}; expected a plain name that a folder can have")

    @property
    def hash(self) -> str:
        """Name of this key's files: 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:_HASH_LENGTH]


class _EntryRecord(Record):
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


class Cleared(NamedTuple):
    """What was removed."""

    n_entries: int
    size_bytes: int


def compiled_cache_folder() -> Path:
    """Return the part of the cache that holds compiled models; it need not exist yet."""
    return cache_folder() / "compiled"


def find(key: CompiledKey) -> Path | None:
    """Return the content of exactly this key, or None.

    Its SHA-256 has been compared. An entry that is damaged is removed. Another process may clear the cache between
    this call and the next, so a file that is gone when it is opened is one more case of None.
    """
    record_path = _record_path(key)
    # The common answer first, and cheaply: a single call of the system.
    if record_path is None or _stat(record_path) is None or not _is_private(record_path.parent.parent):
        return None
    for _ in range(2):
        before = _stamp(record_path)
        try:
            record = read_record(record_path, _EntryRecord, 1, advice="it is made again")
            check_recorded_files(
                record_path.parent, (record.content,), said_by=record_path.name, advice="it is made again"
            )
        except (BundleError, OSError) as error:
            if _stamp(record_path) != before:
                continue  # Another process has put a new entry in its place, or removed it.
            _log.warning("an entry of the cache of compiled models is damaged and was removed: %s", error)
            _remove([record_path])
            return None
        if record.key != key:
            return None
        with suppress(OSError):
            os.utime(record_path)  # When it was last used, by which the cache is kept small.
        return record_path.parent / record.content.name
    return None


def keep(key: CompiledKey, write: Callable[[Path], object]) -> Path | None:
    """Keep something under a key, in the place of what was there.

    Args:
        key: what it is.
        write: called with the path to write it to. What it raises is passed on, but for OSError.

    Returns:
        Where it lies now; None where the cache is off, full, read-only or not private. That is logged as a warning,
        once, and is no error.
    """
    record_path = _record_path(key)
    limit_bytes = _limit_bytes()
    if record_path is None or limit_bytes == 0:
        return None
    content_path = record_path.with_name(f"{key.hash}-{secrets.token_hex(8)}.bin")
    is_kept = False
    try:
        _make_folder(record_path.parent)
        if not _is_private(record_path.parent.parent):
            return None
        with new_file(content_path) as temporary:
            write(temporary)
        content_path.chmod(0o600)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = _EntryRecord(key=key, content=file_record(content_path), created_utc=created)
        before = _content_named_by(record_path)
        write_text(record_path, record.model_dump_json(indent=2) + "\n")
        is_kept = True
    except (OSError, InputError) as error:
        if isinstance(error, InputError) and not isinstance(error.__cause__, OSError):
            raise  # Not the disk's: `write` said no.
        _warn_once(f"what is compiled for this device cannot be kept for the next start: {error}")
        return None
    finally:
        if not is_kept:
            _remove([content_path])
    if before is not None and _age_s(before) > _MAY_BE_OPENED_FOR_S:
        _remove([before])
    _shrink(limit_bytes, spared=content_path)
    return content_path


@contextmanager
def building(key: CompiledKey, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Let one thread of one process at a time make what belongs to a key; the others wait, then find it.

    Where the lock cannot be had, as on a read-only disk, the block runs without it: the work may be done twice.

    Args:
        key: what is to be made.
        on_wait: called once if somebody else is at it.
    """
    # Loaded here and not at the top: most starts find what they need.
    from filelock import FileLock, Timeout

    record_path = _record_path(key)
    lock = None
    if record_path is not None:
        lock = FileLock(record_path.with_suffix(".lock"))
        try:
            _make_folder(record_path.parent)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if on_wait is not None:
                    on_wait()
                lock.acquire(timeout=-1, poll_interval=0.1)
        except (OSError, NotImplementedError) as error:
            _log.debug("no lock for %s: %s", record_path, error)
            lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def entries() -> list[CompiledEntry]:
    """List what the cache holds, by kind, the latest used first; what cannot be read as well."""
    found: list[CompiledEntry] = []
    folder = _folder()
    if folder is None:
        return found
    with suppress(OSError):  # There is none, or it is another user's.
        for kind_folder in sorted(path for path in folder.iterdir() if path.is_dir()):
            found.extend(_entries_in(kind_folder))
    return found


def clear(kind: str | None = None, *, older_than_days: float | None = None) -> Cleared:
    """Remove entries; whoever has one open keeps it until it is closed.

    Args:
        kind: only those of this kind; None: all.
        older_than_days: only those not used for so many days; None: all.
    """
    chosen = [entry for entry in entries() if kind in (None, entry.kind) and not entry.is_unfinished]
    if older_than_days is not None:
        chosen = [entry for entry in chosen if entry.age_s > older_than_days * 86400]
    gone = [entry for entry in chosen if _remove(entry.files)]
    return Cleared(len(gone), sum(entry.size_bytes for entry in gone))


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
                record = read_record(record_path, _EntryRecord, 1, advice="it is made again")
                content_path = folder / record.content.name
                if record.key.hash == hash_ and content_path in rest:
                    found.append(_entry(folder.name, (record_path, content_path), record))
                    rest = [path for path in rest if path not in (record_path, content_path)]
        found.append(_entry(folder.name, tuple(rest), None))
    return sorted((entry for entry in found if entry), key=lambda entry: entry.last_used_utc, reverse=True)


def _entry(kind: str, files: tuple[Path, ...], record: _EntryRecord | None) -> CompiledEntry | None:
    facts = [fact for fact in (_stat(path) for path in files) if fact is not None]
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


def _content_named_by(record_path: Path) -> Path | None:
    with suppress(BundleError):
        record = read_record(record_path, _EntryRecord, 1, advice="it is made again")
        return record_path.parent / record.content.name
    return None


def _shrink(limit_bytes: int, *, spared: Path) -> None:
    """Remove what killed processes left, then what was not used for the longest time, until the rest fits."""
    there = entries()
    left_over = [entry for entry in there if entry.key is None and not entry.is_unfinished]
    for entry in left_over:
        _remove(entry.files)
    whole = [entry for entry in there if entry.key is not None]
    total_bytes = sum(entry.size_bytes for entry in whole)
    for entry in sorted(whole, key=lambda entry: entry.last_used_utc):
        if total_bytes <= limit_bytes:
            return
        if spared not in entry.files and _remove(entry.files):
            _log.info("removed %s from the cache of compiled models, which is full", entry.key)
            total_bytes -= entry.size_bytes


def _remove(files: Iterable[Path]) -> bool:
    """Remove an entry's files, the JSON file first, and tell whether all are gone."""
    gone = True
    for path in sorted(files, key=lambda path: path.suffix != ".json"):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # Read-only, or open in another process on Windows.
            _log.debug("%s could not be removed: %s", path, error)
            gone = False
    return gone


def _folder() -> Path | None:
    try:
        return compiled_cache_folder()
    except RuntimeError as error:  # A service's user may have no home.
        _warn_once(f"there is no place for a cache ({error}); set VAE_EDGE_CACHE to a folder")
        return None


def _record_path(key: CompiledKey) -> Path | None:
    folder = _folder()
    return None if folder is None else folder / key.kind / f"{key.hash}.json"


def _make_folder(kind_folder: Path) -> None:
    """Make a kind's folder and the one above it, for this user alone: what will lie there is the model."""
    kind_folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kind_folder.mkdir(exist_ok=True, mode=0o700)


def _is_private(folder: Path) -> bool:
    """Tell whether nobody but this user and root can put something here: runtimes would execute it."""
    if os.name != "posix":
        return True  # Below the user's own profile, whose rights are no mode bits.
    facts = _stat(folder)
    if facts is None:
        return False
    if facts.st_uid in (os.geteuid(), 0) and not facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return True
    _warn_once(
        f"{folder} is not used, for others can write to it and what lies there is executed; run: chmod 700 {folder}, "
        "or set VAE_EDGE_CACHE to a folder of this user"
    )
    return False


def _limit_bytes() -> int:
    text = os.environ.get("VAE_EDGE_CACHE_LIMIT_MB", "").strip()
    if not text:
        return DEFAULT_LIMIT_MB * 10**6
    if not re.fullmatch(r"\d{1,9}", text):
        _warn_once(f"VAE_EDGE_CACHE_LIMIT_MB is {text!r}; expected a whole number of megabytes, 0 to keep nothing")
        return DEFAULT_LIMIT_MB * 10**6
    return int(text) * 10**6


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _age_s(path: Path) -> float:
    facts = _stat(path)
    return 0.0 if facts is None else time.time() - facts.st_mtime


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when another file gets this name."""
    facts = _stat(path)
    return None if facts is None else (facts.st_ino, facts.st_size)


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
