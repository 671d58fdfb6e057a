"""What the live page of a server shows: counts, times, the last picture and the last anomalies of each bundle."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vae_edge.drift import DriftMonitor, times
from vae_edge.errors import VaeEdgeError
from vae_edge.prediction import Prediction
from vae_edge.serve.service import Judged
from vae_edge.wording import count

_log = logging.getLogger(__name__)

MOST_ANOMALIES = 12
MOST_LATENCIES = 1000
LARGE_PX, SMALL_PX = 800, 320
"""Longer sides of the last picture and of the anomalies."""
DRAWING_INTERVAL_S = 1.0
"""Between two drawings at least, of whichever bundles."""
_RATE_WINDOW_S = 10
_JPEG_QUALITY = 85


@dataclass(frozen=True, eq=False)
class _Waiting:
    image: NDArray[np.uint8]
    prediction: Prediction
    time_s: float

    def shown(self, number: int, longest_side: int) -> _Shown:
        prediction = self.prediction
        facts = {
            "verdict": prediction.verdict,
            "score": _finite(prediction.score),
            "p_value": _finite(prediction.p_value),
            "threshold": _finite(prediction.threshold),
            "because": list(prediction.not_inspectable_because),
            "time_s": self.time_s,
        }
        overlay = prediction.overlay(self.image, longest_side=longest_side)
        return _Shown(number, facts, _jpeg(overlay))


@dataclass(eq=False)
class _Shown:
    """A picture that the page shows: its facts, and its overlay as JPEG."""

    number: int
    facts: dict[str, Any]
    jpeg: bytes

    @property
    def record(self) -> dict[str, Any]:
        return {"image": self.number, **self.facts}


@dataclass(eq=False)
class _Bundle:
    counts: dict[str, int] = field(
        default_factory=lambda: {"normal": 0, "anomalous": 0, "not inspectable": 0, "error": 0}
    )
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_LATENCIES))
    per_second: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_RATE_WINDOW_S + 1))
    """Whole seconds and the verdicts in each, without the seconds that had none."""
    waiting: _Waiting | None = None
    waiting_anomaly: _Waiting | None = None
    last: _Shown | None = None
    anomalies: deque[_Shown] = field(default_factory=lambda: deque(maxlen=MOST_ANOMALIES))
    has_gate: bool = True
    drift: DriftMonitor | None = None
    drawn_at: int = 0
    """Which drawing was its last: the bundle that has waited longest is next."""
    changed: int = 0
    """The page's version at the last change."""


class Page:
    """What was judged, for whoever looks: `watch` takes it, `state` and `image` give it.

    A thread of its own draws once a second, for one bundle: the last picture, and the last anomaly if that is not drawn
    yet. What came between is counted but not drawn. For each bundle it keeps these two until they are drawn, and the
    JPEG files of the last drawn picture and of the last 12 drawn anomalies. It is a context manager; `close` twice is
    fine.

    Args:
        names: of the bundles.
        clock: seconds since 1970; only tests need another one.
        interval_s: between two drawings at least.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        clock: Callable[[], float] = time.time,
        interval_s: float = DRAWING_INTERVAL_S,
    ) -> None:
        self._bundles = {name: _Bundle() for name in names}
        self._clock = clock
        self._interval_s = interval_s
        self._started_s = clock()
        self._version = 0
        self._n_images = 0
        self._lock = threading.Lock()
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="vae-edge-page", daemon=True)
        self._thread.start()

    def add(self, name: str, *, has_gate: bool, drift: DriftMonitor | None) -> None:
        """Say how a bundle's pictures are judged.

        Args:
            name: one of those that the page was made for.
            has_gate: whether pictures are looked at for being inspectable.
            drift: what watches its scores; None: nothing does.
        """
        bundle = self._bundles[name]
        bundle.has_gate, bundle.drift = has_gate, drift

    def watch(self, judged: Judged) -> None:
        """Count a verdict and let its picture wait to be drawn; takes microseconds."""
        now = self._clock()
        bundle = self._bundles[judged.service]
        with self._lock:
            self._version += 1
            bundle.changed = self._version
            bundle.latencies_s.append(judged.latency_s)
            second = int(now)
            n_before = bundle.per_second.pop()[1] if bundle.per_second and bundle.per_second[-1][0] == second else 0
            bundle.per_second.append((second, n_before + 1))
            result = judged.result
            if isinstance(result, VaeEdgeError):
                bundle.counts["error"] += 1
                return
            bundle.counts[result.verdict] += 1
            if judged.image is not None:
                bundle.waiting = _Waiting(judged.image, result, now)
                if result.verdict == "anomalous":
                    bundle.waiting_anomaly = bundle.waiting
                self._wanted.set()

    def state(self, since: int = 0) -> dict[str, Any]:
        """Return what changed after a version, as JSON has it.

        Args:
            since: `version` of the caller's last state; 0, or one that is not reached yet: everything.

        Returns:
            `version`; `started_s`, which another start of the server changes; `rates`, verdicts a second of the last
            ten seconds by bundle; `bundles`, those that changed, by name: `counts` by verdict, `p50_s` and `p99_s` of
            the last 1,000 verdicts (None: none yet), `last` and `anomalies`, newest first, with the numbers of their
            images, `has_gate`, and `drift`: see `drift_record`; None: it is not watched for.
        """
        now = self._clock()
        with self._lock:
            since = since if since <= self._version else 0
            version = self._version
            rates = {name: self._rate(bundle, now) for name, bundle in self._bundles.items()}
            changed = {
                name: (
                    {
                        "counts": dict(bundle.counts),
                        "last": None if bundle.last is None else bundle.last.record,
                        "anomalies": [shown.record for shown in reversed(bundle.anomalies)],
                        "has_gate": bundle.has_gate,
                        "drift": None if bundle.drift is None else drift_record(bundle.drift),
                    },
                    list(bundle.latencies_s),
                )
                for name, bundle in self._bundles.items()
                if bundle.changed > since or since == 0
            }
        return {
            "version": version,
            "started_s": self._started_s,
            "rates": rates,
            "bundles": {name: {**found, **_quantiles(latencies)} for name, (found, latencies) in changed.items()},
        }

    def image(self, number: int) -> bytes | None:
        """Return an overlay as JPEG; None: it is shown no more, or never was."""
        with self._lock:
            for bundle in self._bundles.values():
                for shown in (bundle.last, *bundle.anomalies):
                    if shown is not None and shown.number == number:
                        return shown.jpeg
        return None

    def _rate(self, bundle: _Bundle, now: float) -> float:
        """Return verdicts a second in the last whole seconds, at most ten, since the start."""
        second = int(now)
        n_seconds = min(_RATE_WINDOW_S, max(1, second - int(self._started_s)))
        return sum(n for at, n in bundle.per_second if second - n_seconds <= at < second) / n_seconds

    def _draw(self) -> None:
        n_drawings = 0
        while True:
            self._wanted.wait()
            if self._closed.is_set():
                return
            self._wanted.clear()
            with self._lock:
                waiting = [bundle for bundle in self._bundles.values() if bundle.waiting is not None]
                if not waiting:
                    continue
                bundle = min(waiting, key=lambda each: each.drawn_at)
                last, anomaly = bundle.waiting, bundle.waiting_anomaly
                bundle.waiting = bundle.waiting_anomaly = None
                n_drawings += 1
                bundle.drawn_at = n_drawings
                if len(waiting) > 1:
                    self._wanted.set()
            assert last is not None
            try:
                self._show(bundle, last, anomaly)
            except Exception:  # noqa: BLE001 - the page goes without a picture; verdicts do not depend on it
                _log.warning("a picture could not be drawn for the page", exc_info=True)
            del last, anomaly
            if self._closed.wait(self._interval_s):
                return

    def _show(self, bundle: _Bundle, last: _Waiting, anomaly: _Waiting | None) -> None:
        large = last.shown(self._n_images + 1, LARGE_PX)
        small = None if anomaly is None else anomaly.shown(self._n_images + 2, SMALL_PX)
        self._n_images += 2
        with self._lock:
            self._version += 1
            bundle.changed = self._version
            bundle.last = large
            if small is not None:
                bundle.anomalies.append(small)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._wanted.set()
        self._thread.join()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def drift_record(monitor: DriftMonitor) -> dict[str, Any]:
    """Return what the page shows of drift.

    Returns:
        `alarm`, whether one was raised; `since_s`, when, in seconds since 1970 (None: not known); `size`, how far
        scores moved, and `evidence`, how near an alarm is, both in words.
    """
    alarm = monitor.alarm
    n_parts, at = monitor.n_parts, 1 / monitor.alarm_rate
    now = "over a million" if monitor.martingale > 1e6 else f"{monitor.martingale:.3g}"
    evidence = (
        f"Evidence {now} after {count(n_parts, 'part')}; an alarm is at {at:.6g}, and "
        f"{monitor.alarm_rate:.3g} is the chance that it is ever false."
    )
    if alarm is None:
        return {"alarm": False, "since_s": None, "size": "", "evidence": evidence}
    by = "" if alarm.shift is None else f" by {times(alarm.shift)} times the spread of good parts"
    return {
        "alarm": True,
        "since_s": alarm.raised_s,
        "size": f"Scores are {alarm.direction}{by} since about part {alarm.began}; noticed at part {alarm.part}. Find "
        "the cause; then fit the thresholds again or delete the drift file, and start the server again.",
        "evidence": evidence,
    }


def _jpeg(overlay: NDArray[np.uint8]) -> bytes:
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(overlay, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY)
    )
    if not done:
        raise ValueError(f"a picture of {overlay.shape} could not be written as JPEG")
    return data.tobytes()


def _finite(number: float) -> float | None:
    """Return a number that JSON can hold; None: it is none."""
    return float(number) if math.isfinite(number) else None


def _quantiles(latencies_s: list[float]) -> dict[str, float | None]:
    if not latencies_s:
        return {"p50_s": None, "p99_s": None}
    p50, p99 = np.percentile(latencies_s, [50, 99])
    return {"p50_s": float(p50), "p99_s": float(p99)}
