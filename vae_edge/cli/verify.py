"""`vae-edge verify`: run a bundle over normal images on this device and write thresholds that fit its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from vae_edge.backends.base import Hint
from vae_edge.bundle import Bundle
from vae_edge.cli.console import plain_table, print_warning, results_console
from vae_edge.cli.progress import progress_bar, step_progress
from vae_edge.decision import DEFAULT_FALSE_ALARM_RATE, check_rate
from vae_edge.detector import Detector
from vae_edge.refit import Refit
from vae_edge.sources.opening import image_files

_NAMED = 10


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle: a folder that export made.")],
    data: Annotated[
        list[str],
        typer.Option(help="Normal images that the model was not trained on: a folder, files or a glob in quotes."),
    ],
    false_alarm_rate: Annotated[
        float, typer.Option(help="Share of normal images that may be called anomalous.")
    ] = DEFAULT_FALSE_ALARM_RATE,
    device: Annotated[str, typer.Option(help="auto, cpu, gpu, npu, cuda or cuda:N; doctor lists them.")] = "auto",
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into sub-folders too.")] = False,
    no_rebuild: Annotated[
        bool, typer.Option("--no-rebuild", help="TensorRT: fail if the engine does not fit this device.")
    ] = False,
) -> None:
    """Re-fit a bundle's thresholds on this device and record them in the bundle.

    Every image must show a good part: a defective one among them raises the threshold.
    """
    check_rate(false_alarm_rate, "false-alarm rate")
    opened = Bundle.open(bundle)
    files = image_files(data, recursive=recursive)
    with step_progress() as progress:
        detector = Detector.open(opened, device=device, hint=Hint.THROUGHPUT, rebuild=not no_rebuild, progress=progress)
    for note in detector.backend.notes:
        print_warning(note)
    with detector, progress_bar("verifying") as report:
        refit = detector.refit_thresholds(files, false_alarm_rate, max_images=len(files), progress=report)
    _print_refit(refit)


def _print_refit(refit: Refit) -> None:
    old, new = refit.old, refit.bundle.manifest.thresholds
    table = plain_table()
    table.add_column("", style="cyan")
    table.add_column("before", justify="right")
    table.add_column("now", justify="right", style="bold")
    for name, before, now in (
        ("image threshold", old.image_threshold, new.image_threshold),
        ("pixel threshold", old.pixel_threshold, new.pixel_threshold),
        ("false-alarm rate", old.false_alarm_rate, new.false_alarm_rate),
        ("normals", old.n_normals, new.n_normals),
    ):
        table.add_row(name, f"{before:.6g}", f"{now:.6g}")
    console = results_console()
    console.print(table)
    above = sum(score > old.image_threshold for score in new.calibration_scores)
    console.print(f"With the thresholds before, {above} of these {new.n_normals} normals would be called anomalous.")
    console.print(escape(f"Scored by {new.scored_by}; written to {refit.bundle.folder}, which is verified now."))
    for error in refit.unreadable[:_NAMED]:
        print_warning(str(error))
    if refit.unreadable:
        print_warning(f"{len(refit.unreadable)} of {refit.n_images} images could not be read and were left out")
    if refit.warning:
        print_warning(refit.warning)
