"""The key with which this user signs re-fits on this device, in the folder for configuration.

refit-key.pem        private, made at the first re-fit of a signed bundle; only its user can read it
refit-key.pub.pem    public, for the policy of other users or devices that are to accept these re-fits
refits/              how many re-fits of each bundle were signed here, so that an older one is noticed
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.errors import InputError, said_by
from vae_edge.platform.atomic import write_bytes, write_text
from vae_edge.signing.ec_keys import is_supported, public_pem, read_pem, require_cryptography
from vae_edge.signing.policy import config_folder

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

KEY_FILE, PUBLIC_KEY_FILE = "refit-key.pem", "refit-key.pub.pem"
_COUNTS = "refits"


def device_key(*, make: bool) -> EllipticCurvePrivateKey | None:
    """Return this user's key for re-fits; None: there is none yet, and none is to be made.

    Raises:
        InputError: it cannot be read or made, others can read it, or it is no such key.
        MissingDependencyError: `cryptography` is not installed.
    """
    folder = config_folder()
    if folder is None:
        if not make:
            return None
        raise InputError(
            "there is no place for the key that signs re-fits because this user has no home folder; set "
            "VAE_EDGE_CONFIG to a folder"
        )
    path = folder / KEY_FILE
    if not os.path.lexists(path):
        if not make:
            return None
        require_cryptography()
        _make(path)
    require_cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = read_pem(path, "the key for re-fits")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise InputError(f"other users can read the key for re-fits {path}; run: chmod 600 {path}")
    try:
        key: Any = load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"the key for re-fits {path} is not a private key without a password ({said_by(error)}); remove it, and "
            "another is made at the next re-fit"
        ) from error
    if not is_supported(key):
        raise InputError(f"the key for re-fits {path} is not an EC key; remove it to have another made")
    found: EllipticCurvePrivateKey = key
    return found


def _make(path: Path) -> None:
    """Make a key, readable for its user alone from the first moment on; one that another process made stays.

    Raises:
        InputError: it cannot be written.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = generate_private_key(SECP256R1())
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
            write_bytes(path.with_name(PUBLIC_KEY_FILE), public_pem(key.public_key()))
    except OSError as error:
        raise InputError(
            f"the key that signs re-fits could not be written to {path.parent} ({error.strerror or error}); set "
            "VAE_EDGE_CONFIG to a folder that can be written"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def signed_here(folder: Path, root_sha256: str) -> int:
    """Return how many re-fits of a bundle in a folder were signed by this user; 0 also where that is not known."""
    path = _count_path(folder, root_sha256)
    if path is None:
        return 0
    try:
        return int(path.read_text(encoding="ascii").strip()[:12])
    except (OSError, ValueError):
        return 0


def keep_count(folder: Path, root_sha256: str, n: int) -> None:
    """Keep how many re-fits were signed.

    Raises:
        InputError: it cannot be written.
    """
    path = _count_path(folder, root_sha256)
    if path is not None:
        write_text(path, f"{n}\n")


def _count_path(folder: Path, root_sha256: str) -> Path | None:
    place = config_folder()
    name = hashlib.sha256(f"{folder}\n{root_sha256}".encode(errors="surrogateescape")).hexdigest()
    return None if place is None else place / _COUNTS / name
