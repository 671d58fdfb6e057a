"""The cache of what runtimes compile on this device: compiled models, engines, kernel timings.

An entry is two files below `cache_folder()`: `compiled/KIND/HASH-TOKEN.bin`, the content under a name that is never
used twice, and `HASH.json`, which names the content with its size and SHA-256 and holds every field of the key. The
JSON file gets its name last and in one rename. So a reader sees the old entry or the new one, and two processes that
fill one key at once both succeed; what a process leaves that is killed in between is cleared away by later ones.

Runtimes execute what lies here. So only this user and root may be able to write to the folder or to
replace it, and an entry whose bytes changed is never returned. Nothing here is an error for a caller: without the
cache, work is done again.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

from vae_edge.cache.entries import (
    ADVICE,
    ENTRY_LIMITS,
    CompiledEntry,
    CompiledKey,
    EntryRecord,
    entries,
    remove_files,
    shrink,
    stat_or_none,
)
from vae_edge.cache.folders import compiled_cache_folder
from vae_edge.errors import BundleError, InputError
from vae_edge.platform.atomic import new_file, write_text
from vae_edge.platform.file_system import LockFile
from vae_edge.records import check_recorded_files, file_record, read_record

__all__ = [
    "DEFAULT_LIMIT_MB",
    "CompiledEntry",
    "CompiledKey",
    "building",
    "entries",
    "find",
    "keep",
    "limit_bytes",
]

_log = logging.getLogger(__name__)

DEFAULT_LIMIT_MB = 2000
"""Maximum total size of the entries, in megabytes of 10^6 bytes; `$VAE_EDGE_CACHE_LIMIT_MB` sets another."""

_MAX_LINKS = 40
"""On the way to the folder, as Linux allows."""

_MAY_BE_OPENED_FOR_S = 60.0
"""Content that was replaced stays for this long: a process that got its path may still have to open it."""


def limit_bytes() -> int:
    """Return the maximum total size of the entries; 0: nothing is kept."""
    text = os.environ.get("VAE_EDGE_CACHE_LIMIT_MB", "").strip()
    if not text:
        return DEFAULT_LIMIT_MB * 10**6
    if not re.fullmatch(r"\d{1,9}", text):
        _warn_once(f"VAE_EDGE_CACHE_LIMIT_MB is {text!r}; expected a whole number of megabytes, 0 to keep nothing")
        return DEFAULT_LIMIT_MB * 10**6
    return int(text) * 10**6


def find(key: CompiledKey) -> Path | None:
    """Return the content of exactly this key, or None.

    Its SHA-256 has been compared. An entry that is damaged is removed. Another process may clear the cache between
    this call and the next, so a file that no longer exists when it is opened is one more case of None.
    """
    record_path = _record_path(key)
    # The common case first, and cheaply: one system call.
    if record_path is None or stat_or_none(record_path) is None or not _is_private(record_path.parent):
        return None
    for _ in range(2):
        before = _stamp(record_path)
        try:
            record = read_record(record_path, EntryRecord, 1, advice=ADVICE, limits=ENTRY_LIMITS)
            check_recorded_files(record_path.parent, (record.content,), said_by=record_path.name, advice=ADVICE)
        except (BundleError, OSError) as error:
            if _stamp(record_path) != before:
                continue  # Another process has put a new entry in its place, or removed it.
            _log.warning("an entry in the cache of compiled models is damaged and ignored: %s", error)
            remove_files([record_path])
            return None
        if record.key != key:
            return None
        with suppress(OSError):
            os.utime(record_path)  # When it was last used, by which the cache is kept small.
        return record_path.parent / record.content.name
    return None


def keep(key: CompiledKey, write: Callable[[Path], object]) -> Path | None:
    """Keep something under a key; an older entry is replaced.

    Args:
        key: what it is.
        write: called with the path to write it to. What it raises is passed on, except OSError.

    Returns:
        Where it lies now; None where the cache is off, full, read-only or not private. That is logged as a warning,
        once, and is not an error.
    """
    record_path = _record_path(key)
    limit = limit_bytes()
    if record_path is None or limit == 0:
        return None
    content_path = record_path.with_name(f"{key.hash}-{secrets.token_hex(8)}.bin")
    is_kept = False
    try:
        _make_folder(record_path.parent)
        if not _is_private(record_path.parent):
            return None
        with new_file(content_path) as temporary:
            write(temporary)
        content_path.chmod(0o600)
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = EntryRecord(key=key, content=file_record(content_path), created_utc=created)
        before = _content_named_by(record_path)
        write_text(record_path, record.model_dump_json(indent=2) + "\n")
        is_kept = True
    except (OSError, InputError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise  # Not the disk's: it came from `write`.
        _warn_once(
            f"the compiled model cannot be cached: {record_path.parent} could not be written "
            f"({reason.strerror or reason}); make room there, or set VAE_EDGE_CACHE to another folder"
        )
        return None
    finally:
        if not is_kept:
            remove_files([content_path])
    if before is not None and _age_s(before) > _MAY_BE_OPENED_FOR_S:
        remove_files([before])
    shrink(limit, spared=content_path)
    return content_path


@contextmanager
def building(key: CompiledKey, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Let one thread of one process at a time make what belongs to a key; the others wait, then find it.

    Where the lock cannot be had, as on a read-only disk or one without locks, the block runs without it: the work may
    be done twice.

    Args:
        key: what is to be made.
        on_wait: called once if another process is doing it.
    """
    record_path = _record_path(key)
    held = None
    if record_path is not None:
        file = LockFile(record_path.with_suffix(".lock"), or_by_name=False)
        try:
            _make_folder(record_path.parent)
            if not _is_private(record_path.parent):
                raise PermissionError(errno.EPERM, "other users could replace the lock by a link")
            while not file.acquire():
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                time.sleep(0.1)
            held = file
        except OSError as error:
            _log.debug("no lock for %s: %s", record_path, error)
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _content_named_by(record_path: Path) -> Path | None:
    with suppress(BundleError):
        record = read_record(record_path, EntryRecord, 1, advice=ADVICE, limits=ENTRY_LIMITS)
        return record_path.parent / record.content.name
    return None


def _folder() -> Path | None:
    try:
        return compiled_cache_folder()
    except (InputError, OSError) as error:  # A service's user may have no home, and the current folder may be gone.
        _warn_once(f"the compiled model cannot be cached: {error}")
        return None


def _record_path(key: CompiledKey) -> Path | None:
    folder = _folder()
    return None if folder is None else folder / key.kind / f"{key.hash}.json"


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it that are missing, for this user alone: what will lie there is the model."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)


def _is_private(folder: Path) -> bool:
    """Return whether only this user and root can write here: runtimes execute the content."""
    if os.name != "posix":
        return True  # Below the user's own profile, whose rights are not mode bits.
    try:
        untrusted = _untrusted_on_the_way_to(folder)
    except OSError as error:
        _log.debug("%s is ignored: %s", folder, error)
        return False
    if untrusted is None:
        return True
    _warn_once(
        f"{folder} is not used because {untrusted} belongs to another user or others can write to it, and compiled "
        f"models are executed; run: chmod go-w {untrusted}, or set VAE_EDGE_CACHE to a folder of this user"
    )
    return False


def _untrusted_on_the_way_to(folder: Path) -> Path | None:
    """Return the first folder or link, from the root on, that others could replace or put something into; None: none.

    Whoever can write to a folder can rename what lies in it, unless it is sticky, as `/tmp` is: there only the owner of
    a file can. So each has to be this user's or root's, and writable for them alone or sticky. Links are followed one
    by one, and the folders that they lie in and lead through are examined as well.

    Raises:
        OSError: one of them does not exist or may not be examined, or links lead in a circle.
    """
    here = Path("/")
    parts = [*folder.absolute().parts[::-1]]
    n_links = 0
    while parts:
        part = parts.pop()
        here = here.parent if part == ".." else here / part
        facts = here.lstat()
        if facts.st_uid not in (os.geteuid(), 0):
            return here
        if stat.S_ISLNK(facts.st_mode):
            n_links += 1
            if n_links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            parts.extend(here.readlink().parts[::-1])
            here = here.parent
        elif _others_can_write(facts) and not facts.st_mode & stat.S_ISVTX:
            return here
    # A sticky folder keeps what lies in it, and lets others add to it.
    return here if _others_can_write(here.lstat()) else None


def _others_can_write(facts: os.stat_result) -> bool:
    if facts.st_mode & stat.S_IWOTH:
        return True
    return bool(facts.st_mode & stat.S_IWGRP) and not _is_own_group(facts.st_gid)


def _is_own_group(gid: int) -> bool:
    """Return whether a group is the one of this user's own name that many systems give each user, and has no others."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid != 0 and gid == user.pw_gid and group.gr_name == user.pw_name and not group.gr_mem


def _age_s(path: Path) -> float:
    facts = stat_or_none(path)
    return 0.0 if facts is None else time.time() - facts.st_mtime


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what changes when another file gets this name."""
    facts = stat_or_none(path)
    return None if facts is None else (facts.st_ino, facts.st_size)


@cache
def _warn_once(message: str) -> None:
    _log.warning("%s", message)
