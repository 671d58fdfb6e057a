"""How long one picture takes: this project's bundles in FP32 and INT8, and anomalib's exports for OpenVINO, in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
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
from vae_edge.export.pipeline import ExportSettings, export_run
from vae_edge.records import Record
from vae_edge.targets import Precision, Target
from vae_edge.train.data.inspection_set import spread
from vae_edge.train.run.folder import RunFolder

_WANTED = ("file_p50_ms", "engine_p50_ms")

_N_FILES = 32

TIMED = tuple(product((Target.ONNX, Target.OPENVINO), (Precision.FP32, Precision.INT8)))
"""The runtimes and precisions that this project's networks are timed in."""


class TimingJob(Record):
    """What is to be timed."""

    models: dict[str, str]
    """By name: a run's fingerprint, or what anomalib exported."""
    rounds: int


class TimingResult(Record):
    """The times of each model."""

    models: dict[str, dict[str, float]]
    """By name (`timed_name` for this project's), medians over the rounds: `file_p50_ms`, from an image file to a
    verdict, and `engine_p50_ms`."""
    failed: dict[str, str] = Field(default_factory=dict)
    """Those that could not be timed, with the reason; they are tried again by the next call."""
    not_exported: dict[str, str] = Field(default_factory=dict)
    """Those for which there is no bundle, with the reason, which would be the same again."""


def timed_name(preset: str, target: Target, precision: Precision) -> str:
    """Return the name under which one of this project's bundles is timed."""
    return f"{preset}, {target} {precision}"


def timing_job(runs: Mapping[str, RunFolder], peers: Sequence[PeerResult], rounds: int) -> TimingJob:
    """Return the job for some runs, by preset, and other tools' models."""
    own = {preset: run.fingerprint for preset, run in runs.items()}
    return TimingJob(models=own | {peer.model: f"{peer.exported} {peer.train_s}" for peer in peers}, rounds=rounds)


def time_models(
    job: TimingJob,
    runs: Mapping[str, RunFolder],
    peers: Sequence[PeerResult],
    environment: Environment | None,
    folder: Path,
) -> TimingResult:
    """Export the runs and time everything in turn, each in a process of its own.

    Args:
        job: what to do.
        runs: by preset.
        peers: the other tools' models.
        environment: of the other tool; None if there are no such models.
        folder: for the bundles, and for the tools' caches.

    Raises:
        InputError: the pictures of a run cannot be found.
        BundleError: a run folder was changed.
    """
    here = Environment.here("vae-edge")
    candidates, not_exported = [], {}
    for preset, run in runs.items():
        for (target, precision), made in _exported(run, folder).items():
            name = timed_name(preset, target, precision)
            if isinstance(made, Bundle):
                candidates.append(Candidate(name, "", here, "process", made.folder, "vae-edge", wanted=_WANTED))
            else:
                not_exported[name] = made
    for peer in peers:
        assert environment is not None
        options = {"declare_operators": environment.declare_operators, "arguments": FP32_ARITHMETIC}
        exported = Path(peer.exported)
        candidates.append(
            Candidate(peer.model, "", environment, "process", exported, "anomalib", options, wanted=_WANTED)
        )
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
        not_exported=not_exported,
    )


def run_of(out: Path, result: CaseResult) -> RunFolder:
    """Open the run that a result is of."""
    return RunFolder.open(out / "runs" / f"{result.data}-{result.preset}-{result.seed}-auto")


def _exported(run: RunFolder, folder: Path) -> dict[tuple[Target, Precision], Bundle | str]:
    """Return a run's bundles, made where they are missing, or why one could not be made."""
    place = folder / f"{run.folder.name}-{run.fingerprint[:8]}"
    names = {kind: place / f"{run.folder.name}-{kind[0]}-{kind[1]}" for kind in TIMED}
    missing = [kind for kind in TIMED if not names[kind].is_dir()]
    why: dict[tuple[Target, Precision], str] = {}
    # All precisions of a target at once: what they share is computed once.
    for target in dict.fromkeys(target for target, _ in missing):
        precisions = tuple(precision for each, precision in missing if each is target)
        for result in export_run(run, place, ExportSettings(targets=(target,), precisions=precisions)):
            if result.bundle is None:
                why[target, result.precision] = str(result.error)
    return {kind: why[kind] if kind in why else Bundle.open(names[kind]) for kind in TIMED}
