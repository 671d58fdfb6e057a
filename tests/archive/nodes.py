"""A Ray cluster of several nodes on this machine, each with addresses and folders of its own; a node can be killed.

Every node has an address of the loopback network (127.0.0.2 and so on, which Linux has without being told).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

_START_S = 120.0
_OBJECTS_BYTES = 100_000_000


class Nodes:
    """A head and further nodes, from entering to leaving the block.

    Args:
        processors: how many each node says it has; the head's are the first.
        cores: the core that each node is confined to; None: any.
    """

    def __init__(self, processors: Sequence[int], cores: Sequence[int | None] | None = None) -> None:
        self._processors = tuple(processors)
        self._cores = tuple(cores or [None] * len(processors))
        # Short: the path of a socket has about a hundred characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "OMP_NUM_THREADS": "1",
        }
        """What commands need that join the cluster."""
        self.address = f"127.0.0.2:{_free_port()}"

    def __enter__(self) -> Nodes:
        try:
            for number in range(len(self._processors)):
                self.start(number)
        except BaseException:
            self.close()
            raise
        return self

    def start(self, number: int) -> None:
        """Start a node, or one that was killed again."""
        core = self._cores[number]
        place = ["--head", "--port", self.address.rpartition(":")[2], "--include-dashboard=false"]
        words = [
            *(place if number == 0 else ["--address", self.address]),
            *("--node-ip-address", f"127.0.0.{number + 2}"),
            *("--num-cpus", str(self._processors[number])),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--object-store-memory", str(_OBJECTS_BYTES)),
            *("--temp-dir", str(self._folder / str(number))),
        ]
        program = [sys.executable, "-c", "import sys; from ray.scripts.scripts import main; sys.exit(main())", "start"]

        def confine() -> None:
            if core is not None:
                os.sched_setaffinity(0, [core])

        done = subprocess.run(
            [*program, *words],
            env=self.environment,
            preexec_fn=confine,
            timeout=_START_S,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self, number: int) -> list[psutil.Process]:
        """Return the processes of a node, its workers among them."""
        mark = f"{self._folder / str(number)}/"
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline"]):
            if any(mark in word for word in process.info["cmdline"] or ()):
                try:
                    found.update({each.pid: each for each in (process, *process.children(recursive=True))})
                except psutil.NoSuchProcess:
                    continue
        return list(found.values())

    def workers(self) -> list[psutil.Process]:
        """Return the processes of all nodes that hold a detector."""
        return [each for number in range(len(self._processors)) for each in self.processes(number) if _is_worker(each)]

    def kill(self, number: int) -> None:
        """Kill a node and all its processes, without a word."""
        for process in self.processes(number):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue

    def close(self) -> None:
        """Kill all of them and remove what they wrote."""
        for number in reversed(range(len(self._processors))):
            self.kill(number)
        time.sleep(0.5)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any("MapWorker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.2", 0))
        port: int = found.getsockname()[1]
        return port
