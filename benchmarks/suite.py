"""Measuring a set of bundles in rounds, comparing them, and writing down what was found."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vae_edge.benchmarks.choice_records import Objective, Requirement
from vae_edge.benchmarks.findings import Findings, make_report
from vae_edge.benchmarks.images import BenchmarkImages, choose_images
from vae_edge.benchmarks.machine import machine_facts
from vae_edge.benchmarks.measurement import Measurer, Row, Steps, SuiteProgress
from vae_edge.benchmarks.report import Report
from vae_edge.benchmarks.report_files import check_report_folder, write_report
from vae_edge.benchmarks.reservations import machine_warnings
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.bundle import bundles_in
from vae_edge.errors import InputError, UsageError, VaeEdgeError
from vae_edge.train.inspection_set import InspectionSet


def run_suite(
    bundles: Sequence[Path],
    data: str | Path | InspectionSet | None = None,
    settings: SuiteSettings | None = None,
    *,
    requirements: Sequence[Requirement] = (),
    objective: Objective | None = None,
    report_folder: Path | None = None,
    progress: Callable[[SuiteProgress], None] | None = None,
) -> Report:
    """Measure bundles on this machine.

    A bundle that cannot run stays in the report with the reason and keeps none of the others from running. Ctrl-C after
    the first complete round of a bundle ends the measuring; the report is made of what is complete and says so.

    Args:
        bundles: bundles, or folders of bundles.
        data: see `vae_edge.benchmarks.images.choose_images`.
        settings: how to measure; None: the defaults.
        requirements: what the bundle to ship has to keep.
        objective: what it is to be the best in.
        report_folder: where to write the reports, the raw samples and the pictures; None: nothing is written.
        progress: called when a step begins.

    Raises:
        InputError: there is no bundle, the data cannot be used, the reference or the baseline is none of the bundles,
            or the report's folder holds something else.
    """
    settings = settings or SuiteSettings()
    if report_folder is not None:
        check_report_folder(report_folder)
    rows = [Row(name, folder) for name, folder in named_bundles(bundles).items()]
    for what, asked in (("reference", settings.reference), ("baseline", settings.baseline)):
        if asked is not None and asked not in [row.name for row in rows]:
            raise UsageError(
                f"the {what} {asked!r} is none of the bundles; choose from {', '.join(row.name for row in rows)}"
            )
    machine = machine_facts()
    images = choose_images(data, settings.n_timing_images)
    warnings = machine_warnings(machine, settings)
    steps = Steps(len(rows) * (settings.rounds + 2), progress)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vae-bench-maps-") as scratch:
        interrupted = _measure(rows, images, settings, Path(scratch), steps)
        report, files = make_report(
            Findings(
                rows=rows,
                images=images,
                settings=settings,
                machine=machine,
                warnings=tuple(warnings),
                interrupted_because=interrupted,
                elapsed_s=time.perf_counter() - begin,
                requirements=tuple(requirements),
                objective=objective,
            ),
            steps,
        )
    if report_folder is not None:
        write_report(report_folder, report, files)
    return report


def named_bundles(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the bundles in the given folders, each once, by a name that no other has.

    The name is the folder's; where two folders have the same one, with as much of the path as tells them apart.

    Raises:
        InputError: a path is no bundle and holds none, or there is no path.
    """
    found = {folder.resolve(): folder for path in paths for folder in bundles_in(Path(path))}
    if not found:
        raise InputError("no bundle was given; expected at least one folder that export made")
    names: dict[str, Path] = {}
    for place, folder in found.items():
        depth = 1
        while sum(other.parts[-depth:] == place.parts[-depth:] for other in found) > 1:
            depth += 1
        names["/".join(place.parts[-depth:])] = folder
    return names


def order_of_round(rows: Sequence[Row], number: int) -> list[Row]:
    """Return whose turn it is when in a round: each begins with another bundle."""
    first = (number - 1) % len(rows)
    return [*rows[first:], *rows[:first]]


def _measure(
    rows: Sequence[Row], images: BenchmarkImages, settings: SuiteSettings, scratch: Path, steps: Steps
) -> str | None:
    """Measure all rounds of all bundles; return why it ended before its time, where it did."""
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
