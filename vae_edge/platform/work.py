"""Work that takes long: how far it is, and a source's items done in several threads with the results in its order."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, TypeVar, overload
from weakref import WeakSet

from vae_edge.platform.after_fork import Process
from vae_edge.platform.windows import LISTENING_WAIT_S

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Ready = TypeVar("_Ready")
_Made = TypeVar("_Made")
_Result = TypeVar("_Result")

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is; `vae_edge.cli.progress` shows bars."""

StepProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""

THREAD_PREFIX = "vae-edge-worker"

N_TOGETHER = 4
"""Batches that are finished together, at most: eight gain no more."""

_SHORT_S = 0.005
"""How long what was made waits for others, until the work of one of them ends. Work that itself takes longer is
finished at once: what could be gained there cannot be measured."""

_SPARE_SHARE, _SPARE_FROM_S = 0.25, 0.02
"""Waiting and preparing, over working, that call a spare thread; and what of both is too little to tell."""

_PATIENCE_S = 5.0
"""How long the end waits for a worker that is inside the caller's source; nothing can wake it there."""


def result_of(future: Future[_Result]) -> _Result:
    """Return a future's result as `Future.result` does; on Windows, too, Ctrl-C ends the waiting."""
    while not future.done():
        wait([future], LISTENING_WAIT_S)
    return future.result()


def as_they_end(futures: Iterable[Future[_Result]]) -> Iterator[Future[_Result]]:
    """Yield futures as `concurrent.futures.as_completed` does; on Windows, too, Ctrl-C ends the waiting."""
    left = set(futures)
    while left:
        ended, left = wait(left, LISTENING_WAIT_S, return_when=FIRST_COMPLETED)
        yield from ended


class InOrder(Generic[_Item, _Result]):
    """Iterates over the results of `work` on a source's items.

    Every worker does a whole piece of work by itself: it takes the next items from the source (one worker at a time),
    works on them and lays the results down. Nothing is handed from thread to thread on the way, and the source is asked
    for its next item while results are being made and used. The workers end when the source does, or when the consumer
    stops. A source that may wait for long (a camera) should have a method `stop()`, which is called then and has to end
    the waiting.

    With `finish`, the work has two stages. After an inference, which leaves nothing of it in the processor's caches,
    the second one takes several times as long as in a loop of its own. So a worker that finds another one inside `work`
    leaves what it has made to that one, which finishes both, or leaves both to the next: until there are `N_TOGETHER`,
    or the first has waited for some milliseconds. Nothing waits for the source, as what is waited for has begun.

    Args:
        source: its iterator is used from several threads, but never from two at once.
        work: takes up to `batch_size` items, or what `prepare` made of them, and returns one result for each, or what
            `finish` makes results of; called from several threads at once.
        n_workers: threads.
        n_spare: further threads, of which none is started before waiting for the source and preparing have taken a
            considerable share of the time; until then they would only compete for the processor.
        batch_size: items that are taken together; fewer at the end.
        n_ahead: batches that may have been taken and not been given yet; None: two more than twice the threads, so that
            these need not wait for a consumer that gets a core only now and then.
        take: called with each item before the next is requested from it; what it returns is worked on.
        prepare: the stage before `work`, which may take long: called with a batch. It goes with `finish`.
        finish: called with what `work` returned for several batches, in any order; returns the results of each.
    """

    @overload
    def __init__(
        self,
        source: Iterable[_Item],
        work: Callable[[list[_Item]], list[_Result]],
        *,
        n_workers: int,
        n_spare: int = 0,
        batch_size: int = 1,
        n_ahead: int | None = None,
        take: Callable[[_Item], _Item] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        source: Iterable[_Item],
        work: Callable[[_Ready], _Made],
        *,
        n_workers: int,
        n_spare: int = 0,
        batch_size: int = 1,
        n_ahead: int | None = None,
        take: Callable[[_Item], _Item] | None = None,
        prepare: Callable[[list[_Item]], _Ready],
        finish: Callable[[list[_Made]], list[list[_Result]]],
    ) -> None: ...

    def __init__(
        self,
        source: Iterable[_Item],
        work: Callable[[Any], Any],
        *,
        n_workers: int,
        n_spare: int = 0,
        batch_size: int = 1,
        n_ahead: int | None = None,
        take: Callable[[_Item], _Item] | None = None,
        prepare: Callable[[list[_Item]], Any] | None = None,
        finish: Callable[[list[Any]], list[list[_Result]]] | None = None,
    ) -> None:
        self._source = source
        self._items: Iterator[_Item] = iter(source) if take is None else map(take, source)
        self._process = Process("this stream")
        self._work = work
        self._prepare = prepare
        self._finish = finish
        self._n_workers = n_workers
        self._n_spare = n_spare
        self._batch_size = batch_size
        self._n_ahead = 2 * (n_workers + n_spare) + 2 if n_ahead is None else n_ahead
        self._pulling = threading.Lock()
        # Reentrant: garbage collection may call `stop` in any thread, at any place.
        self._state = threading.RLock()
        # Not a condition: a consumer that is woken inside it would find its lock taken, and sleep and be woken again.
        self._is_ready = threading.Lock()
        """Taken, and released once for a consumer that waits: the next results are there, or the end is known."""
        self._is_ready.acquire()
        self._consumer_waits = False
        self._has_room = threading.Condition(self._state)
        """For the worker whose turn it is to take items; notified only where it waits."""
        self._n_waiting_for_room = 0
        self._n_working = 0
        """Workers that are inside `work`."""
        self._n_finishing = 0
        self._made: list[tuple[int, Any]] = []
        """Position of batches that are to be finished, and what was made of them, or the error."""
        self._made_since_s = 0.0
        self._waited_s = 0.0
        """For the source and for what is prepared; in all, as the next."""
        self._worked_s = 0.0
        self._done: dict[int, list[_Result] | BaseException] = {}
        self._n_pulled = 0
        self._n_collected = 0
        """Batches whose results the consumer has, and `_n_given` of them it has begun to use."""
        self._n_given = 0
        self._end: int | None = None
        """Number of batches, once it is known."""
        self._stopped = False
        self._workers: list[threading.Thread] = []

    def __iter__(self) -> Generator[_Result, None, None]:
        """Yield the results; an exception of the source or of the work is raised in its place in the order.

        Raises:
            DeviceError: in a child that was forked after the workers were started; they are not there.
        """
        self._process.check()
        _running.add(self)
        try:
            for _ in range(self._n_workers):
                self._start_worker()
            while batches := self._next_results():
                for results in batches:
                    if isinstance(results, BaseException):
                        raise results
                    yield from results
        finally:
            self.stop()

    def _start_worker(self) -> None:
        worker = threading.Thread(target=self._run, name=f"{THREAD_PREFIX}-{len(self._workers)}", daemon=True)
        self._workers.append(worker)
        try:
            worker.start()
        except BaseException:
            self._workers.remove(worker)  # It cannot be waited for.
            raise

    def _next_results(self) -> list[list[_Result] | BaseException]:
        """Wait for the next results and return all that are there; none: it is the end."""
        self._process.check()  # Nobody would wake a child, nor unlock what a worker had locked at the fork.
        with self._state:
            self._count_given(self._n_collected)
        while True:
            with self._state:
                batches = []
                while self._n_collected in self._done:
                    batches.append(self._done.pop(self._n_collected))
                    self._n_collected += 1
                if batches:
                    self._count_given(self._n_given + 1)
                if batches or self._n_collected == self._end:
                    return batches
                self._consumer_waits = True
            while not self._is_ready.acquire(timeout=-1 if LISTENING_WAIT_S is None else LISTENING_WAIT_S):
                pass

    def _wake_consumer(self) -> None:
        """Wake the consumer if it waits and there is something for it."""
        with self._state:
            is_needed = self._consumer_waits and (
                self._n_collected in self._done or self._n_collected == self._end or self._stopped
            )
            if is_needed:
                self._consumer_waits = False
        if is_needed:
            self._is_ready.release()

    def _count_given(self, n_given: int) -> None:
        if n_given != self._n_given:
            self._n_given = n_given
            if self._n_waiting_for_room:
                self._has_room.notify_all()

    def _run(self) -> None:
        clock = time.perf_counter
        while (taken := self._take()) is not None:
            position, items, waited_s = taken
            begin_s = clock()
            try:
                made: Any = items if self._prepare is None else self._prepare(items)
            except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
                made = error
            worked_from_s = clock()
            with self._state:
                self._n_working += 1
            if not isinstance(made, BaseException):
                try:
                    made = self._work(made)
                except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
                    made = error
            self._finish_or_leave((position, made), waited_s + worked_from_s - begin_s, worked_from_s, clock())

    def _finish_or_leave(self, made: tuple[int, Any], waited_s: float, worked_from_s: float, now_s: float) -> None:
        with self._state:
            self._n_working -= 1
            if self._n_spare:
                self._start_spare(waited_s, now_s - worked_from_s)
            self._made.append(made)
            if len(self._made) == 1:
                self._made_since_s = now_s
            is_attended = self._finish is not None and (self._n_working or self._n_finishing)
            is_soon = now_s - min(worked_from_s, self._made_since_s) < _SHORT_S
            if is_attended and is_soon and len(self._made) < N_TOGETHER:
                return
            mine, self._made = self._made, []
            self._n_finishing += 1
        while mine:
            done = self._finished(mine)
            with self._state:
                self._done.update(done)
                mine = []
                if self._made and not self._n_working:
                    mine, self._made = self._made, []  # They were left to this one.
                else:
                    self._n_finishing -= 1
            self._wake_consumer()

    def _finished(self, made: list[tuple[int, Any]]) -> list[tuple[int, list[_Result] | BaseException]]:
        if self._finish is None:
            return made
        try:
            results = iter(self._finish([each for _, each in made if not isinstance(each, BaseException)]))
            return [(at, each if isinstance(each, BaseException) else next(results)) for at, each in made]
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            return [(at, error) for at, _ in made]

    def _start_spare(self, waited_s: float, worked_s: float) -> None:
        self._waited_s += waited_s
        self._worked_s += worked_s
        if self._waited_s < max(_SPARE_FROM_S, _SPARE_SHARE * self._worked_s) or self._stopped:
            return
        self._n_spare -= 1
        self._waited_s = self._worked_s = 0.0
        with suppress(RuntimeError):  # There may be too many threads; it does without.
            self._start_worker()

    def _take(self) -> tuple[int, list[_Item], float] | None:
        """Take the next batch from the source; None: there is no more to do.

        Returns:
            Its position, the items, and how long the source took.
        """
        with self._pulling:
            with self._state:
                while self._n_pulled - self._n_given >= self._n_ahead and not self._stopped:
                    self._n_waiting_for_room += 1
                    try:
                        self._has_room.wait()
                    finally:
                        self._n_waiting_for_room -= 1
                if self._stopped or self._end is not None:
                    return None
            items: list[_Item] = []
            failure: BaseException | None = None
            begin_s = time.perf_counter()
            try:
                # One by one: what came before a failure counts.
                items.extend(islice(self._items, self._batch_size))
            except BaseException as error:  # noqa: BLE001 - whatever the caller's source raises; raised again there
                failure = error
            waited_s = time.perf_counter() - begin_s
            position = self._n_pulled
            self._n_pulled += bool(items)
            if failure is not None or len(items) < self._batch_size:
                with self._state:
                    self._end = self._n_pulled + (failure is not None)
                    if failure is not None:
                        self._done[self._n_pulled] = failure
                self._wake_consumer()
        return (position, items, waited_s) if items else None

    def stop(self) -> None:
        """Let the workers end and wait for them."""
        if not self._process.is_this:
            return
        with self._state:
            self._stopped = True
            self._has_room.notify_all()
        self._wake_consumer()
        stop = getattr(self._source, "stop", None)
        if callable(stop):
            stop()
        _running.discard(self)
        if threading.current_thread() in self._workers:
            return  # What was left by its consumer and is being collected as garbage, in whatever thread that happens.
        for worker in self._workers:
            worker.join(_PATIENCE_S)
        if any(worker.is_alive() for worker in self._workers):
            _log.warning("a thread is still waiting for the next image of its source and will end when it arrives")


_running: WeakSet[InOrder[Any, Any]] = WeakSet()


@atexit.register
def _stop_all() -> None:
    """Stop what a program has not consumed at its end: a thread inside a runtime then would abort the process."""
    for running in list(_running):
        running.stop()
