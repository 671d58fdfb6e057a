"""Steps on the GPU's memory: round trips through one adapter, in several threads, and an end without closing it."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vae_edge.backends.cuda.adapters import VARIABLE, open_cuda_memory
from vae_edge.backends.cuda.memory import CudaMemory
from vae_edge.selfcheck.record import StepResult, Verdict

N_THREADS = 4
_SIZES_BYTES = (1, 255, 4096, 65_537, 1 << 20, 4 << 20)
_ROUNDS = 10
"""Of all sizes, in each thread."""

_left_open: list[Any] = []
"""Memory that is not closed: the process ends with it, as a program does that is interrupted."""


def round_trips(arguments: dict[str, Any]) -> StepResult:
    """Copy random bytes to the device and back, and compare; then leave everything open for the end of the process.

    Args:
        arguments: `adapter`, one of `vae_edge.backends.cuda.adapters.CHOICES`.

    Raises:
        DeviceError: a call of CUDA failed, or the adapter does not start.
        MissingDependencyError: its package is not installed.
    """
    os.environ[VARIABLE] = str(arguments["adapter"])
    memory = open_cuda_memory(0)
    started = time.perf_counter()
    with ThreadPoolExecutor(N_THREADS) as pool:
        wrong = sum(pool.map(lambda seed: _in_one_thread(memory, seed), range(N_THREADS)))
    seconds = time.perf_counter() - started
    total = N_THREADS * _ROUNDS * len(_SIZES_BYTES)
    n_bytes = 2 * N_THREADS * _ROUNDS * sum(_SIZES_BYTES)
    _leave_open(memory)
    lines = (
        f"{memory.library}: {total} round trips from {N_THREADS} threads, {n_bytes / seconds / 1e9:.2f} GB/s",
        f"host memory is {'used in place' if memory.maps_host_memory else 'copied'}",
    )
    facts = {
        "library": memory.library,
        "n_round_trips": total,
        "n_wrong": wrong,
        "maps_host_memory": memory.maps_host_memory,
        "bytes_per_second": n_bytes / seconds,
    }
    if wrong:
        reason = f"{wrong} of {total} round trips came back with other bytes"
        return StepResult(verdict=Verdict.DIFFERS, reason=reason, lines=lines, facts=facts)
    return StepResult(verdict=Verdict.OK, lines=lines, facts=facts)


def _in_one_thread(memory: CudaMemory, seed: int) -> int:
    """Return how many round trips came back with other bytes."""
    random = np.random.default_rng(seed)
    wrong = 0
    with memory.activate():
        stream = memory.create_stream()
        for size in _SIZES_BYTES:
            there, back = memory.allocate_pinned(size), memory.allocate_pinned(size)
            device = memory.allocate_device(size)
            for _ in range(_ROUNDS):
                sent = random.integers(0, 256, size, dtype=np.uint8)
                there.array[:] = sent
                back.array[:] = ~sent
                memory.copy_in(device, there, size, stream)
                memory.copy_out(back, device, size, stream)
                memory.synchronize(stream)
                wrong += not np.array_equal(back.array, sent)
            memory.free_device(device)
            memory.free_pinned(there)
            memory.free_pinned(back)
        memory.destroy_stream(stream)
    return wrong


def _leave_open(memory: CudaMemory) -> None:
    """Keep a stream and memory of another thread until the process ends: nobody closes what a program leaves."""

    def allocate() -> None:
        with memory.activate():
            stream = memory.create_stream()
            pinned, device = memory.allocate_pinned(4096), memory.allocate_device(4096)
            memory.copy_in(device, pinned, 4096, stream)
            _left_open.extend([memory, stream, pinned, device])

    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
