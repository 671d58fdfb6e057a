"""What every measured process uses: the timing loop, counting a stream, a paced source, memory, and how it reports.

Standard library only. The process that measures a start must not pay for imports that are needed later, and other tools
are measured in their own environments, where this package is not installed and this file is loaded by its path.

A measured process is started as `PROGRAM JOB.json RESULT.json` by `vae_edge.benchmarks.measure.process`. While it works
it writes events to its standard output, one JSON object on a line that begins with `EVENT_PREFIX`; other lines come
from the runtime. At the end it writes the result file: `{"error": null | "a sentence", ...}` (`serve`).

The rules of timing: one image at a time, synchronous, host array in to host result out, by `time.perf_counter_ns`; real
inputs in rotation, so that caches and branch predictors do not adapt to a single one; a separate warm-up
(`MeasuringRules`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Generic, TypeVar

_Input = TypeVar("_Input")
_Result = TypeVar("_Result")

EVENT_PREFIX = "vae-edge-event "

_SPIN_BYTES = bytes(2 << 20)
_SPINS = 9

_FILLING = 16
"""At least this many verdicts fill a stream's pipeline before counting begins."""

_FILLING_SHARE = 0.1
"""At least this share of the time fills the pipeline."""

_FEWEST_CALLS = 10


@dataclass(frozen=True)
class MeasuringRules:
    """How long a latency is measured in one round.

    Warm-up lasts `warmup_s` and `warmup_iterations`, whichever ends later, but no longer than `longest_s`. Measuring
    lasts `round_s` or `most_iterations`, whichever ends first, but at least `fewest_iterations`. Over 10 rounds that is
    10 s or 10,000 samples: MLPerf's single-stream scenario asks for 1024 queries, NVIDIA's trtexec for 10 iterations
    and 3 s.
    """

    warmup_s: float = 0.3
    warmup_iterations: int = 10
    round_s: float = 1.0
    most_iterations: int = 1000
    fewest_iterations: int = 10
    longest_s: float = 10.0
    """Limit of a warm-up; a slow model is warm after a few images."""


QUICK_RULES = MeasuringRules(warmup_s=0.05, warmup_iterations=5, round_s=0.2, most_iterations=200, longest_s=2.0)


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
        ValueError: there is no input.
    """
    if not inputs:
        raise ValueError("there is no input to time a call with; expected at least one image")
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


def timed(call: Callable[[_Input], _Result], item: _Input) -> tuple[_Result, int]:
    """Return the result of a call and how long it took, in ns; for two sides that take turns with every input."""
    start = time.perf_counter_ns()
    result = call(item)
    return result, time.perf_counter_ns() - start


def count_stream(verdicts: Iterable[object], duration_s: float, batch_size: int = 1) -> dict[str, int]:
    """Count the verdicts of an endless stream after the first ones have filled the pipeline.

    Returns:
        `n_images` that came after the first one counted, and `elapsed_ns` from that one to the last.
    """
    begin = counting_from = end = time.perf_counter_ns()
    n_images, counting = 0, False
    for position, _ in enumerate(verdicts, 1):
        end = time.perf_counter_ns()
        if counting:
            n_images += 1
            # Verdicts of a batch come together: only whole batches are counted.
            if end - counting_from >= duration_s * 1e9 and n_images % batch_size == 0:
                break
        elif position % batch_size == 0:
            counting = position >= _FILLING and end - begin >= _FILLING_SHARE * duration_s * 1e9
            counting_from = end
    return {"n_images": n_images, "elapsed_ns": end - counting_from}


def calls_per_s(call: Callable[[_Input], object], inputs: Sequence[_Input], n_callers: int, duration_s: float) -> float:
    """Return the calls per second of several threads that each take the next of the inputs in rotation."""
    taking, items = threading.Lock(), cycle(inputs)
    begin = time.perf_counter() + _FILLING_SHARE * duration_s
    finished: list[float] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not failures and (time.perf_counter() < begin + duration_s or len(finished) < _FEWEST_CALLS):
                with taking:
                    item = next(items)
                call(item)
                now = time.perf_counter()
                if now >= begin:
                    finished.append(now)
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread that can report it
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(n_callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    # The first to finish stands for the beginning: what it had begun before is not counted.
    return (len(finished) - 1) / (max(finished) - min(finished))


class PacedSource(Generic[_Input]):
    """Yields image k at the time k / fps after the first one was requested, or at once if that time has passed.

    Nothing is dropped and no due time moves: if the detector falls behind, images wait, as they would in a camera's
    buffer. So latency must be counted from when an image was due and not from when it was taken: a source that waits
    for a slow detector and only then looks at the clock leaves out exactly the images that were delayed ("coordinated
    omission", Gil Tene, "How NOT to Measure Latency", 2015).

    Args:
        images: given in rotation.
        fps: images a second.
        duration_s: images that would be due later are not yielded.
    """

    def __init__(self, images: Sequence[_Input], fps: float, duration_s: float) -> None:
        self._images = images
        self._period_ns = 1e9 / fps
        self._n = max(int(duration_s * fps), 1)
        self._stopped = threading.Event()
        self.due_ns: list[int] = []
        """When each image is due, by `time.perf_counter_ns`; known once the first one was asked for."""

    def __iter__(self) -> Iterator[_Input]:
        """Yield the images; called from several threads alternately, see `Detector.stream`."""
        begin = time.perf_counter_ns()
        self.due_ns = [begin + round(number * self._period_ns) for number in range(self._n)]
        for number, due in enumerate(self.due_ns):
            wait_s = (due - time.perf_counter_ns()) / 1e9
            if wait_s > 0 and self._stopped.wait(wait_s):
                return
            yield self._images[number % len(self._images)]

    def stop(self) -> None:
        """End the waiting."""
        self._stopped.set()


def spin_ns() -> int:
    """Return how long a fixed computation takes on one core: the median of a few runs that hash 2 MiB.

    It needs hardly any memory and no runtime, so it changes with the core's clock and with what others do on it.
    """
    found = []
    for _ in range(_SPINS):
        begin = time.perf_counter_ns()
        hashlib.sha256(_SPIN_BYTES).digest()
        found.append(time.perf_counter_ns() - begin)
    return sorted(found)[_SPINS // 2]


def high_water_mark(status: Path) -> int | None:
    """Return the peak of resident memory, in bytes, from a process's status file on Linux; None: the file has none.

    Raises:
        OSError: the file does not exist, or the process no longer exists.
    """
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def peak_resident_bytes() -> int | None:
    """Return the most physical memory that this process has held since it started, in bytes; None: unknown here.

    On Linux this is VmHWM of /proc/self/status and not `ru_maxrss` of getrusage: that one is carried over fork and exec
    (see `exec_mmap` in the kernel's fs/exec.c), so a child of a large process starts with the parent's figure. Pages
    of mapped files (libraries, weights) count as long as they are resident; a GPU's own memory does not.
    """
    if sys.platform == "win32":
        with suppress(ImportError):
            from vae_edge.platform.windows import peak_memory_bytes

            return peak_memory_bytes(os.getpid())
        return None
    with suppress(OSError):
        peak_bytes = high_water_mark(Path("/proc/self/status"))
        if peak_bytes is not None:
            return peak_bytes
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def tell(event: str, **values: object) -> None:
    """Report an event to the measuring process immediately."""
    # On a line of its own, whatever a runtime has left unfinished on this one.
    sys.stdout.write(f"\n{EVENT_PREFIX}{json.dumps({'event': event, **values})}\n")
    sys.stdout.flush()


class Notes:
    """Reports a job's progress: in the log, which is its standard error, and as `note` events.

    Args:
        every_s: how much time lies between two reports of how far something is.
    """

    def __init__(self, every_s: float = 20.0) -> None:
        self._every_s = every_s
        self._stage = ""
        self._at = 0.0

    def note(self, sentence: str) -> None:
        """Report a sentence."""
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()
        tell("note", sentence=sentence)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report how far a stage is, now and then; one that takes less time than that is not mentioned."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._at = stage, now
        if now - self._at >= self._every_s:
            self._at = now
            self.note(f"{stage}: {done} of {total}")


def serve(
    arguments: Sequence[str],
    do: Callable[[dict[str, Any]], dict[str, Any]],
    spoken: tuple[type[Exception], ...] = (),
) -> int:
    """Do the job in the file `arguments[0]`, write its result to `arguments[1]` and return the exit code.

    Args:
        arguments: of the program.
        do: does the job and returns its result.
        spoken: errors whose message is a sentence for the user; other errors are reported with their type.
    """
    try:
        result = do(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        result["error"] = None
    except spoken as error:
        result = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a runtime's own errors must reach the table as a reason, whatever they are
        traceback.print_exc()
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(arguments[1]).write_text(json.dumps(result), encoding="utf-8")
    return 0 if result["error"] is None else 1
