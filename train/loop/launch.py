"""How many processes train together, and which of them this one is: what was asked for, and what torchrun or SLURM set.

Loads no torch, so that a process that only helps is known before anything else.
"""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass

from vae_edge.errors import UsageError
from vae_edge.wording import count, verb

_AUTO = "auto"


@dataclass(frozen=True)
class Place:
    """Which of several processes one is."""

    rank: int = 0
    """0 to size - 1; 0 leads: it alone decides, draws and writes, and the others do as it says."""
    size: int = 1
    """Processes on all machines."""
    local_rank: int = 0
    """The same on this machine, 0 to local_size - 1."""
    local_size: int = 1
    launcher: str | None = None
    """The program that started all of them; None: this one starts the others itself."""

    @property
    def n_nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size


def launched() -> Place | None:
    """Return this process's place among those that torchrun, or srun of SLURM, started; None: there are no others.

    Raises:
        UsageError: the numbers of processes on the machines differ.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        rank, size, local_rank, local_size = map(_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        place = Place(rank, size, local_rank, local_size, "torchrun")
    elif "SLURM_STEP_NUM_TASKS" in os.environ:  # Which srun sets, and a script that only sbatch runs does not have.
        size, n_nodes = _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_STEP_NUM_NODES")
        # What does not divide is refused below.
        local_size = size // n_nodes if size % n_nodes == 0 else size - 1
        place = Place(_number("SLURM_PROCID"), size, _number("SLURM_LOCALID"), local_size, "srun")
    else:
        return None
    if place.size % max(place.local_size, 1):
        raise UsageError(
            f"{place.launcher} started {place.size} processes, of which {place.local_size} are on this machine; "
            "expected the same number on each"
        )
    return place if place.size > 1 else None


def end_silently() -> None:
    """Let a signal end this process, which only helps, at once: the leader says that the training was interrupted."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def check_place(place: Place, devices: str | int, num_nodes: int) -> None:
    """Refuse numbers of devices and machines that differ from what was started.

    Raises:
        UsageError: with both numbers.
    """
    asked = n_devices(devices)
    if asked not in (None, place.local_size):
        raise UsageError(
            f"devices is {devices}, but {place.launcher} started {count(place.local_size, 'process', 'processes')} on "
            "this machine; expected one device for each: give the same number, or leave --devices out"
        )
    if num_nodes not in (1, place.n_nodes):
        raise UsageError(
            f"the number of nodes is {num_nodes}, but {place.launcher} started processes on {place.n_nodes}; leave "
            "--num-nodes out"
        )


def n_devices(devices: str | int) -> int | None:
    """Return how many devices are asked for: `2`, or a list such as `0,1`; None: `auto`.

    Raises:
        UsageError: it is none of these.

    Examples:
        >>> [n_devices(each) for each in ("auto", 2, "2", "0,1", "3,")]
        [None, 2, 2, 2, 1]
    """
    text = str(devices).strip()
    if text.lower() == _AUTO:
        return None
    numbers = [part.strip() for part in text.split(",") if part.strip()]
    if not numbers or not all(number.isdecimal() for number in numbers):
        raise UsageError(
            f"devices is {devices!r}; expected auto, a number such as 2, or a list of devices such as 0,1 (0, with a "
            "comma, is the first one alone)"
        )
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"devices is {devices!r}, which names a device twice; expected each once")
    n = len(numbers) if "," in text else int(text)
    if n < 1:
        raise UsageError(f"devices is {devices!r}; expected 1 or more")
    return n


def first_device(devices: str | int) -> str | int:
    """Return the device of a training by one process: the first of a list, else one.

    Examples:
        >>> [first_device(each) for each in ("auto", 2, "1,3")]
        [1, 1, '1,']
    """
    first, comma, _ = str(devices).partition(",")
    return f"{first.strip()}," if comma else 1


def own_device(devices: str | int, place: Place) -> str:
    """Return the device, as a list of one, that a process has for itself on a machine with several.

    Examples:
        >>> own_device("1,3", Place(rank=1, size=2, local_rank=1, local_size=2))
        '3,'
    """
    numbers = str(devices).split(",") if "," in str(devices) else [str(number) for number in range(place.local_size)]
    return f"{numbers[place.local_rank].strip()},"


def check_jobs(jobs: int, *, n_processes: int, n_folds: int | None) -> None:
    """Refuse a number of networks to train at the same time that cannot be.

    Args:
        jobs: networks at the same time.
        n_processes: that train together, on several devices or machines.
        n_folds: of the calibration; None: networks are not trained in processes.

    Raises:
        UsageError: with what was given and what was expected.
    """
    if jobs < 1:
        raise UsageError(f"the number of jobs is {jobs}; expected 1 or more")
    if n_processes > 1:
        raise UsageError(
            f"{count(jobs, 'job')} {verb(jobs, 'was', 'were')} given along with {n_processes} processes, which train a "
            "fold each; leave out --jobs"
        )
    if n_folds is not None and jobs > n_folds:
        raise UsageError(
            f"the number of jobs is {jobs}, but there are {n_folds} folds; expected {n_folds} at most, because each "
            "job trains a fold"
        )


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"the environment variable {name} is {text!r}; expected the number that the launcher sets")
    return int(text)
