"""Which pictures are kept: the rules of `vae-run --keep`."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import quantiles

from vae_edge.errors import UsageError
from vae_edge.manifest import Thresholds
from vae_edge.prediction import Prediction

NEAR, ANOMALOUS, NOT_INSPECTABLE, DRIFT = "near", "anomalous", "not-inspectable", "drift"
NEAR_SPREADS = 0.5
"""`near`: the score is within this many spreads of the normals from the threshold."""
MAX_N = 10**9

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MIN_QUOTA = 10**6


@dataclass(frozen=True)
class KeepRules:
    """The rules that were asked for."""

    names: tuple[str, ...]
    """As they were given, in order and each once: `near`, `1/100`."""
    one_in: int | None = None
    """Of so many pictures a random one is kept, whatever its verdict; None: none is."""

    @classmethod
    def parse(cls, texts: Sequence[str]) -> KeepRules:
        """Parse rules, several of which may stand in one text, separated by commas.

        Raises:
            UsageError: something is not a rule, or there are two of 1/N.

        Examples:
            >>> KeepRules.parse(["near,anomalous", "1/100"])
            KeepRules(names=('near', 'anomalous', '1/100'), one_in=100)
        """
        names = tuple(dict.fromkeys(part.strip() for text in texts for part in text.split(",")))
        one_in = None
        for name in names:
            if name in (NEAR, ANOMALOUS, NOT_INSPECTABLE, DRIFT):
                continue
            found = re.fullmatch(r"1/([0-9]{1,10})", name)
            if found is None or not 1 <= int(found[1]) <= MAX_N:
                raise UsageError(
                    f"{name!r} is not a rule for pictures to keep; expected near, anomalous, not-inspectable, drift or "
                    "1/N, such as 1/100"
                )
            if one_in is not None:
                raise UsageError(f"there are two rules of this kind, 1/{one_in} and {name}; leave out one of them")
            one_in = int(found[1])
        return cls(names, one_in)


class Chooser:
    """Says of one picture after the other which rules keep it.

    Args:
        rules: what was asked for.
        thresholds: of the bundle.
    """

    def __init__(self, rules: KeepRules, thresholds: Thresholds) -> None:
        self._rules = rules
        self._distance = near_distance(thresholds)
        self._left = 0
        self._taken = 0

    def rules_for(self, prediction: Prediction) -> list[str]:
        """Return the rules that keep a picture, without `drift`, which needs those before and after it."""
        found = []
        for name in self._rules.names:
            if name == NEAR:
                is_kept = abs(prediction.score - prediction.threshold) <= self._distance
            elif name == ANOMALOUS:
                is_kept = prediction.is_anomalous
            elif name == NOT_INSPECTABLE:
                is_kept = not prediction.inspectable
            else:
                is_kept = name != DRIFT and self._is_sampled()
            if is_kept:
                found.append(name)
        return found

    def _is_sampled(self) -> bool:
        # A random one of each N: every N-th would always be the part of the same cavity of a mould.
        if self._left == 0:
            self._left = self._rules.one_in or 1
            self._taken = 1 + secrets.randbelow(self._left)
        is_taken = self._left == self._taken
        self._left -= 1
        return is_taken


def near_distance(thresholds: Thresholds) -> float:
    """Return how far from the threshold a score is near: half a spread, interquartile range / 1.349, of the normals."""
    scores = thresholds.calibration_scores
    if len(scores) < 2:
        return 0.0
    low, _, high = quantiles(scores, n=4, method="inclusive")
    return NEAR_SPREADS * (high - low) / 1.349


def parse_quota(text: str) -> int:
    """Return a quota in bytes.

    Raises:
        UsageError: it is not a size, or less than 1 MB.

    Examples:
        >>> parse_quota("2GB"), parse_quota("1.5 MB")
        (2000000000, 1500000)
    """
    found = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)\s*", text)
    factor = _UNITS.get(found[2].upper()) if found is not None else None
    if found is None or factor is None:
        raise UsageError(f"the quota for kept pictures is {text!r}; expected a size such as 500MB or 2GB")
    n_bytes = int(float(found[1]) * factor)
    if n_bytes < _MIN_QUOTA:
        raise UsageError(f"the quota for kept pictures is {text!r}, {n_bytes} bytes; expected 1MB or more")
    return n_bytes
