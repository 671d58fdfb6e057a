"""The meaning of command-line arguments: files, folders, globs, videos, cameras, streams and standard input."""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vae_edge.errors import InputError, UsageError
from vae_edge.picture_files.listing import IMAGE_SUFFIXES, is_image_file, is_left_out, list_images
from vae_edge.platform.outside import user_path
from vae_edge.sources.addresses import file_of_url
from vae_edge.sources.cameras import is_camera, is_device, is_pipeline
from vae_edge.sources.division import Shard
from vae_edge.sources.live import LiveOptions, open_video
from vae_edge.sources.path_lines import PathLines
from vae_edge.sources.pictures import Chain, ImageFiles, OneError, Picture, Source
from vae_edge.sources.still import open_still
from vae_edge.sources.video import VIDEO_SUFFIXES, Video, is_video_file
from vae_edge.sources.watch import WatchedFolders, WatchOptions

_log = logging.getLogger(__name__)

STANDARD_INPUT = "-"
"""The word for paths that come as lines of standard input."""


class _File(NamedTuple):
    """A file that a word of the command line stands for."""

    path: Path
    name: str
    """Short, for a file made from it."""
    key: str
    """Its name below what the word spells out, with `/`: by it files are divided, wherever that folder lies."""


def open_sources(
    texts: Sequence[str],
    *,
    recursive: bool = False,
    every: int = 1,
    max_frames: int | None = None,
    white_level: int = 65535,
    max_pixels: int | None = None,
    except_in: Path | None = None,
    null_separated: bool = False,
    live: LiveOptions | None = None,
    shard: Shard | None = None,
) -> Source:
    """Interpret the arguments of a command line; nothing is decoded yet.

    Args:
        texts: paths of images and videos, folders (their image files), globs, cameras (indices, `/dev/videoN`,
            `v4l:NAME`, `gst:PIPELINE`), URLs (of streams, videos and still pictures), and `-` for standard input,
            whose lines are paths of images.
        recursive: take the folders' sub-folders too.
        every: of a video, every N-th frame.
        max_frames: of each video or camera, at most this many frames.
        white_level: the 16-bit value that means white.
        max_pixels: a larger picture is an error; None: see `vae_edge.image.read_image`.
        except_in: leave out what lies in this folder, such as the pictures of an earlier run.
        null_separated: a NUL and not a line's end separates the paths of standard input.
        live: how cameras and streams are read.
        shard: take the image files of this shard only, which may be none; None: all of them.

    Raises:
        InputError: something does not exist, matches nothing, holds no image or cannot be opened; or a bad number.
        UsageError: something that is not an image file cannot be divided into shards.
    """
    for name, value in (("every", every), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; expected 1 or more")
    if not texts:
        raise InputError("no source was given; expected images, folders, globs, videos, a camera or a URL")
    if list(texts).count(STANDARD_INPUT) > 1:
        raise UsageError("- was given twice, but standard input can be read only once")
    if null_separated and STANDARD_INPUT not in texts:
        raise UsageError("--null applies to paths from standard input; add - as a source, or leave it out")
    sources: list[Source] = []
    images: list[tuple[Path, str]] = []
    passed_over: list[int] = []

    def end_images() -> None:
        if images:
            sources.append(ImageFiles(images, white_level=white_level, max_pixels=max_pixels))
            images.clear()

    for text in texts:
        if shard is not None and (text == STANDARD_INPUT or _is_live(file_of_url(text))):
            raise _cannot_divide(text)
        if text == STANDARD_INPUT:
            end_images()
            sources.append(
                PathLines(sys.stdin, null_separated=null_separated, white_level=white_level, max_pixels=max_pixels)
            )
            continue
        text = file_of_url(text)
        if _is_live(text):
            end_images()
            still = (
                None if is_camera(text) else open_still(text, live=live, white_level=white_level, max_pixels=max_pixels)
            )
            sources.append(still or open_video(text, every=every, max_frames=max_frames, live=live))
            continue
        for path, name, key in _files_of(text, recursive=recursive, except_in=except_in, passed_over=passed_over):
            # A folder gives files that are called like images, and too many of them to look into each beforehand.
            if (path == user_path(text) or not is_image_file(path)) and is_video_file(path):
                if shard is not None:
                    raise _cannot_divide(str(path))
                end_images()
                try:
                    sources.append(Video(str(path), every=every, max_frames=max_frames))
                except InputError as error:
                    sources.append(OneError(Picture(str(path), name, error), has_frames=True))
            elif shard is None or shard.has(key):
                images.append((path, name))
    end_images()
    if not sources:
        sources.append(ImageFiles([]))  # A shard may be empty.
    source = sources[0] if len(sources) == 1 else Chain(sources)
    source.n_passed_over = sum(passed_over)
    return source


def open_watch(
    texts: Sequence[str],
    *,
    recursive: bool = False,
    white_level: int = 65535,
    max_pixels: int | None = None,
    except_in: Path | None = None,
    options: WatchOptions | None = None,
) -> Source:
    """Watch the folders that the words of a command line name; see `WatchedFolders`.

    Raises:
        UsageError: a word names something else than a folder, such as a video.
        InputError: a folder does not exist.
    """
    folders = [user_path(text) for text in texts]
    for text, folder in zip(texts, folders, strict=True):
        if not folder.is_dir() and (folder.exists() or text == STANDARD_INPUT or _is_live(text)):
            raise UsageError(f"{text} is not a folder; --watch waits for images that arrive in folders")
        if not folder.exists():
            raise InputError(f"{text} does not exist; --watch needs a folder, which may be empty: create it first")
    return WatchedFolders(
        folders,
        recursive=recursive,
        white_level=white_level,
        max_pixels=max_pixels,
        except_in=except_in,
        options=options,
    )


def image_files(texts: Sequence[str], *, recursive: bool = False) -> list[Path]:
    """Return the image files that files, folders and globs stand for, in order.

    Raises:
        InputError: something does not exist, matches nothing, holds no image, or is not an image file.
    """
    if not texts:
        raise InputError("no images were given; expected files, folders or globs")
    files = [file.path for text in texts for file in _files_of(text, recursive=recursive, except_in=None)]
    for path in files:
        if is_video_file(path):
            raise InputError(f"{path} is a video; expected image files here")
    return files


def _files_of(
    text: str, *, recursive: bool, except_in: Path | None, passed_over: list[int] | None = None
) -> list[_File]:
    """Return the files that one word stands for.

    A file that is named itself is taken whatever its ending; a folder or a glob gives what ends like an image, a glob
    videos too.
    """
    path = user_path(text)
    if path.is_dir():
        return _files_in(path, path, recursive=recursive, except_in=except_in, passed_over=passed_over)
    if path.exists():
        return [_File(path, path.stem, path.name)]
    if not glob.has_magic(text):
        raise InputError(f"{text} does not exist; expected an image, a folder, a glob in quotes or a video")
    spelled_out = Path(*path.parts[: _n_spelled_out(path)])
    found: list[_File] = []
    # Path.glob takes no absolute pattern.
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 - `path` may be absolute
    for match in filter(_listable(path, except_in), matches):
        if match.is_dir():
            found += (
                []
                if "**" in text
                else _files_in(
                    match,
                    spelled_out,
                    recursive=recursive,
                    except_in=except_in,
                    passed_over=passed_over,
                    or_raise=False,
                )
            )
        elif (is_image_file(match) or match.suffix.lower() in VIDEO_SUFFIXES) and not _lies_in(match, except_in):
            name = f"{match.parent.name}-{match.stem}".lstrip("-")
            found.append(_File(match, name, match.relative_to(spelled_out).as_posix()))
    if not found:
        raise InputError(f"the glob {text!r} matches no image or video; check it, and put it in quotes")
    return found


def _files_in(
    folder: Path,
    spelled_out: Path,
    *,
    recursive: bool,
    except_in: Path | None,
    passed_over: list[int] | None,
    or_raise: bool = True,
) -> list[_File]:
    listing = list_images(folder, recursive=recursive, except_in=except_in)
    # What is not a file gets a line with the error.
    found = sorted([*listing.images(), *listing.special])
    remarks = listing.remarks()
    if not found and or_raise:
        advice = "pass a folder of images" if recursive else "add --recursive to include its sub-folders"
        more = f" ({'; '.join(remarks)})" if remarks else f" ({', '.join(sorted(IMAGE_SUFFIXES))})"
        raise InputError(f"{folder} has no image{more}; {advice}")
    if passed_over is not None:
        n_hidden = sum(files.n_hidden for files in listing.folders if not files.again)
        passed_over.append(listing.n_other + n_hidden + len(listing.dangling))
    for remark in remarks:
        _log.warning("%s: %s", folder, remark)
    root = folder.resolve().name
    return [
        _File(
            path,
            "-".join((root, *path.relative_to(folder).with_suffix("").parts)),
            path.relative_to(spelled_out).as_posix(),
        )
        for path in found
    ]


def _listable(pattern: Path, except_in: Path | None) -> Callable[[Path], bool]:
    """Return whether a match of a glob is taken by the rule of `listing`; what was spelled out always is."""
    parts = pattern.parts
    n_spelled = _n_spelled_out(pattern)
    # Python follows links up and down again, and says nothing of folders that it cannot read.
    listed = (
        {
            folder.path
            for folder in list_images(Path(*parts[:n_spelled]), except_in=except_in).folders
            if not folder.again
        }
        if "**" in parts and Path(*parts[:n_spelled]).is_dir()
        else None
    )

    def is_listable(match: Path) -> bool:
        if match.is_symlink() and not match.exists():
            _log.warning("%s is a broken link and was skipped", match)
            return False
        folder = match if match.is_dir() else match.parent
        if listed is not None:
            return folder in listed
        return not any(is_left_out(name) and name not in parts for name in folder.parts[n_spelled:])

    return is_listable


def _n_spelled_out(pattern: Path) -> int:
    """Return how many parts of a glob come before the first with a wildcard."""
    return next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))


def _cannot_divide(text: str) -> UsageError:
    return UsageError(f"--shard divides image files, folders and globs, and {text} is none: leave one of the two out")


def _lies_in(path: Path, folder: Path | None) -> bool:
    # Not the resolved path itself: a link that leads to itself has none.
    return folder is not None and (path.parent.resolve() / path.name).is_relative_to(folder.resolve())


def _is_live(text: str) -> bool:
    """Tell a camera or a stream's URL from a file; a file called `0` is a file."""
    if is_pipeline(text) or is_device(text):
        return True
    return "://" in text or (text.isdecimal() and not Path(text).exists())
