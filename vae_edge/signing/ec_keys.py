"""Keys on elliptic curves, which make and check signatures: ECDSA, with the hash that goes with the curve."""

from __future__ import annotations

import codecs
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from vae_edge.errors import InputError, MissingDependencyError
from vae_edge.records import open_regular, read_bounded

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

    from vae_edge.signing.envelope import Envelope

MAX_PEM_BYTES = 1_000_000
"""Of a file of keys or certificates: a bundle of all the web's roots has a quarter of it."""
_CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""The curves that signatures are made on, with the hash of each, by the names of `cryptography`."""
_DER_SEQUENCE = b"\x30"
"""What keys, certificates and PKCS #12 files begin with (ITU-T X.690)."""
EXPECTED_KEY = "an EC key on P-256, P-384 or P-521"


def is_signature_of(key: EllipticCurvePublicKey, envelope: Envelope) -> bool:
    """Return whether a key made a signature: ECDSA with the hash that goes with the curve."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    try:
        key.verify(envelope.signature, envelope.signed_bytes, ECDSA(hash_of(key)))
    except InvalidSignature:
        return False
    return True


def sign_bytes(key: EllipticCurvePrivateKey, content: bytes) -> bytes:
    """Return the signature over some bytes, in DER."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return key.sign(content, ECDSA(hash_of(key)))


def hash_of(key: EllipticCurvePublicKey | EllipticCurvePrivateKey) -> HashAlgorithm:
    """Return the hash that goes with a key's curve."""
    from cryptography.hazmat.primitives import hashes

    algorithm: HashAlgorithm = getattr(hashes, _CURVES[key.curve.name])()
    return algorithm


def is_supported(key: object) -> bool:
    """Return whether signatures are made with such a key."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

    return isinstance(key, EllipticCurvePublicKey | EllipticCurvePrivateKey) and key.curve.name in _CURVES


def kind_of(key: object) -> str:
    """Return what a key of another kind is, for messages: `an EC key on secp256k1`, `an RSA key`."""
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve is not None:
        return f"an EC key on {curve}"
    name = type(key).__name__.lstrip("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return f"an {name} key" if name[:1] in "AEIOR" else f"a {name} key"


def public_pem(key: EllipticCurvePublicKey) -> bytes:
    """Return a public key in PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_sha256(key: EllipticCurvePublicKey) -> str:
    """Return what names a key in a signature: the SHA-256 of it in PEM."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def require_cryptography() -> None:
    """Make sure that signatures can be checked here.

    Raises:
        MissingDependencyError: they cannot.
    """
    try:
        import cryptography.hazmat.primitives.serialization  # noqa: F401 - certificates take 50 ms more
    except ImportError as error:
        raise MissingDependencyError(
            "signatures and certificates are checked with the package 'cryptography', which is not installed; run: "
            'pip install "vae-edge[verify]"'
        ) from error


def read_pem(source: Path, what: str) -> bytes:
    """Read a file of keys or certificates.

    Args:
        source: the file.
        what: what it is, for the message.

    Raises:
        InputError: it cannot be read, is far too large, or is in another format than PEM that can be converted.
    """
    try:
        with open_regular(source) as file:
            content = read_bounded(file, MAX_PEM_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{what} {source} cannot be read ({reason}); expected a file in PEM") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{what} {source} is in UTF-16; expected PEM: save it as ASCII or UTF-8")
    if content.startswith(_DER_SEQUENCE) and b"-----BEGIN " not in content:
        raise InputError(
            f"{what} {source} is binary (DER or PKCS #12); expected PEM: convert it with openssl pkey -inform DER (and "
            "-pubin for a public key), openssl x509 -inform DER or openssl pkcs12"
        )
    return content
