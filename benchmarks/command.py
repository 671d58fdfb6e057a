"""`vae-bench`: measure bundles on this device, recommend one, compare two benchmarks, make a report's pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vae_edge.benchmarks.measure.measurer import SuiteProgress, named_bundles
from vae_edge.benchmarks.measure.plan import SuiteSettings
from vae_edge.benchmarks.measure.samples import RATIO_METRICS
from vae_edge.benchmarks.options import CommonOptions, ComparingOptions, MeasuringOptions, needs_of_options
from vae_edge.benchmarks.report.choosing import parse_objective, parse_requirement
from vae_edge.benchmarks.report.compare import compare_reports, gate_lines
from vae_edge.benchmarks.report.pages.html import render_report
from vae_edge.benchmarks.report.pages.terminal import is_unstable, reasons, result_table, verdict_lines
from vae_edge.benchmarks.report.records.report import REPORT_FILE, Report
from vae_edge.benchmarks.suite import run_suite
from vae_edge.cli.console import notes_console, print_warning, results_console
from vae_edge.cli.main import EXIT_INTERRUPTED
from vae_edge.cli.options import refuse_idle, with_option_groups
from vae_edge.cli.progress import progress_bar
from vae_edge.cli.run_options import needs_of_targets
from vae_edge.errors import MissingDependencyError, UsageError, VaeEdgeError
from vae_edge.manifest_file import read_manifest
from vae_edge.platform.atomic import LOCK_FILE, claim
from vae_edge.records import check_recordable, make_record
from vae_edge.targets import Target

EXIT_NONE_RAN = 1
EXIT_GATE = 3


@with_option_groups
def bench(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles, or folders of bundles.")],
    common: CommonOptions,
    measuring: MeasuringOptions,
    comparing: ComparingOptions,
) -> None:
    """Measure bundles on this device and recommend one to ship: speed, memory, start, accuracy, and whether they agree.

    The bundles take turns for several rounds, so every figure has a 95 % confidence interval.

    Exit codes: 0 if at least one bundle could run, 1 if none could, 3 if none meets the requirements of --require.
    Ctrl-C ends it with 130 and keeps the complete rounds.
    """
    data, report = common.data, common.report
    for path in (*map(str, bundles), data or ""):
        check_recordable(Path(path).absolute())  # Not when all has been measured and the report is to be written.
    refuse_idle(context, needs_of_options(common, measuring))
    requirements = tuple(parse_requirement(text) for text in common.require or ())
    objective = parse_objective(common.minimize, common.maximize)
    settings = make_settings(
        quick=common.quick,
        device=measuring.device,
        threads=measuring.threads,
        arithmetic=measuring.arithmetic.value,
        rounds=measuring.rounds,
        round_s=measuring.round_time,
        load_fps=measuring.load_fps,
        deadline_ms=measuring.deadline_ms,
        requests=measuring.requests,
        batch_sizes=measuring.batch_sizes,
        reference=comparing.reference,
        baseline=comparing.baseline,
        simple_method=comparing.simple_method,
    )
    if targets := _targets_of(bundles):
        refuse_idle(context, needs_of_targets(targets))
    results, notes = results_console(), notes_console()
    if data is None:
        notes.print("No --data: the sample images are timed, and no accuracy is measured.", soft_wrap=True)
    busy = f"another vae-bench is writing into {report}"
    with _progress(notes) as progress, nullcontext() if report is None else claim(report / LOCK_FILE, busy):
        found = run_suite(
            bundles,
            data,
            settings,
            requirements=requirements,
            objective=objective,
            report_folder=report,
            progress=progress,
        )
    _show(found, results, notes)
    if report is not None:
        pages: tuple[Path, ...] = ()
        try:
            pages = render_report(report)
        except MissingDependencyError as error:
            print_warning(str(error))
        notes.print(f"Written: {', '.join(map(str, (*pages, report / REPORT_FILE)))}", markup=False, soft_wrap=True)
    if found.interrupted_because is not None:
        raise typer.Exit(EXIT_INTERRUPTED)
    if not found.any_ran:
        raise typer.Exit(EXIT_NONE_RAN)
    if requirements and found.recommendation is not None and found.recommendation.chosen is None:
        raise typer.Exit(EXIT_GATE)


def _targets_of(bundles: list[Path]) -> set[Target]:
    """Return the targets of the bundles whose manifest can be read; the report says why the others cannot."""
    found = set()
    for folder in named_bundles(bundles).values():
        with suppress(VaeEdgeError):
            found.add(read_manifest(folder).target)
    return found


def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The report to compare with, or its folder.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The new report, or its folder.")],
    fail_above: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO", help="Exit with 3 if a bundle is certainly worse by more than this ratio, such as 1.10."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC", help=f"May be repeated; default: p50_ms. Metrics: {', '.join(RATIO_METRICS)}."),
    ] = None,
    allow_different_machine: Annotated[
        bool, typer.Option("--allow-different-machine", help="Compare even if the machines differ.")
    ] = False,
    allow_different_models: Annotated[
        bool,
        typer.Option("--allow-different-models", help="Compare even if bundles of one name hold different models."),
    ] = False,
) -> None:
    """Compare two benchmarks of the same bundles, from their raw samples: a gate for CI.

    A ratio above 1 is worse, whatever the metric. With --fail-above the gate fails, exit code 3, where the whole 95 %
    interval of a ratio lies above the limit: the bundle is certainly worse by more than that. An interval that only
    reaches across the limit is reported but does not fail; measure more rounds to be certain. A bundle that ran in OLD
    but not in NEW fails as well.
    """
    found = compare_reports(
        old,
        new,
        metrics=metric or ["p50_ms"],
        allow_different_machine=allow_different_machine,
        allow_different_models=allow_different_models,
    )
    console = results_console()
    for line in gate_lines(found, fail_above):
        console.print(line, markup=False, soft_wrap=True)
    if fail_above is not None and found.fails(fail_above):
        raise typer.Exit(EXIT_GATE)


def render(
    report: Annotated[Path, typer.Argument(metavar="report.json", help="What vae-bench wrote, or its folder.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: next to it.")] = None,
) -> None:
    """Make report.html and report.md from a report.json and the pictures next to it, on any machine.

    Needs neither the bundles nor a runtime, so one machine can measure and another can make the pages.
    """
    written = render_report(report, out)
    notes_console().print(f"Written: {', '.join(map(str, written))}", markup=False, soft_wrap=True)


def make_settings(
    *,
    quick: bool = False,
    rounds: int | None = None,
    round_s: float | None = None,
    load_fps: str | None = None,
    requests: str | None = None,
    batch_sizes: str | None = None,
    **others: object,
) -> SuiteSettings:
    """Return the settings that the options describe; `others` are fields of `SuiteSettings`.

    Raises:
        UsageError: a value is invalid.
    """
    settings = SuiteSettings.make_quick() if quick else SuiteSettings()
    changes = {
        "rounds": settings.rounds if rounds is None else rounds,
        "rules": settings.rules if round_s is None else replace(settings.rules, round_s=round_s),
        "throughput_s": settings.throughput_s if round_s is None else round_s,
        "load_fps": _numbers("--load-fps", load_fps),
        "requests": tuple(map(int, _numbers("--requests", requests, whole=True))),
        "batch_sizes": tuple(map(int, _numbers("--batch-sizes", batch_sizes, whole=True))),
    }
    return make_record(SuiteSettings, {**dict(settings), **changes, **others})


def _numbers(option: str, text: str | None, *, whole: bool = False) -> tuple[float, ...]:
    """Read positive numbers that are separated by commas."""
    found: list[float] = []
    for word in [] if text is None else text.split(","):
        try:
            value = float(word)
        except ValueError:
            value = 0.0
        if not 0 < value < 1e10 or (whole and value != int(value)):
            kind = "whole numbers" if whole else "numbers"
            raise UsageError(f"{option} is {text!r}; expected {kind} above 0, separated by commas, as {option} 1,4")
        found.append(value)
    return tuple(dict.fromkeys(found))


def _show(report: Report, results: Console, notes: Console) -> None:
    results.print(result_table(report, results.width))
    for line in (*reasons(report), "", *verdict_lines(report)):
        results.print(line, markup=False, soft_wrap=True)
    if is_unstable(report):
        results.print("~ not stable: see the warnings")
    if report.interrupted_because is not None:
        print_warning(f"not complete: {report.interrupted_because}; all figures come from complete rounds")
    for note in (*report.data.notes, *report.reference_notes):
        notes.print(note, markup=False, soft_wrap=True)
    for warning in report.warnings:
        print_warning(warning)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[SuiteProgress], None]]:
    """Show what is being measured: a bar on a terminal, otherwise a line for each round."""
    if not console.is_terminal:
        seen: set[str] = set()

        def tell(now: SuiteProgress) -> None:
            if now.doing not in seen:
                seen.add(now.doing)
                console.print(f"{now.doing} ({now.step} of {now.n_steps} steps done)", soft_wrap=True)

        yield tell
        return
    with progress_bar("starting") as move:
        yield lambda now: move(now.step, now.n_steps, doing=f"{now.bundle}: {now.doing}")
