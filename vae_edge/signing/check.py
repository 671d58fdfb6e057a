"""Checks the signature of a bundle, where that is asked for: by a program, an option or the user's policy."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vae_edge.errors import BundleError
from vae_edge.signing.envelope import read_signature, read_statement
from vae_edge.signing.files import SIGNATURE_FILE
from vae_edge.signing.folder import check_folder
from vae_edge.signing.keys import SignedBy, TrustedKeys, check_signer
from vae_edge.signing.policy import Policy


@dataclass(frozen=True)
class Signature:
    """A signature that was checked."""

    by: SignedBy
    root_sha256: str
    """Of the signed content as a whole."""


def check_signature(
    folder: Path,
    known: Mapping[str, str],
    asked: TrustedKeys | None,
    policy: Policy,
    *,
    reads_files: bool = True,
) -> Signature | None:
    """Check who signed a bundle, and that its files are those that were signed.

    Args:
        folder: the bundle.
        known: SHA-256 of files that are not to be read here; see `check_folder`.
        asked: keys that are trusted for this bundle alone; None: nobody asked.
        policy: what the user's configuration demands, in addition.
        reads_files: whether to read the other files.

    Returns:
        The signature; None: there is none, and none is demanded.

    Raises:
        BundleError: it is not signed, not by whom it has to be, or was changed since.
    """
    demands = [each for each in (asked, policy.trusted) if each is not None]
    envelope = read_signature(folder)
    if envelope is None:
        if asked is None and not policy.only_signed:
            return None
        said_by = policy.trusted if asked is None else asked
        assert said_by is not None
        raise BundleError(
            f"the bundle {folder} is not signed: it has no {SIGNATURE_FILE}; expected a signature by {said_by.names} "
            f"(from {said_by.said_by}): ask its maker for a signed one"
        )
    signers = [check_signer(envelope, trusted, f"the bundle {folder}") for trusted in demands]
    signed = read_statement(envelope, folder / SIGNATURE_FILE)
    check_folder(folder, signed, known, reads_files=reads_files)
    return Signature(signers[0], signed.root_sha256)


def claimed_signer(folder: Path) -> str | None:
    """Return who a signature says it is by, where nobody asked for a check; None: there is no signature.

    Raises:
        BundleError: it is damaged, or of a kind that is not supported.
    """
    envelope = read_signature(folder)
    if envelope is None:
        return None
    read_statement(envelope, folder / SIGNATURE_FILE)
    if envelope.key_hint is not None:
        return f"the key SHA-256 {envelope.key_hint[:16]}"
    return f"a certificate with the SHA-256 {hashlib.sha256(envelope.certificates[0]).hexdigest()[:16]}"
