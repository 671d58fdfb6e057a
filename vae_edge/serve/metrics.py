"""What Prometheus gets from a server, besides MLServer's own metrics of requests."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from vae_edge.errors import VaeEdgeError
from vae_edge.serve.service import Judged

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counts verdicts and measures how long they take; one in a process."""

    def __init__(self) -> None:
        self._pictures = Counter("vae_edge_pictures", "Pictures by verdict, or error", ["model", "verdict"])
        self._latency_s = Histogram(
            "vae_edge_picture_seconds", "From a picture's arrival to its verdict", ["model"], buckets=_BUCKETS_S
        )

    def watch(self, judged: Judged) -> None:
        """Count a verdict."""
        verdict = "error" if isinstance(judged.result, VaeEdgeError) else judged.result.verdict
        self._pictures.labels(judged.service, verdict).inc()
        self._latency_s.labels(judged.service).observe(judged.latency_s)
