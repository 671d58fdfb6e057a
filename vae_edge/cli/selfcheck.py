"""`vae-edge selfcheck`: what works on this device, compared with stored answers, in one file to send."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from vae_edge.bundle import bundles_in
from vae_edge.cli.console import notes_console, results_console
from vae_edge.errors import InputError, UsageError
from vae_edge.manifest_file import read_manifest
from vae_edge.platform.atomic import check_place, scratch_folder
from vae_edge.selfcheck.privacy import Redactor
from vae_edge.selfcheck.record import SelfcheckRecord, StepRecord, Verdict
from vae_edge.selfcheck.runner import Runner
from vae_edge.selfcheck.shipped import unpack_bundles
from vae_edge.selfcheck.steps import BundleToCheck

EXIT_DIFFERS = 3

_STYLES = {
    Verdict.OK: "green",
    Verdict.DIFFERS: "yellow",
    Verdict.FAILED: "red",
    Verdict.SKIPPED: "dim",
    Verdict.RUNNING: "magenta",
}
_MOST_MINUTES = 7 * 24 * 60.0


def selfcheck(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE]...", help="Bundles of your own to check too, or folders with bundles."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.zip", help="The file to write.", show_default="vae-edge-selfcheck-TIME.zip"),
    ] = None,
    soak: Annotated[
        float,
        typer.Option(
            metavar="MINUTES", help="Afterwards, repeat verdicts for so long and compare each with the first."
        ),
    ] = 0.0,
) -> None:
    """Check this device with the small bundles that come with vae-edge, and write what was found into one file to send.

    It needs no images and takes ten minutes at most, and --soak. Each step runs in its own process, and the file is
    written after each: if the device goes down, it holds what was found until then. The file has no pictures of yours,
    no names of users, computers or files, no serial numbers and no network addresses.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a step differs from the stored answers or failed.
    """
    if not 0 <= soak <= _MOST_MINUTES:
        raise UsageError(f"--soak is {soak:g} minutes; expected 0 to {_MOST_MINUTES:g}")
    path = _place(out)
    given = _given(bundles or [])
    console = results_console()
    with scratch_folder("selfcheck") as scratch:
        names = {str(bundle.folder): bundle.name for bundle in given}
        for bundle in given:
            console.print(f"{bundle.name}: {bundle.folder}", style="dim", soft_wrap=True)
        redactor = Redactor({**names, str(scratch): "<scratch>", str(scratch.resolve()): "<scratch>"})
        runner = Runner(path, redactor, on_step=_print)
        notes_console().print(f"writing to {path} as it goes", style="dim", soft_wrap=True)
        steps = scratch / "steps"
        steps.mkdir()
        record = runner.run([*given, *_shipped(scratch / "bundles")], steps, soak_minutes=soak)
    _conclude(record, path)
    if record.problems:
        raise typer.Exit(EXIT_DIFFERS)


def _place(out: Path | None) -> Path:
    """Return the file to write.

    Raises:
        UsageError: it is no ZIP file.
        InputError: it is there already, or its folder cannot be written.
    """
    if out is None:
        now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        out = Path(f"vae-edge-selfcheck-{now}.zip")
    if out.suffix.lower() != ".zip":
        raise UsageError(f"--out is {out}; expected a file that ends in .zip")
    if out.exists():
        raise InputError(f"{out} exists already; choose another name for the file")
    check_place(out.absolute().parent)
    return out


def _given(paths: list[Path]) -> list[BundleToCheck]:
    folders = [folder.resolve() for path in paths for folder in bundles_in(path)]
    found = []
    for number, folder in enumerate(dict.fromkeys(folders), 1):
        manifest = read_manifest(folder)
        # Its own name may be a customer's or a product's.
        name = f"given-{number}-{manifest.target}-{manifest.precision}"
        found.append(BundleToCheck(name, folder, manifest, is_given=True))
    return found


def _shipped(folder: Path) -> list[BundleToCheck]:
    return [BundleToCheck(path.name, path, read_manifest(path), is_given=False) for path in unpack_bundles(folder)]


def _print(step: StepRecord) -> None:
    line = Text()
    line.append(f"{step.verdict!s:8}", _STYLES[step.verdict])
    line.append("      " if step.seconds is None else f"{step.seconds:5.1f} s".rjust(8)[2:])
    line.append(f"  {step.title}", "bold" if step.verdict.is_problem else "")
    if step.reason:
        line.append(f": {step.reason}", "dim" if step.verdict is Verdict.SKIPPED else "")
    results_console().print(line, soft_wrap=True)


def _conclude(record: SelfcheckRecord, path: Path) -> None:
    counts = ", ".join(f"{n} {verdict}" for verdict in Verdict if (n := record.count(verdict)))
    console = results_console()
    console.print(f"{counts}; {record.seconds:.0f} s.", soft_wrap=True)
    if record.problems:
        console.print("Not everything agrees: please send the file.", style="red", soft_wrap=True)
    console.print(f"{path} has the details; selfcheck.html in it is for reading.", soft_wrap=True)
