"""Which verdicts are owed, which were given, and whether the two agree."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from itertools import pairwise

NORMAL, ANOMALOUS, ERROR = "normal", "anomalous", "error"


@dataclass(frozen=True)
class Count:
    """The verdicts of one subject, and what is wrong with them."""

    owed: int
    given: int
    """Owed ones that came at least once."""
    doubled: int
    """Lines beyond the first of a picture, explained: the process that gave an earlier one was ended by a fault."""
    lost: int
    twice: int
    """Lines beyond the first that nothing explains: from the same process, or after one that no fault ended."""
    wrong: int
    """Lines with another verdict than the picture has."""
    unknown: int
    """Lines about what nobody asked for."""
    first_lost: tuple[str, ...] = ()
    """The first of those that are lost, and where they were in the lines of their process."""

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words."""
        named = (
            (self.lost, "lost"),
            (self.twice, "given twice without a fault that explains it"),
            (self.wrong, "wrong"),
            (self.unknown, "about pictures that nobody gave"),
        )
        if not self.owed:
            return ["no verdict was owed, so this shows nothing"]
        found = [f"{n} of {self.owed} verdicts {what}" for n, what in named if n]
        return [*found, *(f"lost: {each}" for each in self.first_lost)]


@dataclass
class Ledger:
    """Keeps the verdicts owed and given. The rule: every picture is owed one line.

    A process that is killed may have written a line whose picture nobody has taken away yet; the next process, which
    knows nothing of it, judges that picture again. So a second line is allowed where the one before came from another
    process that a fault ended, and only there.
    """

    _owed: dict[str, str] = field(default_factory=dict)
    _lines: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _ended_by_fault: set[int] = field(default_factory=set)
    _unknown: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def owe(self, name: str, verdict: str) -> None:
        """A picture with this verdict is given to the subject."""
        with self._lock:
            self._owed[name] = verdict

    def give(self, name: str, verdict: str, generation: int) -> None:
        """A line came.

        Args:
            name: of the picture.
            verdict: one of the three above.
            generation: which of the subject's processes gave it, from 1.
        """
        with self._lock:
            if name not in self._owed:
                self._unknown += 1
                return
            self._lines.setdefault(name, []).append((generation, verdict))

    def excuse(self, generation: int) -> None:
        """A fault ended that process."""
        with self._lock:
            self._ended_by_fault.add(generation)

    @property
    def missing(self) -> list[str]:
        """Names of pictures without a line."""
        with self._lock:
            return [name for name in self._owed if name not in self._lines]

    def count(self) -> Count:
        """Return how owed and given compare now."""
        with self._lock:
            doubled = twice = 0
            for lines in self._lines.values():
                for (before, _), (after, _) in pairwise(lines):
                    if before < after and before in self._ended_by_fault:
                        doubled += 1
                    else:
                        twice += 1
            return Count(
                owed=len(self._owed),
                given=len(self._lines),
                doubled=doubled,
                lost=len(self._owed) - len(self._lines),
                twice=twice,
                wrong=sum(verdict != self._owed[name] for name, lines in self._lines.items() for _, verdict in lines),
                unknown=self._unknown,
            )


@dataclass(frozen=True)
class Arrived:
    """A message that the line got."""

    run: str
    """Of the verdict's id: one process."""
    number: int
    """Of the verdict's id: from 1, in order."""
    name: str


_NAMED = 5

WAITING_IN_MEMORY = 256
"""Verdicts of a channel that a killed process loses at most; `predictions.jsonl` has them."""


def count_arrivals(given: dict[int, list[str]], arrived: list[Arrived], killed: set[int]) -> Count:
    """Compare the lines that processes wrote with the messages that arrived.

    A message may come twice with one id; receivers drop the second. A killed process loses what waited in its memory:
    its last verdicts, `WAITING_IN_MEMORY` at most. Those are not counted as owed.

    Args:
        given: names of the pictures in the order of the lines, by process.
        arrived: the messages in the order of their arrival.
        killed: the processes that were ended by SIGKILL.
    """
    seen: set[tuple[str, int]] = set()
    doubled = 0
    places: dict[str, list[Arrived]] = {}
    for each in arrived:
        if (each.run, each.number) in seen:
            doubled += 1
            continue
        seen.add((each.run, each.number))
        places.setdefault(each.name, []).append(each)
    owed = lost = 0
    first_lost: list[str] = []
    for generation, names in given.items():
        came = [bool(places.get(name)) for name in names]
        for name in names:
            if places.get(name):
                places[name].pop(0)
        tail = next((n for n, each in enumerate(reversed(came)) if each), len(came))
        excused = min(tail, WAITING_IN_MEMORY) if generation in killed else 0
        owed += len(names) - excused
        lost += came.count(False) - excused
        first_lost += [
            f"{name}, line {number} of {len(names)} of process {generation}"
            for number, (name, is_there) in enumerate(zip(names, came, strict=True), 1)
            if not is_there and number <= len(names) - excused
        ]
    # What is left was sent by a killed process that had no time to write its line, or twice by nobody knows whom.
    twice = max(0, sum(map(len, places.values())) - len(killed))
    return Count(
        owed=owed,
        given=owed - lost,
        doubled=doubled,
        lost=lost,
        twice=twice,
        wrong=0,
        unknown=0,
        first_lost=tuple(first_lost[:_NAMED]),
    )
