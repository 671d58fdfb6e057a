"""Starting a team: the processes that torchrun or SLURM started, those that this one starts, or this one alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from vae_edge.errors import InputError, UsageError
from vae_edge.train.loop.connection import CPU_BACKEND, GPU_BACKEND, Connection, meet, store_in
from vae_edge.train.loop.launch import Place, check_jobs, check_place, end_silently, launched, n_devices
from vae_edge.train.loop.settings import TrainSettings
from vae_edge.train.loop.team import ALONE, Team, log_of
from vae_edge.train.loop.trainer_arguments import NOTHING_ATTACHED, Attached
from vae_edge.train.model.presets import Network
from vae_edge.wording import count

HELPING = "vae_edge.train.loop.helping"
"""The program of a process that the leader starts."""

_was_led = False
"""Whether this process has led what a launcher started."""


@contextmanager
def open_team(
    settings: TrainSettings, attached: Attached = NOTHING_ATTACHED, jobs: int | None = None
) -> Iterator[Team]:
    """Yield the team for a run: those that a launcher started, those that are started here, or one process alone.

    In a process that only helps this does not return before the leader ends the work.

    Args:
        settings: of the run; devices and machines.
        attached: what a user attached to the training.
        jobs: networks on pixels that train at the same time, each in a process of its own.

    Raises:
        UsageError: what was asked for does not fit together, or to what was started.
        SystemExit: this process only helped, and its work is done.
    """
    global _was_led
    lead_or_help(attached)
    place = launched()
    if place is not None:
        if _was_led:
            raise UsageError(
                f"the other processes that {place.launcher} started ended with the first training of this program; "
                "start the program again for each training"
            )
        _was_led = True
        check_place(place, settings.devices, settings.num_nodes)
        if jobs is not None:
            check_jobs(jobs, n_processes=place.size, n_folds=None)
        # Now, because others may wait for it: reading the data takes time.
        team = Team(Connection(place, meet(place), _backend_for(settings)), attached=attached)
    else:
        team = _started_here(settings, attached, jobs)
    try:
        yield team
    except BaseException:
        team.close(failed=True)
        raise
    team.close()


def lead_or_help(attached: Attached = NOTHING_ATTACHED) -> None:
    """Return where this process leads; where torchrun or SLURM started it to help, do that until the work is done.

    Args:
        attached: what a user attached to the training, in every process.

    Raises:
        SystemExit: this process only helped.
    """
    place = launched()
    if place is None or place.rank == 0:
        return
    end_silently()
    Team(Connection(place, meet(place)), attached=attached).help()
    raise SystemExit(0)


def _started_here(settings: TrainSettings, attached: Attached, jobs: int | None) -> Team:
    if settings.num_nodes > 1:
        raise UsageError(
            f"the number of nodes is {settings.num_nodes}, but this is the only process; start one for each device on "
            f"each machine: torchrun --nnodes {settings.num_nodes} --nproc-per-node N ... -m vae_edge train ..., or "
            "srun in SLURM"
        )
    n_processes = n_devices(settings.devices) or 1
    on_pixels = settings.network is Network.PIXEL
    if jobs is not None:
        check_jobs(jobs, n_processes=n_processes, n_folds=settings.folds if on_pixels else None)
    if n_processes > 1 and not on_pixels:
        raise UsageError(
            f"devices is {settings.devices}, but networks on features are trained on this machine's processor, on "
            "all of its cores: leave it out, start on several machines with torchrun, or train on pixels"
        )
    if n_processes > 1 and attached.needed:
        raise UsageError(
            f"{', '.join(attached.needed)} cannot be passed on to the processes that are started for devices "
            f"{settings.devices}; start the program with torchrun --nproc-per-node {n_processes}, so that each process "
            "makes its own"
        )
    size = n_processes if n_processes > 1 else (jobs or 1) if on_pixels else 1
    if size == 1:
        return ALONE
    if distributed.is_available() and distributed.is_initialized():
        raise UsageError(
            f"{size} processes are to be started, but this program has connected processes by itself with "
            "torch.distributed; call destroy_process_group before, or train in one: leave out devices and jobs"
        )
    is_one_device = n_processes == 1
    return _start(size, is_one_device=is_one_device, backend=CPU_BACKEND if is_one_device else _backend_for(settings))


def _backend_for(settings: TrainSettings) -> str:
    return GPU_BACKEND if trains_on_gpu(settings) and distributed.is_nccl_available() else CPU_BACKEND


def _start(size: int, *, is_one_device: bool, backend: str) -> Team:
    """Start the other processes of this machine; they load torch while this one goes on."""
    folder = Path(tempfile.mkdtemp(prefix="vae-edge-team-"))
    n_threads = max(1, torch.get_num_threads() // size)
    helpers = []
    try:
        for rank in range(1, size):
            with log_of(folder, rank).open("wb") as log:
                helpers.append(
                    subprocess.Popen(
                        [sys.executable, "-m", HELPING, str(folder), str(rank), str(size), str(int(is_one_device))],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        env={
                            **os.environ,
                            "OMP_NUM_THREADS": str(n_threads),
                            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                        },
                        # Ctrl-C is for the leader, which ends the others.
                        **_apart(),
                    )
                )
    except OSError as error:
        for helper in helpers:
            helper.kill()
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"{count(size - 1, 'further process', 'further processes')} could not be started ({error.strerror}); train "
            "with fewer --devices or --jobs"
        ) from error
    place = Place(0, size, 0, size)
    return Team(Connection(place, store_in(folder, size), backend), tuple(helpers), folder, is_one_device=is_one_device)


def trains_on_gpu(settings: TrainSettings) -> bool:
    """Return whether networks on pixels are trained on NVIDIA's GPUs here."""
    if settings.network is not Network.PIXEL or settings.accelerator not in ("auto", "gpu", "cuda"):
        return False
    return torch.cuda.is_available()


def _apart() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
