"""`make bench-detection`: train with several seeds on several image sets, switch every part off in turn, compare."""

from __future__ import annotations

import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.atomic import write_text
from vae_edge.benchmarks.measure.process import python_module, run_job
from vae_edge.benchmarks.studies import run_study
from vae_edge.benchmarks.studies.detection.cases import CaseResult, Training
from vae_edge.benchmarks.studies.detection.tables import write_tables
from vae_edge.benchmarks.studies.detection.worker import Job
from vae_edge.cli.console import notes_console, results_console
from vae_edge.errors import DeviceError, InputError, UsageError
from vae_edge.machine import usable_cores
from vae_edge.train.data.sources import resolve_data
from vae_edge.train.model.presets import preset_named

_TABLES = "detection.md"


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
    cases = _cases(data, out, seeds, preset, trainings, repeats, ablate=ablate, epochs=epochs)
    results = _run_all(cases, out, jobs or usable_cores())
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
    waiting = [name for name, job in cases.items() if not _is_done(folder, name, job)]
    notes_console().print(f"{len(cases) - len(waiting)} of {len(cases)} cases are measured already; logs in {folder}")
    cancel = threading.Event()
    with ThreadPoolExecutor(most) as pool:
        try:
            running = {pool.submit(_run, folder, name, cases[name], cancel): name for name in waiting}
            for number, done in enumerate(as_completed(running), 1):
                done.result()
                notes_console().print(f"{running[done]} done, {len(waiting) - number} to go", markup=False)
        finally:
            # Also when the user interrupts, or one failed: no process must go on behind the prompt.
            cancel.set()
            pool.shutdown(cancel_futures=True)
    return [CaseResult.model_validate_json((folder / f"{name}.json").read_text(encoding="utf-8")) for name in cases]


def _run(folder: Path, name: str, job: Job, cancel: threading.Event) -> None:
    job_file, result_file, log = (folder / f"{name}{ending}" for ending in (".job.json", ".json", ".log"))
    notes_console().print(f"{name} started", markup=False)
    result_file.unlink(missing_ok=True)
    write_text(job_file, job.model_dump_json(indent=1))
    program = python_module("vae_edge.benchmarks.studies.detection.worker")
    try:
        result = run_job(program, job.model_dump(mode="json"), math.inf, cancel=cancel, log=log)
    except DeviceError as error:
        raise InputError(f"{name} failed: {error}; all that it said is in {log}") from error
    write_text(result_file, CaseResult.model_validate(result).model_dump_json(indent=1, exclude_none=True) + "\n")


def _is_done(folder: Path, name: str, job: Job) -> bool:
    job_file, result = folder / f"{name}.job.json", folder / f"{name}.json"
    if not (job_file.is_file() and result.is_file()):
        return False
    try:
        return Job.model_validate(json.loads(job_file.read_text(encoding="utf-8"))) == job
    except ValueError:
        return False


if __name__ == "__main__":
    run_study(detection)
