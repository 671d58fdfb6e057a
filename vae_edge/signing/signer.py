"""Signs a bundle with OpenSSF's `model-signing`, by a key or a certificate, without a network.

What the package wrote is checked with what a device has before it becomes `model.sig`: that the key made it, and that
it lists the very files of the bundle that was opened.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vae_edge.errors import InputError, MissingDependencyError, said_by
from vae_edge.platform.atomic import LOCK_FILE, check_place, claim, scratch_folder, write_bytes
from vae_edge.signing.certificates import check_signer_certificate
from vae_edge.signing.ec_keys import (
    EXPECTED_KEY,
    is_signature_of,
    is_supported,
    key_sha256,
    kind_of,
    read_pem,
    require_cryptography,
)
from vae_edge.signing.envelope import (
    MAX_CERTIFICATES,
    read_signature,
    read_statement,
)
from vae_edge.signing.files import LOCAL_FILE, OUTSIDE, SIGNATURE_FILE
from vae_edge.signing.folder import TRANSIENT, check_folder, files_in
from vae_edge.signing.local_record import read_local

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PASSWORD_VARIABLE = "VAE_EDGE_KEY_PASSWORD"


@dataclass(frozen=True)
class SigningKey:
    """A private key that was read, and the files of what goes with it."""

    path: Path
    key: EllipticCurvePrivateKey
    password: bytes | None
    """None: it has none."""
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    by: str = ""
    """Whose signatures these are, in words."""

    @classmethod
    def read(
        cls, path: Path, password: bytes | None, *, certificate: Path | None = None, chain: Sequence[Path] = ()
    ) -> SigningKey:
        """Read a private key, and a certificate for it where there is one.

        Args:
            path: the key, in PEM.
            password: of an encrypted key.
            certificate: of that key, in PEM; None: the signature is one by the key alone.
            chain: the certificates that lead from it to a root, in PEM; the root itself may be among them.

        Raises:
            InputError: a file cannot be read or holds something else, the password is wrong, or the certificate is of
                another key, not for signing, or not valid now.
            MissingDependencyError: `cryptography` is not installed.
        """
        require_cryptography()
        key = _read_key(path, password)
        if certificate is None:
            return cls(path, key, password, by=f"the key {path.name} (SHA-256 {key_sha256(key.public_key())[:16]})")
        public, by = check_signer_certificate(read_pem(certificate, "the certificate"), str(certificate))
        if public != key.public_key():
            raise InputError(f"the certificate {certificate} is not of the key {path}; expected its own certificate")
        _check_chain(chain)
        return cls(path, key, password, certificate, tuple(chain), by)


class PasswordNeededError(InputError):
    """A key is encrypted, and no password was given."""


class Signed(NamedTuple):
    """What signing did."""

    n_files: int
    """Files that the signature covers."""
    replaces: bool
    """Whether there was a signature before."""


def sign_folder(folder: Path, key: SigningKey, known: Mapping[str, str]) -> Signed:
    """Sign a bundle; an earlier signature is replaced in one step.

    Args:
        folder: the bundle, which the caller has opened.
        key: who signs.
        known: SHA-256 of the files that were read when it was opened.

    Raises:
        InputError: the folder cannot be written, or contains what cannot be signed.
        BundleError: it was changed meanwhile.
        MissingDependencyError: `model-signing` is not installed.
    """
    check_place(folder)
    with claim(folder / LOCK_FILE, f"another process is writing to {folder}"), scratch_folder("sign") as scratch:
        hidden = sorted(name for name in files_in(folder) if name.rpartition("/")[2].startswith("."))
        if hidden:
            raise InputError(
                f"{folder / hidden[0]} is hidden, and model-signing leaves such files out; remove it and sign again"
            )
        _write_signature(folder, key, scratch / SIGNATURE_FILE)
        envelope = read_signature(scratch)
        assert envelope is not None
        if not is_signature_of(key.key.public_key(), envelope):
            raise InputError("model-signing wrote a signature that is not by this key; the bundle was not changed")
        signed = read_statement(envelope, scratch / SIGNATURE_FILE)
        check_folder(folder, signed, known)
        local = read_local(folder, known["manifest.json"])
        if local is not None and local.root_sha256 != signed.root_sha256:
            raise InputError(
                f"{folder / LOCAL_FILE} belongs to other content than what would be signed; remove it and sign again"
            )
        replaces = os.path.lexists(folder / SIGNATURE_FILE)
        write_bytes(folder / SIGNATURE_FILE, (scratch / SIGNATURE_FILE).read_bytes())
    return Signed(len(signed.sha256_of), replaces)


def _write_signature(folder: Path, key: SigningKey, path: Path) -> None:
    try:
        import model_signing
    except ImportError as error:
        raise MissingDependencyError(
            f"bundles are signed with the package 'model-signing', which cannot be imported ({error}); run: "
            'pip install "vae-edge[sign]"'
        ) from error
    hashing = model_signing.hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    hashing.set_ignored_paths(paths=[folder / name for name in (*OUTSIDE, *TRANSIENT)], ignore_git_paths=False)
    signing: Any = model_signing.signing.Config().set_hashing_config(hashing)
    try:
        if key.certificate is None:
            signing.use_elliptic_key_signer(private_key=key.path, password=key.password).sign(folder, path)
            return
        with _without_password(key) as key_path:
            # It cannot read a chain without certificates: the signer's own is in it instead, and taken out again.
            signing.use_certificate_signer(
                private_key=key_path,
                signing_certificate=key.certificate,
                certificate_chain=key.chain or (key.certificate,),
            )
        signing.sign(folder, path)
        _drop_repeated_certificates(path)
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"model-signing could not sign {folder}: {said_by(error)}") from error


def _drop_repeated_certificates(path: Path) -> None:
    """Leave each certificate of a signature in it once; they are beside what is signed."""
    content = json.loads(path.read_bytes())
    chain = content["verificationMaterial"]["x509CertificateChain"]
    chain["certificates"] = list({each["rawBytes"]: each for each in chain["certificates"]}.values())
    path.write_text(json.dumps(content), encoding="utf-8", newline="")


@contextmanager
def _without_password(key: SigningKey) -> Iterator[Path]:
    """Yield a path from which a key can be read once without a password, which model-signing does not take here.

    That is a pipe: the key is never written to a disk.

    Raises:
        InputError: this system has no paths for pipes.
    """
    if key.password is None:
        yield key.path
        return
    if not os.path.isdir("/dev/fd"):  # noqa: PTH112 - one system call
        raise InputError(
            f"model-signing takes no password for a key with a certificate; on this system, remove that of {key.path} "
            f"first: openssl pkey -in {key.path} -out plain.pem"
        )
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    content = key.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    reads, writes = os.pipe()

    def write() -> None:
        with os.fdopen(writes, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield Path(f"/dev/fd/{reads}")
    finally:
        os.close(reads)
        thread.join(1.0)


def _read_key(path: Path, password: bytes | None) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_pem(path, "the key")
    if b"PRIVATE KEY-----" not in content:
        kind = "a public key" if b"PUBLIC KEY-----" in content else "no private key in PEM"
        raise InputError(f"{path} is {kind}; expected {EXPECTED_KEY}: openssl ecparam -name prime256v1 -genkey -noout")
    try:
        key: Any = load_pem_private_key(content, password)
    except TypeError as error:
        if password is None:
            raise PasswordNeededError(
                f"the key {path} is encrypted; give its password with --password-file FILE or in {PASSWORD_VARIABLE}"
            ) from error
        raise InputError(f"the key {path} is not encrypted, but a password was given; leave it out") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        wrong = "the password is wrong, or " if password is not None else ""
        raise InputError(f"the key {path} cannot be read: {wrong}it is damaged ({said_by(error)})") from error
    if not is_supported(key):
        raise InputError(f"{path} is {kind_of(key)}; expected {EXPECTED_KEY}")
    found: EllipticCurvePrivateKey = key
    return found


def _check_chain(chain: Sequence[Path]) -> None:
    """Refuse files without certificates, and more certificates than a device accepts in a signature.

    Raises:
        InputError: with the file.
    """
    from cryptography.x509 import load_pem_x509_certificates

    found = []
    for path in chain:
        try:
            found += load_pem_x509_certificates(read_pem(path, "the chain"))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path} holds no certificates in PEM ({said_by(error)}); expected those of the chain"
            ) from error
    if len(set(found)) >= MAX_CERTIFICATES:
        raise InputError(
            f"the chain has {len(set(found))} certificates; expected at most {MAX_CERTIFICATES - 1}: those between the "
            "certificate and its root"
        )
