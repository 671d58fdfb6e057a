"""`vae-bench`: measure bundles on this device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vae_edge.benchmarks.measurement import SuiteProgress
from vae_edge.benchmarks.report import MARKDOWN_FILE, REPORT_FILE, Report
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.benchmarks.suite import run_suite
from vae_edge.benchmarks.terminal import reasons, result_table
from vae_edge.cli.console import notes_console, print_warning, results_console
from vae_edge.cli.progress import progress_bar

EXIT_NONE_RAN = 1

bench_app = typer.Typer(add_completion=False, no_args_is_help=True)


@bench_app.command()
def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles, or folders of bundles.", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder in the layout of MVTec AD or of good parts, or sample or sample:PRODUCT. Without it the "
            "sample images are timed and no accuracy is measured.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.json, report.md and the raw samples here.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads for one inference.", show_default=False)
    ] = None,
    min_time: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="S", help="Measure each latency at least that long.", show_default=False),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Samples of each latency; fewer if they take 10 s.", show_default=False),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Bundle to compare the others with; else torch in FP32, or the first in FP32.",
            show_default=False,
        ),
    ] = None,
    baselines: Annotated[bool, typer.Option("--baselines", help="Measure also a method without a network.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter, for trying things out.")] = False,
) -> None:
    """Measure bundles on this device: speed, memory, start, accuracy, and whether they agree.

    Ends with 0 if at least one bundle could run, 1 if none.
    """
    results, notes = results_console(), notes_console()
    settings = make_settings(
        quick=quick,
        device=device,
        threads=threads,
        min_time_s=min_time,
        iterations=iterations,
        reference=reference,
        baselines=baselines,
    )
    if data is None:
        notes.print("No --data: the sample images are timed, and no accuracy is measured.", soft_wrap=True)
    with _progress(notes) as progress:
        found = run_suite(bundles, data, settings, report_folder=report, progress=progress)
    _show(found, results, notes)
    if report is not None:
        notes.print(f"Written: {report / REPORT_FILE}, {report / MARKDOWN_FILE}", soft_wrap=True)
    if not found.any_ran:
        raise typer.Exit(EXIT_NONE_RAN)


def make_settings(
    *,
    quick: bool,
    device: str,
    threads: int | None,
    min_time_s: float | None,
    iterations: int | None,
    reference: str | None,
    baselines: bool,
) -> SuiteSettings:
    """Return the settings that the options stand for."""
    settings = SuiteSettings.make_quick() if quick else SuiteSettings()
    rules = settings.rules
    if iterations is not None:
        rules = replace(rules, iterations=iterations)
    if min_time_s is not None:
        # Asking for longer than the usual limit moves the limit.
        rules = replace(rules, min_time_s=min_time_s, max_time_s=max(min_time_s, rules.max_time_s))
    return settings.model_copy(
        update={"device": device, "threads": threads, "rules": rules, "reference": reference, "baselines": baselines}
    )


def _show(report: Report, results: Console, notes: Console) -> None:
    results.print(result_table(report, results.width))
    for line in reasons(report):
        results.print(line, markup=False, soft_wrap=True)
    if any(bundle.latency and not bundle.latency.engine.is_stable for bundle in report.bundles):
        results.print("~ not stable: see the warnings")
    for note in (*report.data.notes, *report.reference_notes):
        notes.print(note, markup=False, soft_wrap=True)
    for warning in report.warnings:
        print_warning(warning)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[SuiteProgress], None]]:
    """Show what is being measured: a bar on a terminal, else a line for each bundle."""
    if not console.is_terminal:
        seen: set[str] = set()

        def tell(now: SuiteProgress) -> None:
            if now.bundle not in seen:
                seen.add(now.bundle)
                console.print(f"{now.bundle}: measuring ({now.step} of {now.n_steps} steps done)", soft_wrap=True)

        yield tell
        return
    with progress_bar("starting") as move:
        yield lambda now: move(now.step, now.n_steps, doing=f"{now.bundle}: {now.doing}")
