"""Whether the process has drifted: a test that watches for ever and whose false-alarm rate is for all that time.

A threshold that is compared with every part must be crossed some day. So this is a conformal test martingale (Vovk,
"Testing randomness online", Statistical Science 2021; Volkhonskiy et al., "Inductive conformal martingales for
change-point detection", 2017): a gambler's capital, who begins with 1 and bets that parts are not as before. While they
are, the chance that it *ever* reaches 1 / rate is at most the rate (Ville's inequality). That is when the alarm is
raised.

**Ranks.** Each score is ranked among those of the bundle's held-out normals and of all earlier parts, with ties in
random order: u = (number lower + theta * (number equal, itself included)) / (number of all), theta uniform in [0, 1].
While the sequence is exchangeable these u are independent and uniform in [0, 1], exactly (Vovk, Gammerman and Shafer,
"Algorithmic Learning in a Random World", 2005, theorem 8.1). The p-values of predictions are not: all of them come from
one calibration set, whose error adds up. At most `MAX_SCORES` scores are kept; beyond that a random one of them *and
the new one* leaves, each with the same chance. What is ranked is then still an exchangeable set, and which of it was
the last one is independent of all that comes later, so the u stay independent and uniform. The price: a change that is
slower than some `MAX_SCORES` parts is not seen.

**Defects.** They are not drift. Parts that score at least `cut` are not ranked, and held-out normals that do are left
out. The cut is the k-th largest score of the held-out normals, for the share that the bundle's rate gives (1 % to 5 %).
Given it, the normals below it and the parts below it are exchangeable, because each was kept by the same rule about its
own score: so the ranks stay valid. Defects that score like normals are ranked. That there are too many parts above the
cut is a bet of its own, and its hypothesis an assumption: at most `allowed_share` of them, whatever came before.

**Bets.** A bet multiplies its capital by a function of mean 1: b(u) or b(1 - u), for "higher" and "lower", with b(u) =
1/2 + u, 2u, 4u^3; and for parts above the cut, with the allowed share q and a stake g = 1/4, 1/2, 3/4: 1 + g (1 - q) /
q, and 1 - g for the others. A capital that was lost in years without drift would be missing afterwards. So each bet is
begun again at every part n, with the share w(n) = T(n - 1) - T(n) of the first capital, T(n) = 1 / (1 + ln(1 + n)), and
T(n) waits. The sum is a martingale, too (a mixture over the moment of the change, as in Shiryaev's procedure), which
costs about ln(n) + 2 ln(ln(n)) of the capital's logarithm at the n-th part and never falls below T(n).

Each part must be added once: several pictures of one part, or neighbouring frames of a video, are not exchangeable.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import threading
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vae_edge.bundle import Bundle
from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, fit_image_threshold
from vae_edge.drift_file import (
    MAX_SCORES,
    N_BETS,
    N_RECENT,
    Baseline,
    DriftAlarm,
    DriftRecord,
    bundle_identity,
    read_drift_of,
    time_text,
    write_drift,
)
from vae_edge.errors import InputError, UsageError
from vae_edge.manifest import ThresholdMethod, Thresholds
from vae_edge.platform.atomic import check_place, claim

_log = logging.getLogger(__name__)

DEFAULT_ALARM_RATE = 0.01
MIN_ALARM_RATE, MAX_ALARM_RATE = 1e-6, 0.5
ALLOWED_SHARE, ALLOWED_SHARE_OF_FEW = 0.2, 0.5
"""Share of parts above the cut that is no drift; the second for fewer than `_MANY` normals, whose cut is uncertain."""

_MANY = 50
_FEW = 20
"""Scores that a median and a spread need."""
_N_BASELINE = 100
"""Parts that give them where no held-out normals do."""
_CUT_RATES = 0.01, 0.05
_SAVE_EVERY_S = 30.0
_LONGEST_NAME = 200
"""Bytes of 255 in most file systems: the lock and what is written beside it need some, too."""
_ENOUGH = 1e200
"""Capital that is staked no more: a product of numbers up to 4 would become infinite. The alarm is far below."""
_STAKES = 0.25, 0.5, 0.75
_HIGHER, _LOWER, _ABOVE = range(3), range(3, 6), range(6, 9)

Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class DriftVerdict:
    """What the monitor says after a part."""

    alarm: bool
    """Whether an alarm has been raised, at this part or before."""
    martingale: float
    """The capital now: 1 at the beginning, the alarm is at 1 / rate."""
    direction: Direction | None
    """Where the scores went; None: no alarm."""
    shift: float | None
    """How far, when the alarm was raised: see `DriftAlarm.shift`."""

    def as_record(self) -> dict[str, Any]:
        """Return it for a line of JSON."""
        return {
            "alarm": self.alarm,
            "martingale": self.martingale,
            "direction": self.direction,
            "shift": self.shift,
        }


class DriftMonitor:
    """Watches the scores of one bundle; threads may share it. `for_bundle` and `open` are the usual ways to get one.

    Args:
        record: what it knows.
        path: file that keeps it; None: none does.
    """

    def __init__(self, record: DriftRecord, path: Path | None = None) -> None:
        self._begin = record
        self.path = path
        self._scores = list(record.scores)
        self._recent = deque(record.recent, maxlen=N_RECENT)
        self._wealth, self._best, self._began = list(record.wealth), list(record.best), list(record.began)
        self._n_parts, self._n_above, self._n_draws = record.n_parts, record.n_above, record.n_draws
        self._baseline, self._alarm, self._highest = record.baseline, record.alarm, record.highest
        share = record.allowed_share
        self._if_above = [1 + stake * (1 - share) / share for stake in _STAKES]
        self._lock = threading.Lock()
        self._held = ExitStack()
        self._saved_s = time.monotonic()

    @classmethod
    def for_bundle(
        cls, bundle: Bundle, *, alarm_rate: float = DEFAULT_ALARM_RATE, seed: int | None = None
    ) -> DriftMonitor:
        """Begin to watch, in memory only.

        The ranks begin with the scores of the bundle's held-out normals, where these are the deployed model's own: not
        with cross-conformal thresholds, whose scores other models gave, and not if the bundle is not verified. The
        first parts are then what later ones are compared with; `vae-edge verify --data` changes both.

        Args:
            bundle: the one whose scores will be added.
            alarm_rate: chance of a false alarm over all time, 1e-6 to 0.5.
            seed: of the random order of ties, 0 to 2^64 - 1; None: a new one.

        Raises:
            UsageError: the rate or the seed is outside its range.
        """
        thresholds = bundle.manifest.thresholds
        is_own = bundle.manifest.verified and thresholds.method is not ThresholdMethod.CROSS_CONFORMAL
        return cls(
            _first_record(
                thresholds.calibration_scores if is_own else (),
                cut=_cut(thresholds),
                n_normals=thresholds.n_normals,
                alarm_rate=alarm_rate,
                seed=seed,
                bundle=bundle_identity(bundle),
                bundle_name=bundle.manifest.name,
            )
        )

    @classmethod
    def open(cls, path: Path, bundle: Bundle, *, alarm_rate: float = DEFAULT_ALARM_RATE) -> DriftMonitor:
        """Go on with what a file keeps, or begin one; other processes are kept from it until `close`.

        It is written at once, then every 30 s in which parts came, at an alarm and at the end. What was added after the
        last time is lost with a power cut, which costs some evidence and not the rate.

        Args:
            path: the file.
            bundle: the one whose scores will be added.
            alarm_rate: see `for_bundle`.

        Raises:
            UsageError: the rate is outside its range.
            InputError: the file is of another bundle or rate, was changed, is in use or cannot be written.
        """
        check_alarm_rate(alarm_rate)
        if (n_bytes := len(os.fsencode(path.name))) > _LONGEST_NAME:
            raise InputError(
                f"the name of the drift file, {path.name[:20]}..., has {n_bytes} bytes; expected at most "
                f"{_LONGEST_NAME}: choose a shorter one"
            )
        check_place(path.parent)
        if path.is_symlink():
            # The file it leads to is what others watch with, and writing would put a second one in the link's place.
            path = Path(os.path.realpath(path))
            check_place(path.parent)
        with ExitStack() as stack:
            busy = f"another program watches for drift with {path}"
            stack.enter_context(claim(path.with_name(f".{path.name}.lock"), busy))
            if path.exists():
                monitor = cls(read_drift_of(path, bundle, alarm_rate), path)
            else:
                monitor = cls(cls.for_bundle(bundle, alarm_rate=alarm_rate).record(), path)
            monitor.save()
            monitor._held = stack.pop_all()
        return monitor

    @classmethod
    def for_scores(
        cls,
        normals: Sequence[float] | NDArray[Any],
        *,
        false_alarm_rate: float = DEFAULT_FALSE_ALARM_RATE,
        alarm_rate: float = DEFAULT_ALARM_RATE,
        seed: int | None = None,
    ) -> DriftMonitor:
        """Begin to watch scores without a bundle.

        Args:
            normals: scores of held-out normals, at least one, in any order.
            false_alarm_rate: share of them above the cut; from 1 % to 5 % it counts.
            alarm_rate: see `for_bundle`.
            seed: see `for_bundle`.

        Raises:
            InputError: there are no normals, or a value is outside its range.
        """
        cut, _ = fit_image_threshold(np.asarray(normals), _cut_rate(false_alarm_rate))
        return cls(
            _first_record(
                [float(score) for score in normals],
                cut=cut,
                n_normals=len(normals),
                alarm_rate=alarm_rate,
                seed=seed,
                bundle="0" * 64,
                bundle_name="",
            )
        )

    @property
    def alarm(self) -> DriftAlarm | None:
        """The alarm, once it has been raised; delete the state to begin anew when its cause is known."""
        return self._alarm

    @property
    def martingale(self) -> float:
        """The capital now, from T(n) up."""
        return sum(self._wealth) / N_BETS + _waiting(self._n_parts)

    @property
    def highest(self) -> float:
        """The largest value of the martingale so far: no rate below its inverse would have raised an alarm."""
        return self._highest

    @property
    def alarm_rate(self) -> float:
        """Chance of a false alarm over all time."""
        return self._begin.alarm_rate

    @property
    def n_parts(self) -> int:
        """Parts that were added."""
        return self._n_parts

    def add(self, score: float) -> DriftVerdict:
        """Take in the score of the next part, in a few microseconds.

        Raises:
            InputError: it is not finite.
        """
        if not math.isfinite(score):
            raise InputError(f"the score is {score}; expected a finite number")
        with self._lock:
            self._n_parts += 1
            self._recent.append(score)
            self._bet(score)
            now = self.martingale
            self._highest = max(self._highest, now)
            is_new = self._alarm is None and now >= 1 / self._begin.alarm_rate
            if is_new:
                self._alarm = self._raise_alarm()
            verdict = self.verdict()
        if is_new:
            _log.warning("%s", self.sentence())
        if self.path is not None and (is_new or time.monotonic() - self._saved_s > _SAVE_EVERY_S):
            self._try_to_save()
        return verdict

    def verdict(self) -> DriftVerdict:
        """Return what is known now, without another part."""
        alarm = self._alarm
        if alarm is None:
            return DriftVerdict(False, self.martingale, None, None)
        return DriftVerdict(True, self.martingale, alarm.direction, alarm.shift)

    def _bet(self, score: float) -> None:
        added = _waiting(self._n_parts - 1) - _waiting(self._n_parts)
        if score >= self._begin.cut:
            self._n_above += 1
            factors = [1.0] * 6 + self._if_above
        else:
            factors = _higher_and_lower(self._rank(score)) + [1 - stake for stake in _STAKES]
        wealth, best = self._wealth, self._best
        for bet, factor in enumerate(factors):
            if wealth[bet] < _ENOUGH:
                wealth[bet] = (wealth[bet] + added) * factor
            if best[bet] < added:
                best[bet], self._began[bet] = added, self._n_parts
            if best[bet] < _ENOUGH:
                best[bet] *= factor

    def _rank(self, score: float) -> float:
        """Return u in [0, 1], and keep the score."""
        scores = self._scores
        first, after = bisect_left(scores, score), bisect_right(scores, score)
        rank = (first + self._draw() * (after - first + 1)) / (len(scores) + 1)
        scores.insert(after, score)
        if len(scores) > MAX_SCORES:
            del scores[int(self._draw() * len(scores))]
        if self._baseline is None and len(scores) >= _N_BASELINE:
            self._baseline = _baseline(scores)
        return rank

    def _draw(self) -> float:
        self._n_draws += 1
        return _uniform(self._begin.seed, self._n_draws)

    def _raise_alarm(self) -> DriftAlarm:
        bets = max((_HIGHER, _LOWER, _ABOVE), key=lambda some: sum(self._wealth[bet] for bet in some))
        began = self._began[max(bets, key=lambda bet: self._best[bet])]
        return DriftAlarm(
            part=self._n_parts,
            began=max(began, 1),
            direction="lower" if bets is _LOWER else "higher",
            shift=self._shift(began),
            raised_utc=time_text(datetime.now(timezone.utc)),
        )

    def _shift(self, began: int) -> float | None:
        since = list(self._recent)[-max(self._n_parts - began + 1, 1) :]
        if self._baseline is None or self._baseline.spread == 0 or not since:
            return None
        return (median(since) - self._baseline.median) / self._baseline.spread

    def shift_now(self) -> float | None:
        """Return the shift of the latest parts, at most 200, since the alarm's change began; None: not known."""
        with self._lock:
            return self._shift(0 if self._alarm is None else self._alarm.began)

    def sentence(self) -> str:
        """Say in one sentence for people what is known."""
        begin, alarm = self._begin, self._alarm
        if alarm is None:
            return (
                f"no drift in {self._n_parts} parts (evidence at most {self._highest:.3g}, an alarm is at "
                f"{1 / begin.alarm_rate:.6g}); {self.compared_with()}"
            )
        size = "" if alarm.shift is None else f" by {times(alarm.shift)} times the spread of the normals"
        when = "" if alarm.raised_utc is None else f", {alarm.raised_utc}"
        return (
            f"the process has drifted: scores are {alarm.direction}{size} since about part {alarm.began}, noticed at "
            f"part {alarm.part}{when} (chance of a false alarm, over all time: {begin.alarm_rate:.3g}); find the "
            "cause, then fit the thresholds again or delete the state"
        )

    def compared_with(self) -> str:
        """Say what parts are compared with."""
        if self._begin.n_reference:
            return f"compared with {self._begin.n_reference} held-out normals and earlier parts"
        return "compared with earlier parts only: the bundle has no held-out normals' scores of its own model"

    def record(self) -> DriftRecord:
        """Return all that it knows."""
        with self._lock:
            return self._begin.model_copy(
                update={
                    "n_draws": self._n_draws,
                    "n_parts": self._n_parts,
                    "n_above": self._n_above,
                    "baseline": self._baseline,
                    "scores": tuple(self._scores),
                    "recent": tuple(self._recent),
                    "wealth": tuple(self._wealth),
                    "best": tuple(self._best),
                    "began": tuple(self._began),
                    "highest": self._highest,
                    "alarm": self._alarm,
                }
            )

    def save(self) -> None:
        """Write the file, where there is one.

        Raises:
            InputError: it cannot be written; the older one is not changed.
        """
        if self.path is not None:
            self._saved_s = time.monotonic()
            write_drift(self.path, self.record())

    def _try_to_save(self) -> None:
        try:
            self.save()
        except InputError as error:
            _log.warning("%s", error)  # A full disk must not cost verdicts.

    def close(self) -> None:
        """Write the file and let other programs have it; a second call does nothing."""
        if self.path is not None:
            self._try_to_save()
            self.path = None
            self._held.close()


def times(shift: float) -> str:
    """Return the size of a shift in two digits, without its sign.

    Examples:
        >>> times(-0.523), times(112.3)
        ('0.52', '112')
    """
    return f"{abs(shift):.0f}" if abs(shift) >= 10 else f"{abs(shift):.2g}"


def check_alarm_rate(rate: float) -> None:
    """Refuse a rate outside its range.

    Raises:
        UsageError: with the value.
    """
    if not MIN_ALARM_RATE <= rate <= MAX_ALARM_RATE:
        raise UsageError(
            f"the false-alarm rate for drift is {rate}; expected {MIN_ALARM_RATE} to {MAX_ALARM_RATE}, such as 0.01: "
            "one line in a hundred is ever alarmed without cause"
        )


def _first_record(
    reference: Sequence[float],
    *,
    cut: float,
    n_normals: int,
    alarm_rate: float,
    seed: int | None,
    bundle: str,
    bundle_name: str,
) -> DriftRecord:
    check_alarm_rate(alarm_rate)
    if seed is not None and not 0 <= seed < 2**64:
        raise UsageError(f"the seed is {seed}; expected 0 to 2^64 - 1")
    chosen = secrets.randbits(64) if seed is None else seed
    below = sorted(float(score) for score in reference if score < cut)
    n_draws = 0
    while len(below) > MAX_SCORES:  # A random part of them is exchangeable with what comes, too.
        n_draws += 1
        del below[int(_uniform(chosen, n_draws) * len(below))]
    return DriftRecord(
        bundle=bundle,
        bundle_name=bundle_name,
        alarm_rate=alarm_rate,
        cut=cut,
        allowed_share=ALLOWED_SHARE if n_normals >= _MANY else ALLOWED_SHARE_OF_FEW,
        n_reference=len(below),
        seed=chosen,
        n_draws=n_draws,
        n_parts=0,
        n_above=0,
        baseline=_baseline(sorted(reference)) if len(reference) >= _FEW else None,
        scores=tuple(below),
        recent=(),
        wealth=(0.0,) * N_BETS,
        best=(0.0,) * N_BETS,
        began=(0,) * N_BETS,
        highest=1.0,
        alarm=None,
    )


def _cut(thresholds: Thresholds) -> float:
    # An F1-optimal rate depends on defects and normals together; given its threshold the normals are not exchangeable.
    is_f1 = thresholds.method is ThresholdMethod.F1_OPTIMAL
    rate = _CUT_RATES[0] if is_f1 else _cut_rate(thresholds.false_alarm_rate_requested)
    return fit_image_threshold(np.asarray(thresholds.calibration_scores), rate)[0]


def _cut_rate(false_alarm_rate: float) -> float:
    least, most = _CUT_RATES
    return min(max(false_alarm_rate, least), most)


def _waiting(n_parts: int) -> float:
    """Return T(n), the share of the first capital that is not in a bet after n parts."""
    return 1 / (1 + math.log1p(n_parts))


def _higher_and_lower(rank: float) -> list[float]:
    other = 1 - rank
    return [0.5 + rank, 2 * rank, 4 * rank**3, 0.5 + other, 2 * other, 4 * other**3]


def _baseline(ascending: Sequence[float]) -> Baseline:
    low, middle, high = quantiles(ascending, n=4, method="inclusive")
    return Baseline(median=middle, spread=(high - low) / 1.349)


def _uniform(seed: int, position: int) -> float:
    """Return the number at a position of a random sequence, in [0, 1): SplitMix64 (Steele, Lea and Flood, 2014)."""
    z = (seed + position * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53
