from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.line_receivers import ABOUT, Endpoint, certificate, free_port, opcua_client, record
from tests.threads import wait_until
from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.line.addresses import Address, parse_address, topic_prefix
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.settings import NAMES, LineSettings

SCHEMES: dict[str, int | None] = {"mqtt": 1883, "opc.tcp": None}


def parsed(text: str) -> Address:
    return parse_address(text, SCHEMES, "mqtt://HOST/PREFIX", "VAE_EDGE_MQTT_USER")


def test_an_address_is_taken_apart() -> None:
    address = parsed("mqtt://Broker.example/hall%201/press")
    assert (address.scheme, address.host, address.port) == ("mqtt", "broker.example", 1883)
    assert topic_prefix(address) == "hall 1/press"
    assert not address.is_local
    assert parsed("opc.tcp://[::1]:4840").is_local
    assert parsed("mqtt://127.0.0.5:99/a").is_local
    assert parsed("mqtt://127.0.0.5:99/a").where == "127.0.0.5:99"
    assert parsed("mqtt://[::1]/a").where == "[::1]:1883"


@pytest.mark.parametrize("text", ["host", "host:0", "host:x", ":502", "host:70000"])
def test_a_message_shows_an_address_as_it_was_written(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text, {"modbus": None}, "HOST:PORT", "no user", implied="modbus://")
    assert str(caught.value).startswith(f"'{text}' ")


@pytest.mark.parametrize(
    "text",
    [
        *[
            "broker/a",
            "http://broker/a",
            "mqtt:///a",
            "mqtt://h:99999/a",
            "mqtt://h:x/a",
            "mqtt://h:0/a",
            "opc.tcp://h",
            "mqtt://h/a/#",
        ],
        *["mqtt://h/a b", "mqtt://h/a\nb", "mqtt://h/a#b", "mqtt://[::1/a", "", "mqtt://h/" + "a" * 3000],
    ],
)
def test_what_is_no_address_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(UsageError, match="expected mqtt://HOST/PREFIX"):
        parsed(text)


@pytest.mark.parametrize("text", ["mqtt://me:secret@h/a", "mqtt://secret@h/a", "mqtt://me:secret@h:x/a"])
def test_a_password_in_an_address_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parsed(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/", "/+/a", "/a/%23", "/$SYS/a", "/" + "a" * 300])
def test_a_topic_that_nobody_may_publish_on_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="names no topic"):
        topic_prefix(parsed(f"mqtt://h{path}"))


def test_a_file_counts_before_the_environment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "line.env"
    file.write_text("# for press 3\n\nVAE_EDGE_MQTT_USER = me\nVAE_EDGE_MQTT_PASSWORD='a=b c'\nVAE_EDGE_MQTT_CA=\n")
    file.chmod(0o600)
    settings = LineSettings.read(file, {"VAE_EDGE_MQTT_USER": "you", "VAE_EDGE_WEBHOOK_TOKEN": "t", "OTHER": "x"})
    assert settings.values == {"MQTT_USER": "me", "MQTT_PASSWORD": "a=b c", "WEBHOOK_TOKEN": "t"}
    assert "a=b c" not in repr(settings)
    assert caplog.text == ""


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_password_that_others_can_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "line.env"
    file.write_text("VAE_EDGE_MQTT_PASSWORD=secret\n")
    file.chmod(0o644)
    LineSettings.read(file, {})
    assert "chmod 600" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("line", ["secret", "VAE_EDGE_MQTT_PASS=secret", "MQTT_PASSWORD=secret", "VAE_EDGE_MQTT_USER"])
def test_a_line_that_is_no_setting_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    file = tmp_path / "line.env"
    file.write_text(f"\n{line}\n")
    with pytest.raises(UsageError, match=r"line 2 of .* is not a setting; expected VAE_EDGE_NAME=VALUE") as caught:
        LineSettings.read(file, {})
    assert "secret" not in str(caught.value)


def test_a_settings_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        LineSettings.read(tmp_path / "no", {})


def test_certificate_and_key_have_to_belong_together(tmp_path: Path) -> None:
    one, key = certificate(tmp_path)
    other, _ = certificate(tmp_path, "other")
    right = {"MQTT_CA": str(one), "MQTT_CERT": str(one), "MQTT_KEY": str(key)}
    assert LineSettings(right).client_tls("MQTT").get_ca_certs()
    with pytest.raises(UsageError, match="do not fit together"):
        LineSettings(right | {"MQTT_CERT": str(other)}).client_tls("MQTT")
    with pytest.raises(UsageError, match="which is no certificate in PEM"):
        LineSettings(right | {"MQTT_CA": str(key)}).client_tls("MQTT")
    with pytest.raises(UsageError, match=r"VAE_EDGE_MQTT_CA is .* cannot be read"):
        LineSettings(right | {"MQTT_CA": str(tmp_path / "no")}).client_tls("MQTT")
    with pytest.raises(UsageError, match="VAE_EDGE_MQTT_CERT needs VAE_EDGE_MQTT_KEY"):
        LineSettings({"MQTT_CERT": str(one)}).client_tls("MQTT")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "9999999999"])
def test_the_cap_has_to_be_a_number(text: str) -> None:
    with pytest.raises(UsageError, match="LINE_MEGABYTES"):
        _ = LineSettings({"LINE_MEGABYTES": text}).most_bytes
    assert LineSettings({"LINE_MEGABYTES": "3"}).most_bytes == 3_000_000


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[4] / "vae_edge" / "sinks" / "LINE.md").read_text(encoding="utf-8")
    for name, meaning in NAMES.items():
        assert f"| `VAE_EDGE_{name}` | {meaning} |" in page


@pytest.mark.slow
def test_the_certificate_that_the_page_makes_serves_opc_ua_and_a_webhook(tmp_path: Path) -> None:
    pytest.importorskip("asyncua", reason="asyncua is not installed: vae-edge[line]")
    from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

    from vae_edge.sinks.line.opcua import OpcUa
    from vae_edge.sinks.line.webhook import Webhook

    page = (Path(__file__).parents[4] / "vae_edge" / "sinks" / "LINE.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^openssl req (?:.*\\\n)*.*$", page, re.MULTILINE)
    command = command.replace("DNS:press3", "DNS:localhost").replace("IP:10.0.0.5", "IP:127.0.0.1")
    for name in ("server", "client"):
        (tmp_path / name).mkdir()
        subprocess.run(["bash", "-ec", command], cwd=tmp_path / name, check=True, capture_output=True)
    own, key = tmp_path / "server" / "own.pem", tmp_path / "server" / "own-key.pem"
    theirs = tmp_path / "client"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    values = {"OPCUA_CERT": own, "OPCUA_KEY": key, "OPCUA_USER": "me", "OPCUA_PASSWORD": "secret", "WEBHOOK_CA": own}
    settings = LineSettings({name: str(value) for name, value in values.items()})
    port = free_port()

    async def read() -> tuple[Any, str]:
        client = opcua_client(port, ("me", "secret"))
        client.application_uri = "urn:press3:vae-edge"
        await client.set_security(
            SecurityPolicyBasic256Sha256, str(theirs / "own.pem"), str(theirs / "own-key.pem"), None, str(own)
        )
        async with client:
            space = await client.get_namespace_index("urn:vae-edge:line")
            counter = await client.get_node(f"ns={space};s=Inspection.counter").read_value()
            return counter, (await client.get_endpoints())[0].Server.ApplicationUri

    with Endpoint(tls=context) as endpoint:
        channels = [
            OpcUa(f"opc.tcp://127.0.0.1:{port}", settings),
            Webhook(f"https://localhost:{endpoint.port}/", settings),
        ]
        with Line(channels, ABOUT) as line:
            line.send(record(0))
            wait_until(lambda: all(delivery.n_delivered == 1 for delivery in line.deliveries))
            assert asyncio.run(read()) == (1, "urn:press3:vae-edge")
