"""The addresses of the channels, as they are written on the command line."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from vae_edge.errors import UsageError
from vae_edge.platform.outside import printable

_LONGEST = 2000


@dataclass(frozen=True)
class Address:
    """Where a channel goes."""

    text: str
    """As it was written."""
    scheme: str
    host: str
    port: int
    path: str
    """What follows the port, with its `/`, still quoted, and the query if there is one."""

    @property
    def where(self) -> str:
        """Host and port, for messages."""
        return shown_where(self.host, self.port)

    @property
    def is_local(self) -> bool:
        """Whether it stays on this machine."""
        return is_loopback(self.host)


def parse_address(
    text: str, schemes: dict[str, int | None], expected: str, user_setting: str, implied: str = ""
) -> Address:
    """Take an address apart.

    Args:
        text: from the user.
        schemes: those that are allowed, in lower case, with their usual port; None: the port has to be given.
        expected: the form, for messages.
        user_setting: which setting names the user, where the address must not.
        implied: what stands before the text without being written, such as `modbus://`; messages do not show it.

    Raises:
        UsageError: it has another form, or a user or password in it. The message does not repeat a password.
    """
    try:
        parts = urlsplit(implied + text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(
            f"{printable(_without_user(text))!r} is not an address ({error}); expected {expected}"
        ) from None
    shown = printable(_without_user(text))
    if len(text) > _LONGEST or any(character.isspace() or not character.isprintable() for character in text):
        raise UsageError(f"{shown[:100]!r} is not an address; expected {expected}")
    if "@" in parts.netloc:
        # Everybody on this machine can read another's command line.
        raise UsageError(
            f"{shown} has a user or password in it; set {user_setting} instead, or a file with --line-settings"
        )
    if parts.scheme not in schemes or not host or "#" in text:
        raise UsageError(f"{shown!r} is not an address of this kind; expected {expected}")
    port = schemes[parts.scheme] if port is None else port
    if port is None or not 0 < port < 65536:
        raise UsageError(f"{shown!r} has no usable port; expected {expected}")
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return Address(text, parts.scheme, host, port, path)


def topic_prefix(address: Address) -> str:
    """Return the topic that an MQTT address's path names.

    Raises:
        UsageError: there is none, or a publisher may not use it.
    """
    prefix = unquote(address.path).strip("/")
    if not prefix or prefix.startswith("$") or any(character in "+#\0" for character in prefix) or len(prefix) > 200:
        raise UsageError(
            f"{address.text!r} names no topic to publish on; expected mqtt://HOST/PREFIX, such as "
            "mqtt://broker/hall1/press3, without +, #, or $ at its beginning"
        )
    return prefix


def shown_where(host: str, port: int) -> str:
    """Return host and port as they are written in an address: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host, by its name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _without_user(text: str) -> str:
    """Return an address without what stands before an @."""
    scheme, _, rest = text.rpartition("//") if "//" in text else ("", "", text)
    host, slash, path = rest.partition("/")
    return f"{scheme}//{host.rpartition('@')[2]}{slash}{path}" if scheme else f"{host.rpartition('@')[2]}{slash}{path}"
