"""Against Debian's mosquitto, killed and restarted in the middle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.line_receivers import ABOUT, Broker, Subscriber, certificate, free_port, record
from tests.threads import our_threads, wait_until
from vae_edge.errors import InputError, MissingDependencyError, UsageError
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.settings import LineSettings

pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed: vae-edge[line]")
from vae_edge.sinks.line.mqtt import Mqtt

VERSIONS = pytest.mark.parametrize("version", ["5", "3.1.1"])


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with Broker(tmp_path) as started:
        yield started


def mqtt(address: str, **settings: str) -> Mqtt:
    return Mqtt(address, LineSettings({f"MQTT_{name.upper()}": value for name, value in settings.items()}))


@pytest.mark.broker
@VERSIONS
def test_verdicts_status_and_bundle_are_published(broker: Broker, version: str) -> None:
    with Subscriber(broker) as subscriber:
        with Line([mqtt(broker.address, version=version)], ABOUT) as line:
            names = [line.send(record(number)) for number in range(500)]
            wait_until(lambda: len(subscriber.verdicts) == 500)
        wait_until(lambda: subscriber.on("hall/press3/status") == [b"online", b"offline"])
        assert [verdict["id"] for verdict in subscriber.verdicts] == names
        first = subscriber.verdicts[0]
        assert {name: first[name] for name in record(0)} == record(0)
    with Subscriber(broker) as later:
        wait_until(lambda: sum(is_retained for *_, is_retained in later.messages) == 2)
        retained = {topic: payload for topic, payload, is_retained in later.messages if is_retained}
        assert retained["hall/press3/status"] == b"offline"
        assert json.loads(retained["hall/press3/bundle"]) == asdict(ABOUT)
    assert our_threads() == []


@pytest.mark.broker
@VERSIONS
def test_other_thresholds_are_published_before_the_verdicts_by_them(broker: Broker, version: str) -> None:
    later = replace(ABOUT, image_threshold=0.4, false_alarm_rate=0.05)
    with Subscriber(broker) as subscriber:
        with Line([mqtt(broker.address, version=version)], ABOUT) as line:
            for number in range(100):
                line.send(record(number))
                if number == 50:
                    wait_until(lambda: len(subscriber.verdicts) == 51)
                    line.tell(later)
        wait_until(lambda: len(subscriber.verdicts) == 100)
        bundles = [json.loads(payload) for payload in subscriber.on("hall/press3/bundle")]
        topics = [topic for topic, *_ in subscriber.messages]
    assert bundles == [asdict(ABOUT), asdict(later)]
    said = [place for place, topic in enumerate(topics) if topic == "hall/press3/bundle"][1]
    assert topics[:said].count("hall/press3/verdicts") == 51
    with Subscriber(broker) as newcomer:
        wait_until(lambda: len(newcomer.on("hall/press3/bundle")) == 1)
        assert json.loads(newcomer.on("hall/press3/bundle")[0]) == asdict(later)


@pytest.mark.broker
@VERSIONS
def test_no_verdict_is_lost_where_the_broker_is_killed_and_comes_back(broker: Broker, version: str) -> None:
    with Subscriber(broker) as subscriber:
        with Line([mqtt(broker.address, version=version)], ABOUT, drain_s=60) as line:
            names = []
            for number in range(900):
                names.append(line.send(record(number)))
                time.sleep(0.002)
                if number in (280, 580):
                    # What the broker has confirmed, its subscriber has: a broker that is killed may lose the rest.
                    wait_until(lambda n=number: len(set(subscriber.ids)) == n + 1, 60)  # type: ignore[misc]
                    broker.pause()
                if number in (300, 600):
                    broker.kill()
                if number in (450, 750):
                    n_seen = len(subscriber.messages)  # Before it starts, or everything might be there already.
                    broker.start()
                    wait_until(lambda n=n_seen: len(subscriber.messages) > n, 60)  # type: ignore[misc]
        wait_until(lambda: set(names) <= set(subscriber.ids), 60)
        # What comes twice has the same id and the same content.
        lines = {json.dumps(verdict) for verdict in subscriber.verdicts}
        assert len(lines) == 900
        assert subscriber.on("hall/press3/status").count(b"online") >= 2
    delivery = line.deliveries[0]
    assert (delivery.n_delivered, delivery.backlog.n_dropped) == (900, 0)
    assert delivery.n_late > 0
    # One, where it had not found the broker again before it was killed for the second time.
    assert delivery.channel.notes() in (["1 reconnections"], ["2 reconnections"])


KILLED = """
import os, sys, time
from tests.line_receivers import ABOUT, record
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.mqtt import Mqtt
line = Line([Mqtt(sys.argv[1])], ABOUT)
line.send(record(0))
time.sleep(1)
os._exit(9)
"""


@pytest.mark.broker
def test_the_broker_says_offline_for_a_process_that_was_killed(broker: Broker) -> None:
    with Subscriber(broker) as subscriber:
        assert subprocess.run([sys.executable, "-c", KILLED, broker.address], check=False).returncode == 9
        wait_until(lambda: subscriber.on("hall/press3/status") == [b"online", b"offline"])
        assert len(subscriber.verdicts) == 1


@pytest.mark.broker
@VERSIONS
def test_the_password_is_checked_before_the_first_verdict(tmp_path: Path, version: str) -> None:
    program = shutil.which("mosquitto_passwd")
    assert program is not None
    passwords = tmp_path / "passwords"
    subprocess.run([program, "-b", "-c", passwords, "me", "secret"], check=True)
    with Broker(tmp_path, f"password_file {passwords}", "allow_anonymous false") as broker:
        right = {"user": "me", "password": "secret", "version": version}
        with Subscriber(broker, **right) as subscriber:
            with Line([mqtt(broker.address, **right)], ABOUT) as line:
                line.send(record(0))
            wait_until(lambda: len(subscriber.verdicts) == 1)
        for wrong in ({}, {"user": "me", "password": "wrong"}):
            with pytest.raises(InputError, match=r"refuses the connection: .*; check VAE_EDGE_MQTT_USER"):
                Line([mqtt(broker.address, version=version, **wrong)], ABOUT)


@pytest.mark.broker
def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    foreign, foreign_key = certificate(tmp_path, "elsewhere")
    tls = [f"cafile {own}", f"certfile {own}", f"keyfile {key}", "require_certificate true"]
    with Broker(tmp_path, *tls) as broker:
        address = f"mqtts://localhost:{broker.port}/hall/press3"
        right = {"ca": str(own), "cert": str(own), "key": str(key)}
        with Line([mqtt(address, **right)], ABOUT) as line:
            line.send(record(0))
        assert line.deliveries[0].n_delivered == 1
        with pytest.raises(InputError, match="has a certificate that does not fit"):
            Line([mqtt(address, **right | {"ca": str(foreign)})], ABOUT)
        with pytest.raises(InputError, match=r"refuses|TLS|cannot be reached"):
            Line([mqtt(address, **right | {"cert": str(foreign), "key": str(foreign_key)})], ABOUT)
        with pytest.raises(InputError, match=r"refuses|cannot be reached"):
            Line([mqtt(broker.address)], ABOUT)


@pytest.mark.broker
def test_a_broker_that_forbids_the_topic_refuses_the_verdict(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("topic readwrite hall/press3/status\ntopic readwrite hall/press3/bundle\n")
    with Broker(tmp_path, f"acl_file {rules}") as broker:
        with Line([mqtt(broker.address)], ABOUT) as line:
            line.send(record(0))
        assert (line.deliveries[0].n_delivered, line.deliveries[0].n_refused) == (0, 1)
        assert "not authorized" in str(line.deliveries[0].trouble)


def test_a_broker_that_is_not_there_is_an_error_before_the_first_verdict() -> None:
    with pytest.raises(InputError, match=r"the MQTT broker 127.0.0.1:\d+ cannot be reached"):
        Line([mqtt(f"mqtt://127.0.0.1:{free_port()}/a")], ABOUT)
    assert our_threads() == []


@pytest.mark.broker
def test_an_optional_broker_may_start_later(tmp_path: Path) -> None:
    with Broker(tmp_path) as broker, Subscriber(broker) as subscriber:
        time.sleep(0.2)  # Until its session is on disk.
        broker.kill()
        with Line([mqtt(broker.address)], ABOUT, is_optional=True, drain_s=20) as line:
            names = [line.send(record(number)) for number in range(100)]
            time.sleep(0.5)
            assert line.deliveries[0].n_delivered == 0
            broker.start()
        wait_until(lambda: [verdict["id"] for verdict in subscriber.verdicts] == names)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match=r"VAE_EDGE_MQTT_VERSION is '4'; expected 5 or 3.1.1"):
        mqtt("mqtt://h/a", version="4")
    with pytest.raises(UsageError, match="VAE_EDGE_MQTT_PASSWORD needs VAE_EDGE_MQTT_USER"):
        mqtt("mqtt://h/a", password="x")


def test_a_password_in_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    mqtt("mqtt://broker/a", user="me", password="x")
    assert "sent in clear; mqtts:// encrypts it" in caplog.text


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without: dict[str, Any] = {"paho.mqtt.client": None, "paho.mqtt": None, "paho": None}
    for name in without:
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install .vae-edge\[line\]"):
        mqtt("mqtt://h/a")
