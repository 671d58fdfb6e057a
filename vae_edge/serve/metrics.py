"""What Prometheus gets from a server, besides MLServer's own metrics of requests."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

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
        self._drift = Gauge(
            "vae_edge_drift_alarm", "1 once an alarm of drift was raised, where it is watched", ["model"]
        )
        self._evidence = Gauge("vae_edge_drift_evidence", "Evidence for drift; 1 is none", ["model"])

    def watch(self, judged: Judged) -> None:
        """Count a verdict."""
        result = judged.result
        if isinstance(result, VaeEdgeError):
            verdict = "error"
        else:
            verdict = result.verdict
            if result.drift is not None:
                self._drift.labels(judged.service).set(result.drift.alarm)
                self._evidence.labels(judged.service).set(result.drift.martingale)
        self._pictures.labels(judged.service, verdict).inc()
        self._latency_s.labels(judged.service).observe(judged.latency_s)
