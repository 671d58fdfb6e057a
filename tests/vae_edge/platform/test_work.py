from __future__ import annotations

import gc
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.threads import our_threads, wait_until
from vae_edge.platform.work import N_TOGETHER, InOrder


def squares(items: list[int]) -> list[int]:
    time.sleep(random.random() / 500)
    return [item * item for item in items]


@pytest.mark.parametrize("n_workers", [1, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("n_items", [0, 1, 7, 60])
def test_the_results_come_in_the_sources_order(n_workers: int, batch_size: int, n_items: int) -> None:
    results = InOrder(range(n_items), squares, n_workers=n_workers, batch_size=batch_size)
    assert list(results) == [item * item for item in range(n_items)]
    assert our_threads() == []


def test_several_workers_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def work(items: list[int]) -> list[int]:
        together.wait()  # Ends only when three are here.
        return items

    assert list(InOrder(range(9), work, n_workers=3)) == list(range(9))


def test_the_source_is_used_by_one_thread_at_a_time() -> None:
    inside = threading.Lock()

    def source() -> Iterator[int]:
        for item in range(100):
            assert inside.acquire(blocking=False)
            time.sleep(0.0002)
            inside.release()
            yield item

    assert list(InOrder(source(), squares, n_workers=4)) == [item * item for item in range(100)]


def test_no_more_is_taken_than_was_agreed_while_the_consumer_rests() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(10_000):
            taken.append(item)
            yield item

    with closing(iter(InOrder(source(), squares, n_workers=2, batch_size=3, n_ahead=4))) as results:
        next(results)
        wait_until(lambda: len(taken) >= 3 + 4 * 3)
        time.sleep(0.1)
        assert len(taken) == 3 + 4 * 3
    assert our_threads() == []


def test_a_result_comes_while_the_source_waits_for_its_next_item() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 3
        assert go_on.wait(20)
        yield 4

    results = iter(InOrder(source(), squares, n_workers=2))
    assert next(results) == 9  # The source is not asked to go on before.
    go_on.set()
    assert list(results) == [16]


def test_what_a_source_gave_before_it_failed_comes_first() -> None:
    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        raise OSError("gone")

    for batch_size in (1, 2, 3, 5):
        results = iter(InOrder(source(), squares, n_workers=3, batch_size=batch_size))
        assert [next(results) for _ in range(3)] == [1, 4, 9]
        with pytest.raises(OSError, match="gone"):
            next(results)
    assert our_threads() == []


def test_a_failure_of_the_work_comes_in_its_place() -> None:
    def work(items: list[int]) -> list[int]:
        if 5 in items:
            raise ZeroDivisionError("five")
        return items

    results = iter(InOrder(range(100), work, n_workers=4))
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError, match="five"):
        next(results)
    assert our_threads() == []


def test_a_source_that_waits_is_told_to_stop() -> None:
    class Camera:
        def __init__(self) -> None:
            self.stopped = threading.Event()

        def __iter__(self) -> Iterator[int]:
            yield 1
            self.stopped.wait(20)

        def stop(self) -> None:
            self.stopped.set()

    camera = Camera()
    begin_s = time.monotonic()
    with closing(iter(InOrder(camera, squares, n_workers=2))) as results:
        assert next(results) == 1
    assert camera.stopped.is_set()
    assert time.monotonic() - begin_s < 5
    assert our_threads() == []


def test_a_source_that_cannot_be_woken_does_not_hold_the_consumer_up_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vae_edge.platform.work._PATIENCE_S", 0.1)
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go_on.wait(20)

    results: Any = iter(InOrder(source(), squares, n_workers=2))
    assert next(results) == 1
    results.close()
    assert "will end when it arrives" in caplog.text
    go_on.set()
    wait_until(lambda: our_threads() == [])


def test_what_its_consumer_has_left_can_be_collected_by_its_own_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    left, collected = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        left.wait(20)
        gc.collect()
        collected.set()
        yield 1

    def leave() -> None:
        results = iter(InOrder(source(), squares, n_workers=2))
        next(results)
        circle: list[Any] = [results]
        circle.append(circle)

    gc.collect()
    leave()
    left.set()
    assert collected.wait(20)
    wait_until(lambda: our_threads() == [])
    assert failures == []


def test_what_is_made_while_another_worker_works_is_finished_together_and_in_order() -> None:
    sizes: list[int] = []

    def finish(made: list[int]) -> list[list[int]]:
        sizes.append(len(made))
        return [[each, -each] for each in made]

    def work(ready: int) -> int:
        time.sleep(0.001)
        return ready

    results = InOrder(
        range(1, 401), work, n_workers=3, n_spare=1, prepare=lambda items: 10 * items[0], finish=finish, batch_size=1
    )
    assert list(results) == [sign * 10 * item for item in range(1, 401) for sign in (1, -1)]
    assert sum(sizes) == 400
    assert 1 < max(sizes) <= N_TOGETHER
    assert our_threads() == []


def test_nothing_that_is_made_waits_for_the_source_or_for_what_has_not_begun() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield 3
        yield 4
        assert go_on.wait(20)
        yield 5

    results = iter(
        InOrder(source(), lambda ready: ready, n_workers=3, prepare=lambda items: items, finish=lambda made: made)
    )
    assert [next(results), next(results)] == [3, 4]  # The source is not asked to go on before.
    go_on.set()
    assert list(results) == [5]


def test_what_is_made_waits_for_no_slow_preparation_of_another() -> None:
    go_on = threading.Event()

    def prepare(items: list[int]) -> list[int]:
        assert items != [1] or go_on.wait(20)
        return items

    results = iter(InOrder(range(2), lambda ready: ready, n_workers=2, prepare=prepare, finish=lambda made: made))
    assert next(results) == 0
    go_on.set()
    assert list(results) == [1]


def test_work_that_takes_long_is_finished_at_once() -> None:
    sizes: list[int] = []
    go_on = threading.Event()

    def work(ready: list[int]) -> list[int]:
        assert go_on.wait(20) if ready == [1] else not go_on.wait(0.05)
        return ready

    def finish(made: list[list[int]]) -> list[list[int]]:
        sizes.append(len(made))
        return made

    results = iter(InOrder(range(2), work, n_workers=2, prepare=lambda items: items, finish=finish))
    assert next(results) == 0  # The other one is still at it.
    go_on.set()
    assert list(results) == [1]
    assert sizes == [1, 1]


@pytest.mark.parametrize("stage", ["prepare", "work", "finish"])
def test_a_failure_of_a_stage_comes_in_its_place_and_what_came_before_is_given(stage: str) -> None:
    def failing(name: str, item: int) -> None:
        if name == stage and item == 5:
            raise ZeroDivisionError("five")

    def prepare(items: list[int]) -> int:
        failing("prepare", items[0])
        return items[0]

    def work(ready: int) -> int:
        failing("work", ready)
        time.sleep(0.0005)
        return ready

    def finish(made: list[int]) -> list[list[int]]:
        for each in made:
            failing("finish", each)
        return [[each] for each in made]

    found: list[int] = []
    with pytest.raises(ZeroDivisionError, match="five"):
        found.extend(InOrder(range(100), work, n_workers=3, prepare=prepare, finish=finish))
    # What is finished together fails together.
    assert found == list(range(len(found) if stage == "finish" else 5))
    assert len(found) <= 5
    assert our_threads() == []


def test_a_spare_thread_is_started_where_the_source_makes_workers_wait_and_not_where_it_does_not() -> None:
    names: set[str] = set()

    def work(items: list[int]) -> list[int]:
        names.add(threading.current_thread().name)
        time.sleep(0.002)
        return items

    def slow() -> Iterator[int]:
        for item in range(60):
            time.sleep(0.002)
            yield item

    assert list(InOrder(range(60), work, n_workers=1, n_spare=1)) == list(range(60))
    assert len(names) == 1
    names.clear()
    assert list(InOrder(slow(), work, n_workers=1, n_spare=1)) == list(range(60))
    assert len(names) == 2
    assert our_threads() == []


def test_results_that_are_collected_but_not_used_count_as_taken() -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for item in range(10_000):
            taken.append(item)
            yield item

    with closing(iter(InOrder(source(), squares, n_workers=4, n_ahead=6))) as results:
        for given in range(1, 40):
            next(results)
            time.sleep(0.005)
            assert len(taken) <= given + 6
    assert our_threads() == []
