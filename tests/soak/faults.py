"""What is done to the subjects: each fault is a generator that yields how many seconds to wait before it goes on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.line_receivers import Broker
from tests.soak.clock import WallClock
from tests.soak.places import Place, can_limit_files, limit_files
from tests.soak.subject import Subject
from tests.soak.watch import Watch

_TURN_S = 0.2
_AWAY_S = 6.0
"""How long the broker and the room on a disk are away, and how long a clock is wrong."""
_LONGEST_S = 90.0
"""For a consequence to show, such as the end of a process on a full disk."""


@dataclass
class Rig:
    """What the faults can reach."""

    subjects: list[Subject]
    watch: Watch | None = None
    broker: Broker | None = None
    results: Place | None = None
    """Where the watch writes its lines."""
    kept: Place | None = None
    """Where it keeps pictures."""
    cache: Path | None = None
    clock: WallClock | None = None
    has_seen_keeping: bool = False
    """Whether it was looked for that pictures are kept again after a full disk."""
    pace: float = 1.0
    """Factor on how long something is away."""
    left_out: list[str] = field(default_factory=list)
    """What cannot be done here, and why."""
    problems: list[str] = field(default_factory=list)
    """What a fault should have led to, and did not."""


@dataclass(frozen=True)
class Fault:
    """Something that happens to the programs."""

    name: str
    subject: str
    act: Callable[[Rig], Iterator[float]]
    ends_a_process: bool
    """Whether the next process is another one: such faults come before the time in which growth is judged."""


def _until(happened: Callable[[], bool], remark: Callable[[], None]) -> Iterator[float]:
    waited_s = 0.0
    while not happened():
        yield _TURN_S
        waited_s += _TURN_S
        if waited_s > _LONGEST_S:
            remark()
            return


def _killed(subject: Subject) -> Callable[[Rig], Iterator[float]]:
    def act(rig: Rig) -> Iterator[float]:
        generation = subject.generation
        subject.kill()
        yield from _until(
            lambda: subject.generation > generation and subject.is_ready,
            lambda: rig.problems.append(f"{subject.name} gave no verdict within {_LONGEST_S:.0f} s after a kill"),
        )

    return act


def _full_results(rig: Rig) -> Iterator[float]:
    """No room for lines: the run has to end with 1 and say so; with room, the next one judges what is left."""
    watch, place = rig.watch, rig.results
    assert watch is not None
    assert place is not None
    generation = watch.generation
    watch.is_held = True
    watch.expect(1, "the disk of its lines was full")
    if place.is_mounted:
        place.fill()
    else:
        limit_files(watch.pid, (watch.out / "predictions.jsonl").stat().st_size)
    late = f"the watch went on for {_LONGEST_S:.0f} s on a full disk"
    yield from _until(lambda: watch.has_ended, lambda: rig.problems.append(late))
    place.free()
    watch.is_held = False
    yield from _until(
        lambda: watch.generation > generation and watch.is_ready,
        lambda: rig.problems.append("the watch gave no verdict after there was room again"),
    )


def _full_kept(rig: Rig) -> Iterator[float]:
    """No room for kept pictures: verdicts go on, and keeping does when there is room."""
    watch, place = rig.watch, rig.kept
    assert watch is not None
    assert place is not None
    unlabelled = place.folder / "pictures" / "unlabelled"
    n_before = watch.ledger.count().given
    place.fill()
    yield _AWAY_S * rig.pace
    yield from _until(
        lambda: watch.ledger.count().given > n_before,
        lambda: rig.problems.append("the watch gave no verdict while the disk of kept pictures was full"),
    )
    place.free()
    if not rig.has_seen_keeping:  # Once: it is tried again every minute.
        rig.has_seen_keeping = True
        kept = set(unlabelled.glob("[!.]*"))
        yield from _until(
            lambda: not kept.issuperset(unlabelled.glob("[!.]*")),
            lambda: rig.problems.append("no picture was kept after there was room again"),
        )


def _no_broker(rig: Rig) -> Iterator[float]:
    assert rig.broker is not None
    rig.broker.kill()
    yield _AWAY_S * rig.pace
    rig.broker.start()
    yield _AWAY_S * rig.pace / 2


def _wrong_clock(hours: int) -> Callable[[Rig], Iterator[float]]:
    def act(rig: Rig) -> Iterator[float]:
        assert rig.clock is not None
        rig.clock.move(3600 * hours)
        yield _AWAY_S * rig.pace
        rig.clock.move(0)
        yield _AWAY_S * rig.pace / 2

    return act


def _broken_cache(rig: Rig) -> Iterator[float]:
    """Change bytes of every compiled model, cut every second one, and restart what reads them."""
    assert rig.cache is not None
    assert rig.watch is not None
    entries = sorted(rig.cache.rglob("*.bin"))
    if not entries:
        rig.problems.append("nothing lay in the cache of compiled models when it was to be corrupted")
    for number, path in enumerate(entries):
        content = bytearray(path.read_bytes())
        for place in random.sample(range(len(content)), min(20, len(content))):
            content[place] ^= 0xFF
        path.write_bytes(content[: len(content) // 2] if number % 2 else content)
    yield from _killed(rig.watch)(rig)
    if entries and "damaged" not in rig.watch.said:
        rig.problems.append("a corrupted entry of the cache was not noticed at the next start")


def faults(rig: Rig) -> list[Fault]:
    """Return what can be done here, in the order in which it is done; the rest is in `rig.left_out`."""
    found = [Fault("SIGKILL", each.name, _killed(each), True) for each in rig.subjects]
    if rig.watch is not None:
        assert rig.results is not None
        assert rig.kept is not None
        if rig.results.is_mounted or can_limit_files():
            how = "disk of the lines full" if rig.results.is_mounted else "limit on the size of files"
            found.append(Fault(how, "watch", _full_results, True))
        else:
            rig.left_out.append("a full disk, which needs Linux")
        if rig.kept.is_mounted:
            found.append(Fault("disk of kept pictures full", "watch", _full_kept, False))
        else:
            rig.left_out.append("a full disk of kept pictures, which needs root on Linux to mount one")
        found.append(Fault("cache corrupted, SIGKILL", "watch", _broken_cache, True))
        if rig.broker is not None:
            found.append(Fault("broker killed", "watch", _no_broker, False))
        else:
            rig.left_out.append("the broker, because mosquitto is not installed")
    if rig.clock is not None:
        found += [Fault(f"clock {hours:+d} h and back", "all", _wrong_clock(hours), False) for hours in (2, -2)]
    return found
