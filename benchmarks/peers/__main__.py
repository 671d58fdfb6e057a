"""`python -m vae_edge.benchmarks.peers`."""

from __future__ import annotations

import sys

from vae_edge.benchmarks.peers.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
