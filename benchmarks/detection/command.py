"""`make bench-detection`: train with several seeds on several image sets, switch every part off in turn, compare."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.atomic import write_text
from vae_edge.benchmarks.detection.cases import CaseResult, Training
from vae_edge.benchmarks.detection.tables import write_tables
from vae_edge.benchmarks.detection.worker import Job
from vae_edge.cli.console import notes_console, results_console
from vae_edge.errors import InputError, UsageError, VaeEdgeError
from vae_edge.machine import usable_cores
from vae_edge.train.inspection_set import resolve_data
from vae_edge.train.presets import preset_named

_TABLES = "detection.md"


@dataclass
class _Started:
    name: str
    process: subprocess.Popen[bytes]
    result: Path
    log: Path


def detection(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DIR|sample:PRODUCT...", help="Image sets in the layout of MVTec AD, with defects."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for runs, results and tables; an interrupted study goes on.")],
    seeds: Annotated[str, typer.Option(help="Comma-separated seeds.")] = "0,1,2",
    preset: Annotated[str, typer.Option(help="Of the network; several are comma-separated.")] = "nano",
    trainings: Annotated[
        str,
        typer.Option(help=f"What to train, comma-separated: {', '.join(each.value for each in Training)}; or all."),
    ] = "all",
    repeats: Annotated[
        int | None,
        typer.Option(help="Of the seeds so many for the other trainings than auto.", show_default="all seeds"),
    ] = None,
    ablate: Annotated[
        bool, typer.Option("--ablate/--no-ablate", help="Measure parts of the scoring, hindsight and the template.")
    ] = True,
    epochs: Annotated[int | None, typer.Option(help="Of every training.", show_default="vae-train's")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes at a time.", show_default="one for each core")] = None,
) -> None:
    """Measure image AUROC, pixel AUROC and AUPRO of what vae-train makes, and of the same with a part switched off."""
    try:
        cases = _cases(data, out, seeds, preset, trainings, repeats, ablate=ablate, epochs=epochs)
        results = _run_all(cases, out, jobs or usable_cores())
    except VaeEdgeError as error:
        notes_console().print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(error.exit_code) from None
    text = write_tables(results)
    write_text(out / _TABLES, text)
    results_console().print(text, markup=False, soft_wrap=True)


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


def _run_all(cases: dict[str, Job], out: Path, most: int) -> list[CaseResult]:
    """Run the jobs, so many at a time; what an earlier call with the same job left is taken as it is."""
    folder = out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    waiting = [(name, job) for name, job in cases.items() if not _is_done(folder, name, job)]
    notes_console().print(f"{len(cases) - len(waiting)} of {len(cases)} cases are measured already; logs in {folder}")
    running: list[_Started] = []
    try:
        while waiting or running:
            while waiting and len(running) < most:
                running.append(_start(folder, *waiting.pop(0)))
                notes_console().print(f"{running[-1].name} started", markup=False)
            time.sleep(0.5)
            for started in [each for each in running if each.process.poll() is not None]:
                running.remove(started)
                if started.process.returncode != 0:
                    lines = started.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [
                        "nothing"
                    ]
                    raise InputError(f"{started.name} failed: {lines[-1]}; all that it said is in {started.log}")
                notes_console().print(f"{started.name} done, {len(waiting) + len(running)} to go", markup=False)
    finally:
        for started in running:
            started.process.terminate()
            started.process.wait()
    return [CaseResult.model_validate_json((folder / f"{name}.json").read_text(encoding="utf-8")) for name in cases]


def _start(folder: Path, name: str, job: Job) -> _Started:
    job_file, result, log = (folder / f"{name}{ending}" for ending in (".job.json", ".json", ".log"))
    result.unlink(missing_ok=True)
    write_text(job_file, job.model_dump_json(indent=1))
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "vae_edge.benchmarks.detection.worker", str(job_file), str(result)],
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return _Started(name, process, result, log)


def _is_done(folder: Path, name: str, job: Job) -> bool:
    job_file, result = folder / f"{name}.job.json", folder / f"{name}.json"
    if not (job_file.is_file() and result.is_file()):
        return False
    try:
        return Job.model_validate(json.loads(job_file.read_text(encoding="utf-8"))) == job
    except ValueError:
        return False
