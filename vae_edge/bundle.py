"""A bundle: the folder that vae-export writes and a device opens."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vae_edge.errors import BundleError, InputError
from vae_edge.manifest import (
    MANIFEST_FILE,
    NEVER_VERIFIED,
    Manifest,
)
from vae_edge.manifest_file import check_thresholds_of, manifest_bytes, manifest_text, parse_manifest
from vae_edge.model_files.checks import check_model_files
from vae_edge.platform.atomic import (
    LOCK_FILE,
    check_place,
    check_replaceable,
    claim,
    new_file,
    new_folder,
    restore,
    sha256_file,
)
from vae_edge.records import (
    check_recordable,
    check_recorded_files,
    recorded_names,
)
from vae_edge.reference_file import REFERENCES_FILE
from vae_edge.signing.files import LOCAL_FILE, OUTSIDE, PROVENANCE_FILE, SIGNATURE_FILE
from vae_edge.signing.policy import Policy, read_policy
from vae_edge.targets import Target

if TYPE_CHECKING:
    from vae_edge.signing.check import Signature
    from vae_edge.signing.keys import KeySource, TrustedKeys
    from vae_edge.signing.local_record import Local

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
    local_stamp: Stamp = None
    local_sha256: str | None = None
    """Of `local.json` beside a signed bundle; None: there was none."""

    @property
    def identity(self) -> str:
        """Names what decides the verdicts: the manifest, and with it its files, and what was fitted again here."""
        return self.manifest_sha256 if self.local_sha256 is None else f"{self.manifest_sha256}+{self.local_sha256}"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk whose manifest has been read."""

    folder: Path
    """Absolute and without links, where `open` made it: neither a changed working folder nor a moved link matters."""
    manifest: Manifest
    """Of a signed bundle: its maker's, with what was fitted again here."""
    seen: Seen | None = field(default=None, repr=False, compare=False)
    """The files as they were opened."""
    signature: Signature | None = field(default=None, repr=False, compare=False)
    """Who signed it, where that was checked: keys were trusted, by whoever opened it or by the user's policy."""
    local: Local | None = field(default=None, repr=False, compare=False)
    """What was fitted again here, where it is signed."""
    trusted: TrustedKeys | None = field(default=None, repr=False, compare=False)
    """The keys that whoever opened it trusts."""
    has_checked_files: bool = field(default=False, repr=False, compare=False)
    """Whether the files were compared with the manifest, and with the signature, where that was checked."""

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
    def open(
        cls,
        folder: str | Path,
        *,
        check_files: bool = True,
        trusted_keys: KeySource | Sequence[KeySource] | TrustedKeys | None = None,
        obeys_policy: bool = True,
    ) -> Bundle:
        """Read a bundle and check that its files are the ones that were exported.

        Args:
            folder: the bundle.
            check_files: compare every file's size and SHA-256 with the manifest's.
            trusted_keys: files in PEM, or their contents: public keys or root certificates. The bundle must be signed
                by one of them, all its files included. None: what the user's policy says.
            obeys_policy: whether the user's policy (`vae_edge.signing.policy`) counts, in any case; False for what
                this process has just made, or is about to sign.

        Raises:
            BundleError: no bundle, a damaged or newer manifest, or a file that is missing or was changed; or it is not
                signed by whom it has to be, or was fitted again by somebody who may not.
            InputError: a key or the policy cannot be read.
            MissingDependencyError: a signature is to be checked, and `cryptography` is not installed.
        """
        policy = read_policy() if obeys_policy else Policy()
        asked = None if trusted_keys is None else _read_keys(trusted_keys)
        try:
            folder = Path(folder).resolve()
        except (OSError, RuntimeError) as error:  # A loop of links, or a working folder that no longer exists.
            raise BundleError(f"{folder} cannot be found ({error}); pass a folder made by vae-export") from error
        restore(folder)
        path = folder / MANIFEST_FILE
        manifest_stamp, local_stamp = _stamp(path), _stamp(folder / LOCAL_FILE)
        data = manifest_bytes(folder)
        manifest = parse_manifest(data, path)
        stamps = (manifest_stamp, *(_stamp(folder / file.name) for file in manifest.files))
        seen = Seen(hashlib.sha256(data).hexdigest(), stamps)
        if _stamp(path) != manifest_stamp:
            raise BundleError(f"the bundle {folder} was replaced or changed while it was opened; open it again")
        if manifest.schema_version in NEVER_VERIFIED:
            _log.warning("%s is not verified: %s", folder, NEVER_VERIFIED[manifest.schema_version])
        if check_files:
            _refuse_special_files(folder)
        bundle = cls(folder, manifest, seen, trusted=asked)
        if asked is not None or policy.trusted is not None:
            from vae_edge.signing.check import check_signature  # Most programs never do this.

            # What the manifest lists is read below, and compared with the manifest.
            known = {file.name: file.sha256 for file in manifest.files} | {MANIFEST_FILE: seen.manifest_sha256}
            signature = check_signature(folder, known, asked, policy, reads_files=check_files)
            bundle = replace(bundle, signature=signature)
        bundle = bundle._with_local_record(local_stamp, policy)
        if check_files:
            check_recorded_files(folder, manifest.files, said_by="the manifest", advice=_ADVICE, links=False)
            check_model_files(folder, [file.name for file in manifest.files], advice=_ADVICE)
        return replace(bundle, has_checked_files=check_files)

    def checked_by(self, trusted_keys: KeySource | Sequence[KeySource] | TrustedKeys) -> Bundle:
        """Return this bundle as one that is signed by one of some keys; it is opened again, unless that was checked.

        Raises:
            BundleError, InputError, MissingDependencyError: see `open`.
        """
        trusted = _read_keys(trusted_keys)
        if self.trusted == trusted and self.has_checked_files:
            return self
        again = Bundle.open(self.folder, trusted_keys=trusted)
        if self.seen is not None and again.seen is not None and again.seen.identity != self.seen.identity:
            raise BundleError(f"the bundle {self.folder} was replaced or changed since it was opened; open it again")
        return again

    @property
    def has_signature(self) -> bool:
        """Whether there is a signature in the folder now, whoever made it."""
        return os.path.lexists(self.folder / SIGNATURE_FILE)

    def _with_local_record(self, stamp: Stamp, policy: Policy) -> Bundle:
        """Return the bundle with what was fitted again here, if it is signed.

        Raises:
            BundleError: that is damaged or belongs to another bundle; or the signature was checked, and nobody who may
                has fitted it.
        """
        if not os.path.lexists(self.folder / LOCAL_FILE) and self.signature is None:
            return self
        from vae_edge.signing.local_record import check_local, read_local

        assert self.seen is not None
        if not self.has_signature:
            raise BundleError(
                f"{self.folder / LOCAL_FILE} belongs to a signed bundle, and there is no {SIGNATURE_FILE}; copy the "
                "bundle again, or remove it"
            )
        local = read_local(self.folder, self.seen.manifest_sha256)
        if self.signature is not None:
            check_local(self.folder, local, self.signature.root_sha256, policy.refit_keys)
        if local is None:
            return self
        manifest = Manifest.model_validate_json(manifest_text(local.record.applied_to(self.manifest)))
        check_thresholds_of(manifest, self.folder / LOCAL_FILE)
        seen = self.seen._replace(local_stamp=stamp, local_sha256=local.file_sha256)
        return replace(self, manifest=manifest, local=local, seen=seen)

    def check_unchanged(self) -> None:
        """Make sure that the files are still those that were opened.

        Only files whose metadata differ are read: they may have been copied.

        Raises:
            BundleError: the bundle was replaced or changed, or no longer exists.
        """
        stamps = tuple(_stamp(self.folder / name) for name in (MANIFEST_FILE, *(f.name for f in self.manifest.files)))
        local = self.folder / LOCAL_FILE
        if self.seen is not None and (stamps, _stamp(local)) == (self.seen.stamps, self.seen.local_stamp):
            return
        try:
            manifest = self.folder / MANIFEST_FILE
            if None in stamps or (self.seen is not None and sha256_file(manifest) != self.seen.manifest_sha256):
                raise BundleError(f"{manifest} or a file that it names is missing or was changed")
            local_sha256 = sha256_file(local) if os.path.lexists(local) else None
            if self.seen is not None and local_sha256 != self.seen.local_sha256:
                raise BundleError(f"{local} was changed")
            check_recorded_files(self.folder, self.manifest.files, said_by="the manifest", advice=_ADVICE, links=False)
        except (BundleError, OSError) as error:
            raise BundleError(
                f"the bundle {self.folder} was replaced or changed since it was opened; open it again"
            ) from error

    def check_writable(self) -> None:
        """Refuse, before the work is done, a bundle whose thresholds could not be written.

        Raises:
            InputError: its folder is read-only; or it is signed, and there can be no key to sign a re-fit with.
            MissingDependencyError: it is signed, and `cryptography` is not installed.
        """
        check_place(self.folder)
        if self.has_signature:
            from vae_edge.signing.device_key import device_key

            device_key(make=True)

    def with_manifest(self, manifest: Manifest) -> Bundle:
        """Write a changed manifest in place of the old one, completely or not at all, and return the bundle with it.

        Of a signed bundle the manifest stays, and what was changed goes into `local.json` beside it, signed with this
        user's key: see `vae_edge.signing.local_record`.

        Raises:
            BundleError: the bundle was replaced or changed since it was opened; the new one is not changed.
            InputError: the folder cannot be written.
            MissingDependencyError: it is signed, and `cryptography` is not installed.
        """
        text = manifest_text(manifest)
        path = self.folder / MANIFEST_FILE
        with claim(self.folder / LOCK_FILE, f"another process is writing to {self.folder}"):
            if self.has_signature:
                return self._with_changes_beside(Manifest.model_validate_json(text))
            with new_file(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="")
                # Now, that the new file lies in the folder: in one that takes its place after this it does not.
                self.check_unchanged()
            seen = None if self.seen is None else Seen(sha256_file(path), (_stamp(path), *self.seen.stamps[1:]))
        return replace(self, manifest=Manifest.model_validate_json(text), seen=seen)

    def _with_changes_beside(self, manifest: Manifest) -> Bundle:
        from vae_edge.signing.local_record import write_local

        if self.seen is None:
            raise AssertionError("a bundle that was not opened cannot be changed")
        path = self.folder / LOCAL_FILE
        local = write_local(self.folder, self.seen.manifest_sha256, manifest, self.local, self.check_unchanged)
        seen = self.seen._replace(local_stamp=_stamp(path), local_sha256=local.file_sha256)
        return replace(self, manifest=manifest, seen=seen, local=local)


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
    return recorded_names(folder, MANIFEST_FILE) | {PROVENANCE_FILE, *OUTSIDE}


def _read_keys(keys: KeySource | Sequence[KeySource] | TrustedKeys) -> TrustedKeys:
    from vae_edge.signing.keys import trusted_keys  # Most programs trust no keys.

    return trusted_keys(keys)


def _stamp(path: Path) -> Stamp:
    try:
        facts = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(facts.st_mode):
        return None
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns


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
