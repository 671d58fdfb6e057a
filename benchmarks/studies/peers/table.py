"""From the samples of all rounds to one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from vae_edge.benchmarks.report.figures import ABSENT, MIB, share, three_digits
from vae_edge.benchmarks.studies.peers.environments import Environment
from vae_edge.benchmarks.studies.peers.rounds import Measured
from vae_edge.train.run.metrics import image_auroc

_FORMS: dict[str, tuple[str, Callable[[float], str]]] = {
    "files_per_s": ("images/s, files", three_digits),
    "ready_per_s": ("images/s, ready", three_digits),
    "file_p50_ms": ("p50 file ms", three_digits),
    "engine_p50_ms": ("p50 engine ms", three_digits),
    "first_result_s": ("first verdict s", three_digits),
    "peak_bytes": ("peak MiB", lambda value: three_digits(value / MIB)),
}
"""Heading and form of every metric, by its name in a round's samples."""

COLUMNS = (
    "**images/s, files**: from image files to verdicts, decoding and resizing included, by the fastest call that the "
    "tool has: `Detector.stream`, several callers, or for anomalib one caller.",
    "**images/s, ready**: the same from images in memory, ready for the tool (for anomalib of the file's size: it "
    "resizes inside its model). benchmark_app and trtexec time only the engine, on random pixels.",
    "**p50 file**: median of one call, image file to verdict, one after the other.",
    "**p50 engine**: median of the engine alone, host array in to host array out.",
    "**first verdict**: from the start of the process to its first verdict, with warm caches. For benchmark_app it is "
    "the first inference, on random pixels.",
    "**peak**: the most memory the process held, over the first images; for benchmark_app over its whole run.",
    "**environment**: all files in the site-packages of an environment with that tool only, without pip and without "
    "bytecode. A bare runtime is measured in vae-edge's environment, so it has no size of its own here.",
    "**benchmark_app** computes in FP32 like the others; with its default arithmetic OpenVINO takes bfloat16 where the "
    "processor has it, and so does anomalib by default. It compiles the model anew in each process.",
    "**anomalib** has the same weights in a model of its own, exported with its pre-processing and post-processing. By "
    "default: images of any size, device AUTO. fp32 and int8: the CPU plugin, floating-point layers in FP32, exported "
    "for the size of these images where they have one. int8 is its own post-training quantization, on the good parts "
    "of the training images.",
    "Each figure is the median over the rounds, followed by half the distance from the smallest to the largest.",
)


@dataclass(frozen=True)
class Cell:
    """One metric of a row."""

    median: float
    half_range: float
    """Half of largest less smallest, as a share of the median."""
    variant: str
    """The variant of the row that it comes from: the best one."""


@dataclass
class Row:
    """One line of the table."""

    label: str
    cells: dict[str, Cell] = field(default_factory=dict)
    environment: Environment | None = None
    auroc: float | None = None
    failures: list[str] = field(default_factory=list)


def make_rows(measured: Sequence[Measured], labels: Sequence[bool]) -> list[Row]:
    """Return a row for each tool and model.

    Of a row's variants each metric takes the best: the highest rate, the shortest median; start and memory are those
    of the variant with the shortest median of a file, or of the engine where there are no files.

    Args:
        measured: from `run_rounds`.
        labels: of the judged images: whether each is anomalous.
    """
    rows: dict[str, Row] = {}
    for entry in measured:
        rows.setdefault(entry.candidate.row, Row(entry.candidate.row))
    for label, row in rows.items():
        variants = [entry for entry in measured if entry.candidate.row == label]
        row.failures = [f"{each.candidate.name}: {each.failed_because}" for each in variants if each.failed_because]
        whole = [each for each in variants if each.failed_because is None and each.samples]
        if not whole:
            continue
        row.environment = _own_environment(whole[0])
        row.auroc = next((image_auroc(labels, each.scores) for each in whole if each.scores), None)
        for metric in _FORMS:
            best = _best(whole, metric)
            if best is not None:
                row.cells[metric] = best
        latency = row.cells.get("file_p50_ms") or row.cells.get("engine_p50_ms")
        if latency is not None:
            quickest = [each for each in whole if each.candidate.variant == latency.variant]
            for metric in ("first_result_s", "peak_bytes"):
                cell = _best(quickest, metric)
                if cell is not None:
                    row.cells[metric] = cell
    return list(rows.values())


def _own_environment(entry: Measured) -> Environment | None:
    return entry.candidate.environment if entry.candidate.tool in ("vae-edge", "anomalib") else None


def _best(variants: Iterable[Measured], metric: str) -> Cell | None:
    cells = []
    for each in variants:
        values = [sample[metric] for sample in each.samples if metric in sample]
        if values:
            middle = median(values)
            cells.append(Cell(middle, (max(values) - min(values)) / 2 / middle, each.candidate.variant))
    if not cells:
        return None
    choose = max if metric.endswith("_per_s") else min
    return choose(cells, key=lambda cell: cell.median)


def to_markdown(rows: Sequence[Row], facts: Sequence[str], skipped: Sequence[str]) -> str:
    """Return the table, what was measured, and what was not."""
    lines = ["# The same weights in other tools", ""]
    lines += [f"* {fact}" for fact in facts]
    headers = ["candidate", *(heading for heading, _ in _FORMS.values()), "environment MB", "image AUROC"]
    lines += ["", f"| {' | '.join(headers)} |", "|---" + "|---:" * (len(headers) - 1) + "|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    lines += ["", *[f"* {text}" for text in COLUMNS]]
    layouts = _layouts(rows)
    if layouts:
        lines += ["", "If a tool has several layouts, the table has the best one:", "", *layouts]
    missing = [*skipped, *[failure for row in rows for failure in row.failures]]
    if missing:
        lines += ["", "Not measured:", "", *[f"* {reason}" for reason in missing]]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    environment = row.environment
    return [
        row.label,
        *(_figure(row.cells.get(metric), form) for metric, (_, form) in _FORMS.items()),
        ABSENT if environment is None else f"{environment.size_bytes / 1e6:.0f}",
        ABSENT if row.auroc is None else share(row.auroc),
    ]


def _figure(cell: Cell | None, form: Callable[[float], str]) -> str:
    return ABSENT if cell is None else f"{form(cell.median)} ±{cell.half_range:.0%}"


def _layouts(rows: Sequence[Row]) -> list[str]:
    names = {"files_per_s": "images/s from files", "ready_per_s": "images/s ready", "file_p50_ms": "p50 of a file"}
    lines = []
    for row in rows:
        chosen = {text: row.cells[metric].variant for metric, text in names.items() if metric in row.cells}
        if any(chosen.values()) and "file_p50_ms" in row.cells:
            lines.append(f"* {row.label}: " + "; ".join(f"{text}: {variant}" for text, variant in chosen.items()))
    return lines
