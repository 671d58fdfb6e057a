"""Reads `model.sig`: a Sigstore bundle that holds a DSSE envelope around the in-toto statement of a signed folder.

Nothing here is cryptography: what is read is untrusted until `vae_edge.signing.keys` has checked the signature over
`Envelope.signed_bytes`. Formats: https://github.com/secure-systems-lab/dsse (DSSE, its pre-authentication encoding),
https://github.com/in-toto/attestation/tree/main/spec/v1 (statements), https://docs.sigstore.dev/about/bundle
(Sigstore's bundle, version 0.3), https://github.com/ossf/model-signing-spec (the predicate).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from vae_edge.errors import BundleError
from vae_edge.records import JsonLimits, Record, Sha256, open_regular, parse_json, problem_of, read_bounded
from vae_edge.signing.files import SIGNATURE_FILE

PAYLOAD_TYPE: Literal["application/vnd.in-toto+json"] = "application/vnd.in-toto+json"
STATEMENT_TYPE: Literal["https://in-toto.io/Statement/v1"] = "https://in-toto.io/Statement/v1"

SIGNATURE_LIMITS = JsonLimits(1_000_000, 5_000)
"""Of `model.sig`: a bundle has at most 18 files of about 200 bytes here, and a chain a few certificates."""
STATEMENT_LIMITS = JsonLimits(500_000, 5_000)
MAX_CERTIFICATES = 8
"""In a signature, its own included."""
_ADVICE = "copy the bundle again, or ask its maker to sign it again"


class _PublicKey(Record):
    hint: Sha256


class _Certificate(Record):
    rawBytes: str  # noqa: N815 - as the format spells it


class _Chain(Record):
    certificates: tuple[_Certificate, ...] = Field(min_length=1, max_length=MAX_CERTIFICATES)


class _Material(Record):
    publicKey: _PublicKey | None = None  # noqa: N815
    x509CertificateChain: _Chain | None = None  # noqa: N815
    tlogEntries: tuple[()] = ()  # noqa: N815 - entries of a transparency log, which nobody could check offline


class _SignatureValue(Record):
    sig: str
    keyid: str = Field(default="", max_length=64)


class DsseEnvelope(Record):
    """A DSSE envelope with one signature, as it lies in a file."""

    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815
    signatures: tuple[_SignatureValue, ...] = Field(min_length=1, max_length=1)

    def content(self) -> tuple[bytes, bytes]:
        """Return payload and signature.

        Raises:
            ValueError: one of them is not in base64.
        """
        return decoded(self.payload), decoded(self.signatures[0].sig)


class _SigstoreBundle(Record):
    mediaType: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]  # noqa: N815
    verificationMaterial: _Material  # noqa: N815
    dsseEnvelope: DsseEnvelope  # noqa: N815


@dataclass(frozen=True)
class Envelope:
    """What a file of a signature says, unchecked."""

    payload: bytes
    signature: bytes
    key_hint: str | None = None
    """SHA-256 of the public key in PEM; None: it was signed with a certificate."""
    certificates: tuple[bytes, ...] = ()
    """In DER: the signer's own, then those that lead to a root."""

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return pre_authentication_encoding(self.payload)


class _Serialization(Record):
    method: Literal["files"]
    hash_type: Literal["sha256"]
    allow_symlinks: Literal[False]
    ignore_paths: tuple[str, ...] = Field(default=(), max_length=1000)


class _Resource(Record):
    name: str = Field(min_length=1, max_length=1000)
    algorithm: Literal["sha256"]
    digest: Sha256


class _Predicate(Record, extra="ignore"):  # As the specification asks.
    serialization: _Serialization
    resources: tuple[_Resource, ...] = Field(min_length=1, max_length=1000)


class Subject(Record):
    """What an in-toto statement is about: a file, or a folder as a whole."""

    name: str
    digest: dict[Literal["sha256"], Sha256]


class _Statement(Record):
    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...] = Field(min_length=1, max_length=1)
    predicateType: Literal["https://model_signing/signature/v1.0"]  # noqa: N815
    predicate: _Predicate


@dataclass(frozen=True)
class SignedFiles:
    """What a statement says about a folder."""

    root_sha256: str
    """SHA-256 over the digests of all files, in the order of the statement: names the content as a whole."""
    sha256_of: Mapping[str, str]
    """Of every file, by its path in the folder, with `/`."""


def pre_authentication_encoding(payload: bytes) -> bytes:
    """Return what a DSSE signature over an in-toto statement is over.

    Examples:
        >>> pre_authentication_encoding(b"{}")
        b'DSSEv1 28 application/vnd.in-toto+json 2 {}'
    """
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def decoded(text: str) -> bytes:
    """Return what stands in base64, with no other spelling of it allowed.

    Raises:
        ValueError: it is not base64.
    """
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a value is not in base64 ({error})") from None
    if base64.b64encode(content).decode() != text:
        raise ValueError("a value is not in base64 as it is written")
    return content


def read_signature(folder: Path) -> Envelope | None:
    """Read the signature of a folder; None: there is none.

    Raises:
        BundleError: it cannot be read, is damaged, or is of a kind that is not supported.
    """
    path = folder / SIGNATURE_FILE
    try:
        with open_regular(path, links=False) as file:
            content = parse_json(read_bounded(file, SIGNATURE_LIMITS.size_bytes), SIGNATURE_LIMITS)
        _refuse_other_kinds(content)
        found = _SigstoreBundle.model_validate(content)
        payload, signature = found.dsseEnvelope.content()
        material = found.verificationMaterial
        chain = material.x509CertificateChain
        if (material.publicKey is None) is (chain is None):
            raise ValueError("it names neither a key nor a certificate, or both")
        if found.dsseEnvelope.signatures[0].keyid:
            raise ValueError("its signature has a keyid, which is not used here")
        return Envelope(
            payload,
            signature,
            None if material.publicKey is None else material.publicKey.hint,
            () if chain is None else tuple(decoded(each.rawBytes) for each in chain.certificates),
        )
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"the signature {path} cannot be read ({error.strerror or error}); {_ADVICE}") from error
    except ValueError as error:
        raise BundleError(f"the signature {path} is damaged: {in_short(error)}; {_ADVICE}") from error


def read_statement(envelope: Envelope, path: Path) -> SignedFiles:
    """Return the files that a statement lists.

    Args:
        envelope: whose payload it is.
        path: of the file, for messages.

    Raises:
        BundleError: it is not a statement about a folder whose files were hashed one by one with SHA-256.
    """
    try:
        found = _Statement.model_validate(parse_json(envelope.payload, STATEMENT_LIMITS))
        resources = found.predicate.resources
        digests = {each.name: each.digest for each in resources}
        if len(digests) != len(resources):
            raise ValueError("it lists a file twice")
        root = hashlib.sha256(b"".join(bytes.fromhex(each.digest) for each in resources)).hexdigest()
        if found.subject[0].digest["sha256"] != root:
            raise ValueError("the digest of the whole is not that of its files")
    except (ValueError, KeyError) as error:
        raise BundleError(f"the statement in {path} cannot be used: {in_short(error)}; {_ADVICE}") from error
    return SignedFiles(root, digests)


def _refuse_other_kinds(content: Any) -> None:
    """Say of signatures that model-signing can make and a device cannot check what they are."""
    material = content.get("verificationMaterial") if isinstance(content, dict) else None
    if isinstance(material, dict) and ("certificate" in material or material.get("tlogEntries")):
        raise ValueError(
            "it was made with Sigstore's services, which a device cannot ask; expected one by a key or a certificate"
        )


def in_short(error: Exception) -> str:
    """Return what is wrong with content, in one sentence."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200] or "it"
        return f"{place}: {problem_of(dict(first))[:300]}"
    return str(error)[:300]
