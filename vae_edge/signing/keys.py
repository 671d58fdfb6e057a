"""The keys and root certificates that are trusted, and whether one of them made a signature."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.errors import BundleError, InputError, UsageError, said_by
from vae_edge.platform.outside import printable, user_path
from vae_edge.signing.certificates import check_chain
from vae_edge.signing.ec_keys import (
    EXPECTED_KEY,
    is_signature_of,
    is_supported,
    key_sha256,
    kind_of,
    read_pem,
    require_cryptography,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

    from vae_edge.signing.envelope import Envelope

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.+?-----END \1-----", re.DOTALL)

KeySource = str | Path | bytes
"""A file in PEM, or its content."""


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys and root certificates whose signatures are accepted; it can be pickled."""

    pems: tuple[tuple[str, bytes], ...]
    """Name and content of each file."""
    said_by: str
    """What asked for them, for messages: `--trusted-key`, or a file."""

    @property
    def names(self) -> str:
        """What they are called."""
        return " or ".join(name for name, _ in self.pems)


@dataclass(frozen=True)
class SignedBy:
    """Who made a signature that was checked."""

    what: str
    """In words: `the key vendor.pem (SHA-256 0123456789abcdef)`, or the certificate, its issuer and its last day."""
    key_sha256: str
    """SHA-256 of the public key in PEM."""


def trusted_keys(given: KeySource | Sequence[KeySource] | TrustedKeys, *, said_by: str = "trusted_keys") -> TrustedKeys:
    """Read the files of keys that are trusted, and check that they hold some.

    Args:
        given: files in PEM, or their contents: public keys, or certificates of roots.
        said_by: what asked for them.

    Raises:
        InputError: a file cannot be read, or holds something else: a private key, for example.
        UsageError: there is none.
        MissingDependencyError: `cryptography` is not installed.
    """
    if isinstance(given, TrustedKeys):
        return given
    sources = [given] if isinstance(given, str | Path | bytes) else list(given)
    if not sources:
        raise UsageError(f"{said_by} is empty, so no bundle could be opened; expected at least one key or certificate")
    pems = tuple(_read(each) for each in sources)
    for name, pem in pems:
        _parse(name, pem)
    return TrustedKeys(pems, said_by)


def public_keys(trusted: TrustedKeys) -> list[EllipticCurvePublicKey]:
    """Return the public keys among what is trusted."""
    return [key for name, pem in trusted.pems for key in _parse(name, pem)[0]]


def check_signer(envelope: Envelope, trusted: TrustedKeys, what: str, *, now: datetime | None = None) -> SignedBy:
    """Check that one of the trusted keys made a signature.

    Args:
        envelope: the signature with what it is over.
        trusted: who may have made it.
        what: what was signed, for messages.
        now: the time at which a certificate must be valid; None: this moment.

    Raises:
        BundleError: somebody else did, the signature is not one, or a certificate is not valid.
        MissingDependencyError: `cryptography` is not installed.
    """
    parsed = [(name, *_parse(name, pem)) for name, pem in trusted.pems]
    if envelope.key_hint is None:
        roots = [certificate for _, _, certificates in parsed for certificate in certificates]
        if not roots:
            raise BundleError(
                f"{what} was signed with a certificate, but {trusted.names} (from {trusted.said_by}) holds public keys "
                "only; trust the certificate of its root"
            )
        signer, words = check_chain(envelope.certificates, roots, what, now=now)
    else:
        keys = {key_sha256(key): (name, key) for name, found, _ in parsed for key in found}
        if envelope.key_hint not in keys:
            raise BundleError(
                f"{what} was signed by another key (SHA-256 {envelope.key_hint[:16]}); expected one by "
                f"{_expected(keys) or f'a certificate that {trusted.names} vouches for'}, from {trusted.said_by}"
            )
        name, signer = keys[envelope.key_hint]
        words = f"the key {name} (SHA-256 {envelope.key_hint[:16]})"
    if not is_signature_of(signer, envelope):
        raise BundleError(f"the signature of {what} is not valid: it was changed, or was not made by {words}")
    return SignedBy(words, key_sha256(signer))


def _expected(keys: dict[str, tuple[str, Any]]) -> str:
    return " or ".join(f"{name} (SHA-256 {sha256[:16]})" for sha256, (name, _) in keys.items())


def _read(source: KeySource) -> tuple[str, bytes]:
    if isinstance(source, bytes):
        return f"key {hashlib.sha256(source).hexdigest()[:8]}", source
    path = user_path(source)
    return printable(path.name), read_pem(path, "the trusted key")


def _parse(name: str, pem: bytes) -> tuple[list[EllipticCurvePublicKey], list[Certificate]]:
    """Return the keys and the certificates in a file.

    Raises:
        InputError: there are none, or something else.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys: list[EllipticCurvePublicKey] = []
    certificates: list[Certificate] = []
    if b"PRIVATE KEY-----" in pem:
        raise InputError(
            f"{name} holds a private key, which no device should have; expected its public part: "
            f"openssl pkey -in {name} -pubout -out public.pem"
        )
    for block in _BLOCK.finditer(pem):
        label = block[1].decode()
        try:
            if label == "CERTIFICATE":
                from cryptography.x509 import load_pem_x509_certificate  # It takes 50 ms, which keys do not need.

                certificates.append(load_pem_x509_certificate(block[0]))
            elif label == "PUBLIC KEY":
                key: Any = load_pem_public_key(block[0])
                if not is_supported(key):
                    raise InputError(f"{name} holds {kind_of(key)}; expected {EXPECTED_KEY}")
                keys.append(key)
            else:
                raise InputError(f"{name} holds {label!r}; expected public keys or certificates, in PEM")
        except (ValueError, UnsupportedAlgorithm) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{name} is damaged: its {label.lower()} cannot be read ({said_by(error)}); expected {EXPECTED_KEY}, "
                "or a certificate"
            ) from error
    if not keys and not certificates:
        raise InputError(
            f"{name} is not a key: there is no -----BEGIN PUBLIC KEY----- or -----BEGIN CERTIFICATE----- in it; "
            f"expected {EXPECTED_KEY} in PEM, or the certificate of a root"
        )
    return keys, certificates
