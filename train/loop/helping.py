"""The program of a process that the leader of a team started on this machine: it helps until the leader ends."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from pathlib import Path

from vae_edge.train.loop.connection import Connection, store_in
from vae_edge.train.loop.launch import Place
from vae_edge.train.loop.team import Team


def main() -> None:
    """Help; the arguments are those that `vae_edge.train.loop.starting` gives."""
    folder, rank, size, is_one_device = Path(sys.argv[1]), *map(int, sys.argv[2:])
    threading.Thread(target=_end_with_the_leader, args=(folder,), name="vae-edge-leader", daemon=True).start()
    place = Place(rank, size, rank, size)
    Team(Connection(place, store_in(folder, size)), folder=folder, is_one_device=bool(is_one_device)).help()


def _end_with_the_leader(folder: Path) -> None:
    """End at once when the leader's end of the pipe closes: killed, it cannot say so, and torch may be waiting."""
    sys.stdin.buffer.read()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
