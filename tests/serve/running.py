"""A server in a process of its own, as users start it."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

PATIENCE_S = 180.0
"""Long, for a busy machine: importing everything takes seconds of work."""


class RunningServer:
    """`vae-edge serve`, ready; it ends with the block.

    Args:
        bundles: folders.
        options: further words of the command.
        token: goes into the environment.
    """

    def __init__(self, *bundles: Path, options: tuple[str, ...] = (), token: str | None = None) -> None:
        self._bundles = bundles
        self._options = options
        self._environment = {**os.environ, "VAE_EDGE_SERVE_TOKEN": token or ""}
        self.lines: list[str] = []
        """What it said on stderr."""

    def __enter__(self) -> RunningServer:
        words = [sys.executable, "-m", "vae_edge", "serve", *map(str, self._bundles), "--port", "0", *self._options]
        self.process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=self._environment)
        started: queue.Queue[re.Match[str]] = queue.Queue()

        def listen() -> None:
            assert self.process.stderr is not None
            for line in self.process.stderr:
                self.lines.append(line)
                if found := re.search(r"on https?://(\S+):(\d+)(?: and gRPC on port (\d+))?;", line):
                    started.put(found)

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        try:
            found = started.get(timeout=PATIENCE_S)
        except queue.Empty:
            self.process.kill()
            raise AssertionError("".join(self.lines)) from None
        self.address = f"127.0.0.1:{found[2]}"
        self.grpc_address = f"127.0.0.1:{found[3]}"
        return self

    def end(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Tell it to end; returns its exit code and the seconds that it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._listener.join()
        return code, time.monotonic() - begun

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
