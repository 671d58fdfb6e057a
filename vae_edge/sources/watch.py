"""A watched folder: the existing pictures, then those that arrive, each once it is complete."""

from __future__ import annotations

import logging
import math
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from vae_edge.errors import InputError, UsageError
from vae_edge.picture_files.listing import list_images
from vae_edge.sources.pictures import FileDecoder, Picture, Source

_log = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""Names kept of pictures that were judged and no longer exist: a network share may return with old ones."""


@dataclass(frozen=True)
class WatchOptions:
    """When a folder is polled, and when a file counts as complete.

    Raises:
        UsageError: a number is invalid.
    """

    poll_s: float = 0.5
    """Time between polls."""
    settle_s: float = 1.0
    """How long a file's size and time must stay the same before it is read."""
    patience_s: float = 10.0
    """How long they must stay the same before a file that cannot be decoded is given up."""
    idle_timeout_s: float | None = None
    """Watching ends when no image has arrived and none is half-written for this long; None: never."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, least in (
            ("poll", self.poll_s, 0.01),
            ("settle", self.settle_s, 0.0),
            ("patience", self.patience_s, 0.0),
            ("idle timeout", self.idle_timeout_s, 0.0),
        ):
            if value is not None and not least <= value < math.inf:
                raise UsageError(f"{name} is {value} s; expected {least:g} or more seconds")
        if self.patience_s < self.settle_s:
            raise UsageError(
                f"patience is {self.patience_s:g} s and settle {self.settle_s:g} s; expected patience of at least "
                "settle"
            )


_Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


@dataclass
class _Arrival:
    """A file that has not been judged yet."""

    name: str
    stamp: _Stamp
    since_s: float
    """When it was first seen with this stamp."""
    next_try_s: float


@dataclass
class _Folder:
    root: Path
    seen: dict[Path, _Stamp] = field(default_factory=dict)
    """Judged, and present at the last poll."""
    gone: dict[Path, _Stamp] = field(default_factory=dict)
    """Judged, and no longer present; the first to disappear comes first."""
    arriving: dict[Path, _Arrival] = field(default_factory=dict)
    lost: bool = False
    """The folder could not be read at the last poll."""
    closed: set[Path] = field(default_factory=set)
    """Sub-folders that could not be read, for which this was logged."""


class WatchedFolders(Source):
    """The images of folders, in the order of their names, and then new ones as they arrive.

    Folders are polled, which also works on network shares. Each file is given once, whatever is done
    to it afterwards; a name that was seen gone and comes back with another size or time is another file. One that is
    deleted before it is read is not given at all. Names with a leading dot are left out, and so is what lies in a
    folder with such a name.

    Args:
        folders: existing folders, which may be empty; later they may vanish and come back.
        recursive: watch the sub-folders too.
        white_level: the 16-bit value that means white.
        max_pixels: a larger picture is an error; None: see `vae_edge.image.read_image`.
        except_in: leave out what lies in this folder.
        options: the times.

    Raises:
        InputError: something is not a folder, or lies in `except_in`.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        *,
        recursive: bool = False,
        white_level: int = 65535,
        max_pixels: int | None = None,
        except_in: Path | None = None,
        options: WatchOptions | None = None,
    ) -> None:
        super().__init__()
        self._recursive = recursive
        self._white_level = white_level
        self._max_pixels = max_pixels
        self._except_in = None if except_in is None else except_in.resolve()
        self._options = WatchOptions() if options is None else options
        self._folders = [_Folder(folder) for folder in dict.fromkeys(folders)]
        for folder in self._folders:
            if not folder.root.is_dir():
                raise InputError(f"{folder.root} is not a folder; only folders can be watched")
            if self._except_in is not None and folder.root.resolve().is_relative_to(self._except_in):
                raise UsageError(f"{folder.root} cannot be watched because the results go there; choose another --out")

    @property
    def n_pictures(self) -> None:
        """Unknown."""
        return

    def __iter__(self) -> Iterator[Picture]:
        """Yield the pictures; a file that stays broken comes as an error when the patience is over."""
        idle_since_s = time.monotonic()
        with FileDecoder(self._white_level, self._max_pixels) as decoder:
            while not self._stopped.is_set():
                for folder in self._folders:
                    self._look(folder)
                    for picture in self._settled(folder, decoder):
                        yield picture
                        idle_since_s = time.monotonic()
                    if folder.arriving:
                        idle_since_s = time.monotonic()
                limit_s = self._options.idle_timeout_s
                if limit_s is not None and time.monotonic() - idle_since_s >= limit_s:
                    return
                self._stopped.wait(self._options.poll_s)

    def _settled(self, folder: _Folder, decoder: FileDecoder) -> Iterator[Picture]:
        """Read the files that are complete by now; what cannot be decoded yet is tried again later."""
        now_s = time.monotonic()
        ready = [(path, arrival) for path, arrival in folder.arriving.items() if now_s >= arrival.next_try_s]
        with decoder.pictures([(path, arrival.name) for path, arrival in ready]) as pictures:
            for (path, arrival), picture in zip(ready, pictures, strict=False):
                if self._stopped.is_set():
                    return
                stamp = _stamp(path)
                if stamp is not None and stamp != arrival.stamp:
                    continue  # It has changed after all: the waiting starts again.
                if isinstance(picture.image, InputError):
                    if stamp is None:
                        del folder.arriving[path]  # If only the folder is away for a while, it will arrive again.
                        continue
                    waited_s = now_s - arrival.since_s
                    # A named pipe or a device is not a file that is still being written.
                    if waited_s < self._options.patience_s and path.is_file():
                        # Less and less often: a disk may take the content long after it gave the file its size and
                        # time.
                        pause_s = max(waited_s, self._options.poll_s)
                        arrival.next_try_s = min(now_s + pause_s, arrival.since_s + self._options.patience_s)
                        continue
                del folder.arriving[path]
                folder.seen[path] = arrival.stamp
                yield picture

    def _look(self, folder: _Folder) -> None:
        """Update what is known about a folder."""
        try:
            found = self._files(folder)
        except (InputError, OSError) as error:
            # Nothing is forgotten meanwhile: all of it may come back.
            if not folder.lost:
                reason = getattr(error.__cause__ or error, "strerror", None) or error
                _log.warning("%s cannot be read (%s); waiting until it is available again", folder.root, reason)
            folder.lost = True
            folder.arriving.clear()
            return
        if folder.lost:
            _log.warning("%s is available again", folder.root)
            folder.lost = False
        for path in [path for path in folder.arriving if path not in found]:
            del folder.arriving[path]
        for path in [path for path in folder.seen if path not in found]:
            folder.gone[path] = folder.seen.pop(path)
        # An empty folder may be the place of a share that is not mounted.
        for path in list(folder.gone)[: max(0, len(folder.gone) - _REMEMBERED)] if found else ():
            del folder.gone[path]
        now_s = time.monotonic()
        for path in sorted(path for path in found if path not in folder.seen):
            if (stamp := _stamp(path)) is not None:
                self._note(folder, path, found[path], stamp, now_s)

    def _note(self, folder: _Folder, path: Path, name: str, stamp: _Stamp, now_s: float) -> None:
        if folder.gone.get(path) == stamp:
            folder.seen[path] = folder.gone.pop(path)
            return
        folder.gone.pop(path, None)
        known = folder.arriving.get(path)
        if known is None or known.stamp != stamp:
            folder.arriving[path] = _Arrival(name, stamp, now_s, now_s + self._options.settle_s)

    def _files(self, folder: _Folder) -> dict[Path, str]:
        """Return the images there with their short names; a sub-folder that cannot be read does not hide the others."""

        def closed(inside: Path, error: OSError) -> None:
            if isinstance(error, FileNotFoundError):
                return  # It went between two calls.
            if inside not in folder.closed:
                _log.warning("%s cannot be read (%s) and is skipped", inside, error.strerror or error)
            folder.closed.add(inside)

        listing = list_images(folder.root, recursive=self._recursive, except_in=self._except_in, on_unreadable=closed)
        prefix = folder.root.resolve().name
        images = {
            files.path / name: "-".join((prefix, *files.parts, PurePath(name).stem))
            for files in listing.folders
            if not files.again
            for name in files.images
        }
        # What is not a file gets its line with the error, too.
        return images | {path: f"{prefix}-{path.stem}" for path in listing.special}


def _stamp(path: Path) -> _Stamp | None:
    """Return None if there is none: a file that was just removed, a broken link, a folder."""
    try:
        state = path.stat()
    except OSError:
        return None
    return None if stat.S_ISDIR(state.st_mode) else (state.st_size, state.st_mtime_ns)
