"""The bundles that come with this package, and how they are put on disk.

They are made by `tests/vae_edge/selfcheck/make_bundles.py` from the sample set that this project draws. What bundles
of a file share, such as the pictures of their references, takes room once: each file is one LZMA stream.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from vae_edge.errors import BundleError

_DATA = Path(__file__).resolve().parent / "data"

BUNDLES_FILES = (_DATA / "bundles.tar.xz", _DATA / "joined.tar.xz")
CONSTRUCTS_FILE = _DATA / "constructs.zip"
INDEX_NAME = "index.json"
"""Of `CONSTRUCTS_FILE`: what each is, and its tolerance."""

MOST_BYTES = 5_000_000
"""Of all files together: the base install is to stay small."""

_PLAIN_NAME = re.compile(r"[a-z0-9-]+/[A-Za-z0-9_.-]+")


def unpack_bundles(folder: Path, files: Sequence[Path] = BUNDLES_FILES) -> list[Path]:
    """Write every bundle into a folder of its own and return these, by name; whether they are whole they tell.

    Args:
        folder: where; it is made.
        files: the bundles.

    Raises:
        BundleError: a file is missing or damaged, or this Python has no `lzma`.
    """
    folders: set[Path] = set()
    for file in files:
        try:
            folders |= _unpack(file, folder)
        except (OSError, EOFError, tarfile.TarError) as error:
            raise BundleError(f"the bundles in {file} cannot be read ({error}); install vae-edge again") from error
    return sorted(folders)


def _unpack(file: Path, folder: Path) -> set[Path]:
    folders: set[Path] = set()
    with tarfile.open(file, "r:xz") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or not _PLAIN_NAME.fullmatch(member.name):
                raise tarfile.TarError(f"{member.name!r} is no file of a bundle")
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            folders.add(path.parent)
    return folders
