"""Several processes that work on one run: what they do together, how they tell of each other, and how they end.

The first of them leads. It alone reads the data, decides, draws, shows progress and writes the run; the others wait for
work (`Team.run`), do it along with it and know nothing else, so they need no data and no run folder. Work is a
function that every process calls with the same arguments, such as a training with shared steps
(`vae_edge.train.loop.together`), or folds of which each process takes the next one (`Team.each`).

Where the leader starts the others (`--devices`, `--jobs`), they are on this machine and meet in a file of a private
folder; what they exchange stays on the loopback interface where the system lets it be named. torchrun or SLURM start
processes on several machines, which meet where these say: on a network that the user trusts, as torch requires, for
what is sent are Python objects.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.train.loop.connection import Connection
from vae_edge.train.loop.launch import Place
from vae_edge.train.loop.trainer_arguments import NOTHING_ATTACHED, Attached
from vae_edge.train.loop.watcher import Watcher

T = TypeVar("T")

_LOOK_EVERY_S = 0.1
_TELL_EVERY_S = 0.5
_TIME_TO_END_S = 5.0
_FAILURES, _FAILURE, _READY = "failures", "failure", "ready"


class Team:
    """This process's part in a team; one process alone is a team, too.

    Args:
        connection: to the others; None in a team of one.
        helpers: processes that this one started.
        folder: private, of this team, deleted by the leader at the end; None: there is none.
        is_one_device: all processes share one device, as jobs do, instead of having one each.
        attached: a user's loggers, callbacks and other objects that this process made itself.
    """

    def __init__(
        self,
        connection: Connection | None = None,
        helpers: tuple[subprocess.Popen[bytes], ...] = (),
        folder: Path | None = None,
        *,
        is_one_device: bool = False,
        attached: Attached = NOTHING_ATTACHED,
    ) -> None:
        self.place = Place() if connection is None else connection.place
        self.folder = folder
        self.is_one_device = is_one_device
        self.attached = attached
        self._link = connection
        self._helpers = helpers
        self._n_parts = 0
        self._told_at = 0.0
        self._beside = ""

    @property
    def size(self) -> int:
        """Processes."""
        return self.place.size

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.place.rank == 0

    @property
    def shares_steps(self) -> bool:
        """Whether a training is done by all processes together, a share of each step's images each."""
        return self.size > 1 and not self.is_one_device

    @property
    def sees_the_run(self) -> bool:
        """Whether this process may write to the run folder: the leader, and those that it started on this machine."""
        return self.is_leader or self.place.launcher is None

    @property
    def _connection(self) -> Connection:
        assert self._link is not None
        return self._link

    def run(self, work: Callable[..., T], *arguments: Any, here: Mapping[str, Any] | None = None) -> T:
        """Let every process call `work(team, *arguments)`, and return what it gives in this one, the leader.

        Args:
            work: a function of a module.
            arguments: pickled for the others; NumPy's arrays are sent as they are.
            here: further arguments of this process alone, by name.

        Raises:
            InputError: another process failed; the message is its reason.
            Exception: whatever `work` raises here.
        """
        if self.size == 1:
            return work(self, *arguments, **(here or {}))
        self._connect()
        try:
            with self._fewer_threads():
                self._connection.send((work, arguments))
                return work(self, *arguments, **(here or {}))
        except RuntimeError as error:
            if isinstance(error, VaeEdgeError):
                raise
            # As torch says it where another process has gone. Whether it left a reason is known a moment later.
            time.sleep(_LOOK_EVERY_S)
            self._check_others()
            if not isinstance(error, distributed.DistBackendError) and "onnection" not in str(error):
                raise
            raise InputError(
                f"a process that trains along cannot be reached any more ({str(error).splitlines()[0]}); look for its "
                "own message, and start again with --resume"
            ) from error

    def help(self) -> None:
        """Do what the leader says until it ends the work.

        Raises:
            SystemExit: this process failed, or the leader has ended; the leader says why.
        """
        with self._fewer_threads():
            try:
                self._connect()
                while (received := self._connection.receive()) is not None:
                    work, arguments = received
                    work(self, *arguments)
            except Exception as error:
                self._tell_failure(error)
                raise SystemExit(1) from error

    def each(self, n: int, work: Callable[[int], T], watcher: Watcher) -> list[T]:
        """Do n pieces of work, each process the next one that is left; called by every process within `run`.

        Args:
            n: pieces.
            work: does the piece of a number, 0 to n - 1.
            watcher: in the leader, receives how far the others are while it waits for them.

        Returns:
            The results in order; in other processes than the leader nothing.

        Raises:
            InputError: another process failed; the message is its reason.
            Exception: whatever `work` raises.
        """
        if self.size == 1:
            return [work(number) for number in range(n)]
        self._n_parts += 1
        done, name = {}, f"next of part {self._n_parts}"
        while (number := self._connection.store.add(name, 1) - 1) < n:
            done[number] = work(number)
        all_done = self.collect(done, watcher)
        results = {number: result for one in all_done for number, result in one.items()}
        return [results[number] for number in range(n)] if self.is_leader else []

    def collect(self, value: T, watcher: Watcher | None = None) -> list[T]:
        """Return the values of all processes, in the leader; in the others nothing. Called by each within `run`.

        Raises:
            InputError: another process failed; the message is its reason.
        """
        if self.size == 1:
            return [value]
        store = self._connection.store
        self._n_parts += 1
        name = f"ended with part {self._n_parts}"
        store.add(name, 1)
        while self.is_leader and store.add(name, 0) < self.size:  # Not in torch, where Ctrl-C would have to wait, too.
            time.sleep(_LOOK_EVERY_S)
            self._check_others()
            if watcher is not None:
                for stage, done, total, note in self._others():
                    watcher.progress(stage, done, total, note)
        return self._connection.gather(value)

    def watcher(self, watcher: Watcher | None) -> Watcher:
        """Return what receives progress in this process: the leader's own, with a word on the others, or their board.

        Args:
            watcher: the leader's; None in the others.
        """
        if self.size == 1:
            return watcher or Watcher()
        return _Beside(self, watcher or Watcher()) if self.is_leader else _Board(self)

    def close(self, *, failed: bool = False) -> None:
        """Let the others end, and end the connection.

        Args:
            failed: the leader failed or was interrupted, whatever the others are doing.
        """
        if self.size == 1:
            return
        if self.place.launcher is not None:
            if not failed:
                self._connect()
                self._connection.send(None)
            # Otherwise they end when this process has: before, the launcher would end it for their sake.
            return
        is_open = self._connection.is_open
        if failed:
            for helper in self._helpers:
                helper.terminate()
        elif is_open:
            with suppress(RuntimeError):
                self._connection.send(None)
        self._connection.close()
        end = time.monotonic() + _TIME_TO_END_S
        for helper in self._helpers:
            if is_open:
                with suppress(subprocess.TimeoutExpired):
                    helper.wait(max(end - time.monotonic(), _LOOK_EVERY_S))
            helper.kill()
            helper.wait()
            assert helper.stdin is not None
            helper.stdin.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def tell(self, stage: str, done: int, total: int, note: str) -> None:
        """Put on the board how far this process is, now and then."""
        now = time.monotonic()
        if done == total or now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            self._connection.store.set(f"at {self.place.rank}", f"{stage}\t{done}\t{total}\t{note}")

    def beside(self) -> str:
        """Say in a few words what the others do, and raise what one of them failed with.

        Raises:
            InputError: see `run`.
        """
        now = time.monotonic()
        if now - self._told_at >= _TELL_EVERY_S:
            self._told_at = now
            self._check_others()
            self._beside = "; ".join(f"{stage} {done / max(total, 1):.0%}" for stage, done, total, _ in self._others())
        return self._beside

    def _others(self) -> Iterator[tuple[str, int, int, str]]:
        store = self._connection.store
        for rank in range(1, self.size):
            if store.check([f"at {rank}"]):
                stage, done, total, note = store.get(f"at {rank}").decode().split("\t")
                if int(done) < int(total):
                    yield stage, int(done), int(total), note

    def _check_others(self) -> None:
        """Raise what another process failed with, or that it has ended.

        Raises:
            InputError: it did.
        """
        if self._connection.store.check([_FAILURE]):
            raise InputError(self._connection.store.get(_FAILURE).decode())
        for number, helper in enumerate(self._helpers, 1):
            status = helper.poll()
            if status is not None:
                raise InputError(
                    f"process {number + 1} of {self.size} ended with status {status}{self._last_words(number)}; start "
                    "again with --resume, with fewer --devices or --jobs if memory is short"
                )

    def _last_words(self, number: int) -> str:
        assert self.folder is not None
        with suppress(OSError):
            lines = log_of(self.folder, number).read_text(errors="replace").split("\n")
            words = [line.strip() for line in lines if line.strip()]
            return f": {words[-1]}" if words else ""
        return ""

    def _tell_failure(self, error: Exception) -> None:
        sentence = str(error)
        if not isinstance(error, VaeEdgeError):
            sentence = f"process {self.place.rank + 1} of {self.size} failed with {type(error).__name__}: {error}"
        store = self._connection.store
        with suppress(RuntimeError):  # The leader, with the store, may have gone first.
            if store.add(_FAILURES, 1) == 1:
                store.set(_FAILURE, sentence)

    def _connect(self) -> None:
        """Meet the others, where that has not happened yet.

        Raises:
            InputError: one of them has ended.
        """
        if self._connection.is_open:
            return
        store, place = self._connection.store, self.place
        if self._helpers:
            while not store.check([f"{_READY} {rank}" for rank in range(1, place.size)]):
                time.sleep(_LOOK_EVERY_S)
                self._check_others()
        elif place.launcher is None:
            store.set(f"{_READY} {place.rank}", "")
        self._connection.open()

    @contextmanager
    def _fewer_threads(self) -> Iterator[None]:
        """Let torch compute with this process's share of the threads while the others do, too."""
        before, variable = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
        if self.place.launcher is None and self.is_leader:
            torch.set_num_threads(max(1, before // self.size))
        os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # Without it Lightning sets another number.
        try:
            yield
        finally:
            torch.set_num_threads(before)
            if variable is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = variable


ALONE = Team()
"""One process."""


def log_of(folder: Path, rank: int) -> Path:
    """Return the file with what a process prints."""
    return folder / f"process-{rank}.log"


class _Board(Watcher):
    """Tells the leader how far this process is."""

    def __init__(self, team: Team) -> None:
        self._team = team

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._team.tell(stage, done, total, note)


class _Beside(Watcher):
    """Adds to the leader's progress what the others do meanwhile."""

    def __init__(self, team: Team, watcher: Watcher) -> None:
        self._team = team
        self._watcher = watcher

    def say(self, sentence: str) -> None:
        self._watcher.say(sentence)

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        self._watcher.progress(stage, done, total, "; ".join(filter(None, (note, self._team.beside()))))
