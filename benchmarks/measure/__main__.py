"""The measured process of a benchmark: `python -m vae_edge.benchmarks.measure JOB.json RESULT.json`."""

from __future__ import annotations

import sys

from vae_edge.benchmarks.measure.instruments import serve
from vae_edge.benchmarks.measure.worker import do
from vae_edge.errors import VaeEdgeError

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:], do, (VaeEdgeError,)))
