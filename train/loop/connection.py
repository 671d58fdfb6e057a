"""The connection between the processes of a team: where they meet, and how Python's objects get from one to others."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed

from vae_edge.errors import InputError
from vae_edge.train.loop.launch import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

CPU_BACKEND, GPU_BACKEND = "gloo", "cpu:gloo,cuda:nccl"
"""What processes are connected by: torch's names."""

_PATIENCE = timedelta(days=30)
"""For what takes as long as the leader needs: a process that waits for work is woken by the end of the leader, too."""
_BACKEND = "backend"


class Connection:
    """Sends from the leader to all, and gathers from all in the leader. It is not open at first.

    Args:
        place: of this process.
        store: where the processes meet.
        backend: what the leader chooses for all.
    """

    def __init__(self, place: Place, store: Store, backend: str = CPU_BACKEND) -> None:
        self.place = place
        self.store = store
        self._backend = backend
        self._group: Any = None

    @property
    def is_open(self) -> bool:
        """Whether the processes are connected."""
        return self._group is not None

    def open(self) -> None:
        """Connect; every process has to."""
        if self.place.rank == 0:
            self.store.set(_BACKEND, self._backend)
        self.store.wait([_BACKEND], _PATIENCE)
        backend = self.store.get(_BACKEND).decode()
        with _on_loopback() if self.place.launcher is None else nullcontext():
            # torch does not declare its stores; where it has no distributed package, they are not there.
            store = distributed.PrefixStore("torch", self.store)  # type: ignore[attr-defined]  # torch does not annotate it
            distributed.init_process_group(backend, store=store, rank=self.place.rank, world_size=self.place.size)
            self._group = distributed.new_group(timeout=_PATIENCE, backend="gloo")

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._group is not None:
            self._group = None
            with suppress(RuntimeError):
                distributed.destroy_process_group()

    def send(self, value: Any) -> None:
        """Send an object to all others; NumPy's arrays in it are sent as they are, without a copy."""
        buffers: list[pickle.PickleBuffer] = []
        content = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        raw = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        distributed.broadcast_object_list([content, [len(each) for each in raw]], group=self._group)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # It is only read.
            for each in raw:
                if len(each):
                    distributed.broadcast(torch.from_numpy(each), 0, group=self._group)

    def receive(self) -> Any:
        """Return what the leader sends next."""
        received: list[Any] = [None, None]
        distributed.broadcast_object_list(received, group=self._group)
        content, sizes = received
        buffers = [torch.empty(size, dtype=torch.uint8) for size in sizes]
        for each in buffers:
            if len(each):
                distributed.broadcast(each, 0, group=self._group)
        return pickle.loads(content, buffers=[each.numpy() for each in buffers])

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in the leader, and nothing in the others."""
        values: list[Any] | None = [None] * self.place.size if self.place.rank == 0 else None
        distributed.gather_object(value, values, group=self._group)
        return values or []


def store_in(folder: Path, size: int) -> Store:
    """Return where the processes of a private folder meet.

    Raises:
        InputError: this torch has nothing to connect processes with.
    """
    if not distributed.is_available():
        raise InputError("this torch cannot connect processes; train in one: leave out --devices and --jobs")
    store: Store = distributed.FileStore(str(folder / "store"), size)  # type: ignore[attr-defined]  # as above
    return store


def meet(place: Place) -> Store:
    """Return where the processes meet that a launcher started.

    Raises:
        InputError: they cannot reach each other.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from torch.distributed.rendezvous import rendezvous

    address = "env://"
    if place.launcher != "torchrun":
        # Lightning knows how SLURM shortens a list of machines; any port that all can tell serves.
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
        job = os.environ.get("SLURM_JOB_ID", "0")
        port = os.environ.get("MASTER_PORT") or str(15000 + int(job[-4:] if job[-4:].isdecimal() else 0))
        host = SLURMEnvironment.resolve_root_node_address(nodes)
        address = f"tcp://{host}:{port}?rank={place.rank}&world_size={place.size}"
    try:
        store: Store = next(iter(rendezvous(address)))[0]
    except RuntimeError as error:  # What torch's errors of networks are.
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the {place.size} processes that {place.launcher} started cannot be connected ({reason}); expected that "
            "each reaches the first one's machine: check its name, its port and the firewall"
        ) from error
    return store


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let gloo listen on the loopback interface only, where that can be said."""
    names = {"linux": "lo", "darwin": "lo0"}
    if sys.platform not in names or "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = names[sys.platform]
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]
