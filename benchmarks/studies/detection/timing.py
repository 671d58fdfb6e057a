"""How long one picture takes: this project's bundles and anomalib's exports for OpenVINO in FP32, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from pydantic import Field

from vae_edge.benchmarks.studies.detection.cases import CaseResult
from vae_edge.benchmarks.studies.detection.peers import PeerResult
from vae_edge.benchmarks.studies.peers.candidates import FP32_ARITHMETIC, Candidate
from vae_edge.benchmarks.studies.peers.environments import Environment
from vae_edge.benchmarks.studies.peers.rounds import Plan, run_rounds
from vae_edge.bundle import Bundle
from vae_edge.cli.console import notes_console
from vae_edge.errors import DeviceError
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.records import Record
from vae_edge.targets import Precision, Target
from vae_edge.train.data.inspection_set import spread
from vae_edge.train.run.folder import RunFolder

_WANTED = ("file_p50_ms", "engine_p50_ms")

_N_FILES = 32


class TimingJob(Record):
    """What is to be timed."""

    models: dict[str, str]
    """By name: a run's fingerprint, or what anomalib exported."""
    rounds: int


class TimingResult(Record):
    """The times of each model."""

    models: dict[str, dict[str, float]]
    """By name, medians over the rounds: `file_p50_ms`, from an image file to a verdict, and `engine_p50_ms`."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Those that could not be timed, with the reason."""


def timing_job(runs: Mapping[str, RunFolder], peers: Sequence[PeerResult], rounds: int) -> TimingJob:
    """Return the job for some runs, by preset, and other tools' models."""
    own = {preset: run.fingerprint for preset, run in runs.items()}
    return TimingJob(models=own | {peer.model: f"{peer.exported} {peer.train_s}" for peer in peers}, rounds=rounds)


def time_models(
    job: TimingJob, runs: Mapping[str, RunFolder], peers: Sequence[PeerResult], environment: Environment, folder: Path
) -> TimingResult:
    """Export the runs and time everything in turn, each in a process of its own.

    Args:
        job: what to do.
        runs: by preset.
        peers: the other tools' models.
        environment: of the other tool.
        folder: for the bundles, and for the tools' caches.

    Raises:
        DeviceError: a run could not be exported.
    """
    here = Environment.here("vae-edge")
    candidates = [
        Candidate(preset, "", here, "process", _export(run, folder).folder, "vae-edge", wanted=_WANTED)
        for preset, run in runs.items()
    ]
    options = {"declare_operators": environment.declare_operators, "arguments": FP32_ARITHMETIC}
    candidates += [
        Candidate(peer.model, "", environment, "process", Path(peer.exported), "anomalib", options, wanted=_WANTED)
        for peer in peers
    ]
    tests = spread(next(iter(runs.values())).find_images(("test",)), _N_FILES)
    plan = Plan(
        files=tuple(str(file.path) for file in tests),
        judged=(),
        rounds=job.rounds,
        seconds=2.0,
        n_start=1,
        timeout_s=1800.0,
        scratch=folder,
    )
    measured = run_rounds(candidates, plan, lambda line: notes_console().print(line, markup=False))
    return TimingResult(
        models={
            each.candidate.row: {kind: median(sample[kind] for sample in each.samples) for kind in _WANTED}
            for each in measured
            if each.failed_because is None and each.samples
        },
        failed={each.candidate.row: each.failed_because for each in measured if each.failed_because is not None},
    )


def run_of(out: Path, result: CaseResult) -> RunFolder:
    """Open the run that a result is of."""
    return RunFolder.open(out / "runs" / f"{result.data}-{result.preset}-{result.seed}-auto")


def _export(run: RunFolder, folder: Path) -> Bundle:
    made = folder / f"{run.folder.name}-{run.fingerprint[:8]}"
    place = made / f"{run.folder.name}-{Target.OPENVINO}-{Precision.FP32}"
    if place.is_dir():
        return Bundle.open(place)
    settings = ExportSettings(targets=(Target.OPENVINO,), precisions=(Precision.FP32,))
    (result,) = export_run(run, made, settings)
    if result.bundle is None:
        raise DeviceError(f"{run.folder} could not be exported for OpenVINO: {result.error}")
    return result.bundle
