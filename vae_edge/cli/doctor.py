"""`vae-edge doctor`: what works on this machine, what does not, and how to fix it."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.text import Text

from vae_edge.cli.console import plain_table, results_console
from vae_edge.cli.options import JsonOption
from vae_edge.cli.progress import progress_bar
from vae_edge.doctor import Diagnosis, Probe, examine
from vae_edge.platform.machine import Machine
from vae_edge.platform.opencv import OpenCv
from vae_edge.platform.outside import printable
from vae_edge.signing.policy import describe_policy
from vae_edge.wording import count

_MARKS = {
    "works": Text("works", "green"),
    "partly": Text("partly", "yellow"),
    "broken": Text("broken", "red"),
    "missing": Text("missing", "dim"),
}


def doctor(
    as_json: JsonOption = False,
) -> None:
    """Test every runtime on this machine and show how to fix what is missing.

    Exit code 0, or 1 if no runtime here can run a bundle.
    """
    with progress_bar("testing runtimes") as report:
        diagnosis = examine(progress=report)
    if as_json:
        content = {**asdict(diagnosis), "can_run_bundles": diagnosis.can_run_bundles, "fixes": diagnosis.fixes}
        print(json.dumps(content, indent=2))
    else:
        _print(diagnosis, results_console())
    if not diagnosis.can_run_bundles:
        raise typer.Exit(1)


def _print(diagnosis: Diagnosis, console: Console) -> None:
    table = plain_table(title=f"vae-edge {diagnosis.vae_edge}", headers=False)
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    rows = [("OpenCV", describe_opencv(diagnosis.opencv)), ("signatures", describe_policy())]
    for name, value in [*_machine_rows(diagnosis.machine), *rows]:
        table.add_row(name, printable(value))
    console.print(table)
    for purpose, title in (
        ("runs bundles", "Runtimes"),
        ("reaches the GPU", "GPU"),
        ("trains and exports", "Training and export"),
    ):
        console.print()
        console.print(_probe_table(title, [probe for probe in diagnosis.probes if probe.purpose == purpose]))
    console.print()
    if not diagnosis.can_run_bundles:
        console.print("No runtime on this machine can run a bundle yet.", style="red")
    if diagnosis.fixes:
        console.print("To install or fix what you need", style="bold")
        for fix in diagnosis.fixes:
            names = ", ".join(probe.name for probe in diagnosis.probes if probe.fix == fix) or "OpenCV"
            console.print(f"  {fix}", soft_wrap=True)
            console.print(f"    for {names}", style="dim", soft_wrap=True)
    else:
        console.print("Everything is installed.")
    console.print("This was a quick look. To check this device against stored answers: vae-edge selfcheck", style="dim")


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    environment = "a virtual environment" if machine.in_virtual_environment else "no virtual environment"
    if machine.in_virtual_environment and machine.sees_system_packages:
        environment += " with the system's packages"
    rows = [
        ("system", f"{machine.system}, {machine.architecture}"),
        ("processor", f"{machine.processor or 'unknown'}, {count(machine.n_cores, 'core')}"),
        ("instructions", " ".join(machine.processor_flags) or "unknown"),
        ("memory", "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"),
        ("Python", f"{machine.python}, {environment}"),
    ]
    if machine.jetson is not None:
        rows.insert(1, ("Jetson", f"L4T {machine.jetson.l4t}, JetPack {machine.jetson.jetpack}"))
    return rows


def describe_opencv(opencv: OpenCv) -> str:
    """Return which `cv2` is used, where it comes from, and whether it has GStreamer."""
    origin = f"pip's {opencv.wheel}" if opencv.wheel else "not from pip"
    text = f"{opencv.version}, {origin}, in {opencv.folder}, with{'' if opencv.has_gstreamer else 'out'} GStreamer"
    return f"{text}; hides the one in {opencv.hidden}" if opencv.hidden else text


def _probe_table(title: str, probes: list[Probe]) -> object:
    table = plain_table(title=title, headers=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold", ratio=1)
    for probe in probes:
        devices = f"{', '.join(probe.devices)}; " if probe.devices else ""
        table.add_row(probe.name, _MARKS[probe.status], probe.version or "", f"{devices}{probe.notes}".strip("; "))
    return table
