"""Measuring one bundle: the processes that a round of it takes.

Every round is a fresh process, and the bundles take turns (A B C, B C A, ...). A process that stays alive would be
measured over and over with the same memory layout and the same luck: how much a program's speed differs from one start
to the next would not show, and the intervals would promise what the next start does not keep (Kalibera and Jones,
"Rigorous Benchmarking in Reasonable Time", ISMM 2013; Georges et al., "Statistically Rigorous Java Performance
Evaluation", OOPSLA 2007). It also leaves nothing running beside the bundle whose turn it is. Taking turns spreads a
drift of the machine over all of them; beginning with another bundle each time keeps one from always following the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from vae_edge.benchmarks.accuracy import Outputs
from vae_edge.benchmarks.images import BenchmarkImages
from vae_edge.benchmarks.jobs import LoadJob, OutputsJob, RoundJob, StartJob, StreamJob
from vae_edge.benchmarks.processes import WorkerResult, run_worker
from vae_edge.benchmarks.raw_samples import RawSamples
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.bundle import Bundle
from vae_edge.manifest import Manifest
from vae_edge.targets import SUPPORTED

_LONG_COLD_START_S = 60.0
"""A cold start that takes longer, such as building a TensorRT engine, is not repeated."""


@dataclass(frozen=True)
class SuiteProgress:
    """What is being measured, and how far the whole benchmark is."""

    bundle: str
    doing: str
    step: int
    """Steps done before this one."""
    n_steps: int


@dataclass
class Row:
    """A bundle while it is being measured."""

    name: str
    folder: Path
    manifest: Manifest | None = None
    outputs: Outputs | None = None
    samples: RawSamples = field(default_factory=RawSamples)
    failure: str | None = None
    """Why it is not measured any further."""

    @property
    def has_run(self) -> bool:
        """Whether at least one round is complete."""
        return bool(self.samples.rounds)


class Steps:
    """Counts steps and tells the caller."""

    def __init__(self, n_steps: int, progress: Callable[[SuiteProgress], None] | None) -> None:
        self.done = 0
        self._n_steps = n_steps
        self._progress = progress

    def begin(self, bundle: str, doing: str) -> None:
        """Tell that a step begins, and count it."""
        if self._progress is not None:
            self._progress(SuiteProgress(bundle, doing, min(self.done, self._n_steps - 1), self._n_steps))
        self.done += 1


class Measurer:
    """Runs the processes of all bundles.

    Args:
        images: what to measure with.
        settings: how to measure.
        scratch: an empty folder for the maps.
    """

    def __init__(self, images: BenchmarkImages, settings: SuiteSettings, scratch: Path) -> None:
        self._images = images
        self._settings = settings
        self._scratch = scratch
        self._begin = time.perf_counter()

    def take_outputs(self, row: Row) -> None:
        """Read the bundle's manifest and take its outputs for the judged images.

        It also leaves in the cache what the runtime compiles for this device, so that the rounds start warm.

        Raises:
            VaeEdgeError: the bundle cannot be read or cannot run; the message is the reason.
        """
        row.manifest = Bundle.open(row.folder, check_files=False).manifest
        maps_file = self._scratch / f"{len(list(self._scratch.iterdir()))}.npy"
        files = tuple(str(file.path.resolve()) for file in self._images.judged)
        job = OutputsJob(**{**self._opening(row), "images": files}, maps_file=str(maps_file))
        found = run_worker(job, self._settings.worker_timeout_s)
        row.outputs = Outputs(
            np.asarray(found["scores"], dtype=np.float64),
            np.load(maps_file, mmap_mode="r", allow_pickle=False),
            row.manifest.thresholds,
        )

    def measure_round(self, row: Row, number: int, listener: Callable[[str], None] = lambda _: None) -> None:
        """Measure one round, each part in a process of its own, and keep what is complete.

        Args:
            row: the bundle.
            number: of the round, from 1.
            listener: told what is being measured.

        Raises:
            VaeEdgeError: it could not run.
        """
        settings, samples, opening = self._settings, row.samples, self._opening(row)
        begin_s = time.perf_counter() - self._begin

        def listen(event: dict[str, Any]) -> None:
            if event["event"] == "step":
                listener(event["name"])

        listener("start")
        job = RoundJob(**opening, **self._start(row), rules=settings.rules, throughput_s=settings.throughput_s)
        result = self._run(job, listen)
        samples.rounds[number] = {**result, "begin_s": begin_s}
        assert row.manifest is not None
        for requests, batch_size in configurations(settings, row.manifest.max_batch):
            listener(f"throughput with {requests or 'default'} requests, batch {batch_size}")
            stream = StreamJob(**opening, requests=requests, batch_size=batch_size, throughput_s=settings.throughput_s)
            samples.streams.setdefault((requests, batch_size), {})[number] = self._run(stream)
        for fps in settings.load_fps:
            listener(f"{fps:g} images/s")
            samples.loads.setdefault(fps, {})[number] = self._run(LoadJob(**opening, fps=fps, load_s=settings.load_s))
        if number <= settings.cold_starts and not any(
            start["open_s"] > _LONG_COLD_START_S for start in samples.cold.values()
        ):
            listener("cold start")
            with tempfile.TemporaryDirectory(prefix="vae-bench-cache-") as empty:
                cold = self._run(StartJob(**opening, **self._start(row)), cache_folder=Path(empty))
            samples.cold[number] = cold

    def _run(
        self, job: Any, listen: Callable[[dict[str, Any]], None] | None = None, cache_folder: Path | None = None
    ) -> dict[str, Any]:
        result: WorkerResult = run_worker(job, self._settings.worker_timeout_s, listen, cache_folder=cache_folder)
        kept = {name: value for name, value in result.items() if name != "error"}
        return kept if result.first_result_ns is None else {**kept, "first_result_ns": result.first_result_ns}

    def _opening(self, row: Row) -> dict[str, Any]:
        return {
            "bundle": str(row.folder.resolve()),
            "device": self._settings.device,
            "threads": self._settings.threads,
            "images": tuple(str(path.resolve()) for path in self._images.timing),
        }

    def _start(self, row: Row) -> dict[str, Any]:
        assert row.manifest is not None
        return {
            "runtime_module": SUPPORTED[row.manifest.target].backend.partition(":")[0],
            "n_memory_images": self._settings.n_memory_images,
        }


def configurations(settings: SuiteSettings, max_batch: int | None) -> list[tuple[int | None, int]]:
    """Return the numbers of requests and batch sizes that the throughput is measured with, beside the default.

    Batches that are larger than the bundle takes are left out.
    """
    if not settings.requests and not settings.batch_sizes:
        return []
    batch_sizes = [size for size in settings.batch_sizes or (1,) if max_batch is None or size <= max_batch]
    return list(product(settings.requests or (None,), batch_sizes))
