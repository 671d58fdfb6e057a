"""A camera on the network: a real HTTP server that sends JPEG pictures one after the other, and can break off."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

import cv2
import numpy as np

from tests.tiny_bundles import dark_image


class MjpegServer:
    """Sends frames on `/camera` for as long as `up` is set; while it is not, requests are refused."""

    def __init__(self, *, frames_per_s: float = 50, size: int = 48) -> None:
        self.up = threading.Event()
        self.up.set()
        self.silent = threading.Event()
        """While this is set the connection stays and no frame comes."""
        self.one_each_time = False
        self.n_connections = 0
        self.size = size
        self._pause_s = 1 / frames_per_s
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/camera"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        if not self.up.is_set():
            request.send_error(503)
            return
        self.n_connections += 1
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        request.end_headers()
        try:
            while self.up.is_set():
                _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(dark_image(1, self.size)))
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.size}\r\n\r\n"
                if not self.silent.is_set():
                    request.wfile.write(head.encode() + jpeg.tobytes() + b"\r\n")
                if self.one_each_time:
                    return
                time.sleep(self._pause_s)
        except OSError:
            pass  # The reader has seen enough.

    def __enter__(self) -> MjpegServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.up.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
