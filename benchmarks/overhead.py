"""What the Detector costs on top of the bare runtimes: `make bench-runtime`, `python -m vae_edge.benchmarks.overhead`.

All comparisons are made side by side in one run, in turns, so that what disturbs the machine disturbs both sides; each
figure is the median over rounds, with the smallest and the largest.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import cv2
import typer

from vae_edge.atomic import write_text
from vae_edge.benchmarks import bare_runtime
from vae_edge.benchmarks.environment_size import environment_sizes
from vae_edge.benchmarks.machine import machine_facts
from vae_edge.benchmarks.overhead_model import make_bundles
from vae_edge.bundle import Bundle, bundles_in
from vae_edge.cli.console import notes_console
from vae_edge.errors import DeviceError, InputError, VaeEdgeError
from vae_edge.image import read_image
from vae_edge.machine import usable_cores
from vae_edge.sample import write_sample_set
from vae_edge.targets import Target

_TARGETS = (Target.ONNX, Target.OPENVINO)
_MEMORY_COUNTS = (100, 10_000)


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
        """Ours by theirs, round by round."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    def row(self) -> str:
        """Return the line of the table."""
        spread = f"**{median(self.ratios):.3f}** ({min(self.ratios):.3f} to {max(self.ratios):.3f})"
        digits = 1 if self.unit == "images/s" else 3
        values = f"{median(self.ours):.{digits}f} | {median(self.theirs):.{digits}f}"
        return f"| {self.name} | {values} | {self.unit} | {spread} | {self.goal} | {self.note} |"


def main(
    bundles: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BUNDLE...]", help="onnx and openvino bundles; without any, a model is made first."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the model and the results.")] = Path("bench"),
    rounds: Annotated[int, typer.Option(min=3, help="Rounds of every comparison.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of a round of throughput.")] = 4.0,
    calls: Annotated[int, typer.Option(min=5, help="Calls of a round of latency.")] = 40,
    images: Annotated[int, typer.Option(min=101, help="Images whose peak memory is compared with that of 100.")] = (
        _MEMORY_COUNTS[1]
    ),
    environments: Annotated[
        bool, typer.Option("--environments", help="Make environments with one runtime each and measure their size.")
    ] = False,
) -> None:
    """Measure the Detector against the bare runtimes: overhead, throughput, start and memory."""
    notes = notes_console()
    chosen = [Bundle.open(path) for path in (bundles or [make_bundles(out / "model")]) for path in bundles_in(path)]
    opened = [bundle for bundle in chosen if bundle.manifest.target in _TARGETS]
    if not opened:
        raise InputError("none of the bundles is for onnx or openvino; expected at least one of those")
    facts = machine_facts()
    ratios: list[Ratio] = []
    memory: list[str] = []
    starts: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vae-edge-runtime-") as scratch:
        files = _jpegs(Path(scratch), opened[0])
        for bundle in opened:
            name = bundle.manifest.name
            notes.print(f"{name}: overhead", markup=False)
            ratios += _overhead(bundle, files, rounds, calls)
            notes.print(f"{name}: throughput", markup=False)
            ratios.append(_throughput(bundle, files, rounds, seconds))
            notes.print(f"{name}: start", markup=False)
            ratio, split = _start(bundle, files[0], rounds)
            ratios.append(ratio)
            starts.append(split)
            notes.print(f"{name}: memory over {images} images", markup=False)
            memory.append(_memory(bundle, files, images))
    sizes = environment_sizes(notes) if environments else []
    text = _report(ratios, starts, _import_time(rounds), memory, sizes, facts)
    write_text(out / "overhead.md", text)
    content = [{"name": r.name, "unit": r.unit, "ours": r.ours, "theirs": r.theirs, "note": r.note} for r in ratios]
    write_text(out / "overhead.json", json.dumps({"machine": facts.model_dump(), "ratios": content}, indent=2) + "\n")
    print(text)  # noqa: T201 - a command's result
    notes.print(f"Written: {out / 'overhead.md'}, {out / 'overhead.json'}", markup=False)


def _jpegs(folder: Path, bundle: Bundle) -> list[str]:
    """Write sample pictures as JPEGs of twice the model's size."""
    preparation = bundle.manifest.preparation
    write_sample_set(folder / "sample", ["dial"])
    found: Iterable[Path] = sorted((folder / "sample").rglob("test/*/*.png"))
    files = []
    for number, path in enumerate(islice(found, 24)):
        picture = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2BGR)
        file = folder / f"{number:02}.jpg"
        cv2.imwrite(str(file), cv2.resize(picture, (2 * preparation.width, 2 * preparation.height)))
        files.append(str(file))
    return files


def _overhead(bundle: Bundle, files: Sequence[str], rounds: int, calls: int) -> list[Ratio]:
    medians = _task("overhead", bundle=str(bundle.folder), images=list(files), rounds=rounds, calls=calls)
    name = bundle.manifest.name
    to_ms = {kind: [1e3 * value for value in values] for kind, values in medians.items()}
    return [
        Ratio(f"{name}: `predict` of an array / bare call", "ms", to_ms["predict"], to_ms["bare"], "at most 1.05"),
        Ratio(
            f"{name}: `predict` of a JPEG / imread + resize + bare call",
            "ms",
            to_ms["predict_file"],
            to_ms["bare_file"],
            "at most 1.10",
        ),
    ]


def _throughput(bundle: Bundle, files: Sequence[str], rounds: int, seconds: float) -> Ratio:
    """Compare `stream` on prepared images with the engine's own throughput mode, in processes that take turns."""
    theirs = "benchmark_app" if bundle.manifest.target is Target.OPENVINO else "bare sessions"
    ratio = Ratio(f"{bundle.manifest.name}: `stream` / {theirs}", "images/s", goal="at least 0.95")
    layouts: dict[str, list[float]] = {}
    for _ in range(rounds):
        for side in random.sample(["ours", "theirs"], 2):
            if side == "ours":
                found = _task("stream", bundle=str(bundle.folder), images=list(files), seconds=seconds)
                ratio.ours.append(found["images_per_s"])
            elif bundle.manifest.target is Target.OPENVINO:
                ratio.theirs.append(_benchmark_app(bundle, seconds))
            else:
                found = _task("onnxruntime_throughput", bundle=str(bundle.folder), images=list(files), seconds=seconds)
                for layout, rate in found.items():
                    layouts.setdefault(layout, []).append(rate)
    if layouts:
        # The best over all rounds: the best of each round would be the luckiest of four.
        best = max(layouts, key=lambda layout: median(layouts[layout]))
        ratio.theirs, ratio.note = layouts[best], f"best: {best}"
    return ratio


def _benchmark_app(bundle: Bundle, seconds: float) -> float:
    """Return images/s of OpenVINO's own tool in its throughput mode, for one image at a time as in the bundle."""
    size = bundle.manifest.preparation
    command = [sys.executable, "-c", bare_runtime.BENCHMARK_APP, "-m", str(bundle.model_path), "-d", "CPU"]
    command += ["-hint", "throughput", "-shape", f"image[1,{size.height},{size.width},3]", "-infer_precision", "f32"]
    done = subprocess.run([*command, "-t", str(max(1, round(seconds)))], capture_output=True, text=True, check=False)
    match = re.search(r"Throughput:\s+([\d.]+)\s+FPS", done.stdout)
    if match is None:
        raise DeviceError(f"benchmark_app gave no throughput: {(done.stderr or done.stdout).strip()[-300:]}")
    return float(match[1])


def _start(bundle: Bundle, file: str, rounds: int) -> tuple[Ratio, str]:
    """Compare the time from the start of a process to its first result; ours decodes a file as well."""
    size = bundle.manifest.preparation
    runtime = "openvino" if bundle.manifest.target is Target.OPENVINO else "onnxruntime"
    bare = [sys.executable, bare_runtime.__file__, runtime, str(bundle.model_path), str(size.height), str(size.width)]
    bare.append(str(usable_cores()))
    ratio = Ratio(f"{bundle.manifest.name}: first verdict / first result of the bare runtime", "ms")
    arguments = {"bundle": str(bundle.folder), "image": file, "cache": True}
    splits: list[dict[str, Any]] = []
    for number in range(rounds + 1):
        for side in random.sample(["ours", "theirs"], 2):
            command = _command("first", **arguments) if side == "ours" else bare
            first_s, rest = _first_result(command)
            if number:  # The first ones fill the file system's cache and that of compiled models.
                (ratio.ours if side == "ours" else ratio.theirs).append(1e3 * first_s)
                splits += [json.loads(rest)] if side == "ours" else []
    parts = {name: 1e3 * median(split[name] for split in splits) for name in ("import_s", "open_s", "predict_s")}
    others = median(ratio.ours) - sum(parts.values())
    return ratio, (
        f"| {bundle.manifest.name} | {median(ratio.ours):.0f} | {others:.0f} | {parts['import_s']:.0f} | "
        f"{parts['open_s']:.0f} | {parts['predict_s']:.0f} | {median(ratio.theirs):.0f} |"
    )


def _first_result(command: list[str]) -> tuple[float, str]:
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.strip() == bare_runtime.FIRST_RESULT:
                first_s = time.perf_counter() - begin
                return first_s, process.stdout.read()
        raise DeviceError(f"a process gave no first result: {process.stderr.read().strip()[-300:]}")


def _import_time(rounds: int) -> str:
    """Return what `from vae_edge import Detector` costs, and the packages in it that cost most."""
    script = "import time; t = time.perf_counter(); from vae_edge import Detector; print(time.perf_counter() - t)"
    times = []
    for _ in range(rounds + 1):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        times.append(float(done.stdout))
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from vae_edge import Detector"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    packages: dict[str, int] = {}
    for line in listing.splitlines():
        match = re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", line)
        if match:
            package = match[2].split(".")[0]
            packages[package] = packages.get(package, 0) + int(match[1])
    largest = sorted(packages.items(), key=lambda item: -item[1])[:6]
    split = ", ".join(f"{package} {microseconds / 1e3:.0f}" for package, microseconds in largest)
    values = [1e3 * value for value in times[1:]]
    return (
        f"`from vae_edge import Detector`: {median(values):.0f} ms ({min(values):.0f} to {max(values):.0f}); "
        f"the modules' own time in ms, measured by `-X importtime`, which slows them: {split}."
    )


def _memory(bundle: Bundle, files: Sequence[str], n_images: int) -> str:
    counts = [_MEMORY_COUNTS[0], n_images]
    peaks = _task("memory", bundle=str(bundle.folder), images=list(files), counts=counts)["peak_bytes"]
    few, many = (peaks[str(count)] for count in counts)
    if few is None or many is None:
        return f"| {bundle.manifest.name} | not known here | | |"
    return f"| {bundle.manifest.name} | {few / 2**20:.1f} | {many / 2**20:.1f} | {(many - few) / 2**20:+.1f} |"


def _command(task: str, **arguments: Any) -> list[str]:
    return [sys.executable, "-m", "vae_edge.benchmarks.overhead_worker", task, json.dumps(arguments)]


def _task(task: str, **arguments: Any) -> dict[str, Any]:
    done = subprocess.run(_command(task, **arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"measuring failed: {done.stderr.strip()[-400:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _report(
    ratios: Sequence[Ratio],
    starts: Sequence[str],
    imports: str,
    memory: Sequence[str],
    sizes: Sequence[str],
    facts: Any,
) -> str:
    lines = [
        f"Machine: {facts.processor}, {facts.cores_usable} cores, load {facts.load_average_start} at the start; "
        + ", ".join(f"{name} {version}" for name, version in facts.packages.items()),
        "",
        "| comparison | ours | theirs | unit | ratio: median (range of the rounds) | goal | |",
        "|---|---:|---:|---|---:|---|---|",
        *(ratio.row() for ratio in ratios),
        "",
        "First verdict, ms from the start of the process, decoding a file included; compiled model from the cache:",
        "",
        "| bundle | all | start of Python | import | open | predict | bare runtime, no file |",
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


if __name__ == "__main__":
    try:
        typer.run(main)
    except VaeEdgeError as error:
        sys.exit(f"error: {error}")
