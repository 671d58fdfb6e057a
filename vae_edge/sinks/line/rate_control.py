"""The false-alarm rate of a detector at work, where it is set from outside."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from vae_edge.decision import smallest_settable_rate, thresholds_at
from vae_edge.errors import UsageError
from vae_edge.manifest import Thresholds
from vae_edge.wording import count

if TYPE_CHECKING:
    from vae_edge.detector import Detector

_log = logging.getLogger(__name__)

_NAMED_REFUSALS = 20


class RateControl:
    """Sets the false-alarm rate of a detector; any thread may ask, also before there is a detector.

    Pictures that the detector begins after `set` returned are judged by the new rate, those in progress by either; each
    prediction says by which. Nothing is written: the next start has the rate that it is started with. A monitor of
    drift is not affected, as it watches scores.

    Args:
        thresholds: in force at the start.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self._lock = threading.Lock()
        self._detector: Detector | None = None
        self._when_set: Callable[[Thresholds], None] = lambda _: None
        self.thresholds = thresholds
        """In force now."""
        self.smallest = smallest_settable_rate(thresholds)
        """The smallest rate that can be set; None: the threshold keeps no rate, and none can."""
        self.n_set = 0
        self.n_refused = 0
        self._latest = ""

    def steer(self, detector: Detector) -> None:
        """Set this detector's rate from now on, and at once if one was set before."""
        with self._lock:
            self._detector = detector
            if self.n_set:
                detector.false_alarm_rate = self.thresholds.false_alarm_rate

    def when_set(self, callback: Callable[[Thresholds], None]) -> None:
        """Call this with the new thresholds each time, and at once if they were set before; it has to return at once.

        The detector has them by then.
        """
        with self._lock:
            self._when_set = callback
            if self.n_set:
                callback(self.thresholds)

    def set(self, rate: float, who: str) -> Thresholds:
        """Set the rate.

        Args:
            rate: share of normal images that may be called anomalous.
            who: asks, for the log.

        Returns:
            The thresholds that are in force then.

        Raises:
            UsageError: see `thresholds_at`; nothing has changed.
        """
        with self._lock:
            before = self.thresholds.false_alarm_rate
            try:
                thresholds = thresholds_at(self.thresholds, rate)
            except UsageError as error:
                self.n_refused += 1
                if self.n_refused <= _NAMED_REFUSALS:
                    _log.warning("%s: %s wanted to set the false-alarm rate; refused: %s", _now(), who, error)
                raise
            if self._detector is not None:
                self._detector.false_alarm_rate = rate
            self.thresholds = thresholds
            self.n_set += 1
            self._latest = f"{rate:.6g} by {who}, {_now()}"
            _log.warning("%s: %s sets the false-alarm rate to %.6g; it was %.6g", _now(), who, rate, before)
            self._when_set(thresholds)
            return thresholds

    def note(self) -> str | None:
        """Return what the summary of a run says; None: nobody asked."""
        if not self.n_set and not self.n_refused:
            return None
        latest = f", at last to {self._latest}" if self.n_set else ""
        return f"false-alarm rate set {count(self.n_set, 'time')}{latest}; {self.n_refused} refused"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")
