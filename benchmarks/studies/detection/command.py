"""`make bench-detection`: train with several seeds on several image sets, switch every part off in turn, compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.benchmarks.measure.process import python_module, run_job
from vae_edge.benchmarks.studies import run_study
from vae_edge.benchmarks.studies.detection.cases import CaseResult, Training
from vae_edge.benchmarks.studies.detection.peers import PEERS, PeerJob, PeerResult, measure_peer
from vae_edge.benchmarks.studies.detection.tables import networks_table, peers_table, times_table, write_tables
from vae_edge.benchmarks.studies.detection.tasks import Kind, Work, run_all, say
from vae_edge.benchmarks.studies.detection.timing import TimingJob, TimingResult, run_of, time_models, timing_job
from vae_edge.benchmarks.studies.detection.worker import Job
from vae_edge.benchmarks.studies.peers.environments import BACKBONE_PACKAGE, Environment, anomalib_in, make_anomalib
from vae_edge.cli.console import results_console
from vae_edge.errors import UsageError
from vae_edge.platform.atomic import write_text
from vae_edge.platform.machine import usable_cores
from vae_edge.train.data.sources import resolve_data
from vae_edge.train.model.presets import PRESETS, Network, preset_named
from vae_edge.train.run.folder import RunFolder

_TABLES = "detection.md"


@dataclass(frozen=True)
class _Peers:
    """What is requested of the other tools."""

    models: tuple[str, ...]
    environment: Path | None
    epochs: int
    coreset: float
    rounds: int


def detection(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DIR|sample:PRODUCT...", help="Image sets in the layout of MVTec AD, with defects."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for runs, results and tables; an interrupted study is continued.")],
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0,1,2",
    preset: Annotated[str, typer.Option(help=f"Networks to train, comma-separated: {', '.join(PRESETS)}.")] = "nano",
    trainings: Annotated[
        str,
        typer.Option(help=f"What to train, comma-separated: {', '.join(each.value for each in Training)}; or all."),
    ] = "all",
    repeats: Annotated[
        int | None,
        typer.Option(help="Number of these seeds for trainings other than auto.", show_default="all seeds"),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate/--no-ablate",
            help="Also measure parts of the scoring, the best choice in hindsight, and the template.",
        ),
    ] = True,
    epochs: Annotated[int | None, typer.Option(help="Of every training.", show_default="vae-train's")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes at the same time.", show_default="one for each core")
    ] = None,
    peers: Annotated[
        str,
        typer.Option(
            help=f"Models of anomalib, on the first seed's split and with feature's size: {', '.join(PEERS)}; or all."
        ),
    ] = "",
    anomalib: Annotated[
        Path | None,
        typer.Option(help="Virtual environment with anomalib and the backbone's weights.", show_default="one is made"),
    ] = None,
    peer_epochs: Annotated[int, typer.Option(min=1, help="Of STFPM.")] = 100,
    coreset: Annotated[
        float, typer.Option(min=0.001, max=1.0, help="Share of the patches that PatchCore keeps.")
    ] = 0.1,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of timing all networks and models of the first seed in turn; 0: none.")
    ] = 3,
) -> None:
    """Measure image AUROC, pixel AUROC and AUPRO of what vae-train makes, and with each part switched off."""
    cases = _cases(data, out, seeds, preset, trainings, repeats, ablate=ablate, epochs=epochs)
    asked = _Peers(_models_of(peers), anomalib, peer_epochs, coreset, rounds)
    most = jobs or usable_cores()
    results = list(run_all(Kind(Job, CaseResult, _do_case), cases, out / "results", most).values())
    peers_found, tables = _compare(results, asked, out.absolute(), most)
    text = "\n".join([write_tables(results), networks_table(results, peers_found), *tables])
    write_text(out / _TABLES, text)
    results_console().print(text, markup=False, soft_wrap=True)


def _models_of(text: str) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := sorted(set(words).difference(PEERS, ["all"])):
        raise UsageError(f"there is no model {unknown[0]!r}; expected some of {', '.join(PEERS)}, or all")
    return PEERS if "all" in words else tuple(words)


def _cases(
    data: list[str],
    out: Path,
    seeds: str,
    presets: str,
    trainings: str,
    repeats: int | None,
    *,
    ablate: bool,
    epochs: int | None,
) -> dict[str, Job]:
    words = [word.strip() for word in trainings.split(",")]
    known = [training.value for training in Training]
    if unknown := sorted(set(words).difference(known, ["all"])):
        raise UsageError(f"there is no training {unknown[0]!r}; expected some of {', '.join(known)}, or all")
    wanted = tuple(Training) if "all" in words else tuple(Training(word) for word in words)
    if not all(word.strip().isdigit() for word in seeds.split(",")):
        raise UsageError(f"the seeds are {seeds!r}; expected whole numbers such as 0,1,2")
    cases = {}
    for preset in presets.split(","):
        preset_named(preset.strip())
        for text in data:
            folder = resolve_data(text).absolute()
            for number, seed in enumerate(seeds.split(",")):
                cases[f"{folder.name}-{preset.strip()}-{seed.strip()}"] = Job(
                    data=str(folder),
                    preset=preset.strip(),
                    seed=int(seed),
                    runs=str((out / "runs").absolute()),
                    trainings=wanted if repeats is None or number < repeats else (Training.AUTO,),
                    epochs=epochs,
                    ablate=ablate,
                )
    return cases


def _do_case(job: Job, work: Work) -> CaseResult:
    program, values = python_module("vae_edge.benchmarks.studies.detection.worker"), job.model_dump(mode="json")
    found = run_job(program, values, math.inf, cancel=work.cancel, log=work.log, hear=work.hear)
    return CaseResult.model_validate(found)


def _compare(
    results: Sequence[CaseResult], asked: _Peers, out: Path, most: int
) -> tuple[dict[str, list[PeerResult]], list[str]]:
    """Measure the other tools on the split of the first seed of every image set, and time everything.

    Returns:
        The other tools' results by image set, and tables of each set.
    """
    seed = results[0].seed
    of_seed = [result for result in results if result.seed == seed]
    own = {
        data: [result for result in of_seed if result.data == data] for data in dict.fromkeys(r.data for r in of_seed)
    }
    environment = _environment(asked, out) if asked.models else None
    peers = _measure_peers(own, asked, environment, out, most) if environment is not None else {}
    tables = []
    for data, cases in own.items():
        found = peers.get(data, [])
        timing = _time(data, cases, found, asked, environment, out) if asked.rounds else None
        if found:
            tables.append(peers_table(data, cases, found, timing))
        if timing is not None:
            tables.append(times_table(data, cases, found, timing))
    return peers, tables


def _environment(asked: _Peers, out: Path) -> Environment:
    if asked.environment is None:
        return make_anomalib(out / "environments" / "anomalib", say, (BACKBONE_PACKAGE,))
    say(f"looking at the environment in {asked.environment}")
    return anomalib_in(asked.environment)


def _measure_peers(
    own: Mapping[str, Sequence[CaseResult]], asked: _Peers, environment: Environment, out: Path, most: int
) -> dict[str, list[PeerResult]]:
    jobs = {
        (data, model): _peer_job(model, run_of(out, _model_for_peers(cases)), asked, out)
        for data, cases in own.items()
        for model in asked.models
    }
    names = {(data, model): f"{data}-{model}-{own[data][0].seed}" for data, model in jobs}
    kind = Kind(PeerJob, PeerResult, lambda job, work: measure_peer(job, environment, work))
    done = run_all(kind, {names[key]: job for key, job in jobs.items()}, out / "results", most)
    return {data: [done[names[data, model]] for model in asked.models] for data in own}


def _time(
    data: str,
    cases: Sequence[CaseResult],
    peers: Sequence[PeerResult],
    asked: _Peers,
    environment: Environment | None,
    out: Path,
) -> TimingResult:
    """Time all models of an image set once nothing else of the study is running."""
    runs = {result.preset: run_of(out, result) for result in cases}

    def do(job: TimingJob, work: Work) -> TimingResult:
        return time_models(job, runs, peers, environment, out / "timing")

    name = f"{data}-timing-{cases[0].seed}"
    job = timing_job(runs, peers, asked.rounds)
    kind = Kind(TimingJob, TimingResult, do, is_whole=lambda result: not result.failed)
    return run_all(kind, {name: job}, out / "results", 1)[name]


def _model_for_peers(results: Sequence[CaseResult]) -> CaseResult:
    """Return the result whose run sets the size for the others: the one on features, if there is one."""
    return next((result for result in results if result.preset == Network.FEATURE), results[0])


def _peer_job(model: str, run: RunFolder, asked: _Peers, out: Path) -> PeerJob:
    return PeerJob(
        model=model,
        run=str(run.folder),
        fingerprint=run.fingerprint,
        out=str((out / "peers" / f"{run.folder.name}-{model}").absolute()),
        epochs=asked.epochs,
        coreset=asked.coreset,
    )


if __name__ == "__main__":
    run_study(detection)
