"""Measuring one bundle: the processes that one round needs.

Every round is a fresh process, and the bundles take turns (A B C, B C A, ...). A process that stays alive would be
measured over and over with the same memory layout and the same luck: how much a program's speed differs from one start
to the next would not show, and the next start could lie outside the intervals (Kalibera and Jones, "Rigorous
Benchmarking in Reasonable Time", ISMM 2013; Georges et al., "Statistically Rigorous Java Performance Evaluation",
OOPSLA 2007). Also, nothing else runs beside the bundle whose turn it is. Taking turns spreads a drift of the machine
over all bundles; because each round begins with a different bundle, no bundle always follows the same one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vae_edge.benchmarks.measure.jobs import Job, LoadJob, OutputsJob, RoundJob, StartJob, StreamJob
from vae_edge.benchmarks.measure.plan import BenchmarkImages, SuiteSettings
from vae_edge.benchmarks.measure.process import JobResult, python_module, run_job
from vae_edge.benchmarks.measure.samples import RawSamples
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.errors import InputError, VaeEdgeError
from vae_edge.manifest import Manifest, Thresholds
from vae_edge.manifest_file import read_manifest
from vae_edge.targets import SUPPORTED

_LONG_COLD_START_S = 60.0
"""A cold start that takes longer than this, such as building a TensorRT engine, is not repeated."""


@dataclass(frozen=True)
class SuiteProgress:
    """What is being measured, and how far the benchmark has come."""

    bundle: str
    doing: str
    step: int
    """Steps done before this one."""
    n_steps: int


@dataclass(frozen=True)
class ReferenceResult:
    """What running a bundle's references said."""

    agrees: bool
    measures: list[str]
    """A line each."""


@dataclass
class Row:
    """A bundle while it is being measured."""

    name: str
    folder: Path
    manifest: Manifest | None = None
    outputs: Outputs | None = None
    references: ReferenceResult | None = None
    samples: RawSamples = field(default_factory=RawSamples)
    failure: str | None = None
    """Why it is not measured any further."""
    arithmetic: Literal["fp32", "auto"] = "fp32"
    """`auto`: in the device's faster arithmetic, where the references agree in it."""

    @property
    def has_run(self) -> bool:
        """Whether at least one round is complete."""
        return bool(self.samples.rounds)


class Steps:
    """Counts steps and reports them to the caller."""

    def __init__(self, n_steps: int, progress: Callable[[SuiteProgress], None] | None) -> None:
        self.done = 0
        self._n_steps = n_steps
        self._progress = progress

    def begin(self, bundle: str, doing: str) -> None:
        """Report that a step begins, and count it."""
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
        """Read the bundle's manifest and compute its outputs for the judged images.

        This also fills the cache with what the runtime compiles for this device, so that the rounds start warm.

        Raises:
            VaeEdgeError: the bundle cannot be read or cannot run; the message is the reason.
        """
        row.manifest = Bundle.open(row.folder, check_files=False).manifest
        maps_file = self._scratch / f"{len(list(self._scratch.iterdir()))}.npy"
        files = tuple(str(file.path.resolve()) for file in self._images.judged)
        job = OutputsJob(**{**self._opening(row), "images": files}, maps_file=str(maps_file))
        found = run_worker(job, self._settings.worker_timeout_s)
        if found["references"] is not None:
            row.references = ReferenceResult(**found["references"])
        row.outputs = Outputs(
            np.asarray(found["scores"], dtype=np.float64),
            np.load(maps_file, mmap_mode="r", allow_pickle=False),
            row.manifest.thresholds,
        )

    def measure_round(self, row: Row, number: int) -> None:
        """Measure one round, each part in its own process, and keep the complete parts.

        Args:
            row: the bundle.
            number: of the round, from 1.

        Raises:
            VaeEdgeError: it could not run.
        """
        settings, samples, opening = self._settings, row.samples, self._opening(row)
        begin_s = time.perf_counter() - self._begin
        job = RoundJob(**opening, **self._start(row), rules=settings.rules, throughput_s=settings.throughput_s)
        result = self._run(job)
        samples.rounds[number] = {**result, "begin_s": begin_s}
        assert row.manifest is not None
        for requests, batch_size in configurations(settings, row.manifest.max_batch):
            stream = StreamJob(**opening, requests=requests, batch_size=batch_size, throughput_s=settings.throughput_s)
            samples.streams.setdefault((requests, batch_size), {})[number] = self._run(stream)
        for fps in settings.load_fps:
            samples.loads.setdefault(fps, {})[number] = self._run(LoadJob(**opening, fps=fps, load_s=settings.load_s))
        if number <= settings.cold_starts and not any(
            start["open_s"] > _LONG_COLD_START_S for start in samples.cold.values()
        ):
            with tempfile.TemporaryDirectory(prefix="vae-bench-cache-") as empty:
                cold = self._run(StartJob(**opening, **self._start(row)), cache_folder=Path(empty))
            samples.cold[number] = cold

    def _run(self, job: Job, cache_folder: Path | None = None) -> dict[str, Any]:
        result = run_worker(job, self._settings.worker_timeout_s, cache_folder=cache_folder)
        return dict(result) if result.first_result_ns is None else {**result, "first_result_ns": result.first_result_ns}

    def _opening(self, row: Row) -> dict[str, Any]:
        return {
            "bundle": str(row.folder.resolve()),
            "device": self._settings.device,
            "threads": self._settings.threads,
            "arithmetic": row.arithmetic,
            "images": tuple(str(path.resolve()) for path in self._images.timing),
        }

    def _start(self, row: Row) -> dict[str, Any]:
        assert row.manifest is not None
        return {
            "runtime_module": SUPPORTED[row.manifest.target].backend.partition(":")[0],
            "n_memory_images": self._settings.n_memory_images,
        }


def run_worker(job: Job, timeout_s: float, *, cache_folder: Path | None = None) -> JobResult:
    """Run a job in a fresh process, see `vae_edge.benchmarks.measure.process.run_job`.

    Args:
        job: what to do.
        timeout_s: the process is killed after this time.
        cache_folder: where the process keeps what it compiles; None: the user's own cache.
    """
    variables = None if cache_folder is None else {"VAE_EDGE_CACHE": str(cache_folder)}
    return run_job(python_module("vae_edge.benchmarks.measure.worker"), asdict(job), timeout_s, variables=variables)


def configurations(settings: SuiteSettings, max_batch: int | None) -> list[tuple[int | None, int]]:
    """Return the numbers of requests and batch sizes that the throughput is measured with, besides the default.

    Batches that are larger than the bundle accepts are left out.
    """
    if not settings.requests and not settings.batch_sizes:
        return []
    batch_sizes = [size for size in settings.batch_sizes or (1,) if max_batch is None or size <= max_batch]
    return list(product(settings.requests or (None,), batch_sizes))


def named_bundles(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the bundles in the given folders, each once, under a unique name.

    The name is the folder's; if two folders have the same name, as much of the path is added as tells them apart.

    Raises:
        InputError: a path is not a bundle and contains none, or no path was given.
    """
    found = {folder.resolve(): folder for path in paths for folder in bundles_in(Path(path))}
    if not found:
        raise InputError("no bundle was given; expected at least one folder made by vae-export")
    names: dict[str, Path] = {}
    for place, folder in found.items():
        depth = 1
        while sum(other.parts[-depth:] == place.parts[-depth:] for other in found) > 1:
            depth += 1
        names["/".join(place.parts[-depth:])] = folder
    return names


def rows_of(bundles: Sequence[Path], arithmetic: Literal["fp32", "auto"]) -> list[Row]:
    """Return a row for each bundle and, with `auto`, another one for its faster arithmetic, if its runtime has any.

    Raises:
        InputError: see `named_bundles`.
    """
    rows = []
    for name, folder in named_bundles(bundles).items():
        rows.append(Row(name, folder))
        with suppress(VaeEdgeError):  # The first row has the reason.
            if arithmetic == "auto" and "arithmetic" in SUPPORTED[read_manifest(folder).target].options:
                rows.append(Row(f"{name} (auto)", folder, arithmetic="auto"))
    return rows


def order_of_round(rows: Sequence[Row], number: int) -> list[Row]:
    """Return the order of the bundles in a round: each round begins with a different one."""
    first = (number - 1) % len(rows)
    return [*rows[first:], *rows[:first]]


def measure_all(
    rows: Sequence[Row], images: BenchmarkImages, settings: SuiteSettings, scratch: Path, steps: Steps
) -> str | None:
    """Measure all rounds of all bundles; return why it ended early, if it did."""
    measurer = Measurer(images, settings, scratch)
    number = 0
    try:
        for row in rows:
            steps.begin(row.name, "verdicts")
            try:
                measurer.take_outputs(row)
            except VaeEdgeError as error:
                row.failure = str(error)
                steps.done += settings.rounds
        for number in range(1, settings.rounds + 1):
            for row in order_of_round(rows, number):
                if row.failure is not None:
                    continue
                doing = f"round {number} of {settings.rounds}"
                steps.begin(row.name, doing)
                try:
                    measurer.measure_round(row, number)
                except VaeEdgeError as error:
                    row.failure = str(error)
                    steps.done += settings.rounds - number
    except KeyboardInterrupt:
        if not any(row.has_run for row in rows):
            raise
        return f"it was interrupted in round {number} of {settings.rounds}"
    return None


@dataclass(frozen=True)
class Outputs:
    """A bundle's outputs for the judged images, in their order."""

    scores: NDArray[np.float64]
    """float64 [n]"""
    maps: NDArray[np.float32]
    """float32 [n, H, W]; may lie on disk."""
    thresholds: Thresholds
    """The bundle's own."""

    @property
    def verdicts(self) -> NDArray[np.bool_]:
        """Which images it calls anomalous, bool [n]."""
        return np.asarray(self.scores > self.thresholds.image_threshold)

    @property
    def margins(self) -> NDArray[np.float64]:
        """How far each score is above the threshold, in standard deviations of the held-out good parts' scores."""
        spread = float(np.std(self.thresholds.calibration_scores))
        return np.asarray((self.scores - self.thresholds.image_threshold) / (spread or 1.0), dtype=np.float64)
