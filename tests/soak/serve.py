"""The third subject: `vae-edge serve`, asked over HTTP by clients that ask again where the server is away."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.line_receivers import free_port, listens
from tests.soak.ledger import ERROR
from tests.soak.pictures import TORN_EVERY, encoded
from tests.soak.subject import Subject, vae_edge

_CLIENTS = 3
_TIMEOUT_S = 30.0
_AGAIN_S = 0.3


class Serve(Subject):
    """Each picture is one request; a connection that breaks before the answer is a request to ask again."""

    def __init__(
        self, bundle: Path, folder: Path, *, python: str, environment: Mapping[str, str], per_s: float
    ) -> None:
        super().__init__("serve", folder, environment, per_s)
        self._bundle = bundle
        self._python = python
        self._port = free_port()
        self._requests: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._n_answers = 0
        self.n_refused = 0
        """Answers other than a verdict or what a broken picture is owed."""

    def _command(self) -> list[str]:
        return vae_edge("serve", self._bundle, "--port", self._port, python=self._python)

    def _started(self, process: object) -> None:
        self._n_answers = 0
        if self.generation == 1:
            for _ in range(_CLIENTS):
                self._run(self._ask_all)

    @property
    def is_ready(self) -> bool:
        """Whether it has answered."""
        return self._n_answers > 0

    def _feed(self, number: int) -> None:
        content, _, verdict = encoded(number)
        if number % TORN_EVERY == 0:
            self.n_torn += 1
            self._leave_in_the_middle(content)
        name = f"{number:06}"
        self.ledger.owe(name, verdict)
        self._requests.put((name, content))

    def _leave_in_the_middle(self, content: bytes) -> None:
        """Send half a request and hang up."""
        head, body = self._request(content)
        lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
        start = f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 5) as connection:
            connection.sendall(start.encode() + body[: len(body) // 2])

    @property
    def _path(self) -> str:
        return f"/v2/models/{self._bundle.name}/infer"

    def _request(self, content: bytes) -> tuple[dict[str, str], bytes]:
        data = len(content).to_bytes(4, "little") + content
        tensor = {"name": "encoded", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        return {"Inference-Header-Content-Length": str(len(head))}, head + data

    def _ask_all(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._done.is_set():
            try:
                name, content = self._requests.get(timeout=0.2)
            except queue.Empty:
                continue
            headers, body = self._request(content)
            while not self._done.is_set():
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
                    connection.request("POST", self._path, body, headers)
                    response = connection.getresponse()
                    answer, status, generation = response.read(), response.status, self.generation
                except (OSError, http.client.HTTPException):
                    if connection is not None:
                        connection.close()
                    connection = None
                    time.sleep(_AGAIN_S)
                    continue
                self._note(name, status, answer, generation)
                break
        if connection is not None:
            connection.close()

    def _note(self, name: str, status: int, answer: bytes, generation: int) -> None:
        self._n_answers += 1
        if status == 400:
            self.ledger.give(name, ERROR, generation)
            return
        if status != 200:
            self.n_refused += 1
            return
        outputs = {each["name"]: each["data"] for each in json.loads(answer)["outputs"]}
        self.ledger.give(name, outputs["verdict"][0], generation)

    def _polite_codes(self) -> tuple[int, ...]:
        return (0,)

    def listens(self) -> bool:
        """Whether the port is open."""
        return listens(self._port)
