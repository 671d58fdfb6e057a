"""Work that takes long: how far it is, and a source's items done in several threads with the results in its order."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from vae_edge.platform.after_fork import Process
from vae_edge.platform.windows import LISTENING_WAIT_S

_log = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is; `vae_edge.cli.progress` shows bars."""

StepProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""

THREAD_PREFIX = "vae-edge-worker"

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

    Args:
        source: its iterator is used from several threads, but never from two at once.
        work: takes up to `batch_size` items and returns one result for each; called from several threads at once.
        n_workers: threads.
        batch_size: items that are taken together; fewer at the end.
        n_ahead: batches that may have been taken and not been given yet; None: two more than twice the workers, so that
            these need not wait for a consumer that gets a core only now and then.
        take: called with each item before the next is requested from it; what it returns is worked on.
    """

    def __init__(
        self,
        source: Iterable[_Item],
        work: Callable[[list[_Item]], list[_Result]],
        *,
        n_workers: int,
        batch_size: int = 1,
        n_ahead: int | None = None,
        take: Callable[[_Item], _Item] | None = None,
    ) -> None:
        self._source = source
        self._items: Iterator[_Item] = iter(source) if take is None else map(take, source)
        self._process = Process("this stream")
        self._work = work
        self._n_workers = n_workers
        self._batch_size = batch_size
        self._n_ahead = 2 * n_workers + 2 if n_ahead is None else n_ahead
        self._pulling = threading.Lock()
        # Reentrant: garbage collection may call `stop` in any thread, at any place.
        self._state = threading.RLock()
        self._is_ready = threading.Condition(self._state)
        """For the consumer: the next results are there, or the end is known."""
        self._has_room = threading.Condition(self._state)
        """For the worker whose turn it is to take items. Both are notified only where somebody waits."""
        self._n_waiting_for_results = 0
        self._n_waiting_for_room = 0
        self._done: dict[int, list[_Result] | BaseException] = {}
        self._n_pulled = 0
        self._n_given = 0
        self._end: int | None = None
        """Number of batches, once it is known."""
        self._stopped = False
        self._workers: list[threading.Thread] = []

    def __iter__(self) -> Generator[_Result, None, None]:
        """Yield the results; an exception of the source or of `work` is raised in its place in the order.

        Raises:
            DeviceError: in a child that was forked after the workers were started; they are not there.
        """
        self._process.check()
        workers = [
            threading.Thread(target=self._run, name=f"{THREAD_PREFIX}-{number}", daemon=True)
            for number in range(self._n_workers)
        ]
        _running.add(self)
        self._workers = workers
        for worker in workers:
            worker.start()
        try:
            while (results := self._next_results()) is not None:
                if isinstance(results, BaseException):
                    raise results
                yield from results
        finally:
            self.stop()

    def _next_results(self) -> list[_Result] | BaseException | None:
        self._process.check()  # Nobody would wake a child, nor unlock what a worker had locked at the fork.
        with self._state:
            while self._n_given not in self._done:
                if self._n_given == self._end:
                    return None
                self._n_waiting_for_results += 1
                try:
                    self._is_ready.wait(LISTENING_WAIT_S)
                finally:
                    self._n_waiting_for_results -= 1
            self._n_given += 1
            if self._n_waiting_for_room:
                self._has_room.notify_all()
            return self._done.pop(self._n_given - 1)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            position, items = taken
            try:
                results: list[_Result] | BaseException = self._work(items)
            except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
                results = error
            self._lay_down(position, results)

    def _take(self) -> tuple[int, list[_Item]] | None:
        """Take the next batch from the source; None: there is no more to do."""
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
            try:
                # One by one: what came before a failure counts.
                items.extend(islice(self._items, self._batch_size))
            except BaseException as error:  # noqa: BLE001 - whatever the caller's source raises; raised again there
                failure = error
            position = self._n_pulled
            self._n_pulled += bool(items)
            if failure is not None or len(items) < self._batch_size:
                with self._state:
                    self._end = self._n_pulled + (failure is not None)
                    if failure is not None:
                        self._done[self._n_pulled] = failure
                    self._is_ready.notify_all()
        return (position, items) if items else None

    def _lay_down(self, position: int, results: list[_Result] | BaseException) -> None:
        with self._state:
            self._done[position] = results
            if position == self._n_given and self._n_waiting_for_results:
                self._is_ready.notify_all()

    def stop(self) -> None:
        """Let the workers end and wait for them."""
        if not self._process.is_this:
            return
        with self._state:
            self._stopped = True
            self._is_ready.notify_all()
            self._has_room.notify_all()
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
