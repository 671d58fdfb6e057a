"""Filling an archive: what is there is counted, and what is missing scored and written, until no part is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

from vae_edge.archive.listing import Part
from vae_edge.archive.plan import Archive
from vae_edge.archive.scoring import Outcome
from vae_edge.errors import InputError
from vae_edge.wording import count

ScoreParts = Callable[[Sequence[Part]], Generator[Outcome, None, None]]
"""Scores parts in any order. A part that was given up, as when its worker died, may be left out."""

_MOST_NAMED = 3
_READ_AT_ONCE = 16
"""Files that are counted at the same time: a store takes a while to answer for each."""


@dataclass
class Filled:
    """What was done, as far as it is."""

    there: Counter[str] = field(default_factory=Counter)
    """Pictures of earlier runs by verdict, and `error`; see `count_there`."""
    counts: Counter[str] = field(default_factory=Counter)
    """Those of this run."""
    n_parts: int = 0
    """Parts that were written by this run."""
    workers: set[str] = field(default_factory=set)

    @property
    def n_pictures(self) -> int:
        """Rows that were written by this run."""
        return sum(self.counts.values())

    @property
    def all_counts(self) -> Counter[str]:
        """Pictures of the archive by verdict, and `error`."""
        return self.there + self.counts


def count_there(
    archive: Archive, missing: Sequence[Part], progress: Callable[[int, int], None] | None = None
) -> Counter[str]:
    """Count the pictures of the parts that are there, by verdict, and `error`.

    Args:
        archive: to look into.
        missing: its missing parts.
        progress: called with the number of files that are counted, and of all.

    Raises:
        InputError: a file cannot be read, or is damaged.
    """
    absent = {part.number for part in missing}
    there = [part.number for part in archive.parts if part.n_pictures != 0 and part.number not in absent]
    found: Counter[str] = Counter()
    pool = ThreadPoolExecutor(_READ_AT_ONCE)
    try:
        for done, counts in enumerate(pool.map(archive.count, there), 1):
            found += counts
            if progress is not None:
                progress(done, len(there))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def fill(
    archive: Archive,
    missing: Sequence[Part],
    score: ScoreParts,
    filled: Filled,
    progress: Callable[[Filled], None] | None = None,
) -> None:
    """Score the missing parts and write each as soon as it is there.

    Parts that were given up are tried again as long as others succeed.

    Args:
        archive: to fill.
        missing: its missing parts.
        score: called once for every attempt at all that is missing.
        filled: is told of every part that is written.
        progress: called after each.

    Raises:
        InputError: a part cannot be scored however often it is tried, no worker can score anything, or the archive
            cannot be written. What was written is whole.
    """
    left = {part.number: part for part in missing}
    while left:
        problems: dict[int, str] = {}
        n_before = len(left)
        with closing(score(list(left.values()))) as outcomes:
            for outcome in outcomes:
                if outcome.is_fatal:
                    raise InputError(f"{outcome.problem} (worker {outcome.worker})")
                if outcome.part not in left:
                    continue  # Its worker died after it had given it.
                if outcome.content is None:
                    problems[outcome.part] = outcome.problem or "no reason was given"
                    continue
                archive.write(outcome.part, outcome.content)
                del left[outcome.part]
                filled.counts.update(outcome.counts)
                filled.n_parts += 1
                filled.workers.add(outcome.worker)
                if progress is not None:
                    progress(filled)
        if left and len(left) == n_before:
            raise InputError(_given_up(left, problems))


def _given_up(left: dict[int, Part], problems: dict[int, str]) -> str:
    first = sorted(left)[:_MOST_NAMED]
    named = ", ".join(map(str, first)) + (", ..." if len(left) > len(first) else "")
    why = next((problems[number] for number in first if number in problems), "the worker died each time")
    return f"{count(len(left), 'part')} could not be scored ({named}): {why}; run the same command to try again"
