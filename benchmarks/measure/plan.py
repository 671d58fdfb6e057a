"""The settings of a benchmark, the images that it times and judges, and the command that reproduces it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from vae_edge.benchmarks.measure.instruments import QUICK_RULES, MeasuringRules
from vae_edge.image import read_image
from vae_edge.records import Record
from vae_edge.train.data.inspection_set import ImageFile, InspectionSet, open_inspection_set, spread
from vae_edge.train.data.layout import describe_uses
from vae_edge.train.data.report import check_inspection_set
from vae_edge.train.data.sources import resolve_data


class SuiteSettings(Record):
    """How bundles are measured; the report repeats it."""

    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)
    arithmetic: Literal["fp32", "auto"] = "fp32"
    """`auto`: measure each bundle in the device's faster arithmetic too, where its references agree in it."""
    quick: bool = False
    """Shortened: good for trying things out, too short to compare machines."""
    rounds: int = Field(default=10, ge=1)
    """Times that each bundle is started afresh and measured, the bundles taking turns."""
    rules: MeasuringRules = MeasuringRules()
    """How long each latency is measured in each round."""
    throughput_s: float = Field(default=1.0, gt=0)
    """In each round, for each configuration."""
    requests: tuple[int, ...] = ()
    """Numbers of requests to measure the throughput with, besides the device's own choice."""
    batch_sizes: tuple[int, ...] = ()
    """Batch sizes to measure the throughput with, each with each of `requests`."""
    load_fps: tuple[float, ...] = ()
    """Rates of a paced source, images a second."""
    load_s: float = Field(default=3.0, gt=0)
    """In each round, for each rate."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """None: the time between two images of the paced source."""
    cold_starts: int = Field(default=3, ge=0)
    """Number of starts with an empty cache of compiled models, one in each of the first rounds."""
    n_memory_images: int = Field(default=16, ge=1)
    """Images that each fresh process predicts before its peak memory is read."""
    n_timing_images: int = Field(default=32, ge=1)
    """Images that the timed calls go through in rotation, at most."""
    reference: str | None = None
    """Name of the bundle whose verdicts the others are compared with; None: torch in FP32, or otherwise the first one
    in FP32, of the same training run."""
    baseline: str | None = None
    """Name of the bundle that ratios of speed and memory refer to; None: the reference of the first bundle."""
    simple_method: bool = False
    """Whether a method without a network is measured too."""
    n_examples: int = Field(default=3, ge=0)
    """Pictures of each kind (hit, miss, false alarm, flip) for each bundle."""
    worker_timeout_s: float = Field(default=1800.0, gt=0)
    """A measuring process is stopped after this time; rebuilding a TensorRT engine takes minutes."""

    @classmethod
    def make_quick(cls) -> SuiteSettings:
        """Return shortened settings."""
        return cls(
            quick=True,
            rounds=5,
            rules=QUICK_RULES,
            throughput_s=0.3,
            load_s=1.0,
            cold_starts=1,
            n_memory_images=8,
            n_timing_images=8,
        )


DEFAULT_DATA = "sample"

_JUDGED_WITHOUT_TEST = 64
"""Good parts of the training folder that outputs are compared on if there is no test set."""


@dataclass(frozen=True)
class BenchmarkImages:
    """The images, and what the report says about them."""

    timing: tuple[Path, ...]
    judged: tuple[ImageFile, ...]
    train: tuple[ImageFile, ...]
    has_labels: bool
    """Whether the judged images are test images of the part that the bundles are for."""
    record: DataRecord


def choose_images(data: str | Path | InspectionSet | None, n_timing_images: int) -> BenchmarkImages:
    """Open and check the data, and choose images from it.

    Args:
        data: a folder, `sample`, `sample:PRODUCT`, or an inspection set; None: the sample set, for its pixels alone.
            The bundles may not be for its product, so no accuracy is measured on it.
        n_timing_images: images to time with, at most; evenly spread over the test images, or otherwise the train
            images.

    Raises:
        InputError: the data cannot be used.
    """
    if isinstance(data, InspectionSet):
        source, opened = data.root.name, data
    else:
        text = DEFAULT_DATA if data is None else str(data)
        folder = resolve_data(text)
        opened = open_inspection_set(folder, can_name_folders=False)
        source = f"sample:{folder.name}" if text.partition(":")[0] == "sample" else folder.resolve().name
    checked, found = check_inspection_set(opened)
    judged = checked.test or spread(checked.train, _JUDGED_WITHOUT_TEST)
    timing = tuple(file.path for file in spread(checked.test or checked.train, n_timing_images))
    reason: str | None = None
    if data is None:
        source += ", used for its pixels because no data was given"
        reason = "no data was given, and the bundles were not trained for the sample images; give --data"
    elif not checked.test:
        reason = "the data has no test images: expected test/good and test/<defect> folders"
    n_anomalous = sum(file.is_anomalous for file in checked.test)
    return BenchmarkImages(
        timing=timing,
        judged=judged,
        train=checked.train,
        has_labels=reason is None,
        record=DataRecord(
            source=source,
            n_timing_images=len(timing),
            timing_image_sizes=_sizes(timing),
            n_judged=len(judged),
            judged="test images" if checked.test else "good parts of the training images",
            n_test_normal=len(checked.test) - n_anomalous,
            n_test_anomalous=n_anomalous,
            n_with_mask=sum(file.mask is not None for file in checked.test),
            no_accuracy_because=reason,
            notes=(*describe_uses(use for use in opened.uses if not use.is_used), *found.sentences(max_names=3)[1:]),
        ),
    )


def _sizes(paths: Sequence[Path]) -> tuple[str, ...]:
    shapes = {read_image(path).shape[:2] for path in paths}
    return tuple(f"{height}x{width}" for height, width in sorted(shapes))


class DataRecord(Record):
    """The images that were measured on."""

    source: str
    """The requested data, in words."""
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


def command_line(settings: SuiteSettings, source: str, bundles: Sequence[str], asked: Sequence[str] = ()) -> str:
    """Return the command line that repeats the benchmark, without the paths of the machine that it ran on.

    Args:
        settings: what was requested; every option that differs from its default is in the command.
        source: the data in words; a folder's name if it is a folder.
        bundles: names of the bundles.
        asked: the options that ask for a recommendation, see `vae_edge.benchmarks.report.choosing.options`.
    """
    default = SuiteSettings.make_quick() if settings.quick else SuiteSettings()
    words = ["vae-bench", *bundles, "--data", source.partition(",")[0], "--report", "REPORT"]
    words += ["--quick"] * settings.quick
    for name, value, usual in (
        ("--device", settings.device, default.device),
        ("--threads", settings.threads, default.threads),
        ("--arithmetic", settings.arithmetic, default.arithmetic),
        ("--rounds", settings.rounds, default.rounds),
        ("--round-time", settings.rules.round_s, default.rules.round_s),
        ("--reference", settings.reference, default.reference),
        ("--baseline", settings.baseline, default.baseline),
        ("--deadline-ms", settings.deadline_ms, default.deadline_ms),
        ("--requests", settings.requests, ()),
        ("--batch-sizes", settings.batch_sizes, ()),
        ("--load-fps", settings.load_fps, ()),
    ):
        if value != usual:
            values = value if isinstance(value, tuple) else (value,)
            words += [name, ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in values)]
    words += ["--simple-method"] * settings.simple_method
    return shlex.join([*words, *asked])
