"""The overhead of the Detector over the bare runtimes: `make bench-runtime`.

Single calls of both sides take turns within one process. Streams, starts and memory are measured in processes that take
turns in every round, so that a disturbance affects both sides. Each figure is the median over the rounds, with the
smallest and the largest.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cv2
import typer

from vae_edge.benchmarks.measure.conditions import MachineFacts, machine_facts
from vae_edge.benchmarks.measure.process import run_process
from vae_edge.benchmarks.studies import run_study
from vae_edge.benchmarks.studies.peers.candidates import Candidate, benchmark_app, onnxruntime_loops
from vae_edge.benchmarks.studies.peers.environments import Environment, make_own, packages_of, size_of
from vae_edge.benchmarks.studies.peers.models import LARGE, MEASURED, export_missing, train
from vae_edge.benchmarks.studies.peers.rounds import Measured, Plan, run_candidate, run_rounds
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.cli.console import notes_console
from vae_edge.errors import DeviceError, InputError
from vae_edge.image import read_image
from vae_edge.platform.atomic import write_text
from vae_edge.platform.machine import usable_cores
from vae_edge.targets import Target
from vae_edge.train.sample import write_sample_set

_FEW_IMAGES = 100
_BESIDE = "beside the bare runtime"

_STREAMS: dict[str, dict[str, Any]] = {
    "`stream`": {},
    "`stream` without asking whether pictures are inspectable": {"is_gated": False},
    "`stream` in batches of 4": {"batch_size": 4},
}
"""Ways to judge many pictures, each with the options of `measured_process`. The runtimes take them one by one."""
_STREAM = next(iter(_STREAMS))
_EXPORT = ("--max-auroc-drop", "1", "--max-flip-rate", "1", "--name", "edge")


@dataclass
class Ratio:
    """One comparison: ours and theirs in every round."""

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    goal: str = ""
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """Ours divided by theirs, round by round."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def row(self) -> str:
        """Return the line of the table."""
        spread = f"**{median(self.ratios):.3f}** ({min(self.ratios):.3f} to {max(self.ratios):.3f})"
        digits = 1 if self.unit == "images/s" else 3
        values = f"{median(self.ours):.{digits}f} | {median(self.theirs):.{digits}f}"
        return f"| {self.name} | {values} | {self.unit} | {spread} | {self.goal} | {self.note} |"


def overhead(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE...]", help="onnx and openvino bundles; default: make a model first."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the model and the results.")] = Path("bench"),
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of every comparison.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.05, help="Length of each loop in a round.")] = 4.0,
    images: Annotated[int, typer.Option(min=101, help="Images whose peak memory is compared with that of 100.")] = (
        10_000
    ),
    environments: Annotated[
        bool, typer.Option("--environments", help="Make environments with one runtime each and measure their size.")
    ] = False,
) -> None:
    """Measure the Detector against the bare runtimes: overhead, throughput, start and memory."""
    chosen = [Bundle.open(path) for place in bundles or [_made_bundles(out / "model")] for path in bundles_in(place)]
    opened = [bundle for bundle in chosen if bundle.manifest.target in (Target.ONNX, Target.OPENVINO)]
    if not opened:
        raise InputError("none of the bundles is for onnx or openvino; expected at least one of those")
    facts = machine_facts()
    here = Environment.here("this environment")
    with tempfile.TemporaryDirectory(prefix="vae-edge-runtime-") as scratch:
        files = _jpegs(Path(scratch), opened[0])
        plan = Plan(files, (), rounds, seconds, n_start=1, timeout_s=1800.0, scratch=Path(scratch))
        candidates = [candidate for bundle in opened for candidate in candidates_of(bundle, here)]
        measured = run_rounds(candidates, plan, _tell)
        failed = next((entry for entry in measured if entry.failed_because is not None), None)
        if failed is not None:
            raise DeviceError(f"{failed.candidate.name} failed: {failed.failed_because}")
        memory = [_memory(bundle, here, plan, images) for bundle in opened]
    sizes = _environment_sizes() if environments else []
    ratios = [ratio for bundle in opened for ratio in compare(bundle.manifest.name, measured)]
    starts = [_start(bundle.manifest.name, measured) for bundle in opened]
    text = _report(ratios, starts, _import_time(rounds), memory, sizes, facts)
    write_text(out / "overhead.md", text)
    content = [{"name": r.name, "unit": r.unit, "ours": r.ours, "theirs": r.theirs, "note": r.note} for r in ratios]
    write_text(out / "overhead.json", json.dumps({"machine": facts.model_dump(), "ratios": content}, indent=2) + "\n")
    print(text)  # noqa: T201 - a command's result
    _tell(f"Written: {out / 'overhead.md'}, {out / 'overhead.json'}")


def candidates_of(bundle: Bundle, here: Environment) -> list[Candidate]:
    """Return the processes of one bundle: the Detector beside the bare runtime, and the streams of both."""
    name, target, precision = bundle.manifest.name, bundle.manifest.target, bundle.manifest.precision
    row, model = f"{name}, bare", bundle.model_path
    if target is Target.OPENVINO:
        bare = Candidate(row, "latency", here, "process", model, "openvino", wanted=())
        theirs = [bare, benchmark_app(row, here, bundle, "throughput")]
    else:
        cores = usable_cores()
        # As in the bundle: threads that do not spin.
        options = {"threads": cores, "callers": 1, "spinning": False}
        bare = Candidate(row, "latency", here, "process", model, "onnxruntime", options, wanted=())
        sessions = {"threads": 1, "callers": cores, "sessions": cores, "spinning": False}
        several = Candidate(row, f"{cores} sessions on 1 thread", here, "process", model, "onnxruntime", sessions)
        theirs = [bare]
        theirs += [
            replace(each, row=row, wanted=("ready_per_s",))
            for each in (*onnxruntime_loops(here, precision, bundle), several)
        ]
    beside = {"tool": bare.tool, "model": str(model), "options": bare.options}
    latency = Candidate(name, _BESIDE, here, "process", bundle.folder, "vae-edge", {"hint": "latency"}, wanted=())
    streams = [
        Candidate(name, way, here, "process", bundle.folder, "vae-edge", options, wanted=("ready_per_s",))
        for way, options in _STREAMS.items()
    ]
    return [replace(latency, beside=beside), *streams, *theirs]


def compare(name: str, measured: Sequence[Measured]) -> list[Ratio]:
    """Return the comparisons of one bundle."""

    def values(row: str, variant: str, metric: str) -> list[float]:
        (entry,) = [e for e in measured if (e.candidate.row, e.candidate.variant) == (row, variant)]
        return [sample[metric] for sample in entry.samples]

    rates = {
        entry.candidate.variant: [sample["ready_per_s"] for sample in entry.samples]
        for entry in measured
        if entry.candidate.row == f"{name}, bare" and all("ready_per_s" in sample for sample in entry.samples)
    }
    # The best over all rounds: the best of each round would be the luckiest of several.
    best = max(rates, key=lambda layout: median(rates[layout]))
    to_ms = 1e3
    return [
        Ratio(
            f"{name}: `predict` of an array / bare call",
            "ms",
            values(name, _BESIDE, "call_ms"),
            values(name, _BESIDE, "bare_call_ms"),
            "at most 1.05",
        ),
        Ratio(
            f"{name}: `predict` of an array / without asking whether it is inspectable",
            "ms",
            values(name, _BESIDE, "call_ms"),
            values(name, _BESIDE, "ungated_call_ms"),
            "at most 1.05",
        ),
        Ratio(
            f"{name}: `predict` of a JPEG / imread + resize + bare call",
            "ms",
            values(name, _BESIDE, "file_call_ms"),
            values(name, _BESIDE, "bare_file_call_ms"),
            "at most 1.10",
        ),
        *(
            Ratio(
                f"{name}: {way} / the runtime's own throughput",
                "images/s",
                values(name, way, "ready_per_s"),
                rates[best],
                "at least 0.95",
                f"best: {best}",
            )
            for way in _STREAMS
        ),
        Ratio(
            f"{name}: first verdict / first result of the bare runtime",
            "ms",
            [to_ms * value for value in values(name, _STREAM, "first_result_s")],
            [to_ms * value for value in values(f"{name}, bare", "latency", "first_result_s")],
        ),
    ]


def _made_bundles(folder: Path) -> Path:
    run = train(folder / "run", "sample", LARGE, _tell)
    export_missing(run, folder / "bundles", _tell, _EXPORT)
    if len(bundles_in(folder / "bundles")) < len(MEASURED):
        raise DeviceError("vae-export failed; see above")
    return folder / "bundles"


def _jpegs(folder: Path, bundle: Bundle) -> tuple[str, ...]:
    """Write sample pictures as JPEGs of twice the model's size."""
    preparation = bundle.manifest.preparation
    write_sample_set(folder / "sample", ["dial"])
    files = []
    for number, path in enumerate(islice(sorted((folder / "sample").rglob("test/*/*.png")), 24)):
        picture = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
        files.append(str(folder / f"{number:02}.jpg"))
        cv2.imwrite(files[-1], cv2.resize(picture, (2 * preparation.width, 2 * preparation.height)))
    return tuple(files)


def _start(name: str, measured: Sequence[Measured]) -> str:
    """Return the row of a bundle's start, split into its parts."""
    (ours,) = [e.samples for e in measured if (e.candidate.row, e.candidate.variant) == (name, _STREAM)]
    (bare,) = [e.samples for e in measured if (e.candidate.row, e.candidate.variant) == (f"{name}, bare", "latency")]
    whole = 1e3 * median(sample["first_result_s"] for sample in ours)
    parts = [1e3 * median(sample[part] for sample in ours) for part in ("import_s", "open_s", "predict_s")]
    theirs = 1e3 * median(sample["first_result_s"] for sample in bare)
    return f"| {name} | " + " | ".join(f"{ms:.0f}" for ms in (whole, whole - sum(parts), *parts, theirs)) + " |"


def _memory(bundle: Bundle, here: Environment, plan: Plan, n_images: int) -> str:
    name = bundle.manifest.name
    _tell(f"{name}: memory over {n_images} images")
    candidate = Candidate(name, "memory", here, "process", bundle.folder, "vae-edge", {"hint": "throughput"}, wanted=())
    few, many = run_candidate(candidate, plan, memory_counts=(_FEW_IMAGES, n_images))["peaks"]
    if few is None or many is None:
        return f"| {name} | not known here | | |"
    return f"| {name} | {few / 2**20:.1f} | {many / 2**20:.1f} | {(many - few) / 2**20:+.1f} |"


def _import_time(rounds: int) -> str:
    """Return the time of `from vae_edge import Detector`, and the packages that take most of it."""
    use = "from vae_edge import Detector"
    script = f"import time; t = time.perf_counter(); {use}; print(time.perf_counter() - t)"
    values = [1e3 * float(run_process([sys.executable, "-c", script], 60.0).output) for _ in range(rounds + 1)][1:]
    with tempfile.TemporaryDirectory(prefix="vae-edge-imports-") as folder:
        log = Path(folder, "listing.txt")
        run_process([sys.executable, "-X", "importtime", "-c", use], 60.0, log=log)
        listing = log.read_text(encoding="utf-8")
    packages: dict[str, int] = {}
    for microseconds, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)", listing):
        packages[module] = packages.get(module, 0) + int(microseconds)
    largest = sorted(packages.items(), key=lambda item: -item[1])[:6]
    split = ", ".join(f"{package} {microseconds / 1e3:.0f}" for package, microseconds in largest)
    return (
        f"`{use}`: {median(values):.0f} ms ({min(values):.0f} to {max(values):.0f}); "
        f"the modules' own time in ms, measured by `-X importtime`, which slows them down: {split}."
    )


def _environment_sizes() -> list[str]:
    """Make environments with this package and one runtime each; return a row of the table for each."""
    rows = []
    for runtime in ("onnxruntime", "openvino"):
        with tempfile.TemporaryDirectory(prefix="vae-edge-environment-") as place:
            made = make_own(Path(place, "environment"), runtime, _tell)
            packages = packages_of(Path(place, "environment"))
            alone = sum(size_of(packages / name) for name in (runtime, f"{runtime}.libs"))
            rows.append(f"| `{made.name}` | {made.size_bytes / 1e6:.0f} | {alone / 1e6:.0f} |")
    return rows


def _report(
    ratios: Sequence[Ratio],
    starts: Sequence[str],
    imports: str,
    memory: Sequence[str],
    sizes: Sequence[str],
    facts: MachineFacts,
) -> str:
    lines = [
        f"Machine: {facts.processor}, {facts.cores_usable} cores, load {facts.load_average_start} at the start; "
        + ", ".join(f"{name} {version}" for name, version in facts.packages.items()),
        "",
        "| comparison | ours | theirs | unit | ratio: median (range of the rounds) | goal | |",
        "|---|---:|---:|---|---:|---|---|",
        *(ratio.row() for ratio in ratios),
        "",
        "First verdict on a file, ms from the start of the process, with the compiled model from the cache:",
        "",
        "| bundle | all | start of Python | import | open | predict | bare runtime |",
        "|---|---:|---:|---:|---:|---:|---:|",
        *starts,
        "",
        imports,
        "",
        "Peak of resident memory, MiB, of a process that streams JPEG files:",
        "",
        "| bundle | 100 images | all images | difference |",
        "|---|---:|---:|---:|",
        *memory,
    ]
    if sizes:
        lines += ["", "| environment with only | MB | of which the runtime |", "|---|---:|---:|", *sizes]
    return "\n".join(lines) + "\n"


def _tell(text: str) -> None:
    notes_console().print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_study(overhead)
