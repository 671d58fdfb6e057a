"""Timing one call over and over in one round.

The rules: one image at a time, synchronous, host array in to host result out, by `time.perf_counter_ns`; real
inputs in rotation, so that neither caches nor branches learn a single one; warm-up apart (`MeasuringRules`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any, TypeVar

from vae_edge.benchmarks.jobs import MeasuringRules
from vae_edge.errors import InputError

_Input = TypeVar("_Input")

_SPIN_BYTES = bytes(2 << 20)
_SPINS = 9


@dataclass(frozen=True)
class Samples:
    """Durations of single calls, in the order they were made."""

    warmup_ns: tuple[int, ...]
    measured_ns: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the samples as JSON takes them."""
        return asdict(self)


def measure(call: Callable[[_Input], object], inputs: Sequence[_Input], rules: MeasuringRules) -> Samples:
    """Time `call(input)` over the inputs in rotation, by the rules.

    Raises:
        InputError: there is no input.
    """
    if not inputs:
        raise InputError("there is no input to time a call with; expected at least one image")
    rotation = cycle(inputs)
    clock = time.perf_counter_ns

    def run(is_done: Callable[[int, float], bool]) -> tuple[int, ...]:
        samples: list[int] = []
        begin = clock()
        while not is_done(len(samples), (clock() - begin) / 1e9):
            item = next(rotation)
            start = clock()
            call(item)
            samples.append(clock() - start)
        return tuple(samples)

    def is_warm(n: int, elapsed_s: float) -> bool:
        # One call at least: the first one often compiles or allocates.
        return n >= 1 and (
            elapsed_s >= rules.longest_s or (n >= rules.warmup_iterations and elapsed_s >= rules.warmup_s)
        )

    def is_measured(n: int, elapsed_s: float) -> bool:
        return n >= rules.fewest_iterations and (elapsed_s >= rules.round_s or n >= rules.most_iterations)

    warmup = run(is_warm)
    return Samples(warmup, run(is_measured))


def spin_ns() -> int:
    """Return how long a fixed piece of arithmetic takes on one core: the median of a few times hashing 2 MiB.

    It needs next to no memory and no runtime, so it changes with the core's clock and with what others do on it.
    """
    found = []
    for _ in range(_SPINS):
        begin = time.perf_counter_ns()
        hashlib.sha256(_SPIN_BYTES).digest()
        found.append(time.perf_counter_ns() - begin)
    return sorted(found)[_SPINS // 2]
