"""What a benchmark found, as data: the report's layout, reading it, and writing it beside its raw samples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from vae_edge.atomic import check_place, write_text
from vae_edge.benchmarks.accuracy import BaselineRecord, Comparison
from vae_edge.benchmarks.latency import LatencyStatistics
from vae_edge.benchmarks.machine import MachineFacts
from vae_edge.benchmarks.settings import SuiteSettings
from vae_edge.errors import InputError
from vae_edge.manifest import ParityRecord
from vae_edge.records import Record, read_record
from vae_edge.targets import Precision, Target
from vae_edge.train.metrics import Metrics

REPORT_SCHEMA_VERSION: Final = 1
"""Version of the report's layout. History: 1 (first)."""

REPORT_FORMAT: Final = "vae-edge benchmark report"
REPORT_FILE = "report.json"
MARKDOWN_FILE = "report.md"
SAMPLES_FOLDER = "samples"

Samples = Mapping[str, Any]
"""Raw samples of one bundle, integers in nanoseconds."""


class LatencyRecord(Record):
    """Latencies of one image at a time, each measured on its own."""

    engine: LatencyStatistics
    """`Backend.run`: the prepared image on the host in, anomaly map and score on the host out."""
    predict: LatencyStatistics
    """`Detector.predict` of a decoded image at its own size: resizing, engine, verdict."""
    file: LatencyStatistics
    """`Detector.predict` of an image file: reading, decoding, resizing, engine, verdict."""
    decode: LatencyStatistics
    """Reading and decoding an image file alone."""
    resize: LatencyStatistics
    """Resizing a decoded image to the model's size alone."""


class ThroughputRecord(Record):
    """Verdicts in a second of `Detector.stream` over image files, in a run of its own."""

    images_per_s: float = Field(gt=0)
    n_images: int = Field(ge=1)
    elapsed_s: float = Field(gt=0)


class StartRecord(Record):
    """From starting a fresh Python process to the first verdict on a file; nearest-rank medians of `n_starts`."""

    n_starts: int = Field(ge=1)
    first_result_s: float
    """Measured from outside: from before the process is created until its first verdict is known."""
    import_s: float
    """Inside the process: importing `vae_edge.detector`."""
    open_s: float
    """Inside: checking the bundle's files, importing the runtime and loading the model."""
    first_predict_s: float
    """Inside: the first verdict on a file."""


class MemoryRecord(Record):
    """Physical memory of a process that opens the bundle and predicts image files one by one; host memory only."""

    peak_resident_bytes: int
    """The largest of the measured starts."""
    before_open_bytes: int | None = None
    """What Python and this library had needed before the bundle was opened."""
    n_images: int = Field(ge=1)


class BundleResult(Record):
    """One row: a bundle's numbers, or why it has none."""

    name: str
    target: Target | None = None
    precision: Precision | None = None
    height: int | None = None
    width: int | None = None
    run: str | None = None
    """Name of the training run."""
    run_fingerprint: str | None = None
    size_bytes: int | None = None
    """All files that the manifest names."""
    not_run_because: str | None = None
    device: str | None = None
    runtime: str | None = None
    start: StartRecord | None = None
    memory: MemoryRecord | None = None
    latency: LatencyRecord | None = None
    throughput: ThroughputRecord | None = None
    accuracy: Metrics | None = None
    comparison: Comparison | None = None
    """Against the reference, measured here; absent for the reference itself."""
    is_reference: bool = False
    exported_parity: ParityRecord | None = None
    """What the export wrote into the bundle."""
    samples_file: str | None = None
    """Raw samples, relative to the report."""

    @property
    def has_run(self) -> bool:
        """Whether there are numbers."""
        return self.not_run_because is None


class DataRecord(Record):
    """The images that were measured on."""

    source: str
    """What was asked for, in words."""
    n_timing_images: int = Field(ge=1)
    timing_image_sizes: tuple[str, ...]
    """Height x width of the images that were timed."""
    n_judged: int = Field(ge=0)
    judged: str
    """What images scores and maps were compared on, in words."""
    n_test_normal: int = Field(ge=0)
    n_test_anomalous: int = Field(ge=0)
    n_with_mask: int = Field(ge=0)
    no_accuracy_because: str | None = None
    notes: tuple[str, ...] = ()


class Report(Record):
    """Everything a benchmark found."""

    format: Literal["vae-edge benchmark report"] = REPORT_FORMAT
    schema_version: Literal[1] = REPORT_SCHEMA_VERSION
    created_utc: str
    settings: SuiteSettings
    machine: MachineFacts
    data: DataRecord
    reference_notes: tuple[str, ...] = ()
    """Which bundle is the reference of which, and why."""
    bundles: tuple[BundleResult, ...]
    baselines: tuple[BaselineRecord, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def any_ran(self) -> bool:
        """Whether at least one bundle has numbers."""
        return any(bundle.has_run for bundle in self.bundles)

    def to_json(self) -> str:
        """Return the report as JSON; what was not measured is left out."""
        return self.model_dump_json(exclude_none=True, indent=2) + "\n"


def read_report(path: Path) -> Report:
    """Read a `report.json`, or the one in a folder.

    Raises:
        InputError: there is none, it is no report, or it was written by a newer version.
    """
    path = path / REPORT_FILE if path.is_dir() else path
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a benchmark report ({error}); give one that vae-bench wrote"
        ) from error
    if not isinstance(content, dict) or content.get("format") != REPORT_FORMAT:
        raise InputError(f"{path} is not a benchmark report; give a {REPORT_FILE} that vae-bench wrote")
    return read_record(path, Report, REPORT_SCHEMA_VERSION, advice="run vae-bench again", error_kind=InputError)


def check_report_folder(folder: Path) -> None:
    """Refuse, before anything is measured, a folder that holds something other than an earlier report.

    Raises:
        InputError: with what is there.
    """
    if folder.is_dir() and (not any(folder.iterdir()) or _is_report(folder)):
        return
    check_place(folder.parent)
    if folder.exists() or folder.is_symlink():
        raise InputError(
            f"{folder} is already there and is no earlier benchmark report; choose another folder or move it away"
        )


def write_report(folder: Path, report: Report, markdown: str, samples: Mapping[str, Samples]) -> None:
    """Write the report, replacing an earlier one: its files, and nothing else that lies beside them.

    Args:
        folder: made if it is missing.
        report: what was found.
        markdown: the same for people.
        samples: raw samples by the file name that the report gives (`BundleResult.samples_file`).

    Raises:
        InputError: the folder holds something else or cannot be written.
    """
    check_report_folder(folder)
    old = _sample_files(folder)
    for name, content in samples.items():
        write_text(folder / name, json.dumps(content) + "\n")
    write_text(folder / MARKDOWN_FILE, markdown)
    # Last, so that a report.json always has its samples beside it.
    write_text(folder / REPORT_FILE, report.to_json())
    for name in old - set(samples):
        (folder / name).unlink(missing_ok=True)


def sample_file_name(bundle_name: str, taken: Sequence[str]) -> str:
    """Return a file name for a bundle's raw samples that no other bundle has."""
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", bundle_name).strip(".-") or "bundle"
    names = (f"{SAMPLES_FOLDER}/{stem}{suffix}.json" for suffix in ("", *(f"-{n}" for n in range(2, len(taken) + 3))))
    return next(name for name in names if name not in taken)


def _is_report(folder: Path) -> bool:
    try:
        content = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == REPORT_FORMAT


def _sample_files(folder: Path) -> set[str]:
    """Return the sample files that an earlier report in the folder names."""
    if not folder.is_dir() or not _is_report(folder):
        return set()
    try:
        report = read_report(folder)
    except InputError:
        return set()
    names = {bundle.samples_file for bundle in report.bundles if bundle.samples_file is not None}
    return {name for name in names if re.fullmatch(rf"{SAMPLES_FOLDER}/[A-Za-z0-9_.-]+\.json", name)}
