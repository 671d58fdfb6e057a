"""Which files of a folder are its pictures: the one rule that training, running, verifying and benchmarks share.

- What ends like a picture is one (`is_image_file`); other files are counted.
- Names that begin with a dot are hidden: never taken.
- Leftovers are never taken: folders that a system, a file server or this program left (`LEFTOVER_NAMES`), and folders
  that are a run, a bundle, a benchmark report or the results of `vae-run` by the files in them.
- Links are followed, to files and to folders, inside the folder and out of it. Each folder is listed once at its own
  place and at most once through a link; a link to a folder that it lies in does not loop.
- A broken link is left out and named.
- A folder that cannot be read is an error: its content is unknown.

What is hidden or left over is not looked into, so it may be unreadable.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from vae_edge.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Endings of the files that are taken for images, in lower case."""

LEFTOVER_NAMES = frozenset(
    {
        *("results", "overlays", "annotated", "predictions"),  # of this program and others like it
        *("@eadir", "#recycle", "@recycle", "#snapshot", "@tmp", "lost+found"),  # file servers and file systems
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "thumbs", "thumbnails"),
        *("__macosx", "__pycache__", "network trash folder", "temporary items"),
    }
)
"""Names of folders, in lower case, that no program looks for pictures in. Hidden ones are left out anyway."""

_MARKERS = (
    frozenset({"training.json", "split.json"}),
    frozenset({"model.json", "model.safetensors"}),
    frozenset({"model_api.json", "model.xml"}),
    frozenset({"report.json", "report.html"}),
    frozenset({"report.json", "report.md"}),
)
"""Files that make a folder a run, a Model API folder or a benchmark report; see `_is_output` for the others."""

_MOST_NAMED = 3
"""Links or hidden files that a remark names."""

_LEADS_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def is_image_file(path: Path) -> bool:
    """Return whether the name ends like an image file."""
    return path.suffix.lower() in IMAGE_SUFFIXES


@dataclass(frozen=True)
class FolderFiles:
    """The files of one folder, not of those below it."""

    path: Path
    """As it was reached from the root."""
    parts: tuple[str, ...]
    """Its path from the root; empty for the root itself."""
    identity: tuple[int, int]
    """Device and inode: equal for a folder that is reached on two ways."""
    images: tuple[str, ...]
    """Names of the image files, sorted."""
    linked: frozenset[str] = frozenset()
    """Those of the images that are links."""
    n_other: int = 0
    """Files that do not end like an image."""
    n_hidden: int = 0
    """Hidden files that end like an image."""
    again: bool = False
    """It was reached by a link and is listed at its own place as well."""
    reached_by: Path | None = None
    """The link to a folder through which it was reached."""


@dataclass
class Listing:
    """What a folder and those below it hold."""

    root: Path
    folders: list[FolderFiles] = field(default_factory=list)
    """Sorted by their parts; also those without images."""
    leftovers: list[Path] = field(default_factory=list)
    """Folders that were not looked into, sorted."""
    dangling: list[Path] = field(default_factory=list)
    """Broken links, sorted."""
    special: list[Path] = field(default_factory=list)
    """What ends like an image and is not a file: pipes, devices, sockets; sorted."""

    @property
    def n_other(self) -> int:
        """Number of files that do not end like an image."""
        return sum(folder.n_other for folder in self.folders if not folder.again)

    def images(self) -> list[Path]:
        """Return every image once, folder by folder."""
        return [folder.path / name for folder in self.folders if not folder.again for name in folder.images]

    def remarks(self) -> list[str]:
        """Return what was left out, a sentence for each kind that there is."""
        hidden = sum(folder.n_hidden for folder in self.folders if not folder.again)
        found = (
            (self.dangling, "broken links, skipped"),
            (self.leftovers, "left-over or hidden folders, skipped"),
        )
        sentences = [
            f"{what}: {len(paths)} ({', '.join(self._below(path) for path in paths[:_MOST_NAMED])}"
            f"{', ...' if len(paths) > _MOST_NAMED else ''})"
            for paths, what in found
            if paths
        ]
        return [*sentences, *([f"hidden image files, skipped: {hidden}"] if hidden else [])]

    def _below(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class _Place:
    path: Path
    parts: tuple[str, ...]
    above: tuple[tuple[int, int], ...]
    """Identities of the folders that it was reached through."""
    reached_by: Path | None


def list_images(
    root: Path,
    *,
    recursive: bool = True,
    except_in: Path | None = None,
    on_unreadable: Callable[[Path, OSError], None] | None = None,
) -> Listing:
    """List the image files of a folder by the rule of this module. No file is opened, and only links are looked up.

    Args:
        root: an existing folder. Its own name does not matter: what is named itself is taken.
        recursive: look into the folders below it too.
        except_in: leave out this folder and what lies in it, such as the results of the run that asks.
        on_unreadable: called with a folder below `root` that cannot be read, which is then left out; None: it is an
            error.

    Raises:
        InputError: a folder, or what a link leads to, cannot be read; it comes from the OSError.
    """
    listing = Listing(root)
    if except_in is not None and root.resolve().is_relative_to(except_in.resolve()):
        return listing
    excluded = None if except_in is None else _identity_or_none(except_in)
    real: set[tuple[int, int]] = set()
    through_links: set[tuple[int, int]] = set()
    places, links = [_Place(root, (), (), None)], list[_Place]()
    while places or links:
        # First all folders at their own places: only then is it known which of them a link leads to a second time.
        place = places.pop() if places else links.pop(0)
        seen = real if place.reached_by is None else through_links
        try:
            identity = _identity(place.path)
            if identity == excluded or identity in place.above or identity in seen:
                continue
            seen.add(identity)
            found = _scan(place, identity, listing, looks_below=recursive)
        except OSError as error:
            if on_unreadable is None or not place.parts:
                raise cannot_read(Path(error.filename or place.path), error) from error
            on_unreadable(place.path, error)
            continue
        if found is None:
            continue
        folder, below, linked = found
        listing.folders.append(replace(folder, again=True) if seen is through_links and identity in real else folder)
        if recursive:
            places += below
            links += linked
    listing.folders.sort(key=lambda folder: folder.parts)
    for paths in (listing.leftovers, listing.dangling, listing.special):
        paths.sort()
    return listing


def count_images(folder: Path) -> int | None:
    """Count the image files in and below a folder that is left out; None where it cannot be read. Follows no link."""
    unreadable: list[OSError] = []
    n = sum(_is_image(file) for _, _, files in os.walk(folder, onerror=unreadable.append) for file in files)
    return None if unreadable and not n else n


def is_left_out(name: str) -> bool:
    """Return whether a folder of this name is hidden or a leftover."""
    return name.startswith(".") or name.casefold() in LEFTOVER_NAMES


def cannot_read(path: Path, error: OSError) -> InputError:
    """Return the error for a folder, or what a link leads to, that cannot be read."""
    return InputError(
        f"{path} could not be read ({error.strerror or error}), so its images are unknown; change its permissions, "
        "or move it away"
    )


def _scan(
    place: _Place, identity: tuple[int, int], listing: Listing, *, looks_below: bool
) -> tuple[FolderFiles, list[_Place], list[_Place]] | None:
    """Read one folder; return it, the folders in it and the links to folders in it. None: it is a leftover."""
    images: list[str] = []
    linked: set[str] = set()
    folders: list[str] = []
    folder_links: list[str] = []
    others: set[str] = set()
    n_hidden = 0
    leftovers: list[Path] = []
    dangling: list[Path] = []
    special: list[Path] = []
    with os.scandir(place.path) as entries:
        for entry in entries:
            name = entry.name
            kind = _kind(entry)
            if kind == "folder" or kind == "link to a folder":
                if is_left_out(name):
                    leftovers.append(Path(entry.path))
                else:
                    (folders if kind == "folder" else folder_links).append(name)
            elif name.startswith("."):
                n_hidden += _is_image(name)
            elif kind == "dangling":
                dangling.append(Path(entry.path))
            elif not _is_image(name):
                others.add(name)
            elif kind == "special":
                special.append(Path(entry.path))
            else:
                images.append(name)
                if kind == "link":
                    linked.add(name)
    if place.parts and _is_output(others, has_images=bool(images)):
        listing.leftovers.append(place.path)
        return None
    listing.leftovers += leftovers if looks_below else []
    listing.dangling += dangling
    listing.special += special
    folder = FolderFiles(
        place.path,
        place.parts,
        identity,
        tuple(sorted(images)),
        frozenset(linked),
        len(others),
        n_hidden,
        reached_by=place.reached_by,
    )
    above = (*place.above, identity)

    def places(names: list[str], *, links: bool) -> list[_Place]:
        return [
            _Place(path := place.path / name, (*place.parts, name), above, path if links else place.reached_by)
            for name in sorted(names)
        ]

    return folder, places(folders, links=False), places(folder_links, links=True)


def _is_image(name: str) -> bool:
    """Do the same as `is_image_file`, without making a path of each of a hundred thousand names."""
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


_Kind = Literal["file", "folder", "special", "link", "link to a folder", "dangling"]


def _kind(entry: os.DirEntry[str]) -> _Kind:
    if not entry.is_symlink():
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "file" if entry.is_file(follow_symlinks=False) else "special"
    try:
        mode = Path(entry.path).stat().st_mode
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return "dangling"
        raise
    if stat.S_ISDIR(mode):
        return "link to a folder"
    return "link" if stat.S_ISREG(mode) else "special"


def _is_output(others: set[str], *, has_images: bool) -> bool:
    """Tell by the files in a folder whether this program wrote it."""
    if any(marker <= others for marker in _MARKERS):
        return True
    if "manifest.json" in others and any(name.startswith(("model.", "program.")) for name in others):
        return True  # A bundle.
    # Results of vae-run may also be written into a folder of pictures, which stays one.
    return not has_images and bool(others & {"predictions.jsonl", "predictions.csv"})


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    if not state.st_ino:
        # Some network drives on Windows number nothing: then the path tells folders apart.
        return -1, hash(os.path.normcase(folder.resolve()))
    return state.st_dev, state.st_ino


def _identity_or_none(folder: Path) -> tuple[int, int] | None:
    try:
        return _identity(folder)
    except OSError:
        return None
