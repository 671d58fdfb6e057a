"""What is noticed about a cluster without Ray: an address where nobody is, too few processors, attempts that hang."""

from __future__ import annotations

import socket

import pytest

from vae_edge.archive import cluster
from vae_edge.archive.cluster import _check_answers, _check_workers, _Watch, connected
from vae_edge.errors import InputError, UsageError


class Clock:
    """Stands for the time."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(cluster, "time", found)
    return found


def test_an_attempt_goes_on_as_long_as_parts_come(clock: Clock) -> None:
    watch = _Watch(3)
    for _ in range(50):
        clock.now_s += 15
        assert not watch.should_end(2)  # A machine is gone, and the others work.
        watch.note()


def test_without_a_machine_the_rest_begins_again_when_nothing_comes(clock: Clock) -> None:
    watch = _Watch(3)
    clock.now_s += 40
    watch.note()
    clock.now_s += 79
    assert not watch.should_end(2)  # A part takes up to 40 s.
    clock.now_s += 2
    assert watch.should_end(2)
    assert not watch.should_end(3)


def test_an_attempt_that_hangs_with_all_machines_there_is_begun_again(clock: Clock) -> None:
    watch = _Watch(3)
    clock.now_s += 1
    watch.note()
    clock.now_s += 119
    assert not watch.should_end(3)
    clock.now_s += 2
    assert watch.should_end(3)


def test_before_the_first_part_it_waits_and_says_so_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    watch = _Watch(3)
    for _ in range(100):
        clock.now_s += 30
        assert not watch.should_end(3)
    assert [record.message for record in caplog.records] == [
        "no worker has given anything for 90 s; the cluster has 3 processors, which others may use"
    ]
    assert watch.should_end(2)


def test_too_few_processors_are_an_error() -> None:
    _check_workers(4, 4, "this machine")
    with pytest.raises(InputError, match="1 worker needs 1 processor, and the cluster at auto has 0; start a machine"):
        _check_workers(1, 0, "the cluster at auto")
    with pytest.raises(InputError, match="4 workers need 4 processors, and this machine has 2; pass --workers 2"):
        _check_workers(4, 2, "this machine")
    with pytest.raises(InputError, match="this machine has"), connected(None, 10**6):
        pass


@pytest.mark.parametrize("address", ["somewhere", "ray://127.0.0.1:10001", "127.0.0.1:", ":port"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a Ray cluster; expected auto or HOST:PORT"):
        _check_answers(address)


def test_an_address_where_nobody_listens_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"no Ray cluster answers at 127.0.0.1:{port}"):
            _check_answers(f"127.0.0.1:{port}")
        taken.listen()
        _check_answers(f"127.0.0.1:{port}")
