"""One receiver of `tests.line_acceptance`: `line_receiver_process KIND ADDRESS FILE`, until it is killed.

Every verdict that arrives is a line of the file, its id and the time, before it is confirmed. `FILE` with the ending
`.ready` appears once it receives.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_FIRST = datetime(2000, 1, 1, tzinfo=timezone.utc)


class Book:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self.ready = path.with_suffix(".ready")

    def write(self, line: str | bytes | bytearray, since: str = "-") -> None:
        """Write down that a verdict arrived."""
        self._file.write(f"{json.loads(line)['id']} {time.time():.6f} {since}\n".encode())

    def since(self) -> datetime:
        """Return the time that was written down last; a line that a kill cut short does not count."""
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        return datetime.fromisoformat(lines[-1].split()[2]) if lines else _FIRST


def serve_webhook(address: str, book: Book) -> None:
    """Take posts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            book.write(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    parts = urlsplit(address)
    assert parts.hostname is not None
    assert parts.port is not None
    server = ThreadingHTTPServer((parts.hostname, parts.port), Handler)
    book.ready.touch()
    server.serve_forever()


def subscribe_mqtt(address: str, book: Book) -> None:
    """Subscribe with a session that outlives the broker's death and ours."""
    import paho.mqtt.client as paho
    from paho.mqtt.enums import CallbackAPIVersion

    parts = urlsplit(address)
    assert parts.hostname is not None
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="receiver", protocol=paho.MQTTv311, clean_session=False)
    client.reconnect_delay_set(1, 2)
    client.on_connect = lambda client, *_: client.subscribe(f"{parts.path.strip('/')}/verdicts", qos=1)
    client.on_subscribe = lambda *_: book.ready.touch()
    client.on_message = lambda _client, _data, message: book.write(message.payload)
    client.connect(parts.hostname, parts.port or 1883, keepalive=5)
    client.loop_forever()


def read_opcua(address: str, book: Book) -> None:
    """Subscribe to the lines, and read from the history what came before, after each connection."""
    from asyncua.ua import UaError

    while True:
        with suppress(OSError, TimeoutError, asyncio.TimeoutError, UaError):
            asyncio.run(_read_opcua(address, book))
        time.sleep(0.5)


async def _read_opcua(address: str, book: Book) -> None:
    from asyncua import Client

    since = book.since()
    arrived: asyncio.Queue[Any] = asyncio.Queue()

    class Handler:
        def datachange_notification(self, _node: object, _value: str, data: Any) -> None:
            arrived.put_nowait(data.monitored_item.Value)

    async with Client(address, timeout=20, watchdog_intervall=10) as client:
        space = await client.get_namespace_index("urn:vae-edge:line")
        node = client.get_node(f"ns={space};s=Inspection.line")
        subscription = await client.create_subscription(50, Handler())
        await subscription.subscribe_data_change(node, queuesize=10_000)

        def take(value: Any) -> None:
            nonlocal since
            if value.Value.Value and value.SourceTimestamp > since:
                since = value.SourceTimestamp
                book.write(value.Value.Value, since.isoformat())

        while True:
            part = [each for each in await node.read_raw_history(since, None, 1000) if each.SourceTimestamp > since]
            if not part:
                break
            for each in part:
                take(each)
        book.ready.touch()
        while True:
            # The library does not tell who waits here that the connection is lost; reading the node does.
            try:
                take(await asyncio.wait_for(arrived.get(), 5))
            except (TimeoutError, asyncio.TimeoutError):
                await node.read_value()


KINDS = {"mqtt": subscribe_mqtt, "opcua": read_opcua, "webhook": serve_webhook}


if __name__ == "__main__":
    logging.disable()  # asyncua's client tells of every lost connection with a traceback.
    KINDS[sys.argv[1]](sys.argv[2], Book(Path(sys.argv[3])))
