"""Whether a certificate is valid at this moment, may sign bundles, and whether a trusted root vouches for it.

A subset of RFC 5280, section 6, on the checks of `cryptography`: names, signatures, validity, who may issue. What is
not supported, such as constraints on names, is refused. There is no revocation: a device has no network. model-signing
itself checks the validity at the moment at which the signer's certificate became valid; here every certificate of the
chain has to be valid then *and* now.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.errors import BundleError, InputError, UsageError, said_by
from vae_edge.platform.outside import printable
from vae_edge.signing.ec_keys import EXPECTED_KEY, is_supported, kind_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

_MAX_DEPTH = 8
_KNOWN = ("BASIC_CONSTRAINTS", "KEY_USAGE", "EXTENDED_KEY_USAGE", "SUBJECT_ALTERNATIVE_NAME")
"""Extensions that may be critical, because they are understood here; by their names in `cryptography`."""
_WEAK = ("md5", "sha1")


def check_chain(
    chain: Sequence[bytes], trusted: Sequence[Certificate], what: str, *, now: datetime | None = None
) -> tuple[EllipticCurvePublicKey, str]:
    """Check the certificates of a signature.

    Args:
        chain: in DER: the signer's own, then others in any order.
        trusted: certificates that are trusted; one that is its own issuer has to be at the end of the chain.
        what: what was signed, for messages.
        now: the time that counts; None: this moment.

    Returns:
        The signer's key, and who that is in words.

    Raises:
        BundleError: no root vouches for it, a certificate is not valid now, or is not for signing.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        signer, *others = (x509.load_der_x509_certificate(each) for each in chain)
        key: Any = signer.public_key()
        _check_usage(signer, f"{what} was signed with a certificate")
        path = _path_to_root(signer, [*others, *trusted], trusted)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"a certificate in the signature of {what} cannot be used ({said_by(error)})") from error
    if not is_supported(key):
        raise BundleError(f"the certificate that signed {what} has {kind_of(key)}; expected {EXPECTED_KEY}")
    if path is None:
        by = _name(signer, issuer=True)
        raise BundleError(
            f"{what} was signed with a certificate of {_name(signer)}, issued by {by}, and no trusted root leads "
            f"there; expected one by {' or '.join(map(_name, trusted))}"
        )
    said = f"{what} was signed with a certificate"
    for certificate in path:
        _check_time(certificate, now or datetime.now(timezone.utc), said)
        _check_time(certificate, signer.not_valid_before_utc, said, at_signing=True)
    until = signer.not_valid_after_utc.date().isoformat()
    by = "" if len(path) == 1 else f", issued by {_name(signer, issuer=True)}"
    return key, f"the certificate of {_name(signer)}{by}, valid until {until}"


def check_signer_certificate(pem: bytes, what: str) -> tuple[Any, str]:
    """Check, before something is signed, that a certificate is for that and is valid now.

    Args:
        pem: the certificate.
        what: its file, for messages.

    Returns:
        Its key, and who that is in words.

    Raises:
        InputError: it is not.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        _check_usage(certificate, f"{what} is a certificate")
        _check_time(certificate, datetime.now(timezone.utc), f"{what} is a certificate")
        return certificate.public_key(), f"the certificate of {_name(certificate)}"
    except BundleError as error:
        raise InputError(str(error)) from error
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise InputError(f"{what} is not a certificate in PEM, or cannot be used ({said_by(error)})") from error


def check_server_certificate(certificate: Certificate, file: Path) -> None:
    """Refuse a certificate of this machine's own server that is not valid now.

    Raises:
        UsageError: it has expired, or is not valid yet.
    """
    try:
        _check_time(
            certificate, datetime.now(timezone.utc), f"{file} has a certificate", "make a new one, or set the clock"
        )
    except BundleError as error:
        raise UsageError(str(error)) from error


def _path_to_root(
    certificate: Certificate, others: Sequence[Certificate], roots: Sequence[Certificate], depth: int = 0
) -> list[Certificate] | None:
    """Return the certificates from one to a trusted root; None: there is no such way.

    Raises:
        ValueError: a certificate on the way has something that is not supported.
    """
    is_own_issuer = certificate.subject == certificate.issuer
    if is_own_issuer and certificate in roots and _has_issued(certificate, certificate):
        return [certificate]
    if is_own_issuer or depth == _MAX_DEPTH:
        return None
    for issuer in dict.fromkeys(others):
        # The name first: what else a store of many roots holds does not matter.
        if issuer.subject == certificate.issuer and _may_issue(issuer, depth) and _has_issued(issuer, certificate):
            rest = _path_to_root(issuer, [each for each in others if each != issuer], roots, depth + 1)
            if rest is not None:
                return [certificate, *rest]
    return None


def _has_issued(issuer: Certificate, certificate: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    algorithm = certificate.signature_hash_algorithm
    if algorithm is not None and algorithm.name in _WEAK and issuer != certificate:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _may_issue(certificate: Certificate, n_below: int) -> bool:
    """Return whether a certificate is of an authority that may have so many others below it, the signer's aside."""
    from cryptography import x509

    extensions = _extensions(certificate)
    try:
        limits = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    if not limits.ca or (limits.path_length is not None and limits.path_length < n_below):
        return False
    try:
        return bool(extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign)
    except x509.ExtensionNotFound:
        return True


def _check_usage(certificate: Certificate, said: str) -> None:
    """Refuse a certificate that was not issued for signing.

    Raises:
        BundleError: with what it is for.
    """
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    extensions = _extensions(certificate)
    problem = "says nothing about what it is for"
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        problem = "" if usage.digital_signature else "is not for digital signatures (keyUsage)"
    except x509.ExtensionNotFound:
        pass
    try:
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CODE_SIGNING not in purposes:
            problem = "is for other purposes than signing code (extendedKeyUsage)"
        elif problem.startswith("says"):
            problem = ""
    except x509.ExtensionNotFound:
        pass
    if problem:
        raise BundleError(
            f"{said} of {_name(certificate)} that {problem}; expected one with "
            "keyUsage digitalSignature, or extendedKeyUsage codeSigning"
        )


def _extensions(certificate: Certificate) -> Any:
    """Return a certificate's extensions.

    Raises:
        ValueError: there is a critical one that is not known here.
    """
    from cryptography.x509.oid import ExtensionOID

    known = {getattr(ExtensionOID, name) for name in _KNOWN}
    for extension in certificate.extensions:
        if extension.oid == ExtensionOID.NAME_CONSTRAINTS or (extension.critical and extension.oid not in known):
            number = extension.oid.dotted_string
            raise ValueError(f"that of {_name(certificate)} has the extension {number}, which is not supported")
    return certificate.extensions


def _check_time(
    certificate: Certificate,
    moment: datetime,
    said: str,
    advice: str = "a renewed certificate has to sign it again",
    *,
    at_signing: bool = False,
) -> None:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if first <= moment <= last:
        return
    when = "when the signer's became valid" if at_signing else f"and this device's clock says {moment:%Y-%m-%d %H:%M}"
    if moment < first:
        raise BundleError(
            f"{said} that is not valid yet: that of {_name(certificate)} is from "
            f"{first:%Y-%m-%d %H:%M} UTC, {when}; set the clock, or wait"
        )
    raise BundleError(
        f"{said} that has expired: that of {_name(certificate)} was valid until "
        f"{last:%Y-%m-%d %H:%M} UTC, {when}; {advice}"
    )


def _name(certificate: Certificate, *, issuer: bool = False) -> str:
    from cryptography.x509.oid import NameOID

    name = certificate.issuer if issuer else certificate.subject
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return printable(str(common[0].value) if common else name.rfc4514_string())[:100]
