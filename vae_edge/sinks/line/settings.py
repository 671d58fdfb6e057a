"""Credentials, certificates and limits of the channels: from the environment or a file, never from the command line."""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vae_edge.errors import InputError, UsageError, said_by
from vae_edge.platform.outside import user_path
from vae_edge.records import open_regular, read_bounded

_log = logging.getLogger(__name__)

PREFIX = "VAE_EDGE_"
NAMES: Mapping[str, str] = {
    "MQTT_USER": "user at the broker",
    "MQTT_PASSWORD": "its password",
    "MQTT_CA": "file with the certificates (PEM) that the broker's has to be signed by; without it, the system's",
    "MQTT_CERT": "this device's certificate (PEM), where the broker asks for one",
    "MQTT_KEY": "its private key (PEM)",
    "MQTT_VERSION": "5 (usual) or 3.1.1",
    "MQTT_CLIENT_ID": "name of this client; without it, a new one each time",
    "OPCUA_USER": "user that clients have to be",
    "OPCUA_PASSWORD": "its password",
    "OPCUA_CERT": "the server's certificate (PEM or DER); with it, only signed and encrypted connections",
    "OPCUA_KEY": "its private key (PEM)",
    "WEBHOOK_TOKEN": "sent as `Authorization: Bearer TOKEN`",
    "WEBHOOK_CA": "file with the certificates (PEM) that the receiver's has to be signed by; without it, the system's",
    "LINE_FOLDER": "folder for verdicts that wait; without it, `undelivered` in --out",
    "LINE_MEGABYTES": "most that wait on disk for each of them; 64",
}
"""Of every setting, without `VAE_EDGE_`: what it is."""
SECRET = frozenset({"MQTT_PASSWORD", "OPCUA_PASSWORD", "WEBHOOK_TOKEN"})
_MOST_BYTES = 100_000


@dataclass(frozen=True)
class LineSettings:
    """The settings that were made; see `NAMES`."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By name, without `VAE_EDGE_`; none is empty."""

    @classmethod
    def read(cls, path: Path | None = None, environment: Mapping[str, str] | None = None) -> LineSettings:
        """Read the environment, and a file of lines `VAE_EDGE_NAME=VALUE`, whose values count where both have one.

        Args:
            path: such a file; empty lines and those that begin with # are left out.
            environment: in place of this process's.

        Raises:
            InputError: the file cannot be read.
            UsageError: it holds something else.
        """
        environment = os.environ if environment is None else environment
        values = {name: environment[PREFIX + name] for name in NAMES if environment.get(PREFIX + name)}
        return cls(values | ({} if path is None else _read_file(path)))

    def get(self, name: str) -> str | None:
        """Return a setting; None: it was not made."""
        return self.values.get(name)

    def path(self, name: str) -> Path | None:
        """Return a setting that names a file that can be read.

        Raises:
            UsageError: there is no such file.
        """
        text = self.get(name)
        if text is None:
            return None
        path = user_path(text)
        try:
            with open_regular(path) as file:
                file.read(1)
        except OSError as error:
            raise UsageError(f"{PREFIX}{name} is {path}, which cannot be read ({error.strerror or error})") from error
        return path

    def pair(self, first: str, second: str) -> tuple[str, str] | None:
        """Return two settings that need each other; None: neither was made.

        Raises:
            UsageError: only one was.
        """
        one, other = self.get(first), self.get(second)
        if one and other:
            return one, other
        if one or other:
            given, needed = (first, second) if one else (second, first)
            raise UsageError(f"{PREFIX}{given} needs {PREFIX}{needed}; set both or neither")
        return None

    def client_tls(self, kind: str) -> ssl.SSLContext:
        """Return how a client checks its server: certificates and host name always.

        Args:
            kind: `MQTT` or `WEBHOOK`: the beginning of the settings.

        Raises:
            UsageError: a file is not what it should be, or certificate and key do not belong together.
        """
        ca = self.path(f"{kind}_CA")
        try:
            context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (ssl.SSLError, OSError) as error:
            raise UsageError(
                f"{PREFIX}{kind}_CA is {ca}, which is no certificate in PEM ({said_by(error)}); "
                "expected a file with -----BEGIN CERTIFICATE-----"
            ) from error
        if f"{kind}_CERT" in NAMES and self.pair(f"{kind}_CERT", f"{kind}_KEY"):
            certificate, key = self.path(f"{kind}_CERT"), self.path(f"{kind}_KEY")
            assert certificate is not None
            try:
                context.load_cert_chain(certificate, key, password=_no_password)
            except (ssl.SSLError, OSError) as error:
                raise UsageError(
                    f"the certificate {certificate} and the key {key} do not fit together ({said_by(error)}); "
                    "expected a certificate and its own private key without a password, both in PEM"
                ) from error
        return context

    @property
    def folder(self) -> Path | None:
        """The folder for verdicts that wait, where one was set."""
        text = self.get("LINE_FOLDER")
        return None if text is None else user_path(text)

    @property
    def most_bytes(self) -> int:
        """How many bytes may wait on disk for one channel.

        Raises:
            UsageError: the setting is no positive whole number.
        """
        text = self.get("LINE_MEGABYTES") or "64"
        if not text.isascii() or not text.isdigit() or not 0 < int(text[:7]) < 1_000_000:
            raise UsageError(f"{PREFIX}LINE_MEGABYTES is {text!r}; expected megabytes as a whole number from 1 on")
        return int(text) * 1_000_000


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    return ""


def _read_file(path: Path) -> dict[str, str]:
    try:
        with open_regular(path) as file:
            text = read_bounded(file, _MOST_BYTES).decode()
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"the settings {path} cannot be read ({said_by(error)})") from error
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not (line := line.strip()) or line.startswith("#"):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        name = name.removeprefix(PREFIX) if name.startswith(PREFIX) else ""
        if not equals or name not in NAMES:
            # Without the line itself, which may hold a password.
            raise UsageError(
                f"line {number} of {path} is not a setting; expected {PREFIX}NAME=VALUE with one of "
                f"{', '.join(NAMES)} for NAME"
            )
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if value:
            values[name] = value
    if os.name == "posix" and SECRET & set(values) and mode & (stat.S_IRGRP | stat.S_IROTH):
        _log.warning("%s holds a password that other users can read; run: chmod 600 %s", path, path)
    return values
