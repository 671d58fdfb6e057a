"""The results of a benchmark, as data: the layout of report.json and the recommendation. See `files` for reading it."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from vae_edge.benchmarks.measure.conditions import MachineFacts
from vae_edge.benchmarks.measure.plan import DataRecord, SuiteSettings
from vae_edge.benchmarks.measure.statistics import Ratio
from vae_edge.benchmarks.report.records.accuracy import AccuracyRecord, Comparison, ImageExample, SimpleMethodRecord
from vae_edge.benchmarks.report.records.speed import (
    EnergyRecord,
    LatencyRecord,
    LoadRecord,
    MemoryRecord,
    RoundRecord,
    StageRecord,
    StartRecord,
    ThroughputRecord,
)
from vae_edge.detectability import Detectability
from vae_edge.manifest import ParityRecord
from vae_edge.records import Record, Sha256
from vae_edge.targets import Precision, Target

REPORT_SCHEMA_VERSION: Final = 2
"""Version of the report's layout. History: 1 (first), 2 (rounds, intervals, stages, load, energy, curves, pictures, the
recommendation, and the samples' SHA-256; an older report has no rounds to compute an interval from and is refused)."""

REPORT_FORMAT: Final = "vae-edge benchmark report"

REPORT_FILE = "report.json"

MARKDOWN_FILE = "report.md"

HTML_FILE = "report.html"

SAMPLES_FOLDER = "samples"

IMAGES_FOLDER = "images"


class SamplesFile(Record):
    """The raw samples of one bundle, next to the report."""

    name: str
    """Relative to the report, such as `samples/tile-onnx-fp32.json`."""
    sha256: Sha256


class BundleResult(Record):
    """One row: a bundle's numbers, or the reason why it has none."""

    name: str
    target: Target | None = None
    precision: Precision | None = None
    height: int | None = None
    width: int | None = None
    run: str | None = None
    """Name of the training run."""
    run_fingerprint: str | None = None
    model_sha256: Sha256 | None = None
    """Hash over all model files: if it is equal in two reports, it is the same model."""
    size_bytes: int | None = None
    """All files that the manifest names."""
    not_run_because: str | None = None
    device: str | None = None
    """What the runtime actually runs on."""
    device_reason: str | None = None
    arithmetic: str | None = None
    """What it computed in where that is less than its precision asks for, such as `bfloat16`; absent elsewhere."""
    runtime: str | None = None
    layout: str | None = None
    """Requests, threads and batch in use, in words."""
    notes: tuple[str, ...] = ()
    """What the backend reports about how it was loaded."""
    start: StartRecord | None = None
    memory: MemoryRecord | None = None
    latency: LatencyRecord | None = None
    stages: StageRecord | None = None
    throughput: ThroughputRecord | None = None
    load: tuple[LoadRecord, ...] = ()
    energy: EnergyRecord | None = None
    rounds: tuple[RoundRecord, ...] = ()
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    """Ratios to the baseline, by the metric's name (see `vae_edge.benchmarks.report.figures`); empty for the
    baseline."""
    accuracy: AccuracyRecord | None = None
    comparison: Comparison | None = None
    """Against the reference, measured here; absent for the reference itself."""
    is_reference: bool = False
    is_baseline: bool = False
    exported_parity: ParityRecord | None = None
    """What the export wrote into the bundle."""
    references_agree: bool | None = None
    """Whether the bundle gave its reference outputs here; absent for a bundle that is older than references."""
    references: tuple[str, ...] = ()
    """How far it was from them, a line for each measure."""
    detectability: Detectability | None = None
    """The shares of pasted defects that the run finds, from the manifest; absent in bundles older than this
    measurement."""
    samples: SamplesFile | None = None

    @property
    def has_run(self) -> bool:
        """Whether there are numbers."""
        return self.not_run_because is None


class Report(Record):
    """All results of a benchmark."""

    format: Literal["vae-edge benchmark report"] = REPORT_FORMAT
    schema_version: Literal[2] = REPORT_SCHEMA_VERSION
    created_utc: str
    elapsed_s: float = Field(ge=0)
    interrupted_because: str | None = None
    """Why the benchmark ended early; the figures come from complete rounds."""
    reproduce: str
    """The command line that repeats the benchmark, with names instead of paths."""
    settings: SuiteSettings
    machine: MachineFacts
    data: DataRecord
    recommendation: Recommendation | None = None
    """None where no bundle ran."""
    baseline: str | None = None
    """Name of the bundle that ratios refer to."""
    reference_notes: tuple[str, ...] = ()
    """Which bundle is the reference of which, and why."""
    bundles: tuple[BundleResult, ...]
    simple_methods: tuple[SimpleMethodRecord, ...] = ()
    examples: tuple[ImageExample, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def any_ran(self) -> bool:
        """Whether at least one bundle has numbers."""
        return any(bundle.has_run for bundle in self.bundles)

    def bundle(self, name: str) -> BundleResult:
        """Return a bundle's row by its name; KeyError where there is none."""
        return {bundle.name: bundle for bundle in self.bundles}[name]

    def to_json(self) -> str:
        """Return the report as JSON; what was not measured is left out."""
        return self.model_dump_json(exclude_none=True, indent=2) + "\n"


Operator = Literal[">=", "<=", ">", "<"]


class Requirement(Record):
    """A limit that a bundle must keep to, such as p99_ms <= 40."""

    metric: str
    operator: Operator
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {self.operator} {self.limit:g}"


class Objective(Record):
    """The metric by which the best of the bundles that fit is chosen."""

    metric: str
    direction: Literal["minimize", "maximize"]

    def __str__(self) -> str:
        return f"{self.direction} {self.metric}"


class Judgement(Record):
    """The judgement of one bundle."""

    bundle: str
    fits: bool
    """Whether it meets every requirement."""
    objective_value: float | None = None
    reasons: tuple[str, ...] = ()
    """Why it does not fit, or why another one is better."""
    caveats: tuple[str, ...] = ()
    """Limits that it meets or misses by less than the measurement's uncertainty."""


class Recommendation(Record):
    """The recommendation of the benchmark."""

    chosen: str | None = None
    """Name of the bundle; None: none fits."""
    rule: str
    """How it was chosen, in words."""
    is_default_rule: bool
    """Whether no requirements and no objective were given."""
    requirements: tuple[Requirement, ...] = ()
    objective: Objective
    why: str
    """One or two sentences."""
    judgements: tuple[Judgement, ...]
    """Of every bundle, in the order of the report."""
