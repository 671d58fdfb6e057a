"""With asyncua's own client, on this machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.line_receivers import ABOUT, certificate, free_port, opcua_client, record
from tests.threads import our_threads, wait_until
from vae_edge import Bundle
from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.rate_control import RateControl
from vae_edge.sinks.line.settings import LineSettings

pytest.importorskip("asyncua", reason="asyncua is not installed: vae-edge[line]")
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from asyncua.ua.uaerrors import BadNodeIdUnknown, BadUserAccessDenied

from vae_edge.sinks.line.opcua import NAMESPACE, NODES, OpcUa
from vae_edge.sources.trigger import Trigger

USER: dict[str, Any] = {"user": "me", "password": "secret"}


def server(port: int, *, trigger: Trigger | None = None, rates: RateControl | None = None, **settings: Any) -> OpcUa:
    values = {f"OPCUA_{name.upper()}": str(value) for name, value in settings.items()}
    return OpcUa(f"opc.tcp://127.0.0.1:{port}", LineSettings(values), trigger, rates)


async def node(connected: Client, name: str) -> Any:
    space = await connected.get_namespace_index(NAMESPACE)
    return connected.get_node(f"ns={space};s=Inspection.{name}")


def connected(made: Client, work: Callable[[Client], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with made:
            return await work(made)

    return asyncio.run(run())


async def values(made: Client) -> dict[str, Any]:
    return {name: await (await node(made, name)).read_value() for name in NODES if name != "trigger"}


@pytest.mark.slow
def test_the_nodes_show_the_latest_verdict_and_the_history_has_all_lines() -> None:
    port = free_port()
    with Line([server(port)], ABOUT) as line:
        before = connected(opcua_client(port), values)
        assert {name: before[name] for name in ("bundle", "image_threshold", "false_alarm_rate", "verdict")} == {
            "bundle": ABOUT.bundle,
            "image_threshold": 0.5,
            "false_alarm_rate": 0.01,
            "verdict": 0,
        }
        names = [line.send(record(number)) for number in range(1500)]
        names.append(line.send({"source": "broken.png", "error": "it is broken"}))
        names.append(line.send({**record(6), "verdict": "not inspectable"}))
        names.append(line.send(record(7)))
        wait_until(lambda: line.deliveries[0].n_delivered == 1503)

        async def look(made: Client) -> tuple[dict[str, Any], list[Any]]:
            history = await (await node(made, "line")).read_raw_history(None, None, 5000)
            with pytest.raises(BadNodeIdUnknown):
                await (await node(made, "trigger")).read_value()
            for name in ("score", "line", "image_threshold", "false_alarm_rate", "smallest_false_alarm_rate"):
                with pytest.raises(BadUserAccessDenied):
                    await (await node(made, name)).write_value(await (await node(made, name)).read_value())
            return await values(made), history

        after, history = connected(opcua_client(port), look)
        assert after["verdict"] == 2
        assert (after["score"], after["p_value"], after["source"], after["id"]) == (0.007, 0.5, "7.png", names[-1])
        assert (after["counter"], after["n_normal"], after["n_anomalous"], after["n_errors"]) == (1503, 750, 751, 1)
        assert after["n_not_inspectable"] == 1
        wait_until(lambda: connected(opcua_client(port), values)["heartbeat"] > before["heartbeat"])
        found = [value.Value.Value.split('"')[3] for value in reversed(history)]
        assert found == names[-len(found) :]
        assert len(found) == 1000
    assert our_threads() == []


@pytest.mark.slow
def test_a_client_that_was_away_reads_what_it_missed_from_the_history() -> None:
    port = free_port()
    with Line([server(port)], ABOUT) as line:
        names = [line.send(record(number)) for number in range(20)]
        wait_until(lambda: line.deliveries[0].n_delivered == 20)

        async def newest(made: Client) -> Any:
            return await (await node(made, "line")).read_data_value()

        known = connected(opcua_client(port), newest)
        names += [line.send(record(number)) for number in range(20, 2500)]
        wait_until(lambda: line.deliveries[0].n_delivered == 2500)

        async def missed(made: Client) -> list[str]:
            found: list[str] = []
            since = known.SourceTimestamp
            while True:
                part = await (await node(made, "line")).read_raw_history(since, None, 500)
                part = [value for value in part if value.SourceTimestamp > since]
                if not part:
                    return found
                found += [value.Value.Value.split('"')[3] for value in part]
                since = part[-1].SourceTimestamp

        assert connected(opcua_client(port), missed) == names[20:]


@pytest.mark.slow
def test_a_subscription_gets_every_line() -> None:
    port = free_port()
    got: list[str] = []

    class Handler:
        def datachange_notification(self, _node: object, value: str, _data: object) -> None:
            got.append(value)

    with Line([server(port)], ABOUT) as line:

        async def listen(made: Client) -> None:
            subscription = await made.create_subscription(20, Handler())
            await subscription.subscribe_data_change(await node(made, "line"), queuesize=10_000)
            for number in range(800):
                line.send(record(number))
            end_s = time.monotonic() + 20
            while len(got) < 801 and time.monotonic() < end_s:
                await asyncio.sleep(0.05)

        connected(opcua_client(port), listen)
    assert [line.split('"')[11] for line in got[1:]] == [f"{number}.png" for number in range(800)]


@pytest.mark.slow
def test_only_the_user_with_the_password_may_read() -> None:
    port = free_port()
    with Line([server(port, **USER)], ABOUT):
        assert connected(opcua_client(port, ("me", "secret")), values)["bundle"] == ABOUT.bundle
        for wrong in (None, ("me", "other"), ("you", "secret"), ("admin", "")):
            with pytest.raises(ua.UaError):
                connected(opcua_client(port, wrong), values)


@pytest.mark.slow
def test_with_a_certificate_nothing_is_to_be_had_in_clear(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    others, others_key = certificate(tmp_path, "client")
    port = free_port()

    async def encrypted() -> Any:
        made = opcua_client(port, ("me", "secret"))
        made.application_uri = "urn:client:vae-edge"
        await made.set_security(SecurityPolicyBasic256Sha256, str(others), str(others_key))
        async with made:
            return await values(made)

    async def in_clear() -> Any:
        # As no honest client does it: without asking which connections there are.
        made = opcua_client(port)
        await made.connect_socket()
        try:
            await made.send_hello()
            await made.open_secure_channel()
            session = ua.CreateSessionParameters()
            session.ClientNonce = os.urandom(32)
            session.EndpointUrl = f"opc.tcp://127.0.0.1:{port}"
            session.SessionName = "in clear"
            session.RequestedSessionTimeout = 60_000.0
            await made.uaclient.create_session(session)
            token = ua.UserNameIdentityToken()
            token.PolicyId, token.UserName, token.Password = "username", "me", b"secret"
            activation = ua.ActivateSessionParameters()
            activation.UserIdentityToken = token
            await made.uaclient.activate_session(activation)
            return await (await node(made, "bundle")).read_value()
        finally:
            made.disconnect_socket()

    with Line([server(port, cert=own, key=key, **USER)], ABOUT):
        assert asyncio.run(encrypted())["bundle"] == ABOUT.bundle
        with pytest.raises(ua.UaError):
            connected(opcua_client(port, ("me", "secret")), values)
        with pytest.raises(BadUserAccessDenied):
            asyncio.run(in_clear())
    # The same attempt without a certificate shows that it is one.
    with Line([server(port, **USER)], ABOUT):
        assert asyncio.run(in_clear()) == ABOUT.bundle


@pytest.mark.slow
def test_a_trigger_asks_for_one_picture_at_a_time_and_says_when_it_was_taken() -> None:
    port, trigger = free_port(), Trigger()
    with Line([server(port, trigger=trigger, **USER)], ABOUT):

        async def pull(made: Client) -> None:
            flag = await node(made, "trigger")
            for _ in range(3):
                await flag.write_value(True)
                await flag.write_value(True)
                assert await flag.read_value() is True
                assert trigger.wait(lambda: False)
                end_s = time.monotonic() + 5
                while await flag.read_value():
                    assert time.monotonic() < end_s
                    await asyncio.sleep(0.01)
            await flag.write_value(False)
            with pytest.raises(ua.UaError):
                await flag.write_value("now")

        connected(opcua_client(port, ("me", "secret")), pull)
        assert trigger.n_taken == 3
        assert not trigger.wait(lambda: True)


@pytest.mark.parametrize(
    ("host", "settings", "message"),
    [
        ("127.0.0.1", {}, "set VAE_EDGE_OPCUA_USER and VAE_EDGE_OPCUA_PASSWORD"),
        ("0.0.0.0", USER, "set VAE_EDGE_OPCUA_CERT and VAE_EDGE_OPCUA_KEY"),
    ],
)
def test_control_needs_authentication_and_over_a_network_encryption(
    onnx_bundle: Bundle, host: str, settings: dict[str, Any], message: str
) -> None:
    values = {f"OPCUA_{name.upper()}": value for name, value in settings.items()}
    for trigger, rates in ((Trigger(), None), (None, RateControl(onnx_bundle.manifest.thresholds))):
        with pytest.raises(UsageError, match=message):
            OpcUa(f"opc.tcp://{host}:4840", LineSettings(values), trigger, rates)


@pytest.mark.slow
def test_a_port_in_use_is_an_error_before_the_first_verdict() -> None:
    port = free_port()
    taken = rf"the OPC UA server cannot listen on 127.0.0.1:{port}"
    with Line([server(port)], ABOUT), pytest.raises(InputError, match=taken):
        Line([server(port)], ABOUT)
    assert our_threads() == []


def test_a_certificate_that_does_not_fit_is_wrong_usage(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    other, _ = certificate(tmp_path, "other")
    with pytest.raises(UsageError, match="do not fit together"):
        server(4840, cert=other, key=key)
    with pytest.raises(UsageError, match="is no certificate in PEM or DER"):
        server(4840, cert=key, key=key)
    with pytest.raises(UsageError, match="is no private key in PEM"):
        server(4840, cert=own, key=own)
    with pytest.raises(UsageError, match="VAE_EDGE_OPCUA_CERT needs VAE_EDGE_OPCUA_KEY"):
        server(4840, cert=own)
    old, old_key = certificate(tmp_path, "old", days=-1)
    with pytest.raises(
        UsageError, match=r"old\.pem has a certificate that has expired: that of old was .* this device's clock says"
    ):
        server(4840, cert=old, key=old_key)


@pytest.mark.parametrize("address", ["opc.tcp://h", "h:4840", "opc.tcp://me:secret@h:4840"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"expected opc.tcp|VAE_EDGE_OPCUA_USER"):
        OpcUa(address, LineSettings())


def test_every_node_is_documented() -> None:
    page = (Path(__file__).parents[4] / "vae_edge" / "sinks" / "LINE.md").read_text(encoding="utf-8")
    for name, (kind, _, meaning) in NODES.items():
        assert f"| `{name}` | {kind} | {meaning} |" in page
