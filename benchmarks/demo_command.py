"""`vae-edge demo`: all steps from end to end on sample data, by the same commands that a user types."""

from __future__ import annotations

import shlex
import time
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vae_edge.benchmarks.report.records.files import read_report
from vae_edge.benchmarks.report.records.report import HTML_FILE, REPORT_FILE, Report
from vae_edge.cli.console import notes_console, results_console
from vae_edge.cli.main import invoke
from vae_edge.errors import VaeEdgeError
from vae_edge.train.model.presets import PIXEL_PRESET
from vae_edge.train.run.folder import RunFolder
from vae_edge.train.sample import DEFAULT_PRODUCT, PRODUCTS

Product = Enum("Product", {name: name for name in PRODUCTS}, type=str)  # type: ignore[misc]  # typer wants an Enum

_EASIEST = Product(DEFAULT_PRODUCT)

IMAGE_SIZE = 128
"""Preset of the network on pixels that `--epochs` trains."""
_ROUNDS, _ROUND_TIME_S = 5, 0.4  # Of the 10 rounds of 1 s that vae-bench takes by itself: the demo is to be over soon.


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path("demo"),
    product: Annotated[
        Product, typer.Option(help="Which sample product to inspect; the first one is the easiest.")
    ] = _EASIEST,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train a network on pixels for this many passes over the images, instead of what vae-train chooses.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorten the benchmark.")] = False,
) -> None:
    """Run everything end to end: sample images, training, every target, benchmark, report, overlays; no download.

    Each step is a command that is shown before it runs. A second demo in the same folder keeps the images and the
    trained model and repeats the rest.
    """
    name = product.value
    data, run, bundles = out / "data", out / "runs" / name, out / "bundles" / name
    report, predictions = out / "report" / name, out / "predictions" / name
    started = time.perf_counter()
    _step(1, "draw a sample inspection set", "vae-edge", "sample", data, "--product", name)
    if is_trained(run, epochs):
        notes_console().print(f"\n2/5 {run} is trained already; delete it to train again")
    else:
        asked: tuple[object, ...] = ("--data", data / name, "--out", run, "--overwrite")
        if epochs is not None:
            asked += ("--preset", PIXEL_PRESET, "--image-size", IMAGE_SIZE, "--epochs", epochs, "--batch-size", 16)
        _step(2, "train on good parts only", "vae-train", *asked)
    _step(3, "export to every target", "vae-export", run, "--target", "all", "--out", bundles)
    shortened = ("--quick",) if quick else ("--rounds", _ROUNDS, "--round-time", _ROUND_TIME_S)
    measure = ("--data", data / name, "--report", report, "--simple-method", *shortened)
    _step(4, "measure the bundles on this machine", "vae-bench", bundles, *measure)
    best = _best(read_report(report / REPORT_FILE))
    look = (data / name / "test", "--recursive", "--overlays", "all", "--out", predictions, "--overwrite")
    _step(5, "inspect the test images with the recommended bundle", "vae-run", bundles / best, *look)

    console = results_console()
    console.print(f"\nThe demo took {time.perf_counter() - started:.0f} s. Look at:", style="bold")
    console.print(f"  {report / HTML_FILE}  the benchmark of every bundle", soft_wrap=True)
    console.print(f"  {predictions / 'overlays'}  where the defects were found", soft_wrap=True)
    console.print("Then use your own pictures of good parts:")
    console.print("  vae-train --data FOLDER --out runs/mine", markup=False)
    console.print("  vae-export runs/mine --target all --out bundles", markup=False)


def _step(number: int, what: str, program: str, *arguments: object) -> None:
    """Show a command and run it.

    Raises:
        typer.Exit: it failed, with its exit code; it has printed the reason.
    """
    words = [str(argument) for argument in arguments]
    notes = notes_console()
    notes.print(f"\n{number}/5 {what}", style="bold")
    notes.print(f"$ {shlex.join([program, *words])}", style="cyan", markup=False, soft_wrap=True)
    code = invoke(words, command=None if program == "vae-edge" else program.removeprefix("vae-"))
    if code != 0:
        raise typer.Exit(code)


def is_trained(run: Path, epochs: int | None) -> bool:
    """Tell whether an earlier demo left this run complete."""
    try:
        settings = RunFolder.open(run).record.settings
    except VaeEdgeError:
        return False
    if epochs is None:
        return settings.epochs is None
    asked = (settings.architecture.preset, settings.preparation.height, settings.epochs)
    return asked == (PIXEL_PRESET, IMAGE_SIZE, epochs)


def _best(report: Report) -> str:
    """Return the bundle that the benchmark recommends, or, if there is none, the fastest from file to verdict."""
    if report.recommendation is not None and report.recommendation.chosen is not None:
        return report.recommendation.chosen
    measured = {bundle.name: bundle.latency.file.p50_ms for bundle in report.bundles if bundle.latency is not None}
    return min(measured, key=lambda name: measured[name])
