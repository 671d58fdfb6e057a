"""Signs bundles as `model-signing` does, with `cryptography` alone, and makes the keys and certificates for it.

`tests/vae_edge/signing/test_conformance.py` holds this against the package itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CURVES: dict[str, tuple[type[ec.EllipticCurve], type[hashes.HashAlgorithm]]] = {
    "P-256": (ec.SECP256R1, hashes.SHA256),
    "P-384": (ec.SECP384R1, hashes.SHA384),
    "P-521": (ec.SECP521R1, hashes.SHA512),
}
IGNORED = ["model.sig", "local.json", ".lock", ".lock.owner"]


@dataclass(frozen=True)
class KeyPair:
    """A key, and its two files."""

    key: ec.EllipticCurvePrivateKey
    private: Path
    public: Path


def make_key(folder: Path, name: str = "vendor", curve: str = "P-256", password: bytes | None = None) -> KeyPair:
    """Make a key and write both parts of it in PEM."""
    key = ec.generate_private_key(CURVES[curve][0]())
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    encryption = NoEncryption() if password is None else BestAvailableEncryption(password)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return KeyPair(key, private, public)


def sign_by_hand(
    folder: Path,
    key: ec.EllipticCurvePrivateKey,
    *,
    certificates: tuple[x509.Certificate, ...] = (),
    change: Callable[[dict[str, Any]], object] | None = None,
) -> None:
    """Write `model.sig`: by the key, or with certificates, the key's first.

    Args:
        folder: the bundle.
        key: who signs.
        certificates: see above.
        change: changes the statement before it is signed.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    resources = [
        {"name": name, "algorithm": "sha256", "digest": hashlib.sha256((folder / name).read_bytes()).hexdigest()}
        for name in names
        if name not in IGNORED
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
    statement: dict[str, Any] = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": folder.name, "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(IGNORED),
            },
            "resources": resources,
        },
    }
    if change is not None:
        change(statement)
    payload = json.dumps(statement, indent=2).encode()
    kind = b"application/vnd.in-toto+json"
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    hash_type = next(hash_type for curve, hash_type in CURVES.values() if isinstance(key.curve, curve))
    material: dict[str, Any]
    if certificates:
        raw = [{"rawBytes": base64.b64encode(each.public_bytes(Encoding.DER)).decode()} for each in certificates]
        material = {"x509CertificateChain": {"certificates": raw}, "tlogEntries": []}
    else:
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        material = {"publicKey": {"hint": hashlib.sha256(pem).hexdigest()}, "tlogEntries": []}
    content = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": kind.decode(),
            "signatures": [{"sig": base64.b64encode(key.sign(signed, ec.ECDSA(hash_type()))).decode(), "keyid": ""}],
        },
    }
    (folder / "model.sig").write_text(json.dumps(content))


@dataclass(frozen=True)
class Authority:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


NOW = datetime.now(timezone.utc).replace(microsecond=0)


def make_certificate(
    name: str,
    issuer: Authority | None = None,
    *,
    is_authority: bool = False,
    path_length: int | None = None,
    days: tuple[float, float] = (-1, 30),
    digital_signature: bool | None = True,
    purposes: tuple[x509.ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CODE_SIGNING,),
    extension: x509.ExtensionType | None = None,
    curve: str = "P-256",
) -> Authority:
    """Make a certificate; without an issuer it is its own.

    Args:
        name: whose it is.
        issuer: who signs it.
        is_authority: whether it may issue others; those of authorities have no purposes here.
        path_length: how many authorities may be below it.
        days: from when to when it is valid, from now on.
        digital_signature: whether keyUsage has that; None: there is no keyUsage.
        purposes: extendedKeyUsage; None: there is none.
        extension: one more, critical.
        curve: of its key.
    """
    key = ec.generate_private_key(CURVES[curve][0]())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=days[0]))
        .not_valid_after(NOW + timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((key if issuer is None else issuer.key).public_key()),
            critical=False,
        )
    )
    if digital_signature is not None:
        usage = x509.KeyUsage(
            digital_signature=digital_signature,
            content_commitment=not digital_signature,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=is_authority,
            crl_sign=is_authority,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(usage, critical=True)
    if purposes is not None and not is_authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return Authority(builder.sign(key if issuer is None else issuer.key, hashes.SHA256()), key)
