from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from tests.line_receivers import ABOUT, Endpoint, certificate, free_port, record
from tests.threads import wait_until
from vae_edge.errors import InputError, UsageError
from vae_edge.sinks.line import webhook
from vae_edge.sinks.line.line import Line
from vae_edge.sinks.line.settings import LineSettings
from vae_edge.sinks.line.webhook import Webhook

NONE = LineSettings()


def test_every_verdict_is_posted_once_in_order_with_its_key() -> None:
    with Endpoint() as endpoint:
        with Line([Webhook(endpoint.address, LineSettings({"WEBHOOK_TOKEN": "t0"}))], ABOUT) as line:
            names = [line.send(record(number)) for number in range(300)]
        assert endpoint.ids == names
        headers, body = endpoint.posts[7]
        assert body == {"id": names[7], "judged_at": body["judged_at"], **record(7)}
        assert headers["Content-Type"] == "application/json"
        assert headers["Authorization"] == "Bearer t0"
        assert headers["Vae-Edge-Bundle"] == ABOUT.bundle


@pytest.mark.parametrize("status", [500, 503, 429, 408, None])
def test_what_may_pass_is_tried_again_with_the_same_key(status: int | None) -> None:
    with Endpoint(lambda n: status if n in (2, 3, 4) else 201) as endpoint:
        with Line([Webhook(endpoint.address, NONE)], ABOUT) as line:
            names = [line.send(record(number)) for number in range(5)]
        assert endpoint.ids == [*names[:2], *[names[2]] * 4, *names[3:]]
        assert line.deliveries[0].n_delivered == 5


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 413])
def test_what_will_not_pass_is_refused_and_costs_that_one_only(status: int) -> None:
    with Endpoint(lambda n: status if n == 1 else 200) as endpoint:
        endpoint.headers = {"Location": "http://127.0.0.1:9/"}
        with Line([Webhook(endpoint.address, NONE)], ABOUT) as line:
            names = [line.send(record(number)) for number in range(4)]
        assert endpoint.ids == names
        assert (line.deliveries[0].n_delivered, line.deliveries[0].n_refused) == (3, 1)


def test_the_receivers_wish_to_wait_is_granted() -> None:
    times: list[float] = []

    def answer(n: int) -> int:
        times.append(time.monotonic())
        return 503 if n == 0 else 200

    with Endpoint(answer) as endpoint:
        endpoint.headers = {"Retry-After": "1"}
        with Line([Webhook(endpoint.address, NONE)], ABOUT) as line:
            line.send(record(0))
    assert times[1] - times[0] >= 1


def test_one_that_restarts_misses_nothing() -> None:
    first = Endpoint()
    with Line([Webhook(first.address, NONE)], ABOUT) as line:
        names = [line.send(record(number)) for number in range(50)]
        wait_until(lambda: len(first.ids) == 50)
        first.__exit__()
        names += [line.send(record(number)) for number in range(50, 100)]
        time.sleep(0.3)
        with Endpoint(port=first.port) as second:
            wait_until(lambda: len(second.ids) >= 50)
    # A thread of the first may have taken one and not answered any more.
    assert list(dict.fromkeys(first.ids + second.ids)) == names


def test_one_that_drips_its_answer_does_not_hold_the_channel_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import threading

    monkeypatch.setattr(webhook, "_WHOLE_S", 0.5)
    server = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.recv(65536)
            try:
                while True:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nX"[:1])
                    time.sleep(0.1)
            except OSError:
                connection.close()

    threading.Thread(target=drip, daemon=True).start()
    line = Line([Webhook(f"http://127.0.0.1:{server.getsockname()[1]}/", NONE)], ABOUT, drain_s=1.5)
    line.send(record(0))
    wait_until(lambda: line.deliveries[0].n_failures > 0, 5)
    line.close()
    server.close()
    assert line.deliveries[0].n_delivered == 0


def test_the_certificate_is_checked_before_the_first_verdict(tmp_path: Path) -> None:
    own, key = certificate(tmp_path)
    foreign, _ = certificate(tmp_path, "elsewhere")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, key)
    with Endpoint(tls=context) as endpoint:
        address = f"https://localhost:{endpoint.port}/verdicts?key=secret"
        trusting = Webhook(address, LineSettings({"WEBHOOK_CA": str(own)}))
        assert "secret" not in trusting.shown
        with Line([trusting], ABOUT) as line:
            line.send(record(0))
        assert len(endpoint.posts) == 1
        for settings in (NONE, LineSettings({"WEBHOOK_CA": str(foreign)})):
            with pytest.raises(InputError, match="has a certificate that does not fit"):
                Line([Webhook(address, settings)], ABOUT)
        with Endpoint() as plain, pytest.raises(InputError, match="does not speak TLS as expected"):
            Line([Webhook(f"https://127.0.0.1:{plain.port}/", NONE)], ABOUT)


def test_one_that_is_not_there_is_an_error_before_the_first_verdict() -> None:
    with pytest.raises(InputError, match=r"the webhook's host 127.0.0.1:\d+ cannot be reached"):
        Line([Webhook(f"http://127.0.0.1:{free_port()}/", NONE)], ABOUT)


@pytest.mark.parametrize("address", ["ftp://h/", "h/verdicts", "http://me:secret@h/", "https://h/ä"])
def test_what_is_no_address_of_a_web_service_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"https://HOST|VAE_EDGE_WEBHOOK_TOKEN"):
        Webhook(address, NONE)


def test_a_token_that_no_header_can_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="VAE_EDGE_WEBHOOK_TOKEN"):
        Webhook("http://h/", LineSettings({"WEBHOOK_TOKEN": "a\nb"}))
