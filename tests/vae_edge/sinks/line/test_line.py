from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.line_receivers import ABOUT, record
from tests.threads import our_threads, wait_until
from vae_edge import InputError
from vae_edge.sinks.line.channel import About, Channel, Message, NotDelivered, Refused
from vae_edge.sinks.line.line import Line


class Kept(Channel):
    """A receiver in this process, which can be away, hang, fail or refuse."""

    def __init__(self, kind: str = "kept", *, at_once: int = 5, is_there: bool = True) -> None:
        self.kind = self.shown = kind
        self.at_once = at_once
        self.is_there = is_there
        self.hangs = threading.Event()
        self.failure: Exception | None = None
        self.refused: set[int] = set()
        self.messages: list[Message] = []
        self.n_opened = self.n_closed = 0

    def open(self, about: About) -> None:
        if not self.is_there:
            raise InputError(f"{self.kind} is not there")
        self.n_opened += 1

    def send(self, messages: Sequence[Message]) -> None:
        assert len(messages) <= self.at_once
        while self.hangs.is_set():
            time.sleep(0.01)
        for position, message in enumerate(messages):
            if self.failure is not None:
                raise self.failure
            if not self.is_there:
                raise NotDelivered("away", position)
            if int(message.id.split("-")[1]) in self.refused:
                raise Refused("no", position)
            self.messages.append(message)

    def close(self) -> None:
        self.n_closed += 1

    @property
    def sources(self) -> list[str]:
        return [message.record["source"] for message in self.messages]


SOURCES = [f"{number}.png" for number in range(2000)]


def send_all(line: Line, n: int) -> float:
    """Send records and return the longest time that one took."""
    longest_s = 0.0
    for number in range(n):
        begin_s = time.perf_counter()
        line.send(record(number))
        longest_s = max(longest_s, time.perf_counter() - begin_s)
    return longest_s


def test_every_channel_gets_every_verdict_in_order() -> None:
    channels = [Kept("one"), Kept("two", at_once=1)]
    with Line(channels, ABOUT) as line:
        send_all(line, 2000)
    for channel in channels:
        assert channel.sources == SOURCES
        assert (channel.n_opened, channel.n_closed) == (1, 1)
    assert [message.id for message in channels[0].messages] == [message.id for message in channels[1].messages]
    assert len({message.id for message in channels[0].messages}) == 2000
    first = channels[0].messages[0].record
    assert list(first) == ["id", "judged_at", "source", "is_anomalous", "score", "p_value"]
    assert first["judged_at"].endswith("Z")
    assert our_threads() == []


@pytest.mark.parametrize("trouble", ["away", "hangs", "fails"])
def test_one_that_is_in_trouble_neither_delays_nor_loses_a_verdict_of_another(tmp_path: Path, trouble: str) -> None:
    bad, good = Kept("bad"), Kept("good")
    line = Line([bad, good], ABOUT, folder=tmp_path, drain_s=0.3)
    bad.is_there = trouble != "away"
    if trouble == "hangs":
        bad.hangs.set()
    if trouble == "fails":
        bad.failure = RuntimeError("a bug in a library")
    longest_s = send_all(line, 2000)
    wait_until(lambda: len(good.messages) == 2000)
    # One that hangs would hold it for ever.
    assert longest_s < 3
    begin_s = time.monotonic()
    line.close()
    assert time.monotonic() - begin_s < 5
    assert good.sources == SOURCES
    rows = line.summary()
    assert any("2000 wait in" in said for _, said in rows)
    bad.hangs.clear()

    # The next run delivers what this one left.
    later = Kept("bad")
    with Line([later], ABOUT, folder=tmp_path) as line:
        line.send(record(2000))
    assert list(dict.fromkeys(later.sources)) == [*SOURCES, "2000.png"]
    assert "2000 of an earlier run" in line.summary()[0][1]
    assert list(tmp_path.iterdir()) == []


def test_one_that_comes_back_gets_what_it_missed() -> None:
    channel = Kept()
    with Line([channel], ABOUT) as line:
        for begin in range(0, 2000, 500):
            channel.is_there = not channel.is_there
            for number in range(begin, begin + 500):
                line.send(record(number))
            time.sleep(0.1)
        channel.is_there = True
    assert channel.sources == SOURCES
    assert line.deliveries[0].n_delivered == 2000


def test_a_refused_verdict_costs_that_one_only(caplog: pytest.LogCaptureFixture) -> None:
    channel = Kept()
    channel.refused = {3, 7, 8}
    with Line([channel], ABOUT) as line:
        send_all(line, 20)
    assert channel.sources == [source for n, source in enumerate(SOURCES[:20], start=1) if n not in (3, 7, 8)]
    assert "17 delivered to kept" in line.summary()[0][1]
    assert "3 refused" in line.summary()[0][1]
    assert "refused" in caplog.text


def test_one_that_is_not_there_is_an_error_at_the_start() -> None:
    there, away = Kept("there"), Kept("away", is_there=False)
    with pytest.raises(InputError, match="away is not there; --sink-optional starts without it"):
        Line([there, away], ABOUT)
    assert (there.n_opened, there.n_closed) == (1, 1)
    assert our_threads() == []


def test_one_that_is_optional_may_come_later() -> None:
    channel = Kept(is_there=False)
    with Line([channel], ABOUT, is_optional=True) as line:
        send_all(line, 20)
        time.sleep(0.3)
        assert channel.messages == []
        channel.is_there = True
    assert channel.sources == SOURCES[:20]


def test_without_a_folder_what_is_not_delivered_counts_as_dropped() -> None:
    channel = Kept()
    line = Line([channel], ABOUT, drain_s=0.2)
    channel.is_there = False
    send_all(line, 30)
    line.close()
    line.close()
    assert "0 delivered to kept; 30 dropped" in line.summary()[0][1].replace("; 0 waited", "")
    assert line.summary()[1][1] == "kept: away"


def test_an_interrupted_run_does_not_wait_long(tmp_path: Path) -> None:
    channel = Kept()
    line = Line([channel], ABOUT, folder=tmp_path)
    channel.hangs.set()
    send_all(line, 30)
    begin_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt), line:
        raise KeyboardInterrupt
    assert time.monotonic() - begin_s < 5
    assert "30 wait in" in line.summary()[1][1]
    channel.hangs.clear()


def test_what_shows_the_present_state_is_told_nothing_of_the_past(tmp_path: Path) -> None:
    class State(Kept):
        keeps = False

    for _ in range(2):
        channel = State()
        line = Line([channel], ABOUT, folder=tmp_path, drain_s=0.1)
        assert len(line.deliveries[0].backlog) == 0
        channel.is_there = False
        send_all(line, 10)
        line.close()
    assert list(tmp_path.iterdir()) == []
