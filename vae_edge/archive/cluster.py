"""The workers: actors of Ray Data, on a cluster that is there or on this machine.

One dataset has a row for each part; `map_batches` gives each row to an actor, which holds one detector. Ray starts an
actor again that died, elsewhere if its machine is gone, and gives its part to it again. The dataset runs in an actor of
its own beside the driver, which can so be ended: Ray waits for ever for a place for a worker that has none any more.

Ray's usage statistics are off, its dashboard is not started, and what is started here listens on this machine alone.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vae_edge.archive.listing import Part
from vae_edge.archive.scoring import Outcome, Scorer, Work
from vae_edge.errors import InputError, UsageError, said_by
from vae_edge.platform.machine import usable_cores, usable_processors
from vae_edge.wording import count, verb

_log = logging.getLogger(__name__)

AUTO = "auto"
"""The address of the cluster that this machine is part of."""

_OBJECTS_BYTES = 256 << 20
"""Memory for what is on its way between processes here: parts of results, each a fraction of a megabyte."""
_LOOK_S = 5.0
"""Between two looks at the cluster."""
_START_S = 60.0
"""How long the first part may take until it is said that none has come."""
_GONE_S = 20.0
"""How long nothing may come, with too few processors for the workers, until the rest of them goes on alone."""
_STALL_S = 120.0
_STALL_FACTOR = 20
"""Without a part for so many times what the slowest took, but at least `_STALL_S`, all is begun again."""
_PARTS_AT_ONCE = 2000
"""Parts in one dataset, whose rows Ray holds in memory."""
_TRIES = 2
"""How often a part is given to another worker after one died with it, in one attempt."""
_CONNECT_S = 5.0

Score = Generator[Outcome, None, None]


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray."""

    workers: int
    is_local: bool


def _prepare_environment(*, is_local: bool) -> None:
    """Set what Ray reads in the environment, before it is imported.

    Nothing is sent anywhere. What is started here listens on 127.0.0.1, for those who have a token that no file holds.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # Tracebacks of every try, on stdout.
    if is_local:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
            "0"  # Ray's name for: others than this machine, on any system.
        )
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Cluster]:
    """Join a cluster, or start Ray on this machine; leave it, or end it, at the end of the block.

    Args:
        address: `auto`, or HOST:PORT of the cluster's head; None: this machine.
        workers: how many there should be, of one processor each; None: as many as there are processors.

    Raises:
        InputError: no cluster is at the address, it has another version of Python or Ray, or has too few processors.
    """
    check_cluster(address, workers)
    _prepare_environment(is_local=address is None)
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        with _own_signals():
            if address is None:
                n = workers or usable_cores()
                here: dict[str, Any] = {"num_cpus": n, "object_store_memory": _OBJECTS_BYTES}
                ray.init(address="local", include_dashboard=False, **here, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (ray.exceptions.RayError, RuntimeError, ValueError, OSError) as error:
        where = "on this machine" if address is None else f"at {address}"
        if isinstance(error, ConnectionError) and address is not None:
            raise InputError(
                f"no Ray cluster answers {where}; start one with ray start --head, or leave out --address to use this "
                "machine"
            ) from error
        raise InputError(f"Ray {where} cannot be used ({said_by(error)})") from error
    try:
        n_there = int(ray.cluster_resources().get("CPU", 0))
        if address is not None:
            _check_workers(workers or 1, n_there, f"the cluster at {address}")
        yield Cluster(workers or n_there, address is None)
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this program does on SIGTERM: Ray would end it with an exit code of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    number = signal.SIGTERM if os.name == "posix" else signal.SIGBREAK  # type: ignore[attr-defined]  # on Windows only
    before = signal.getsignal(number)
    try:
        yield
    finally:
        signal.signal(number, before)


def check_cluster(address: str | None, workers: int | None) -> None:
    """Refuse, before anything is begun, what `connected` would refuse later, as far as it is known without Ray.

    Args:
        address: as for `connected`.
        workers: as for `connected`.

    Raises:
        InputError: nobody listens at the address, or this machine has too few processors.
        UsageError: it is not an address.
    """
    if address is None and workers is not None:
        _check_workers(workers, len(usable_processors()), "this machine")
    if address not in (None, AUTO):
        _check_answers(str(address))


def _check_workers(workers: int, there: int, where: str) -> None:
    if workers > there:
        needs = f"{count(workers, 'worker')} {verb(workers, 'needs', 'need')} {count(workers, 'processor')}"
        advice = f"pass --workers {there}" if there else "start a machine with some"
        raise InputError(f"{needs}, and {where} has {there}; {advice}")


def _check_answers(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for a minute and then end this process."""
    import socket

    host, separator, port = address.rpartition(":")
    if "://" in address or not separator or not port.isdecimal():
        raise UsageError(f"{address!r} is not the address of a Ray cluster; expected auto or HOST:PORT of its head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error}); start one with "
            "ray start --head, or leave out --address to use this machine"
        ) from error


def score_on(cluster: Cluster, work: Work, files: dict[str, bytes] | None, parts: Sequence[Part]) -> Score:
    """Score parts on a cluster; yields what became of each, in the order in which they are done.

    A part whose worker died each time is left out. If machines leave the cluster and no others come, the rest goes on.

    Args:
        cluster: is connected.
        work: what every worker is told.
        files: the bundle's, for machines that do not have it; None: all have its folder.
        parts: to score.

    Raises:
        InputError: no processor is left.
    """
    import ray

    shipped = None if files is None else [ray.put(files)]  # In a list: Ray would give the files in place of it.
    for begin in range(0, len(parts), _PARTS_AT_ONCE):
        yield from _score_some(cluster, work, shipped, parts[begin : begin + _PARTS_AT_ONCE])


def _score_some(cluster: Cluster, work: Work, shipped: Any, parts: Sequence[Part]) -> Score:
    left = {part.number: part for part in parts}
    while left:
        n_processors = _capacity()
        if not n_processors:
            raise InputError("no machine of the cluster is left; run the same command to go on when there are some")
        n_workers = min(cluster.workers, n_processors, len(left))
        is_whole = True
        for outcome in _attempt(work, shipped, list(left.values()), n_workers):
            if outcome is None:
                is_whole = False
                _log.warning(
                    "the cluster has %s now, or a worker does not answer: going on with what is there",
                    count(_capacity(), "processor"),
                )
                break
            left.pop(outcome.part, None)
            yield outcome
        if is_whole:
            return


def _attempt(work: Work, shipped: Any, parts: list[Part], n_workers: int) -> Generator[Outcome | None, None, None]:
    """Score parts with a pool of workers; the last that is yielded is None if it has to be done again with fewer."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # It needs no processor, and waits for the others.
    pool = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(_Pool).remote()
    rows = [{"number": part.number, "content": part.content} for part in parts]
    outcomes = pool.outcomes.options(num_returns="streaming").remote(rows, work, shipped, n_workers)
    watch = _Watch(n_workers)
    try:
        while True:
            ready, _ = ray.wait([outcomes], timeout=_LOOK_S)
            if not ready:
                if watch.should_end(_capacity()):
                    yield None
                    return
                continue
            try:
                outcome = ray.get(next(outcomes))
            except StopIteration:
                return
            except ray.exceptions.RayError as error:
                raise InputError(f"the workers could not be started or failed ({_cause(error)})") from error
            watch.note()
            yield Outcome(**outcome)
    finally:
        with suppress(Exception):
            ray.kill(pool)


class _Watch:
    """Notices that an attempt cannot go on as it was begun.

    Args:
        n_workers: of the attempt.
    """

    def __init__(self, n_workers: int) -> None:
        self._n_workers = n_workers
        self._last_s = time.monotonic()
        self._slowest_s: float | None = None
        self._has_warned = False

    def note(self) -> None:
        """Note that a part was done."""
        now_s = time.monotonic()
        self._slowest_s = max(self._slowest_s or 0.0, now_s - self._last_s)
        self._last_s = now_s

    def should_end(self, n_processors: int) -> bool:
        """Return whether the attempt should be ended; asked while nothing comes.

        Args:
            n_processors: of all machines that are there.
        """
        waited_s = time.monotonic() - self._last_s
        if self._slowest_s is None:
            if waited_s > _START_S and not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "no worker has given anything for %d s; the cluster has %s, which others may use",
                    waited_s,
                    count(n_processors, "processor"),
                )
            return n_processors < self._n_workers and waited_s > _START_S
        # As long as parts come, those that are left work on.
        if n_processors < self._n_workers and waited_s > max(_GONE_S, 2 * self._slowest_s):
            return True
        return waited_s > max(_STALL_S, _STALL_FACTOR * self._slowest_s)


class _Pool:
    """Runs the dataset, in a process of its own beside the driver."""

    def outcomes(
        self, rows: list[dict[str, Any]], work: Work, shipped: Any, n_workers: int
    ) -> Iterator[dict[str, Any]]:
        """Yield the fields of an `Outcome` for each part that was not given up."""
        import ray

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # Given up; it is noticed, for the part is not there.
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            fn_constructor_args=(work, shipped),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=n_workers, max_tasks_in_flight_per_actor=2),
            max_restarts=-1,
            max_task_retries=_TRIES,
        )
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield {**row, "counts": json.loads(row["counts"])}


class _Actor:
    """A worker as Ray Data calls it."""

    def __init__(self, work: Work, shipped: Any) -> None:
        import ray

        self._scorer = Scorer(work, None if shipped is None else ray.get(shipped[0]))

    def __call__(self, batch: Any) -> Any:
        """Score the part of the one row of a `pyarrow.Table`; returns another such table."""
        import pyarrow as pa

        (row,) = batch.to_pylist()
        outcome = self._scorer.score(Part(row["number"], row["content"], None))
        columns = {
            "part": pa.array([outcome.part], pa.int64()),
            "content": pa.array([outcome.content], pa.large_binary()),
            "counts": pa.array([json.dumps(outcome.counts)], pa.string()),
            "problem": pa.array([outcome.problem], pa.string()),
            "is_fatal": pa.array([outcome.is_fatal], pa.bool_()),
            "worker": pa.array([outcome.worker], pa.string()),
        }
        return pa.table(columns)


def _capacity() -> int:
    """Return the number of processors of all machines of the cluster that are there."""
    import ray

    return int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))


def _cause(error: BaseException) -> str:
    """Return the last line of what an error of Ray says, which is the one of the code that failed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return said_by(RuntimeError(lines[-1])) if lines else type(error).__name__
