"""Verdicts to an MQTT broker, version 5 or 3.1.1, with paho-mqtt."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.line.addresses import parse_address, topic_prefix
from vae_edge.sinks.line.channel import About, Channel, Message, NotDelivered, Refused, failures_named, missing
from vae_edge.sinks.line.settings import LineSettings

if TYPE_CHECKING:
    from paho.mqtt.client import Client
    from paho.mqtt.reasoncodes import ReasonCode

_log = logging.getLogger(__name__)

_FORM = "mqtt://HOST[:PORT]/PREFIX, or mqtts:// with TLS"
_ANSWER_S = 10.0
"""How long the broker may take for each answer."""
_SOON_S = 0.05
"""paho connects again by itself, less and less often: this only looks whether it has."""
_KEEP_ALIVE_S = 15
"""After one and a half times this without a word the broker publishes the last will."""
_AT_ONCE = 64
"""Messages on their way without a confirmation."""
_LARGEST_ANSWER = 65536
"""Bytes of a packet from the broker, which has nothing to send but confirmations. Version 5 only."""
_NEVER = {
    0x87: "not authorized",
    0x90: "the topic is not allowed",
    0x95: "too large",
    0x99: "the payload is not allowed",
}
"""Reasons (MQTT 5, 2.4) for which another try is of no use."""


class Mqtt(Channel):
    """Publishes each line on `PREFIX/verdicts` with QoS 1: every verdict arrives, some perhaps twice, with the same id.

    `PREFIX/status` says `online`, and `offline` after the end; if the connection or this process breaks off, the broker
    says so (last will). `PREFIX/bundle` is the bundle with its thresholds as JSON. Both are retained. Nothing is
    subscribed to.

    Args:
        address: `mqtt://HOST[:PORT]/PREFIX`, or `mqtts://` for TLS. Usual ports: 1883 and 8883.
        settings: user, password, certificates and version: see `settings.NAMES`.

    Raises:
        UsageError: the address or a setting cannot be used.
        MissingDependencyError: paho-mqtt is not installed.
    """

    kind = "mqtt"
    at_once = _AT_ONCE

    def __init__(self, address: str, settings: LineSettings | None = None) -> None:
        settings = LineSettings.read() if settings is None else settings
        self._address = parse_address(address, {"mqtt": 1883, "mqtts": 8883}, _FORM, "VAE_EDGE_MQTT_USER")
        self._prefix = topic_prefix(self._address)
        self.shown = address
        try:
            import paho.mqtt.client as paho
        except ModuleNotFoundError as error:
            raise missing("paho-mqtt", "--mqtt") from error
        self._version = _version(settings)
        self._protocol = paho.MQTTv5 if self._version == "5" else paho.MQTTv311
        self._tls = settings.client_tls("MQTT") if self._address.scheme == "mqtts" else None
        self._user, self._password = settings.get("MQTT_USER"), settings.get("MQTT_PASSWORD")
        if self._password and not self._user:
            raise UsageError("VAE_EDGE_MQTT_PASSWORD needs VAE_EDGE_MQTT_USER")
        if self._password and self._tls is None and not self._address.is_local:
            _log.warning("the password for %s is sent in clear; mqtts:// encrypts it", address)
        self._client_id = settings.get("MQTT_CLIENT_ID")
        self._client: Client | None = None
        self._about = b""
        self._changed = threading.Condition()
        self._is_connected = False
        self._refusal: str | None = None
        self._n_connections = 0
        self._on_their_way: dict[str, int] = {}
        """Packet identifier of each message that was given to paho, which sends it again after a reconnection."""
        self._answers: dict[int, ReasonCode] = {}
        """The broker's confirmations that were not looked at yet, by packet identifier."""
        self._of_no_message: set[int] = set()
        """Packet identifiers of status and bundle, whose confirmations are of no interest."""

    def open(self, about: About) -> None:
        """Connect, and publish status and bundle.

        Raises:
            InputError: the broker is not there, refuses, or its certificate does not fit.
        """
        self._end()
        self._about = _as_json(about)
        self._refusal = None
        self._on_their_way.clear()
        self._answers.clear()
        self._of_no_message.clear()
        client = self._new_client()
        where = f"the MQTT broker {self._address.where}"
        with failures_named(where, "VAE_EDGE_MQTT_CA"):
            client.connect(self._address.host, self._address.port, keepalive=_KEEP_ALIVE_S, **self._properties())
        self._client = client
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._is_connected or self._refusal is not None, _ANSWER_S)
            refusal = None if self._is_connected else self._refusal or f"no answer within {_ANSWER_S:g} s"
        if refusal is not None:
            self._end()
            raise InputError(f"{where} refuses the connection: {refusal}")

    def send(self, messages: Sequence[Message]) -> None:
        """Publish messages and wait for the broker's confirmations; see `Channel.send`."""
        client = self._client
        assert client is not None
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_connected, 0.5):
                raise NotDelivered(self._refusal or "the broker cannot be reached", pause_s=_SOON_S)
        for message in messages:
            if message.id not in self._on_their_way:
                info = client.publish(f"{self._prefix}/verdicts", message.payload, qos=1)
                self._on_their_way[message.id] = info.mid
        end_s = time.monotonic() + _ANSWER_S
        for position, message in enumerate(messages):
            number = self._on_their_way[message.id]
            with self._changed:
                self._changed.wait_for(
                    lambda number=number: number in self._answers or not self._is_connected,  # type: ignore[misc]
                    max(0.0, end_s - time.monotonic()),
                )
                answer = self._answers.pop(number, None)
            if answer is None:
                raise NotDelivered("the broker does not confirm", position, _SOON_S)
            del self._on_their_way[message.id]
            if answer.value in _NEVER:
                raise Refused(_NEVER[answer.value], position)
            if answer.is_failure:
                raise NotDelivered(f"the broker says: {answer}", position)

    def tell(self, about: About) -> None:
        """Publish the bundle with its thresholds again; without a connection, after the next one."""
        self._about = _as_json(about)
        if self._client is not None and self._is_connected:
            info = self._client.publish(f"{self._prefix}/bundle", self._about, qos=1, retain=True)
            with self._changed:
                if self._answers.pop(info.mid, None) is None:  # It may have been confirmed already.
                    self._of_no_message.add(info.mid)

    def close(self) -> None:
        """Publish `offline` and disconnect."""
        if self._client is not None and self._is_connected:
            info = self._client.publish(f"{self._prefix}/status", b"offline", qos=1, retain=True)
            info.wait_for_publish(2.0)
        self._end()

    def notes(self) -> list[str]:
        """Return how often the connection was made again."""
        return [f"{self._n_connections - 1} reconnections"] if self._n_connections > 1 else []

    def _new_client(self) -> Client:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        name = self._client_id or f"vae-edge-{secrets.token_hex(4)}"
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=self._protocol)
        client.connect_timeout = _ANSWER_S
        client.reconnect_delay_set(1, 10)
        client.max_inflight_messages_set(_AT_ONCE)
        client.will_set(f"{self._prefix}/status", b"offline", qos=1, retain=True)
        if self._user:
            client.username_pw_set(self._user, self._password)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.on_connect = self._connected
        client.on_disconnect = self._disconnected
        client.on_publish = self._confirmed
        return client

    def _properties(self) -> dict[str, Any]:
        if self._version != "5":
            return {}
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = _LARGEST_ANSWER
        return {"properties": properties}

    def _connected(self, client: Client, _data: object, _flags: object, reason: ReasonCode, _more: object) -> None:
        """In paho's thread, after every connection."""
        if reason.is_failure:
            with self._changed:
                self._refusal = _why(reason, self._version)
                self._changed.notify_all()
            return
        # Again each time: a broker that was killed may have lost what it had retained.
        for topic, payload in (("status", b"online"), ("bundle", self._about)):
            info = client.publish(f"{self._prefix}/{topic}", payload, qos=1, retain=True)
            self._of_no_message.add(info.mid)
        with self._changed:
            self._is_connected, self._refusal = True, None
            self._n_connections += 1
            self._changed.notify_all()

    def _disconnected(self, _client: Client, _data: object, _flags: object, _reason: ReasonCode, _more: object) -> None:
        with self._changed:
            if not self._is_connected and self._refusal is None:
                # As it does for a client's certificate that it does not know, and without TLS where it wants TLS.
                self._refusal = "it ends it without an answer; check port, TLS and certificates"
            self._is_connected = False
            self._changed.notify_all()

    def _confirmed(self, _client: Client, _data: object, number: int, reason: ReasonCode, _more: object) -> None:
        with self._changed:
            if number in self._of_no_message:
                self._of_no_message.remove(number)
                return
            self._answers[number] = reason
            self._changed.notify_all()

    def _end(self) -> None:
        client, self._client = self._client, None
        self._is_connected = False
        if client is not None:
            client.disconnect()
            client.loop_stop()


def _as_json(about: About) -> bytes:
    return json.dumps(asdict(about), ensure_ascii=False).encode()


def _version(settings: LineSettings) -> str:
    version = settings.get("MQTT_VERSION") or "5"
    if version not in ("5", "3.1.1"):
        raise UsageError(f"VAE_EDGE_MQTT_VERSION is {version!r}; expected 5 or 3.1.1")
    return version


def _why(reason: ReasonCode, version: str) -> str:
    """Return why a connection was refused, and what to do."""
    if reason.value in (0x86, 0x87, 0x8C):
        return f"{str(reason).lower()}; check VAE_EDGE_MQTT_USER and VAE_EDGE_MQTT_PASSWORD"
    if reason.value == 0x84 and version == "5":
        return f"{str(reason).lower()}; set VAE_EDGE_MQTT_VERSION=3.1.1"
    return str(reason).lower()
