"""Jobs of a study, several at a time, each with its result in a file: an interrupted study continues where it was."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from vae_edge.cli.console import notes_console
from vae_edge.errors import DeviceError, InputError
from vae_edge.platform.atomic import write_text
from vae_edge.platform.work import as_they_end
from vae_edge.records import Record

J = TypeVar("J", bound=Record)
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Work:
    """What a job gets beside its settings."""

    log: Path
    cancel: threading.Event
    """Once it is set the job is to end."""
    hear: Callable[[str], None]
    """Receives sentences about its progress."""


@dataclass(frozen=True)
class Kind(Generic[J, R]):
    """What a job is and how it is done."""

    job: type[J]
    result: type[R]
    do: Callable[[J, Work], R]
    """Does a job."""
    is_whole: Callable[[R], bool] = lambda result: True
    """Whether a result may be reused; one that is not whole is measured again by the next call."""


def run_all(kind: Kind[J, R], jobs: Mapping[str, J], folder: Path, most: int) -> dict[str, R]:
    """Run jobs, several at a time; results that an earlier call with the same job left are reused.

    Args:
        kind: of all of them.
        jobs: by name.
        folder: for their results and logs.
        most: jobs at the same time.

    Raises:
        InputError: one failed; the message has the reason and the path of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [name for name, job in jobs.items() if not _is_done(kind, folder, name, job)]
    say(f"{len(jobs) - len(waiting)} of {len(jobs)} cases are measured already; logs in {folder}")
    cancel = threading.Event()
    with ThreadPoolExecutor(most) as pool:
        try:
            running = {pool.submit(_run, kind, folder, name, jobs[name], cancel): name for name in waiting}
            for number, done in enumerate(as_they_end(running), 1):
                done.result()
                say(f"{running[done]} done, {len(waiting) - number} to go")
        except KeyboardInterrupt:
            say("interrupted; the same command continues")
            raise
        finally:
            # Also when the user interrupts, or one failed: no process must go on behind the prompt.
            cancel.set()
            pool.shutdown(cancel_futures=True)
    return {
        name: kind.result.model_validate_json((folder / f"{name}.json").read_text(encoding="utf-8")) for name in jobs
    }


def _run(kind: Kind[J, R], folder: Path, name: str, job: J, cancel: threading.Event) -> None:
    job_file, result_file, log = (folder / f"{name}{ending}" for ending in (".job.json", ".json", ".log"))
    say(f"{name} started")
    result_file.unlink(missing_ok=True)
    write_text(job_file, job.model_dump_json(indent=1))
    try:
        result = kind.do(job, Work(log, cancel, lambda sentence: say(f"{name}: {sentence}")))
    except DeviceError as error:
        raise InputError(f"{name} failed: {error}; its whole output is in {log}") from error
    write_text(result_file, result.model_dump_json(indent=1, exclude_none=True) + "\n")


def _is_done(kind: Kind[J, R], folder: Path, name: str, job: J) -> bool:
    job_file, result_file = folder / f"{name}.job.json", folder / f"{name}.json"
    if not (job_file.is_file() and result_file.is_file()):
        return False
    try:
        if kind.job.model_validate(json.loads(job_file.read_text(encoding="utf-8"))) != job:
            return False
        return kind.is_whole(kind.result.model_validate_json(result_file.read_text(encoding="utf-8")))
    except ValueError:
        return False


def say(line: str) -> None:
    """Print a line about the study's progress."""
    notes_console().print(line, markup=False, soft_wrap=True)
