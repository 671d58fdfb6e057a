"""A bundle: the folder that vae-export writes and a device opens."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vae_edge.decision import check_thresholds
from vae_edge.errors import BundleError, InputError
from vae_edge.manifest import (
    MANIFEST_FILE,
    MANIFEST_LIMITS,
    MAX_OTHER_VALUES,
    NEVER_VERIFIED,
    SCHEMA_VERSION,
    Manifest,
    manifest_digest,
)
from vae_edge.model_files.checks import check_model_files
from vae_edge.platform.atomic import LOCK_FILE, check_replaceable, claim, new_file, new_folder, restore, sha256_file
from vae_edge.records import (
    check_n_values,
    check_recordable,
    check_recorded_files,
    open_regular,
    parse_json,
    parse_record,
    read_bounded,
    recorded_names,
)
from vae_edge.reference_file import REFERENCES_FILE
from vae_edge.targets import Target

_log = logging.getLogger(__name__)

_ADVICE = "copy or export the bundle again"
_MAX_ENTRIES = 1000

Stamp = tuple[int, ...] | None
"""What changes when a file is replaced or written to: its place on disk, size and times; None: there is none."""


class Seen(NamedTuple):
    """The state of a bundle's files when it was opened."""

    manifest_sha256: str
    stamps: tuple[Stamp, ...]
    """Of the manifest and of the files that it names, from before they were read."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read."""

    folder: Path
    """Absolute and without links, where `open` made it: neither a changed working folder nor a moved link matters."""
    manifest: Manifest
    seen: Seen | None = field(default=None, repr=False, compare=False)
    """The files as they were opened."""

    @property
    def model_path(self) -> Path:
        """The file that the backend opens."""
        return self.folder / self.manifest.model_file

    @property
    def size_bytes(self) -> int:
        """Size of all files that the manifest names."""
        return sum(file.size_bytes for file in self.manifest.files)

    @property
    def model_sha256(self) -> str:
        """Hash of the files that are compiled on a device, by their hashes in the manifest.

        A TensorRT engine is compiled itself; what counts there is the ONNX it is made of. References are not compiled.
        """
        engine = self.manifest.model_file if self.manifest.target is Target.TENSORRT else None
        left_out = {engine, REFERENCES_FILE}
        lines = sorted(f"{file.sha256} {file.name}" for file in self.manifest.files if file.name not in left_out)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @classmethod
    def open(cls, folder: str | Path, *, check_files: bool = True) -> Bundle:
        """Read a bundle and check that its files are the ones that were exported.

        Args:
            folder: the bundle.
            check_files: compare every file's size and SHA-256 with the manifest's.

        Raises:
            BundleError: no bundle, a damaged or newer manifest, or a file that is missing or was changed.
        """
        try:
            folder = Path(folder).resolve()
        except (OSError, RuntimeError) as error:  # A loop of links, or a working folder that no longer exists.
            raise BundleError(f"{folder} cannot be found ({error}); pass a folder made by vae-export") from error
        restore(folder)
        manifest_stamp = _stamp(folder / MANIFEST_FILE)
        manifest = read_manifest(folder)
        stamps = (manifest_stamp, *(_stamp(folder / file.name) for file in manifest.files))
        seen = Seen(sha256_file(folder / MANIFEST_FILE), stamps)
        if _stamp(folder / MANIFEST_FILE) != manifest_stamp:
            raise BundleError(f"the bundle {folder} was replaced or changed while it was opened; open it again")
        bundle = cls(folder, manifest, seen)
        if bundle.manifest.schema_version in NEVER_VERIFIED:
            _log.warning("%s is not verified: %s", folder, NEVER_VERIFIED[bundle.manifest.schema_version])
        if check_files:
            _refuse_special_files(folder)
            check_recorded_files(folder, bundle.manifest.files, said_by="the manifest", advice=_ADVICE, links=False)
            check_model_files(folder, [file.name for file in bundle.manifest.files], advice=_ADVICE)
        return bundle

    def check_unchanged(self) -> None:
        """Make sure that the files are still those that were opened.

        Only files whose metadata differ are read: they may have been copied.

        Raises:
            BundleError: the bundle was replaced or changed, or no longer exists.
        """
        stamps = tuple(_stamp(self.folder / name) for name in (MANIFEST_FILE, *(f.name for f in self.manifest.files)))
        if self.seen is not None and stamps == self.seen.stamps:
            return
        try:
            manifest = self.folder / MANIFEST_FILE
            if None in stamps or (self.seen is not None and sha256_file(manifest) != self.seen.manifest_sha256):
                raise BundleError(f"{manifest} or a file that it names is missing or was changed")
            check_recorded_files(self.folder, self.manifest.files, said_by="the manifest", advice=_ADVICE, links=False)
        except (BundleError, OSError) as error:
            raise BundleError(
                f"the bundle {self.folder} was replaced or changed since it was opened; open it again"
            ) from error

    def with_manifest(self, manifest: Manifest) -> Bundle:
        """Write a changed manifest in place of the old one, completely or not at all, and return the bundle with it.

        Raises:
            BundleError: the bundle was replaced or changed since it was opened; the new one is not changed.
            InputError: the folder cannot be written.
        """
        text = manifest_text(manifest)
        path = self.folder / MANIFEST_FILE
        with claim(self.folder / LOCK_FILE, f"another process is writing to {self.folder}"):
            with new_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
                # Now, that the new file lies in the folder: in one that takes its place after this it does not.
                self.check_unchanged()
            seen = None if self.seen is None else Seen(sha256_file(path), (_stamp(path), *self.seen.stamps[1:]))
        return Bundle(self.folder, Manifest.model_validate_json(text), seen)


@contextmanager
def new_bundle(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes the bundle `folder` when the block ends without an error.

    An older bundle of that name is replaced. The block writes the model files and the manifest.

    Raises:
        InputError: the name is taken by something else, or the disk is full. No half-written bundle gets the name.
    """
    with new_folder(folder, replaces=MANIFEST_FILE, own=_own_files) as temporary:
        yield temporary
        if not (temporary / MANIFEST_FILE).is_file():
            raise AssertionError("a bundle cannot be published without its manifest")


def check_bundle_name_is_free(folder: Path) -> None:
    """Refuse, before the work starts, a name that is taken by something other than a bundle.

    Raises:
        InputError: with the name.
    """
    check_recordable(folder)
    check_replaceable(folder, MANIFEST_FILE, _own_files)


def _own_files(folder: Path) -> set[str]:
    return recorded_names(folder, MANIFEST_FILE) | {"model.sig"}


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as it is written, with its digest: JSON with a line for each value.

    A manifest of an older schema stays one. One of the first was read from a bundle that has no digest, and adding one
    now would vouch for content that was never checked.
    """
    later = set(_LATER_FIELDS) if manifest.schema_version < 3 else set()
    if manifest.schema_version == 1:
        return manifest.model_dump_json(indent=2, exclude={"digest", *later}) + "\n"
    content = json.loads(manifest.model_dump_json(exclude=later))
    digest = manifest_digest(content)
    return manifest.model_copy(update={"digest": digest}).model_dump_json(indent=2, exclude=later) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a bundle and check that it is the one that was written.

    One of the first schema has no digest to check, and one of the second no references. It is returned as not verified,
    whatever it claims.

    Raises:
        BundleError: there is none, it is damaged, or it was changed or made newer or older than it is.
    """
    path = folder / MANIFEST_FILE
    try:
        with open_regular(path, links=False) as file:
            data = read_bounded(file, MANIFEST_LIMITS.size_bytes)
        content = parse_json(data, MANIFEST_LIMITS)
        check_n_values(data, MAX_OTHER_VALUES + _n_scores(content))
    except FileNotFoundError:
        raise BundleError(
            f"{folder} is not a bundle: there is no {MANIFEST_FILE} in it; pass a folder made by vae-export"
        ) from None
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file, not a bundle; pass a folder made by vae-export") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); {_ADVICE}") from error
    if not isinstance(content, dict) or type(content.get("schema_version")) is not int:
        raise BundleError(f"{path} is damaged: it has no integer schema_version; {_ADVICE}")
    manifest = parse_record(content, path, Manifest, SCHEMA_VERSION, advice=_ADVICE)
    if manifest.schema_version > 1 and manifest.digest != manifest_digest(content):
        raise BundleError(f"{path} was changed: its digest does not match its content; {_ADVICE}")
    if manifest.schema_version in NEVER_VERIFIED:
        manifest = _of_older_schema(manifest, path)
    try:
        check_thresholds(manifest.thresholds)
    except ValueError as error:
        raise BundleError(f"{path} was changed: {error}; {_ADVICE}") from error
    return manifest


def _n_scores(content: Any) -> int:
    """Return the length of the one list in a manifest that may be long."""
    thresholds = content.get("thresholds") if isinstance(content, dict) else None
    scores = thresholds.get("calibration_scores") if isinstance(thresholds, dict) else None
    return len(scores) if isinstance(scores, list) else 0


def _refuse_special_files(folder: Path) -> None:
    """Refuse a folder that holds something other than files and folders, which no export writes.

    Raises:
        BundleError: there is a link, a FIFO, a socket or a device, or there are very many files.
    """
    with os.scandir(folder) as entries:
        for number, entry in enumerate(entries):
            if number == _MAX_ENTRIES:
                raise BundleError(f"{folder} contains more than {_MAX_ENTRIES} files, which no bundle does; {_ADVICE}")
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue  # A temporary file.
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise BundleError(f"{entry.path} is a link, a FIFO, a socket or a device; expected a file; {_ADVICE}")


_WROTE_SCHEMA = {1: r"0\.[01](\.|$)", 2: r"0\.[0-2](\.|$)"}
"""The versions of vae-edge that wrote an older schema."""

_LATER_FIELDS = ("references", "verified_by", "gate")
"""What no manifest of an older schema has."""


def _of_older_schema(manifest: Manifest, path: Path) -> Manifest:
    """Return a manifest of an older schema, which has too little in it to be verified, as not verified.

    Raises:
        BundleError: it is a later one, stripped down.
    """
    schema, version = manifest.schema_version, manifest.provenance.vae_edge_version
    has_later = manifest.digest is not None and schema == 1
    if has_later or not re.match(_WROTE_SCHEMA[schema], version):
        raise BundleError(
            f"{path} was changed: it has schema {schema} but was written by vae-edge {version!r} with a later one; "
            f"{_ADVICE}"
        )
    reason, why = manifest.not_verified_because, NEVER_VERIFIED[schema]
    if reason is None or why not in reason:
        reason = why if reason is None else f"{reason}; and {why}"
    return manifest.model_copy(update={"verified": False, "not_verified_because": reason})


def bundles_in(folder: Path) -> list[Path]:
    """Return the bundles in a folder (or the folder itself if it is one), by name.

    Raises:
        InputError: there is none.
    """
    if (folder / MANIFEST_FILE).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_FILE}") if not path.parent.name.startswith("."))
    if not found:
        raise InputError(f"{folder} is not a bundle and contains none; pass a folder made by vae-export")
    return found
