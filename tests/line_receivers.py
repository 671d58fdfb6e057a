"""The machines beside the line, for tests: a broker, a subscriber and a web service, which can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.threads import wait_until
from vae_edge.sinks.line.channel import About

ABOUT = About("tile-onnx-fp32@0123456789ab", 0.5, 0.25, 0.01, 99, True, host="press3")

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a port on which nobody listened a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


class Broker:
    """Debian's mosquitto on a free port of this machine; it writes its subscribers' sessions to disk at every change.

    So a subscriber that comes back later than the publisher misses nothing.
    """

    def __init__(self, folder: Path, *more: str) -> None:
        if MOSQUITTO is None:
            assert "CI" not in os.environ, "CI installs mosquitto for these tests; see .ci/run"
            pytest.skip("mosquitto is not installed; `make test-line` installs it")
        self.port = free_port()
        # Where there is memory for it: the broker waits for the disk at every change.
        store = tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self._store = store
        self._configuration = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "max_inflight_messages 0", "max_queued_messages 0"]
        lines += [
            "persistence true",
            f"persistence_location {store.name}/",
            "autosave_on_changes true",
            "autosave_interval 1",
        ]
        lines += more
        if not any(line.startswith("allow_anonymous") for line in more):
            lines.append("allow_anonymous true")
        if folder.stat().st_uid == 0:
            lines.append("user root")  # It would become another user, who may not read the test's files.
        self._configuration.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"mqtt://127.0.0.1:{self.port}/hall/press3"

    def start(self) -> Broker:
        """Start it and wait until it listens."""
        assert MOSQUITTO is not None
        self._process = subprocess.Popen(
            [MOSQUITTO, "-c", self._configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: listens(self.port))
        return self

    def pause(self) -> None:
        """Stop it where it is: its connections stay, and nothing is read or confirmed until it is killed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """Kill it, without a word to its clients."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


class Subscriber:
    """Keeps everything that is published below `hall/`."""

    def __init__(self, broker: Broker, **connection: Any) -> None:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[tuple[str, bytes, bool]] = []
        """Topic, payload, and whether it was retained."""
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id="receiver", protocol=paho.MQTTv311, clean_session=False
        )
        self._client.reconnect_delay_set(1, 1)
        if "user" in connection:
            self._client.username_pw_set(connection["user"], connection["password"])
        ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("hall/#", qos=1)
        self._client.on_subscribe = lambda *_: ready.set()
        self._client.on_message = lambda _client, _data, message: self.messages.append(
            (message.topic, bytes(message.payload), message.retain)
        )
        self._client.connect("127.0.0.1", broker.port, keepalive=10)
        self._client.loop_start()
        assert ready.wait(10)

    def on(self, topic: str) -> list[bytes]:
        """Return what came on one topic."""
        return [payload for name, payload, _ in self.messages if name == topic]

    @property
    def verdicts(self) -> list[dict[str, Any]]:
        """The lines."""
        return [json.loads(payload) for payload in self.on("hall/press3/verdicts")]

    @property
    def ids(self) -> list[str]:
        """Their names."""
        return [verdict["id"] for verdict in self.verdicts]

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Endpoint:
    """A web service that keeps what is posted to it.

    Args:
        answer: gives the status for the n-th request, from 0; None: no answer at all.
        tls: a server's context.
    """

    def __init__(
        self, answer: Callable[[int], int | None] = lambda _: 204, *, port: int = 0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.posts: list[tuple[dict[str, str], dict[str, Any]]] = []
        """Headers and body of each request."""
        self.headers: dict[str, str] = {}
        """Of the answers."""
        self._connections: list[socket.socket] = []
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                keeper._connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                keeper.posts.append((dict(self.headers), json.loads(body)))
                status = answer(len(keeper.posts) - 1)
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in keeper.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/verdicts"

    @property
    def ids(self) -> list[str]:
        """The keys of the requests."""
        return [headers["Idempotency-Key"] for headers, _ in self.posts]

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def record(number: int) -> dict[str, Any]:
    """Return a record as a run makes it."""
    return {"source": f"{number}.png", "is_anomalous": number % 2 == 1, "score": number / 1000, "p_value": 0.5}


def certificate(folder: Path, name: str = "localhost", *, since: int = -3, days: int = 2) -> tuple[Path, Path]:
    """Make a certificate for this machine that signs itself, and its key; return both files."""
    x509 = pytest.importorskip("cryptography.x509")
    import datetime
    import ipaddress

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = [
        x509.DNSName(name),
        x509.UniformResourceIdentifier(f"urn:{name}:vae-edge"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=-since))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / f"{name}.pem", folder / f"{name}-key.pem"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_file.write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return certificate_file, key_file


def opcua_client(port: int, user: tuple[str, str] | None = None) -> Any:
    """Return asyncua's client of a server on this machine, which waits 20 s for every answer.

    asyncua 2.0 gives each request of a session one second, whatever the client's own limit is: too little for a server
    that shares its processor with other tests.
    """
    from asyncua import Client

    made = Client(f"opc.tcp://127.0.0.1:{port}", timeout=20)
    send = made.uaclient._send_request

    async def patiently(request: Any, timeout: float | None = None, *rest: Any) -> Any:
        return await send(request, max(timeout, 20) if timeout else timeout, *rest)

    made.uaclient._send_request = patiently
    if user is not None:
        made.set_user(user[0])
        made.set_password(user[1])
    return made


def listens(port: int) -> bool:
    """Return whether somebody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        time.sleep(0.02)
        return False
    return True
