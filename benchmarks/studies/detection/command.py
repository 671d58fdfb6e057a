"""`make bench-detection`: train with several seeds on several image sets, switch every part off in turn, compare."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from vae_edge.benchmarks.measure.process import python_module, run_job
from vae_edge.benchmarks.studies import run_study
from vae_edge.benchmarks.studies.detection.cases import CaseResult, Training
from vae_edge.benchmarks.studies.detection.worker import Job
from vae_edge.cli.console import notes_console, results_console
from vae_edge.errors import DeviceError, InputError, UsageError
from vae_edge.platform.atomic import write_text
from vae_edge.platform.machine import usable_cores
from vae_edge.train.data.sources import resolve_data
from vae_edge.train.model.presets import preset_named
from vae_edge.train.run.metrics import Metrics

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


Figure = Callable[[Metrics], "float | None"]

_FIGURES: tuple[tuple[str, Figure], ...] = (
    ("image AUROC", lambda metrics: metrics.image_auroc),
    ("pixel AUROC", lambda metrics: metrics.pixel_auroc),
    ("AUPRO", lambda metrics: metrics.aupro),
)


def write_tables(results: Sequence[CaseResult]) -> str:
    """Return all tables for the results of one preset or of several."""
    parts = []
    for preset in dict.fromkeys(result.preset for result in results):
        of_preset = [result for result in results if result.preset == preset]
        for data in dict.fromkeys(result.data for result in of_preset):
            parts.append(_set_tables(preset, data, [result for result in of_preset if result.data == data]))
        if any(result.hindsight for result in of_preset):
            parts.append(_hindsight_table(preset, of_preset))
    parts.append(_preset_table(results))
    return "\n".join(parts)


def spread(values: Sequence[float | None]) -> str:
    """Return the mean and the standard deviation over seeds."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{mean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 else "")


def _set_tables(preset: str, data: str, results: Sequence[CaseResult]) -> str:
    seeds = ", ".join(str(result.seed) for result in results)
    lights = ", ".join(result.photometric for result in results)
    lines = [
        f"### {data}, `{preset}`, seeds {seeds}\n",
        f"{results[0].model}; light chosen: {lights}; scorings chosen:\n",
        *(f"* seed {result.seed}: `{result.scoring}`" for result in results),
        "",
        _row("", *(name for name, _ in _FIGURES)),
        _row("---", *("---:" for _ in _FIGURES)),
    ]
    names = list(dict.fromkeys(row.name for result in results for row in result.rows))
    for name in names:
        found = [row.metrics for result in results for row in result.rows if row.name == name]
        count = "" if len(found) == len(results) else f" ({len(found)} of {len(results)} seeds)"
        lines.append(_row(name + count, *(spread([figure(each) for each in found]) for _, figure in _FIGURES)))
    return "\n".join([*lines, "", _class_table(results), ""])


def _class_table(results: Sequence[CaseResult]) -> str:
    """Image and pixel AUROC of each class of defects, of the chosen scoring and of the plain one."""
    wanted = ("auto", "mse (the plain scoring)", "training plain, mse", "template baseline")
    names = [name for name in wanted if any(row.name == name for result in results for row in result.rows)]
    classes = sorted({kind for result in results for row in result.rows for kind in row.metrics.per_defect})
    lines = [_row("image / pixel AUROC", *names), _row("---", *("---:" for _ in names))]
    for kind in classes:
        cells = []
        for name in names:
            found = [
                row.metrics.per_defect[kind]
                for result in results
                for row in result.rows
                if row.name == name and kind in row.metrics.per_defect
            ]
            pixel = spread([each.pixel_auroc for each in found])
            cells.append(spread([each.image_auroc for each in found]) + (f" / {pixel}" if pixel else ""))
        lines.append(_row(kind, *cells))
    return "\n".join(lines)


def _hindsight_table(preset: str, results: Sequence[CaseResult]) -> str:
    """The automatic choice beside the best composition in hindsight: of each set, and the one that is best over all."""
    sets = list(dict.fromkeys(result.data for result in results))
    compositions = list(results[0].hindsight)

    def of(composition: str, data: str) -> float:
        return mean(result.hindsight[composition] for result in results if result.data == data)

    fixed = max(compositions, key=lambda each: mean(of(each, data) for data in sets))
    lines = [
        f"### The choice and hindsight, `{preset}`, image AUROC\n",
        _row("", "chosen without labels", "default", "best fixed one for all sets", "best of each set", "which"),
        _row("---", "---:", "---:", "---:", "---:", "---"),
    ]
    for data in sets:
        own = [result for result in results if result.data == data]
        chosen = spread([result.hindsight[result.scoring] for result in own])
        best = max(compositions, key=lambda each: of(each, data))
        lines.append(
            _row(
                data,
                chosen,
                spread([result.hindsight[compositions[0]] for result in own]),
                spread([result.hindsight[fixed] for result in own]),
                spread([result.hindsight[best] for result in own]),
                f"`{best}`",
            )
        )
    return "\n".join([*lines, "", f"The best fixed one, found with the labels of all sets: `{fixed}`\n"])


def _preset_table(results: Sequence[CaseResult]) -> str:
    sets = list(dict.fromkeys(result.data for result in results))
    presets = list(dict.fromkeys(result.preset for result in results))
    lines = [
        "### Presets\n",
        _row(
            "preset", "parameters", "GFLOP an image", "training, windows/s", *(f"{data}, image AUROC" for data in sets)
        ),
        _row("---", *("---:" for _ in range(3 + len(sets)))),
    ]
    for preset in presets:
        own = [result for result in results if result.preset == preset]
        flops = sorted({round(result.gflop, 2) for result in own})
        cells = [
            spread([row.metrics.image_auroc for result in own if result.data == data for row in result.rows[:1]])
            for data in sets
        ]
        lines.append(
            _row(
                f"`{preset}`",
                f"{own[0].n_parameters / 1e6:.2f} M",
                " to ".join(str(value) for value in dict.fromkeys((flops[0], flops[-1]))),
                f"{mean(result.images_per_s for result in own):.0f}",
                *cells,
            )
        )
    return "\n".join([*lines, ""])


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_study(detection)
