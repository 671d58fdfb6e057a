"""Whether a folder holds the files that its signature lists: all of them, no others, each with its bytes."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from vae_edge.errors import BundleError
from vae_edge.platform.atomic import LOCK_FILE, is_temporary_of, sha256_of
from vae_edge.platform.outside import printable
from vae_edge.records import open_regular
from vae_edge.signing.envelope import SignedFiles
from vae_edge.signing.files import OUTSIDE
from vae_edge.wording import verb

_ADVICE = "copy the bundle again, or ask its maker for it"
_MAX_ENTRIES = 1000
TRANSIENT = (LOCK_FILE, f"{LOCK_FILE}.owner")
"""What a command that writes into the folder keeps there meanwhile; nothing reads them as a part of the bundle."""
_PLAIN = re.compile(r"[^/\\\x00]+(/[^/\\\x00]+)*")


def check_folder(folder: Path, signed: SignedFiles, known: Mapping[str, str], *, reads_files: bool = True) -> None:
    """Compare a folder with what its signature lists.

    Args:
        folder: the bundle.
        signed: the statement of its signature, which was checked.
        known: SHA-256 of the files that are not read here: of what was read already, or is compared with the manifest
            by the caller. Each file is read once in all.
        reads_files: whether to read the other files; False leaves it at their names.

    Raises:
        BundleError: with what is missing, is not covered, was changed, or is a link.
    """
    found = files_in(folder)
    for name in sorted(signed.sha256_of):
        if _PLAIN.fullmatch(name) is None or {"..", "."} & set(name.split("/")) or name in OUTSIDE:
            raise BundleError(f"the signature of {folder} covers {name!r}, which cannot be a file of it; {_ADVICE}")
        if name not in found:
            raise BundleError(f"{folder / name} is missing, and the signature covers it; {_ADVICE}")
    for name in sorted(found):
        if name not in signed.sha256_of:
            raise BundleError(f"{folder / name} is not covered by the bundle's signature; remove it, or {_ADVICE}")
    changed = []
    for name, sha256 in sorted(signed.sha256_of.items()):
        actual = known.get(name)
        if actual is None and reads_files:
            actual = _sha256(folder / name)
        if actual is not None and actual != sha256:
            changed.append(name)
    if changed:
        others = f", and so {verb(len(changed) - 1, 'was', 'were')} {', '.join(changed[1:])}" if changed[1:] else ""
        raise BundleError(f"{folder / changed[0]} was changed after the bundle was signed{others}; {_ADVICE}")


def _sha256(path: Path) -> str:
    try:
        with open_regular(path, links=False) as file:
            return sha256_of(file)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror or error}); {_ADVICE}") from error


def files_in(folder: Path) -> set[str]:
    """Return the files in a folder and those below it, by their paths with `/`, without those outside the signature.

    Raises:
        BundleError: there is a link, a FIFO, a socket or a device, or there are very many files.
    """
    found: set[str] = set()
    waiting, n_entries = [""], 0
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(folder / place) as entries:
                for entry in entries:
                    n_entries += 1
                    if n_entries > _MAX_ENTRIES:
                        raise BundleError(f"{folder} contains more than {_MAX_ENTRIES} files; {_ADVICE}")
                    name = f"{place}{entry.name}"
                    try:
                        mode = entry.stat(follow_symlinks=False).st_mode
                    except FileNotFoundError:
                        continue  # A temporary file.
                    if stat.S_ISDIR(mode):
                        waiting.append(f"{name}/")
                    elif not stat.S_ISREG(mode):
                        raise BundleError(
                            f"{printable(entry.path)} is a link, a FIFO, a socket or a device, which no signature "
                            f"covers; {_ADVICE}"
                        )
                    elif not _is_outside(name):
                        found.add(name)
        except OSError as error:
            raise BundleError(f"{folder / place} cannot be read ({error.strerror or error}); {_ADVICE}") from error
    return found


def _is_outside(name: str) -> bool:
    return name in OUTSIDE or name in TRANSIENT or any(is_temporary_of(name, each) for each in OUTSIDE)
