"""Verdicts as the nodes of an OPC UA server, with asyncua."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from vae_edge.errors import UsageError, said_by
from vae_edge.manifest import Thresholds
from vae_edge.sinks.line.addresses import parse_address
from vae_edge.sinks.line.channel import About, Message, missing
from vae_edge.sinks.line.opcua_control import let_clients_set_the_rate
from vae_edge.sinks.line.opcua_security import ServerIdentity
from vae_edge.sinks.line.rate_control import RateControl
from vae_edge.sinks.line.serving import ServedChannel, Verdict
from vae_edge.sinks.line.settings import LineSettings
from vae_edge.sources.trigger import Trigger

if TYPE_CHECKING:
    from asyncua import Server, ua

_log = logging.getLogger(__name__)

NAMESPACE = "urn:vae-edge:line"
FOLDER = "Inspection"
"""Below `Objects`; the nodes' identifiers are `Inspection.NAME` in `NAMESPACE`."""
NODES: Mapping[str, tuple[str, object, str]] = {
    "bundle": ("String", "", "the bundle: name, target, precision, digest"),
    "image_threshold": ("Double", 0.0, "a picture is anomalous if its score is above it"),
    "pixel_threshold": ("Double", 0.0, "the same for a pixel of the anomaly map"),
    "false_alarm_rate": (
        "Double",
        0.0,
        "the rate that the threshold stands for, 0 to 1; with --allow-control it can be set",
    ),
    "smallest_false_alarm_rate": (
        "Double",
        math.nan,
        "the smallest rate that the bundle's normals support; NaN where its threshold keeps no rate",
    ),
    "heartbeat": ("UInt32", 0, "seconds since the server's start"),
    "verdict": ("Byte", 0, "0 none yet, 1 normal, 2 anomalous, 3 no verdict because of an error, 4 not inspectable"),
    "score": ("Double", 0.0, "the anomaly score; NaN where there is no verdict"),
    "p_value": ("Double", 1.0, "the conformal p-value; NaN where there is no verdict"),
    "source": ("String", "", "the picture: file, camera or stream"),
    "id": ("String", "", "of the verdict, unique among all runs"),
    "line": ("String", "", "the whole JSON line; with history"),
    "n_normal": ("UInt32", 0, "normal pictures since the server's start"),
    "n_anomalous": ("UInt32", 0, "anomalous ones"),
    "n_errors": ("UInt32", 0, "pictures without a verdict"),
    "n_not_inspectable": ("UInt32", 0, "pictures that are not inspectable"),
    "counter": ("UInt32", 0, "verdicts since the server's start; written last, after all the others"),
    "trigger": (
        "Boolean",
        False,
        "with --allow-control: writing true takes one picture, after which it is false again",
    ),
}
"""Type, value before the first picture, and meaning of every node."""
HISTORY = 10_000
"""Values of `line` that HistoryRead gives."""
_RESPONSE = 1000
"""Most values in one answer of it."""
_FORM = "opc.tcp://HOST:PORT, with the address of this machine to listen on, or 0.0.0.0 for all"
_START_S = 120.0
"""asyncua builds some 5,000 standard nodes first: 1 s on a PC, many on a small board."""
_WRITE_S = 20.0
_MESSAGE_BYTES = 4_000_000
_CHUNK_BYTES = 65535
_CONNECTIONS = 20


class OpcUa(ServedChannel):
    """Serves the latest verdict as nodes, and the latest 10,000 lines as the history of the node `line`.

    Clients can read, subscribe and read history; they can write nothing but `trigger` and `false_alarm_rate`, and these
    only where a trigger or a control of the rate was given. With a certificate and key, only signed and encrypted
    connections are accepted; with a user and password, only those.

    Args:
        address: `opc.tcp://HOST:PORT`, where HOST is the address of this machine to listen on.
        settings: user, password, certificate and key: see `settings.NAMES`.
        trigger: lets clients take pictures; it needs a user and password, and a certificate unless HOST is loopback.
        rates: lets clients set the false-alarm rate; it needs the same.

    Raises:
        UsageError: the address or a setting cannot be used, or certificate and key do not belong together.
        MissingDependencyError: asyncua is not installed.
    """

    kind = "opcua"
    keeps = False
    at_once = 50

    def __init__(
        self,
        address: str,
        settings: LineSettings | None = None,
        trigger: Trigger | None = None,
        rates: RateControl | None = None,
    ) -> None:
        settings = LineSettings.read() if settings is None else settings
        self._address = parse_address(address, {"opc.tcp": None}, _FORM, "VAE_EDGE_OPCUA_USER")
        self.shown = address
        try:
            import asyncua  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing("asyncua", "--opcua") from error
        self._identity = ServerIdentity.read(settings)
        self._user = settings.pair("OPCUA_USER", "OPCUA_PASSWORD")
        self._trigger = trigger
        self._rates = rates
        self._check_security()
        logging.getLogger("asyncua").setLevel(logging.CRITICAL)  # It logs every client's mistake with a traceback.
        self._server: Server | None = None
        self._nodes: dict[str, ua.NodeId] = {}
        self._beat: asyncio.Task[None] | None = None
        self._n = dict.fromkeys(Verdict, 0)
        self._shown: tuple[float, float] | None = None
        """The image threshold and the rate in the nodes."""
        self._latest = datetime.min.replace(tzinfo=timezone.utc)

    def open(self, about: About) -> None:
        """Begin to serve.

        Raises:
            InputError: the address cannot be listened on.
        """
        self.close()
        self.serve("vae-edge-opcua-server", "the OPC UA server", self._start(about), _START_S)

    def send(self, messages: Sequence[Message]) -> None:
        """Write verdicts into the nodes, one after the other; see `Channel.send`."""
        assert self._loop is not None
        self._loop.run(self._write(messages), _WRITE_S)

    def tell(self, about: About) -> None:
        """Show the thresholds in force."""
        assert self._loop is not None
        self._loop.run(self._show(about), _WRITE_S)

    def notes(self) -> list[str]:
        """Return what clients set."""
        note = None if self._rates is None else self._rates.note()
        return [] if note is None else [note]

    def _check_security(self) -> None:
        is_controlled = self._trigger is not None or self._rates is not None
        if is_controlled and self._user is None:
            raise UsageError(
                "--allow-control lets clients take pictures and set the false-alarm rate, so they have to prove who "
                "they are; set VAE_EDGE_OPCUA_USER and VAE_EDGE_OPCUA_PASSWORD"
            )
        if self._user is None or self._identity is not None or self._address.is_local:
            return
        if is_controlled:
            raise UsageError(
                "--allow-control over a network needs an encrypted connection, or the password could be read; set "
                "VAE_EDGE_OPCUA_CERT and VAE_EDGE_OPCUA_KEY"
            )
        _log.warning("clients send their password to %s in clear; VAE_EDGE_OPCUA_CERT and _KEY encrypt it", self.shown)

    async def _start(self, about: About) -> None:
        from asyncua import Server, ua
        from asyncua.common.connection import TransportLimits
        from asyncua.server.history import HistoryDict

        server = Server(user_manager=_Users(self._user))
        self._server = server
        server.limits = TransportLimits(
            _CHUNK_BYTES, _CHUNK_BYTES, math.ceil(_MESSAGE_BYTES / _CHUNK_BYTES), _MESSAGE_BYTES
        )
        server.iserver.max_connections = _CONNECTIONS
        await server.init()
        server.set_endpoint(self._address.text)
        server.set_server_name("vae-edge")
        server.set_identity_tokens([ua.AnonymousIdentityToken if self._user is None else ua.UserNameIdentityToken])
        if self._identity is None:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        else:
            await self._identity.apply(server)
        history = HistoryDict(_RESPONSE)
        server.iserver.history_manager.set_storage(history)
        await self._make_nodes(server, about)
        await history.new_historized_node(self._nodes["line"], None, HISTORY)
        if self._trigger is not None:
            self._allow_trigger(server, self._trigger)
        if self._rates is not None:
            let_clients_set_the_rate(server, self._nodes["false_alarm_rate"], self._rates, self._show)
        await server.start()
        self._beat = asyncio.get_running_loop().create_task(self._beat_on())

    async def _stop(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
        if self._server is not None:
            await self._server.stop()

    async def _make_nodes(self, server: Server, about: About) -> None:
        from asyncua import ua

        space = await server.register_namespace(NAMESPACE)
        folder = await server.nodes.objects.add_object(ua.NodeId(FOLDER, space), ua.QualifiedName(FOLDER, space))
        self._shown = (about.image_threshold, about.false_alarm_rate)
        values = {name: getattr(about, name, default) for name, (_, default, _) in NODES.items()}
        if about.smallest_false_alarm_rate is None:
            values["smallest_false_alarm_rate"] = math.nan
        for name, (kind, _, meaning) in NODES.items():
            if name == "trigger" and self._trigger is None:
                continue
            identifier = ua.NodeId(f"{FOLDER}.{name}", space)
            node = await folder.add_variable(
                identifier, ua.QualifiedName(name, space), values[name], getattr(ua.VariantType, kind)
            )
            await node.write_attribute(
                ua.AttributeIds.Description,
                ua.DataValue(ua.Variant(ua.LocalizedText(meaning), ua.VariantType.LocalizedText)),
            )
            self._nodes[name] = identifier
            if name == "trigger" or (name == "false_alarm_rate" and self._rates is not None):
                await node.set_writable()
            if name == "line":
                await node.write_attribute(ua.AttributeIds.Historizing, ua.DataValue(ua.Variant(True)))
                for attribute in (ua.AttributeIds.AccessLevel, ua.AttributeIds.UserAccessLevel):
                    await node.set_attr_bit(attribute, ua.AccessLevel.HistoryRead)

    def _allow_trigger(self, server: Server, trigger: Trigger) -> None:
        from asyncua import ua

        node = self._nodes["trigger"]
        loop = asyncio.get_running_loop()

        def asked(_handle: object, value: ua.DataValue) -> None:
            if value.Value is not None and value.Value.Value is True:
                trigger.request()

        def taken() -> None:
            with suppress(RuntimeError):  # The server has ended.
                asyncio.run_coroutine_threadsafe(self._set(server, "trigger", False), loop)

        server.iserver.aspace.add_datachange_callback(node, ua.AttributeIds.Value, asked)
        trigger.when_taken = taken

    async def _show(self, thresholds: About | Thresholds) -> None:
        """Write thresholds into the nodes, where they are others."""
        server = self._server
        assert server is not None
        shown = (thresholds.image_threshold, thresholds.false_alarm_rate)
        if shown != self._shown:
            await self._set(server, "image_threshold", shown[0])
            await self._set(server, "false_alarm_rate", shown[1])
            self._shown = shown

    async def _write(self, messages: Sequence[Message]) -> None:
        server = self._server
        assert server is not None
        for message in messages:
            record = message.record
            verdict = Verdict.of(record)
            self._n[verdict] += 1
            now = max(datetime.now(timezone.utc), self._latest + timedelta(microseconds=1))
            # Strictly later, so that a client can ask for what came after the last one that it knows.
            self._latest = now
            values = {
                "verdict": int(verdict),
                "score": float(record.get("score", math.nan)),
                "p_value": float(record.get("p_value", math.nan)),
                "source": str(record.get("source", "")),
                "id": message.id,
                "line": message.line,
                "n_normal": self._n[Verdict.NORMAL],
                "n_anomalous": self._n[Verdict.ANOMALOUS],
                "n_errors": self._n[Verdict.ERROR],
                "n_not_inspectable": self._n[Verdict.NOT_INSPECTABLE],
                "counter": sum(self._n.values()),
            }
            for name, value in values.items():
                await self._set(server, name, value, now)

    async def _set(self, server: Server, name: str, value: object, now: datetime | None = None) -> None:
        from asyncua import ua

        variant = ua.Variant(value, getattr(ua.VariantType, NODES[name][0]))
        now = datetime.now(timezone.utc) if now is None else now
        data = ua.DataValue(variant, SourceTimestamp=now, ServerTimestamp=now)
        await server.write_attribute_value(self._nodes[name], data)
        if name == "line":
            await server.iserver.history_manager.storage.save_node_value(self._nodes[name], data)

    async def _beat_on(self) -> None:
        seconds = 0
        while (server := self._server) is not None:
            await asyncio.sleep(1)
            seconds += 1
            try:
                await self._set(server, "heartbeat", seconds)
            except Exception as error:  # noqa: BLE001 - the next second's may succeed
                _log.debug("heartbeat: %s", said_by(error))


class _Users:
    """Everyone may read where no user was set; otherwise only who has the password."""

    def __init__(self, user: tuple[str, str] | None) -> None:
        self._user = user

    def get_user(
        self, _server: object, username: str | None = None, password: Any = None, certificate: object = None
    ) -> Any:
        """Return the user, or None to refuse; called by asyncua."""
        from asyncua.crypto.permission_rules import User, UserRole

        del certificate
        if self._user is not None:
            given = (f"{username}", f"{password}")
            # Both always, and without hints by the time it takes.
            right = [
                hmac.compare_digest(one.encode(), other.encode()) for one, other in zip(given, self._user, strict=True)
            ]
            if not all(right):
                return None
        return User(role=UserRole.User, name=username)
