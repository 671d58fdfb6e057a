"""Certificate and key of the OPC UA server, and that nothing goes past them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_edge.errors import UsageError, said_by
from vae_edge.signing.certificates import check_server_certificate
from vae_edge.sinks.line.settings import LineSettings

if TYPE_CHECKING:
    from asyncua import Server

_NAME = "urn:vae-edge:line:server"


@dataclass(frozen=True)
class ServerIdentity:
    """A certificate with its key."""

    certificate: Path
    key: Path
    uri: str
    """The application's URI, which clients compare with the one in the certificate."""

    @classmethod
    def read(cls, settings: LineSettings) -> ServerIdentity | None:
        """Read the files that are set; None: none are.

        Raises:
            UsageError: one cannot be read, they do not belong together, or the certificate is not valid now.
        """
        if settings.pair("OPCUA_CERT", "OPCUA_KEY") is None:
            return None
        certificate_file, key_file = settings.path("OPCUA_CERT"), settings.path("OPCUA_KEY")
        assert certificate_file is not None
        assert key_file is not None
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        data = certificate_file.read_bytes()
        is_pem = b"-----BEGIN" in data
        try:
            certificate = x509.load_pem_x509_certificate(data) if is_pem else x509.load_der_x509_certificate(data)
        except ValueError as error:
            raise UsageError(
                f"{certificate_file} is no certificate in PEM or DER ({said_by(error)}); expected the server's own"
            ) from error
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"{key_file} is no private key in PEM without a password ({said_by(error)}); expected that of "
                f"{certificate_file}"
            ) from error
        encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        if certificate.public_key().public_bytes(encoding, form) != key.public_key().public_bytes(encoding, form):
            raise UsageError(
                f"the certificate {certificate_file} and the key {key_file} do not fit together; expected a "
                "certificate and its own private key"
            )
        check_server_certificate(certificate, certificate_file)
        return cls(certificate_file, key_file, _uri_of(certificate))

    async def apply(self, server: Server) -> None:
        """Let a server accept only signed and encrypted connections."""
        from asyncua import ua

        kind = ua.SecurityPolicyType
        await server.load_certificate(
            str(self.certificate), "PEM" if b"-----" in self.certificate.read_bytes() else "DER"
        )
        await server.load_private_key(str(self.key), None, "PEM")
        await server.set_application_uri(self.uri)
        server.set_security_policy(
            [
                kind.Basic256Sha256_SignAndEncrypt,
                kind.Aes128Sha256RsaOaep_SignAndEncrypt,
                kind.Aes256Sha256RsaPss_SignAndEncrypt,
            ]
        )
        _refuse_in_clear(server)


def _refuse_in_clear(server: Server) -> None:
    """Let a session on a channel without encryption do nothing at all.

    asyncua opens such a channel whatever the policies are, since clients ask on it which ones there are, and does not
    keep a client from beginning a session on it. It looks for permissions only where there is a policy with a ruleset;
    this one has no endpoint.
    """
    from asyncua import ua
    from asyncua.crypto import security_policies
    from asyncua.crypto.permission_rules import PermissionRuleset

    class Nothing(PermissionRuleset):  # type: ignore[misc]
        def check_validity(self, user: Any, action_type: Any, body: Any) -> bool:
            return False

    in_clear = security_policies.SecurityPolicyFactory(
        security_policies.SecurityPolicyNone, ua.MessageSecurityMode.None_, permission_ruleset=Nothing()
    )
    server._policies.append(in_clear)


def _uri_of(certificate: Any) -> str:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    return str(uris[0]) if uris else _NAME
