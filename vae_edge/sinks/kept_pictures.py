"""Pictures that are kept for a person to look at and to label: `vae-run --keep`; `vae_edge.kept` has the layout."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.bundle import Bundle
from vae_edge.errors import InputError, UsageError, VaeEdgeError
from vae_edge.kept import FOLDERS, KEPT_FILE, UNLABELLED, kept_records
from vae_edge.manifest import Thresholds
from vae_edge.picture_files.header import HEAD_BYTES, format_of
from vae_edge.platform.atomic import LOCK_FILE, check_place, claim, new_file, remove_leftovers_in, write_text
from vae_edge.sinks.keep_rules import DRIFT, Chooser, KeepRules
from vae_edge.sinks.lines import json_line
from vae_edge.sinks.sink import FreeNames, Inspected, Sink
from vae_edge.sources.pictures import Picture

_log = logging.getLogger(__name__)

DEFAULT_QUOTA = "2GB"
N_BEFORE, N_AFTER = 8, 8
"""Pictures that `drift` keeps, up to and including the one with the alarm, and after it."""
_MOST_WAITING_BYTES = 64 << 20
"""Of frames that wait for an alarm."""
_COUNT_AGAIN_S = 60.0
"""A person may have moved or deleted pictures since."""
_AGAIN_S = 60.0
"""After a picture could not be kept, until the next one is tried."""
_ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WebP": ".webp", "BMP": ".bmp"}


@dataclass(eq=False)
class _Candidate:
    """A picture that may be kept."""

    name: str
    """Short name of the picture, for the file's."""
    file: Path | None
    """Its file; None: it came from a camera, a video or an address."""
    image: NDArray[np.uint8] | None
    """uint8 [H, W, 3] RGB, where there is no file."""
    record: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return 0 if self.image is None else self.image.nbytes


class KeptFolder(Sink):
    """Keeps the pictures that rules choose, as they came, within a quota; the oldest unlabelled ones make room.

    Args:
        folder: made if it does not exist.
        rules: which pictures.
        quota_bytes: most bytes of all files in it, with the record of pictures.
        bundle: whose verdicts come.
        thresholds: in force; None: the bundle's.

    Raises:
        UsageError: the folder cannot be written, holds something else, or another program keeps pictures there.
    """

    what = "kept pictures"
    is_by_product = True

    def __init__(
        self,
        folder: Path,
        rules: KeepRules,
        quota_bytes: int,
        bundle: Bundle,
        thresholds: Thresholds | None = None,
    ) -> None:
        self.folder = folder
        self._quota_bytes = quota_bytes
        self._chooser = Chooser(rules, thresholds or bundle.manifest.thresholds)
        self._watches_drift = DRIFT in rules.names
        self._of_bundle = {"bundle": bundle.manifest.name, "bundle_digest": bundle.manifest.digest}
        self._before: deque[_Candidate] = deque(maxlen=N_BEFORE)
        self._n_after = 0
        self._was_alarmed: bool | None = None
        self._names = FreeNames()
        self._oldest: deque[tuple[Path, int]] = deque()
        """Unlabelled pictures and their sizes, the oldest first."""
        self._used_bytes = 0
        self._counted_s = 0.0
        self._n_kept = self._n_removed = self._n_too_large = 0
        self._is_away = False
        """Whether the last picture could not be kept."""
        self._next_s = -math.inf
        self._held = ExitStack()
        self._open()

    def _open(self) -> None:
        folder = self.folder
        try:
            check_place(folder)
            if folder.is_dir() and not (folder / KEPT_FILE).exists():
                foreign = [path.name for path in folder.iterdir() if path.name not in (LOCK_FILE, *FOLDERS)]
                if foreign:
                    raise UsageError(f"{folder} holds {foreign[0]}, which is not a kept picture; choose another folder")
            with ExitStack() as stack:
                stack.enter_context(claim(folder / LOCK_FILE, f"another vae-run keeps pictures in {folder}"))
                for name in FOLDERS:
                    (folder / name).mkdir(exist_ok=True)
                    self._names.spare(folder / name)
                remove_leftovers_in(folder / UNLABELLED)
                self._shorten_record()
                self._count()
                self._make_room(0)
                self._held = stack.pop_all()
        except OSError as error:
            raise UsageError(f"{folder} cannot be written ({error.strerror}); choose another --keep-dir") from error
        except InputError as error:
            raise UsageError(str(error)) from error

    def _shorten_record(self) -> None:
        """Leave out lines of pictures that are no longer there, and what a power cut left of one."""
        path = self.folder / KEPT_FILE
        if not path.exists():
            path.touch()
            return
        there = {each.name for name in FOLDERS for each in (self.folder / name).iterdir()}
        lines = [json_line(record) + "\n" for record in kept_records(self.folder) if record["name"] in there]
        text = "".join(lines)
        if len(text.encode()) != path.stat().st_size:
            write_text(path, text)

    def write(self, inspected: Inspected) -> None:
        """Keep the picture if a rule says so; when the disk fails, say so once, and try again after `_AGAIN_S`."""
        picture, result = inspected.picture, inspected.result
        if time.monotonic() < self._next_s or isinstance(result, VaeEdgeError) or isinstance(picture.image, InputError):
            return
        rules = self._chooser.rules_for(result)
        candidate = _candidate(picture, picture.image, {**self._of_bundle, **_facts(inspected, result)})
        try:
            for each, why in self._chosen(candidate, rules, result.drift is not None and result.drift.alarm):
                n_before = self._n_kept
                self._keep(each, why)
                if self._is_away and self._n_kept > n_before:
                    _log.warning("pictures are kept in %s again", self.folder)
                    self._is_away = False
        except (OSError, VaeEdgeError, cv2.error) as error:
            self._next_s = time.monotonic() + _AGAIN_S
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            if not self._is_away:
                _log.warning(
                    "no pictures are kept in %s until that works again (%s); verdicts continue", self.folder, reason
                )
            self._is_away = True

    def _chosen(
        self, candidate: _Candidate, rules: list[str], is_alarmed: bool
    ) -> Iterator[tuple[_Candidate, list[str]]]:
        """Yield what is kept now: the picture, and at an alarm of drift those before it."""
        if not self._watches_drift:
            if rules:
                yield candidate, rules
            return
        if is_alarmed and self._was_alarmed is False:
            self._n_after = N_AFTER + 1  # With this one.
            while self._before:
                yield self._before.popleft(), [DRIFT]
        # An alarm of an earlier run has had its pictures.
        self._was_alarmed = is_alarmed
        if self._n_after:
            self._n_after -= 1
            rules = [*rules, DRIFT]
        if rules:
            yield candidate, rules
        elif not is_alarmed:
            self._before.append(candidate)
            while sum(each.size_bytes for each in self._before) > _MOST_WAITING_BYTES:
                self._before.popleft()

    def _keep(self, candidate: _Candidate, rules: list[str]) -> None:
        content, ending = _content(candidate)
        if content is None:
            return  # The file is gone: nobody can look at it any more.
        seen = datetime.fromisoformat(candidate.record["time_utc"])
        stem = self._names.take(f"{seen:%Y%m%dT%H%M%S}{seen.microsecond // 1000:03}-{candidate.name}")
        path = self.folder / UNLABELLED / f"{stem}{ending}"
        line = (json_line({"name": path.name, **candidate.record, "rules": rules}) + "\n").encode(
            "utf-8", "backslashreplace"
        )
        try:
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
        except OSError:
            return  # It was taken away since.
        if not self._make_room(size + len(line)):
            self._n_too_large += 1
            return
        try:
            with new_file(path, is_flushed=False) as temporary:
                if isinstance(content, bytes):
                    temporary.write_bytes(content)
                else:
                    shutil.copyfile(content, temporary)
                size = temporary.stat().st_size
        except InputError:
            if isinstance(content, Path) and not content.exists():
                return  # It was taken away while it was copied.
            raise
        try:
            _append(self.folder / KEPT_FILE, line)
        except OSError:
            with suppress(OSError):
                path.unlink()  # A picture without its line would never be deleted, nor say what it is.
            raise
        self._oldest.append((path, size))
        self._used_bytes += size + len(line)
        self._n_kept += 1

    def _make_room(self, n_bytes: int) -> bool:
        """Delete the oldest unlabelled pictures until so many more bytes are within the quota; False: they cannot be.

        Raises:
            InputError: labelled pictures alone fill the quota.
        """
        if time.monotonic() - self._counted_s > _COUNT_AGAIN_S:
            self._count()
        if n_bytes > self._quota_bytes // 2:
            return False  # One picture must not take the place of all others.
        while self._used_bytes + n_bytes > self._quota_bytes:
            if not self._oldest:
                self._shorten_record()
                self._count()
                if self._used_bytes + n_bytes <= self._quota_bytes:
                    break
                if not self._oldest:
                    raise InputError(
                        f"labelled pictures take {self._used_bytes / 1e6:.0f} MB of the quota of "
                        f"{self._quota_bytes / 1e6:.0f} MB; move them away or choose a larger --keep-quota"
                    )
            path, size = self._oldest.popleft()
            try:
                path.unlink()
                self._n_removed += 1
            except FileNotFoundError:
                if any((self.folder / label / path.name).exists() for label in FOLDERS):
                    continue  # A person labelled it: it stays, and counts.
            self._used_bytes -= size
        return True

    def _count(self) -> None:
        """Count the bytes of all files, and list the unlabelled pictures by age."""
        found: list[tuple[int, Path, int]] = []
        used = 0
        for place in (self.folder, *(self.folder / name for name in FOLDERS)):
            with os.scandir(place) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        if not entry.is_file(follow_symlinks=False):
                            continue
                        facts = entry.stat(follow_symlinks=False)
                        used += facts.st_size
                        if place.name == UNLABELLED and place != self.folder:
                            found.append((facts.st_mtime_ns, Path(entry.path), facts.st_size))
        self._oldest = deque((path, size) for _, path, size in sorted(found))
        self._used_bytes = used
        self._counted_s = time.monotonic()

    def summary(self) -> list[tuple[str, str]]:
        """Return how many were kept, deleted again and left out."""
        removed = f", {self._n_removed} older ones deleted for the quota" if self._n_removed else ""
        large = f", {self._n_too_large} larger than half the quota left out" if self._n_too_large else ""
        return [("kept", f"{self._n_kept} in {self.folder / UNLABELLED}{removed}{large}")]

    def close(self) -> None:
        """Let other programs keep pictures there."""
        self._held.close()


def _candidate(picture: Picture, image: NDArray[np.uint8], record: dict[str, Any]) -> _Candidate:
    file = Path(picture.source) if picture.frame is None and picture.time_s is None else None
    try:
        is_file = file is not None and file.is_file()
    except OSError:
        is_file = False
    return _Candidate(picture.name, file if is_file else None, None if is_file else image, record)


def _facts(inspected: Inspected, result: Any) -> dict[str, Any]:
    """Return what is recorded of a picture: nothing that tells where it lay or which camera it came from."""
    picture = inspected.picture
    is_address = "://" in picture.source or picture.frame is not None or picture.time_s is not None
    return {
        "source": picture.name if is_address else Path(picture.source).name,
        **({} if picture.frame is None else {"frame": picture.frame}),
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "verdict": result.verdict,
        "is_anomalous": result.is_anomalous,
        "score": result.score,
        "p_value": result.p_value,
        "threshold": result.threshold,
    }


def _content(candidate: _Candidate) -> tuple[bytes | Path | None, str]:
    """Return a picture's file, or a frame as PNG, which loses nothing; and the ending that it gets. None: it is gone.

    Raises:
        InputError: the frame cannot be encoded.
    """
    if candidate.file is not None:
        try:
            with candidate.file.open("rb") as file:
                kind = format_of(file.read(HEAD_BYTES))
        except OSError:
            return None, ""
        return candidate.file, _ENDINGS.get(kind or "", candidate.file.suffix.lower())
    assert candidate.image is not None
    done, data = cv2.imencode(
        ".png", cv2.cvtColor(candidate.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]
    )
    if not done:
        raise InputError(f"the frame {candidate.name} could not be encoded as PNG")
    return data.tobytes(), ".png"


def _append(path: Path, line: bytes) -> None:
    """Append a line, or nothing of it: half a line would spoil the next one, too.

    Raises:
        OSError: the disk is full.
    """
    with path.open("ab", buffering=0) as file:
        begin = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with suppress(OSError):
                file.truncate(begin)
            raise
