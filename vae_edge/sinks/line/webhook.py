"""Verdicts to a web service: one POST of JSON each, with the standard library."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from vae_edge import __version__
from vae_edge.errors import UsageError, said_by
from vae_edge.sinks.line.addresses import parse_address
from vae_edge.sinks.line.channel import About, Channel, Message, NotDelivered, Refused, failures_named
from vae_edge.sinks.line.settings import LineSettings

_FORM = "https://HOST[:PORT]/PATH, or http:// without encryption"
_STEP_S = 10.0
"""For connecting, and between two bytes of the answer."""
_WHOLE_S = 30.0
"""For one attempt."""
_LARGEST_ANSWER = 65536
_LATER = (408, 409, 423, 425, 429)
"""Answers that a later attempt may change, as it may every one from 500 on."""
_LONGEST_PAUSE_S = 60.0


class Webhook(Channel):
    """Sends each line as the body of a POST, `application/json`; any answer from 200 to 299 confirms it.

    `Idempotency-Key` is the verdict's id: an attempt whose answer was lost is repeated with the same. 408, 409, 423,
    425, 429 and 500 to 599 are tried again, after `Retry-After` seconds if the answer says so, up to a minute; other
    answers refuse the verdict. Redirects are not followed. Certificate and host name are always checked.

    Args:
        address: `https://HOST[:PORT]/PATH` or `http://`.
        settings: `WEBHOOK_TOKEN` and `WEBHOOK_CA`, see `settings.NAMES`.

    Raises:
        UsageError: the address or a setting cannot be used.
    """

    kind = "webhook"

    def __init__(self, address: str, settings: LineSettings | None = None) -> None:
        settings = LineSettings.read() if settings is None else settings
        self._address = parse_address(address, {"http": 80, "https": 443}, _FORM, "VAE_EDGE_WEBHOOK_TOKEN")
        # A query may hold a key.
        self.shown = address.partition("?")[0]
        self._tls = settings.client_tls("WEBHOOK") if self._address.scheme == "https" else None
        self._headers = {"Content-Type": "application/json", "User-Agent": f"vae-edge/{__version__}"}
        if not self._address.path.isascii():
            raise UsageError(f"{address} has characters that a URL cannot have; expected {_FORM}, with %-escapes")
        if token := settings.get("WEBHOOK_TOKEN"):
            if not (token.isascii() and token.isprintable()):
                raise UsageError("VAE_EDGE_WEBHOOK_TOKEN has characters that a header cannot have; expected ASCII")
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection | None = None

    def open(self, about: About) -> None:
        """Connect, without a request.

        Raises:
            InputError: the receiver is not there, or its certificate does not fit.
        """
        self._headers["Vae-Edge-Bundle"] = about.bundle.encode("ascii", "replace").decode()
        with failures_named(f"the webhook's host {self._address.where}", "VAE_EDGE_WEBHOOK_CA"):
            self._connect()

    def send(self, messages: Sequence[Message]) -> None:
        """Send one message; see `Channel.send`."""
        (message,) = messages
        was_open = self._connection is not None
        try:
            status, pause_s = self._post(message)
        except (OSError, http.client.HTTPException) as error:
            self._disconnect()
            if not was_open:
                raise NotDelivered(said_by(error)) from error
            # The receiver closes a connection that was idle for long.
            try:
                status, pause_s = self._post(message)
            except (OSError, http.client.HTTPException) as again:
                self._disconnect()
                raise NotDelivered(said_by(again)) from again
        if 200 <= status < 300:
            return
        if status in _LATER or status >= 500:
            raise NotDelivered(f"the answer is {status}", pause_s=pause_s)
        raise Refused(f"the answer is {status}")

    def close(self) -> None:
        """Disconnect."""
        self._disconnect()

    def _connect(self) -> http.client.HTTPConnection:
        self._disconnect()
        host, port = self._address.host, self._address.port
        if self._tls is None:
            connection = http.client.HTTPConnection(host, port, timeout=_STEP_S)
        else:
            connection = http.client.HTTPSConnection(host, port, timeout=_STEP_S, context=self._tls)
        connection.connect()
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _post(self, message: Message) -> tuple[int, float | None]:
        """Return the answer's status, and how long it asks to wait."""
        connection = self._connection or self._connect()
        # A receiver that sends one byte every few seconds would never run into the timeout between two.
        watch = threading.Timer(_WHOLE_S, _break_off, [connection])
        watch.daemon = True
        watch.start()
        try:
            headers = self._headers | {"Idempotency-Key": message.id}
            connection.request("POST", self._address.path or "/", message.payload, headers)
            answer = connection.getresponse()
            if len(answer.read(_LARGEST_ANSWER + 1)) > _LARGEST_ANSWER or answer.will_close:
                self._disconnect()
            return answer.status, _seconds(answer.getheader("Retry-After"))
        finally:
            watch.cancel()


def _break_off(connection: http.client.HTTPConnection) -> None:
    if connection.sock is not None:
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)


def _seconds(text: str | None) -> float | None:
    if text is None or not text.isascii() or not text.isdigit():
        return None
    return min(float(text[:6]), _LONGEST_PAUSE_S)
