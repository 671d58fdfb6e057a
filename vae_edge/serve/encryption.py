"""The server's own TLS: its certificate and private key."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from vae_edge.errors import InputError, UsageError, said_by
from vae_edge.platform.outside import user_path
from vae_edge.records import open_regular
from vae_edge.signing.certificates import check_server_certificate
from vae_edge.signing.ec_keys import require_cryptography


@dataclass(frozen=True)
class Encryption:
    """Files in PEM that belong together."""

    certificate: Path
    """The server's own, and after it those that lead to a known one."""
    private_key: Path
    """Without a password."""

    @classmethod
    def read(cls, certificate: Path | None, private_key: Path | None) -> Encryption | None:
        """Check the files that were named; None: none were.

        Raises:
            UsageError: one is missing, they do not belong together, one is not what it should be, or a certificate is
                not valid now.
            InputError: one cannot be read.
            MissingDependencyError: `cryptography` is not installed.
        """
        if certificate is None and private_key is None:
            return None
        if certificate is None or private_key is None:
            given, needed = ("certificate", "private-key") if private_key is None else ("private-key", "certificate")
            raise UsageError(f"--{given} needs --{needed}; pass both or neither")
        found = cls(user_path(str(certificate)), user_path(str(private_key)))
        require_cryptography()
        from cryptography.x509 import load_pem_x509_certificates

        for path in (found.certificate, found.private_key):
            try:
                with open_regular(path) as file:
                    file.read(1)
            except OSError as error:
                raise InputError(f"{path} could not be read ({error.strerror or error})") from error
        try:
            # A password is never asked for: on the terminal a server would wait for ever.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*found.files, password=lambda: "")
            certificates = load_pem_x509_certificates(found.certificate.read_bytes())
        except (ssl.SSLError, ValueError) as error:
            raise UsageError(
                f"the certificate {found.certificate} and the key {found.private_key} do not fit together "
                f"({said_by(error)}); expected a certificate and its own private key without a password, both in PEM"
            ) from error
        for each in certificates:
            check_server_certificate(each, found.certificate)
        return found

    @property
    def files(self) -> tuple[Path, Path]:
        """Certificate and private key."""
        return self.certificate, self.private_key
