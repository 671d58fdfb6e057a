"""Who may ask a server: the token, and what stands in for it on this machine alone."""

from __future__ import annotations

import hmac
import os
import socket
from pathlib import Path

from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.line.addresses import is_loopback

TOKEN_VARIABLE = "VAE_EDGE_SERVE_TOKEN"
_LEAST_CHARACTERS, _MOST_CHARACTERS = 16, 512
_HOW_TO_MAKE = "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"


def read_token(file: Path | None, host: str) -> str | None:
    """Return the token that every request must carry; None: none, as only this machine reaches the server.

    Args:
        file: its content, without white space around it, is the token; None: the environment variable, if it is set.
        host: what the server is bound to.

    Raises:
        UsageError: there is none but others reach the server, or it is too short or has spaces.
        InputError: the file cannot be read.
    """
    if file is not None:
        try:
            with file.open("rb") as opened:
                token = opened.read(_MOST_CHARACTERS * 2).decode("ascii", "replace").strip()
        except OSError as error:
            raise InputError(f"the token file {file} could not be read ({error.strerror})") from error
        place = str(file)
    else:
        token, place = os.environ.get(TOKEN_VARIABLE, "").strip(), TOKEN_VARIABLE
        if not token:
            if is_loopback(host):
                return None
            raise UsageError(
                f"--host {host} lets other machines ask, which needs a token: pass --token-file FILE or set "
                f"{TOKEN_VARIABLE}; {_HOW_TO_MAKE}"
            )
    if not _LEAST_CHARACTERS <= len(token) <= _MOST_CHARACTERS or not all("!" <= c <= "~" for c in token):
        raise UsageError(
            f"the token in {place} has {len(token)} characters; expected {_LEAST_CHARACTERS} to {_MOST_CHARACTERS} "
            f"letters, digits and signs without spaces: {_HOW_TO_MAKE}"
        )
    return token


def is_token(authorization: str, token: str) -> bool:
    """Return whether a header or gRPC metadata `authorization` is `Bearer TOKEN`."""
    scheme, _, given = authorization.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def is_local_name(host_header: str) -> bool:
    """Return whether a request's `Host` is a name of this machine.

    A page of another site, open in a browser here, can have its own name lead to 127.0.0.1 (DNS rebinding); without
    this it could ask a server that wants no token.
    """
    name = host_header.rsplit(":", 1)[0] if not host_header.endswith("]") else host_header
    return is_loopback(name.strip("[]"))


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that listens, so that nobody else takes the port while models load.

    Args:
        host: a name or an address.
        port: 0: any that is free.
        option: which the port came from, for the message.

    Raises:
        InputError: the port is in use or not allowed, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"--host {host} is not an address of this machine ({error.strerror})") from error
    try:
        if os.name == "posix":  # On Windows it would let two servers have one port.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise InputError(
            f"port {port} of {host} cannot be used ({error.strerror}); choose another one with {option}, or end the "
            "program that has it"
        ) from error
    return listening
