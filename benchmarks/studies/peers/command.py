"""The command: environments, models, rounds, table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import typer

from vae_edge.benchmarks.measure.conditions import MachineFacts, load_average, machine_facts
from vae_edge.benchmarks.measure.plan import BenchmarkImages, choose_images
from vae_edge.benchmarks.studies import run_study
from vae_edge.benchmarks.studies.peers.candidates import (
    Candidate,
    anomalib_candidates,
    bare_candidates,
    own_candidates,
    trtexec_candidates,
)
from vae_edge.benchmarks.studies.peers.environments import Environment, make_anomalib, make_own
from vae_edge.benchmarks.studies.peers.models import SMALL, export_missing, export_with_anomalib, find_models, train
from vae_edge.benchmarks.studies.peers.rounds import Measured, Plan, run_rounds
from vae_edge.benchmarks.studies.peers.table import Row, make_rows, to_markdown
from vae_edge.cli.console import notes_console
from vae_edge.errors import UsageError, VaeEdgeError
from vae_edge.image import read_image
from vae_edge.platform.atomic import write_text
from vae_edge.targets import Target
from vae_edge.train.data.inspection_set import spread
from vae_edge.train.run.folder import RunFolder

_N_FILES = 32

_N_START = 16

_N_CALIBRATION = 300


def peers(
    out: Annotated[Path, typer.Option(help="Folder for the table and all intermediate files.")],
    run: Annotated[Path | None, typer.Option(help="A trained run; without one a small model is trained.")] = None,
    bundles: Annotated[Path | None, typer.Option(help="Its bundles, if they already exist.")] = None,
    data: Annotated[
        str, typer.Option(help="Folder in the layout of MVTec AD, or sample or sample:PRODUCT.")
    ] = "sample",
    environments: Annotated[
        Path | None, typer.Option(help="Folder for the environments; default: OUT/environments.")
    ] = None,
    without_anomalib: Annotated[
        bool, typer.Option("--without-anomalib", help="Leave out anomalib and its 2 GB.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Number of times that every candidate is measured.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="2 short rounds, for trying things out.")] = False,
) -> None:
    """Measure vae-edge against the bare runtimes and anomalib: same weights, same images, one run, in turn."""
    started = datetime.now(timezone.utc)
    machine = machine_facts()
    out, places = out.absolute(), (environments or out / "environments").absolute()
    images = choose_images(data, _N_FILES)
    trained = RunFolder.open(run.absolute()) if run is not None else None
    if trained is None and bundles is None:
        trained = train(out / "run", data, SMALL, _tell)
    folder = (bundles or out / "bundles").absolute()
    if bundles is None:
        assert trained is not None
        export_missing(trained, folder, _tell)
    models = find_models(folder, trained)

    own = {
        Target.ONNX: make_own(places / "vae-edge-onnxruntime", "onnxruntime", _tell),
        Target.OPENVINO: make_own(places / "vae-edge-openvino", "openvino", _tell),
    }
    skipped: list[str] = []
    candidates = own_candidates(models, own) + bare_candidates(models, own)
    trtexec = trtexec_candidates(models)
    if isinstance(trtexec, str):
        skipped.append(f"trtexec: {trtexec}")
    else:
        candidates += trtexec
    if without_anomalib:
        skipped.append("anomalib: left out by --without-anomalib")
    elif trained is None:
        skipped.append("anomalib: its model is made from the run's weights; give --run together with --bundles")
    else:
        candidates += _anomalib(trained, places / "anomalib", out / "anomalib", images, skipped)

    scratch = out / "caches"
    scratch.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        files=tuple(str(path.absolute()) for path in images.timing),
        judged=tuple(str(file.path.absolute()) for file in images.judged),
        rounds=min(rounds, 2) if quick else rounds,
        seconds=0.5 if quick else 2.0,
        n_start=_N_START,
        timeout_s=900.0,
        scratch=scratch,
    )
    measured = run_rounds(candidates, plan, _tell)
    rows = make_rows(measured, [file.is_anomalous for file in images.judged] if images.has_labels else [])
    facts = _facts(machine, images, plan, trained, candidates)
    text = to_markdown(rows, facts, skipped)
    write_text(out / "peers.md", text)
    record = _record(started, machine, plan, rows, measured, skipped, facts)
    write_text(out / "peers.json", json.dumps(record, indent=1) + "\n")
    print(text)
    _tell(f"written: {out / 'peers.md'}, {out / 'peers.json'}")


def _anomalib(run: RunFolder, place: Path, out: Path, images: BenchmarkImages, skipped: list[str]) -> list[Candidate]:
    """Return anomalib's candidates; those that cannot be made are added to `skipped` with the reason."""
    try:
        environment = make_anomalib(place, _tell)
        _tell("anomalib: exporting the same weights")
        files = [file.path.absolute() for file in images.judged]
        default = fixed = export_with_anomalib(run, environment, files, None, out / "any-size")
        sizes = {_size_of(path) for path in [*files, *images.timing]}
        size = None
        if len(sizes) == 1:
            size = sizes.pop()
            fixed = export_with_anomalib(run, environment, files, size, out / "fixed-size")
    except UsageError:
        raise
    except VaeEdgeError as error:
        skipped.append(f"anomalib: {error}")
        return []
    good = [file.path.absolute() for file in spread(images.train, _N_CALIBRATION)]
    int8 = None
    try:
        int8 = export_with_anomalib(run, environment, files, size, out / "int8", calibration=good)
    except VaeEdgeError as error:
        skipped.append(f"anomalib, int8: {error}")
    return anomalib_candidates(environment, default, fixed, int8)


def _size_of(path: Path) -> tuple[int, int]:
    height, width, _ = read_image(path).shape
    return height, width


def _facts(
    machine: MachineFacts,
    images: BenchmarkImages,
    plan: Plan,
    run: RunFolder | None,
    candidates: Sequence[Candidate],
) -> list[str]:
    flags = [flag for flag in ("avx2", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in machine.processor_flags]
    where = f"{machine.processor or machine.architecture}, {machine.cores_usable} cores, {' '.join(flags)}"
    load = f"{machine.load_average_start} before, {load_average()} after"
    facts = [f"Machine: {where}; {machine.system}; Python {machine.python}. Load average: {load}."]
    if run is not None:
        architecture = run.record.architecture
        size = f"{architecture.height} x {architecture.width}"
        facts.append(f"Model: `{architecture.preset}`, {size}, {run.record.settings.epochs} epochs.")
    record = images.record
    sizes = ", ".join(record.timing_image_sizes)
    facts.append(f"Images: {record.source}, {sizes}; {len(plan.files)} timed, {len(plan.judged)} judged.")
    facts.append(f"{plan.rounds} rounds, {plan.seconds:g} s for each loop, all candidates in turn in each round.")
    versions: dict[str, str] = {}
    for candidate in candidates:
        if candidate.environment is not None:
            versions |= candidate.environment.versions
    named = ("onnxruntime", "openvino", "anomalib", "torch", "torchvision")
    facts.append("Versions: " + ", ".join(f"{name} {versions[name]}" for name in named if name in versions) + ".")
    if any(candidate.environment is not None and candidate.environment.declare_operators for candidate in candidates):
        facts.append(
            "torchvision from this index is built for CUDA and does not load beside a torch for the CPU: two of its "
            "operators, which are not used here, are declared before anomalib is imported."
        )
    return facts


def _record(
    started: datetime,
    machine: MachineFacts,
    plan: Plan,
    rows: Sequence[Row],
    measured: Sequence[Measured],
    skipped: Sequence[str],
    facts: Sequence[str],
) -> dict[str, Any]:
    """Return everything as a value for JSON, raw samples included."""
    used: dict[str, Environment] = {}
    for entry in measured:
        if entry.candidate.environment is not None:
            used[entry.candidate.environment.name] = entry.candidate.environment
    return {
        "created_utc": started.isoformat(timespec="seconds"),
        "facts": list(facts),
        "machine": machine.model_dump(mode="json"),
        "plan": {"rounds": plan.rounds, "seconds": plan.seconds, "n_files": len(plan.files), "n_start": plan.n_start},
        "environments": {
            name: {"size_bytes": each.size_bytes, "versions": each.versions} for name, each in used.items()
        },
        "rows": [
            {
                "label": row.label,
                "image_auroc": row.auroc,
                "cells": {name: asdict(cell) for name, cell in row.cells.items()},
            }
            for row in rows
        ],
        "samples": [
            {
                "row": entry.candidate.row,
                "variant": entry.candidate.variant,
                "rounds": entry.samples,
                "scores": entry.scores,
                "failed_because": entry.failed_because,
            }
            for entry in measured
        ],
        "not_measured": list(skipped),
    }


def _tell(text: str) -> None:
    notes_console().print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_study(peers)
